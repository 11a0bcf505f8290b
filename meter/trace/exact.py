"""Seconds and joules as exact integers, from the numbers of a JSON text.

The text has decimals, the model nanoseconds and microjoules, rounded half to even. A float is the
number nearest to the text, half a unit in its last place away at most. That is enough where

* the integer found gives the same float back, and the unit in the last place is below one
  nanosecond (microjoule): two texts with the same float then lie within it, so the text lies
  nearer to this integer than to any other; or
* the scaled float is farther from a tie than text and scaling can be off together (each is off by
  2**-53 of the value at most; the test below leaves twice that).

Elsewhere a ``Decimal`` holds the text itself. Seconds from 2**22 on (48 days of uptime) and joules
from 2**32 on always need one.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

NS_DECIMALS = 9
UJ_DECIMALS = 6
FLOAT_S_BELOW = 2.0**22
FLOAT_J_BELOW = 2.0**32
# What a counter or a clock of 64 bits can hold.
INTEGER_BELOW = 2**63

_DOUBT = 2.0**-51
_CONTEXT = Context(prec=40)
_TENS: tuple[int, ...] = tuple(10**power for power in range(NS_DECIMALS + 1))
_UNIT = {decimals: Decimal(1).scaleb(-decimals) for decimals in (NS_DECIMALS, UJ_DECIMALS)}


class InexactError(ArithmeticError):
    """This float does not tell the integer that its text meant."""


class TooLargeError(InexactError):
    """No float of this size does."""


def ns_of_float(seconds: float) -> int:
    """Nanoseconds. Raises ``InexactError``."""
    if not 0.0 <= seconds < FLOAT_S_BELOW:
        raise TooLargeError if seconds > 0.0 else InexactError
    scaled = seconds * 1e9
    ns = int(scaled + 0.5)
    if ns / 1e9 == seconds or abs(scaled - ns) < 0.5 - scaled * _DOUBT:
        return ns
    raise InexactError


def uj_of_float(joules: float) -> int:
    """Microjoules. Raises ``InexactError``."""
    if not 0.0 <= joules < FLOAT_J_BELOW:
        raise TooLargeError if joules > 0.0 else InexactError
    scaled = joules * 1e6
    uj = int(scaled + 0.5)
    if uj / 1e6 == joules or abs(scaled - uj) < 0.5 - scaled * _DOUBT:
        return uj
    raise InexactError


def scaled(value: Decimal | int, decimals: int) -> int:
    """``value * 10**decimals``, rounded half to even. Raises ``TooLargeError`` beyond 64 bits."""
    if isinstance(value, int):
        whole = int(value * 10**decimals)
    else:
        # Compared first: the integer of a large exponent would fill the memory.
        if not value.is_finite() or (value and value.adjusted() > 19 - decimals):
            raise TooLargeError
        rounded = value.quantize(_UNIT[decimals], ROUND_HALF_EVEN, _CONTEXT)
        whole = int(rounded.scaleb(decimals, _CONTEXT))
    if not -INTEGER_BELOW <= whole < INTEGER_BELOW:
        raise TooLargeError
    return whole


def ns_of_text(seconds: bytes) -> int:
    """Nanoseconds. Raises ``TooLargeError`` beyond 64 bits, ``ArithmeticError`` for no number."""
    return _of_text(seconds, NS_DECIMALS)


def uj_of_text(joules: bytes) -> int:
    """Microjoules. Raises as ``ns_of_text``."""
    return _of_text(joules, UJ_DECIMALS)


def _of_text(text: bytes, decimals: int) -> int:
    """``text`` (any buffer): a JSON number."""
    digits, _, after = bytes(text).partition(b".")
    if len(after) <= decimals:
        try:
            whole = int(digits + after) * _TENS[decimals - len(after)]
        except ValueError:  # an exponent, or no number
            pass
        else:
            if -INTEGER_BELOW <= whole < INTEGER_BELOW:
                return whole
            raise TooLargeError
    return scaled(Decimal(str(text, "ascii")), decimals)
