"""What can be wrong with a trace.

::

    Exception
    ├── TraceError           of the file nothing can be used
    └── LineError            one line cannot be used; the rest can
        └── AheadError       its time is far ahead: bad, where the next line speaks against it
"""

from __future__ import annotations

import json
from typing import NamedTuple

_SHOWN = 60


class TraceError(Exception):
    """A trace of which nothing can be used; the message says why and what to do."""


class LineError(ValueError):
    """One line that cannot be used; the message names the field."""


class AheadError(LineError):
    """A line whose time is far ahead of all lines before it, or that is the first."""


class BadLine(NamedTuple):
    """A line that was not used, by its number (from 1), and why."""

    number: int
    reason: str


def shown(value: object) -> str:
    """``value`` as it may stand in a message: as in the file where that can be, and short."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    text = repr(value) if isinstance(value, (str, int, float, list, tuple, dict)) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def listed(names: list[str]) -> str:
    """Some of ``names``, for a message."""
    some = ", ".join(map(shown, names[:4]))
    return f"{some} and {len(names) - 4} more" if len(names) > 4 else some or "none"
