"""What can be wrong with a trace.

::

    Exception
    ├── TraceError           of the file nothing can be used
    └── LineError            one line cannot be used; the rest can
        └── AheadError       its time is far ahead: bad, where the next line speaks against it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

_SHOWN = 60
#: Of a file's bad lines so many are named; the others are counted.
BAD_LINES_MAX = 1000


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
    text = "".join(islice(_pieces(value), _SHOWN + 1))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _pieces(value: object) -> Iterator[str]:
    """Its ``repr``, piece by piece: of a value of megabytes, the first are enough."""
    if isinstance(value, str):
        yield repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN])
    elif isinstance(value, dict):
        yield "{"
        for number, (key, inner) in enumerate(value.items()):
            if number:
                yield ", "
            yield from _pieces(key)
            yield ": "
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for number, inner in enumerate(value):
            if number:
                yield ", "
            yield from _pieces(inner)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value) if isinstance(value, int | float) or value is None else str(value)


def listed(names: list[str]) -> str:
    """Some of ``names``, for a message."""
    some = ", ".join(map(shown, names[:4]))
    return f"{some} and {len(names) - 4} more" if len(names) > 4 else some or "none"
