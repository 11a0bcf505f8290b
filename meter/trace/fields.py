"""One field at a time: its value, or a ``LineError`` that names it.

What may stand in a field is the same in a trace and on the wire: the functions that take a
``value`` are for both, those that take a ``line`` for a trace. ``line`` is a JSON object whose
numbers with decimals are ``Decimal`` (``float`` in meta).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from hashlib import blake2s
from typing import Any

from meter.model import Phase, Work
from meter.trace.errors import LineError, shown
from meter.trace.exact import NS_DECIMALS, UJ_DECIMALS, TooLargeError, scaled

# More than any model reads; all chunks of a step together cannot be more either.
TOKENS_MAX = 10**9
# Also a float holds these.
NUMBER_MAX = 2**53
# No model has more parameters, and none weighs more bytes.
AMOUNT_MAX = 1e18
# Ranks of an engine, and experts of a model.
RANKS_MAX = 10**6
# The largest that a pid may be in the kernel's own type.
PID_MAX = 2**31 - 1
# Characters of a name.
TEXT_MAX = 1024
# No engine computes for so many requests at once.
ROWS_MAX = 1 << 14
# Watts, or seconds, that a source says beside its energy.
BESIDE_MAX = 1e9
# A pass that computes a million tokens on a slow CPU takes minutes; hours are another unit.
STEP_NS_MAX = 3600 * 10**9

Line = Mapping[str, Any]

# Control characters, breaks of a line, and halves of a character.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DIGEST_BYTES = 8


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
    return None if value is None else as_real(value, name)


def as_real(value: Any, name: str) -> float:
    """A finite number."""
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
    """A finite number from 0 to ``AMOUNT_MAX``."""
    value = line.get(name)
    return None if value is None else as_amount(value, name)


def as_amount(value: Any, name: str) -> float:
    """A finite number from 0 to ``AMOUNT_MAX``."""
    number = as_real(value, name)
    if number < 0:
        raise LineError(f"{name} {shown(value)} is below zero")
    if number > AMOUNT_MAX:
        raise LineError(f"{name} {shown(value)} is more than {AMOUNT_MAX:g}")
    return number


def whole(line: Line, name: str, default: int | None = None, most: int = NUMBER_MAX) -> int:
    """A whole number from 0 on; ``default`` where it is left out."""
    if name not in line and default is not None:
        return default
    return as_whole(_present(line, name), name, most=most)


def as_whole(value: Any, name: str, least: int = 0, most: int = NUMBER_MAX) -> int:
    """A whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise LineError(f"{name} {shown(value)} is not a whole number")
    if not least <= value <= most:
        raise LineError(f"{name} {shown(value)} is not from {least} to {most}")
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
    if len(value) > TEXT_MAX:
        raise LineError(f"{name} {shown(value)} is longer than {TEXT_MAX} characters")
    odd = _ODD.search(value)
    if odd is None:
        return value
    if "\ud800" <= odd[0] <= "\udfff":
        raise LineError(f"{name} {shown(value)} holds half a character (\\ud800 to \\udfff)")
    raise LineError(f"{name} {shown(value)} holds a control character ({shown(odd[0])})")


def clean(value: str, most: int = TEXT_MAX) -> str:
    """``value`` as it may stand in a trace, in at most so many characters; the same for the same.

    For names that a client chooses (an id in a request): to refuse one would refuse what it is in,
    the steps of others too. What ``as_text`` refuses is written as ``\\uXXXX``; the end of a text
    that is too long gives way to a digest of the whole.
    """
    if len(value) <= most and (value.isprintable() or not _ODD.search(value)):
        return value
    text = _ODD.sub(lambda odd: f"\\u{ord(odd[0]):04x}", value)
    if len(text) <= most:
        return text
    digest = blake2s(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{text[: most - 2 * _DIGEST_BYTES - 1]}…{digest}"


def span(t0_ns: int, t1_ns: int) -> None:
    """Raises ``LineError`` where no step lasts from ``t0_ns`` to ``t1_ns``."""
    if t1_ns < t0_ns:
        raise LineError(f"t1 is before t0: {t1_ns / 1e9:.12g} < {t0_ns / 1e9:.12g}")
    if t1_ns - t0_ns > STEP_NS_MAX:
        raise LineError(
            f"the step takes {(t1_ns - t0_ns) / 1e9:.0f} s, and none takes more than "
            f"{STEP_NS_MAX // 10**9}: are t0 and t1 seconds?"
        )


def together(work: Collection[Work], name: str, counted: bool = False) -> None:
    """Raises ``LineError`` where these rows cannot be one step's.

    ``counted``: of an engine that only its counters show, whose one request is all that it did.
    """
    if not counted and len({row[0] for row in work}) < len(work):
        repeated = _twice(work)
        if repeated is not None:
            raise LineError(f"{name} has {shown(repeated)} twice: one row for a request and step")
    if sum([row[1] for row in work]) > TOKENS_MAX:
        raise LineError(f"{name} has more than {TOKENS_MAX} tokens: no step computes so many")


def _twice(work: Iterable[Work]) -> str | None:
    """A request with two rows, if any. Its encoder's work may stand beside its tokens."""
    seen: set[tuple[str, bool]] = set()
    for row in work:
        key = (row.request, row.phase is Phase.ENCODER)
        if key in seen:
            return row.request
        seen.add(key)
    return None


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
