"""One field of a line at a time: its value, or a ``LineError`` that names it.

``line`` is a JSON object whose numbers with decimals are ``Decimal`` (``float`` in meta).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from meter.trace.errors import LineError, shown
from meter.trace.exact import NS_DECIMALS, UJ_DECIMALS, TooLargeError, scaled

# More than any model reads; a chunk of a step cannot be larger either.
TOKENS_MAX = 10**9
# Also a float holds these.
NUMBER_MAX = 2**53

Line = Mapping[str, Any]


def time_ns(line: Line, name: str) -> int:
    """A time in seconds, as exact nanoseconds."""
    ns = _exact(line, name, NS_DECIMALS, "no clock of 64 bits counts so far in ns")
    if ns < 0:
        raise LineError(
            f"{name} is below zero ({shown(line[name])}): times are seconds of CLOCK_MONOTONIC"
        )
    return ns


def energy_uj(line: Line, name: str) -> int:
    """An energy in joules, as exact microjoules."""
    uj = _exact(line, name, UJ_DECIMALS, "no counter of 64 bits counts so far in µJ")
    if uj < 0:
        raise LineError(f"{name} is below zero ({shown(line[name])}): counters count up from 0")
    return uj


def _exact(line: Line, name: str, decimals: int, too_large: str) -> int:
    value = _present(line, name)
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise LineError(f"{name} {shown(value)} is not a number")
    try:
        return scaled(value, decimals)
    except TooLargeError:
        raise LineError(f"{name} {shown(value)} is out of range: {too_large}") from None


def real(line: Line, name: str) -> float | None:
    """A finite number; ``None`` where there is none."""
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, float)):
        raise LineError(f"{name} {shown(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise LineError(f"{name} {shown(value)} is not a finite number")
    return number


def amount(line: Line, name: str) -> float | None:
    """A finite number of at least 0."""
    number = real(line, name)
    if number is not None and number < 0:
        raise LineError(f"{name} {shown(line[name])} is below zero")
    return number


def whole(line: Line, name: str, default: int | None = None, most: int = NUMBER_MAX) -> int:
    """A whole number from 0 on; ``default`` where it is left out."""
    if name not in line and default is not None:
        return default
    value = _present(line, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise LineError(f"{name} {shown(value)} is not a whole number")
    if not 0 <= value <= most:
        raise LineError(f"{name} {shown(value)} is not from 0 to {most}")
    return value


def count(line: Line, name: str, most: int = NUMBER_MAX) -> int | None:
    """A whole number from 0 on; ``None`` where there is none."""
    return None if line.get(name) is None else whole(line, name, most=most)


def tokens(line: Line, name: str) -> int | None:
    """How many tokens; ``None`` where it is not said."""
    return count(line, name, TOKENS_MAX)


def text(line: Line, name: str) -> str:
    return as_text(_present(line, name), name)


def optional_text(line: Line, name: str) -> str | None:
    return None if line.get(name) is None else text(line, name)


def as_text(value: Any, name: str) -> str:
    """A name. Whole numbers are taken for one too: people write ``"engine": 0``."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise LineError(f"{name} {shown(value)} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LineError(
            f"{name} {shown(value)} holds half a character (\\ud800 to \\udfff)"
        ) from None
    return value


def flag(line: Line, name: str) -> bool:
    """True or false; false where it is left out."""
    value = line.get(name, False)
    if not isinstance(value, bool):
        raise LineError(f"{name} {shown(value)} is neither true nor false")
    return value


def rows(line: Line, name: str) -> list[Any]:
    """A list; empty where it is left out."""
    value = line.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineError(f"{name} {shown(value)} is not a list")
    return value


def objects(line: Line, name: str) -> dict[str, Line]:
    """An object of objects; empty where it is left out."""
    value = line.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise LineError(f"{name} {shown(value)} does not map names to objects")
    return value


def _present(line: Line, name: str) -> Any:
    value = line.get(name)
    if value is None:
        raise LineError(f"{name} is missing")
    return value
