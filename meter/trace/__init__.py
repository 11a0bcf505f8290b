"""The trace format: what the sources saw, as JSON Lines.

The first line is ``meta``; times are seconds with up to nine decimals, read and written as exact
nanoseconds. Files ending in ``.gz`` or ``.zst`` are compressed. Reading never stops at a bad line:
it is reported by number and reason, and the rest is used.
"""

from __future__ import annotations

from meter.trace.errors import BAD_LINES_MAX, BadLine, LineError, TraceError
from meter.trace.reading import Trace, TraceReader, collection_paused, read_trace
from meter.trace.writing import TraceWriter

__all__ = [
    "BAD_LINES_MAX",
    "BadLine",
    "LineError",
    "Trace",
    "TraceError",
    "TraceReader",
    "TraceWriter",
    "collection_paused",
    "read_trace",
]
