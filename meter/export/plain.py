"""Values that JSON, UTF-8 and Prometheus can carry: what cannot be said is left out, counted, and
never makes an answer fail in which all else is right.

What comes from an engine, a trace or a calculation may hold half characters (``\\ud800``),
not-a-number, infinities, integers beyond every float, a library's scalars.
"""

from __future__ import annotations

import json
import math
import numbers
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

import structlog
from starlette.responses import JSONResponse

T = TypeVar("T")
_NAMED_MAX = 100
_LONGEST = 50


class LeftOut:
    """Counts what could not be said. Each field is named once in the log. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: set[str] = set()
        self.count = 0

    def note(self, field: str) -> None:
        """A value of ``field`` (a key, a metric's name) was left out, or its text mended."""
        field = text(field)[:_LONGEST]
        with self._lock:
            self.count += 1
            if field in self._named or len(self._named) >= _NAMED_MAX:
                return
            self._named.add(field)
        structlog.get_logger("joulemeter.http").warning(
            "value_left_out",
            field=field,
            reason="no finite number, or text that UTF-8 cannot carry",
            remedy="the rest is served; joulemeter_values_left_out_total counts: please report it",
        )


def text(value: str) -> str:
    """With each half character as U+FFFD, as a decoder would put it."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def figure(value: object) -> float | None:
    """A finite float; ``None`` where it is none."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def known(work_out: Callable[[], T]) -> T | None:
    """What is worked out; ``None`` where its figures are none that can be reckoned with."""
    try:
        return work_out()
    except (ArithmeticError, TypeError, ValueError):
        return None


def dumps(value: Any, left_out: LeftOut) -> bytes:
    """Compact JSON in UTF-8. Never raises for what a value is; ``null`` where it has no JSON."""
    try:
        return _encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _encode(_plain(value, "", left_out, 0))


def _encode(value: Any) -> bytes:
    told = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return told.encode("utf-8")


class JsonAnswer(JSONResponse):
    """A JSON response whose values may be anything."""

    def __init__(self, content: Any, left_out: LeftOut, status_code: int = 200) -> None:
        self._left_out = left_out
        super().__init__(content, status_code)

    def render(self, content: Any) -> bytes:
        return dumps(content, self._left_out)


def _plain(value: Any, field: str, left_out: LeftOut, depth: int) -> Any:
    """The same, with ``None`` for what cannot be said; keys as text."""
    if value is None or value is True or value is False:
        return value
    if depth > _LONGEST:
        found = None
    elif isinstance(value, Mapping):
        return {
            text(str(key)): _plain(one, str(key), left_out, depth + 1) for key, one in value.items()
        }
    elif isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, field, left_out, depth + 1) for one in value]
    else:
        found = _scalar(value)
    if found is None or (isinstance(found, str) and found != value):
        left_out.note(field)
    return found


def _scalar(value: Any) -> Any:
    """A text, a whole number, a truth value or a finite float; else ``None``."""
    if isinstance(value, Enum):
        return _scalar(value.value)
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        # So many digits that no float holds them are no figure of ours.
        return None if figure(value) is None else int(value)
    if type(value).__name__ in ("bool", "bool_"):  # numpy's, which is no bool
        return bool(value)
    return figure(value)
