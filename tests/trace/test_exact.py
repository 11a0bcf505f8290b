"""Numbers: what floats and texts give is what decimal arithmetic gives, to the last digit."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meter.trace.exact import (
    FLOAT_J_BELOW,
    FLOAT_S_BELOW,
    INTEGER_BELOW,
    InexactError,
    TooLargeError,
    ns_of_float,
    ns_of_text,
    scaled,
    uj_of_float,
    uj_of_text,
)

Kind = tuple[int, Callable[[float], int], Callable[[bytes], int], float]
SECONDS: Kind = (9, ns_of_float, ns_of_text, FLOAT_S_BELOW)
JOULES: Kind = (6, uj_of_float, uj_of_text, FLOAT_J_BELOW)
KINDS = pytest.mark.parametrize("kind", [SECONDS, JOULES], ids=["seconds", "joules"])
HUGE = Context(prec=10_000)


def wanted(text: str, decimals: int) -> int:
    """By fractions, which round half to even."""
    return round(Fraction(Decimal(text)) * 10**decimals)


def near_a_tie(parts: tuple[int, int, int, int]) -> str:
    """A text that is, or nearly is, half way between two integers of the ninth decimal."""
    whole, part, places, off = parts
    value = Decimal(f"{whole}.{part:09d}5")
    return str(HUGE.add(value, Decimal(off).scaleb(-places)))


TEXTS = st.one_of(
    st.integers(0, 10**19).map(lambda n: str(Decimal(n).scaleb(-9))),
    st.integers(0, 10**13).map(lambda n: str(Decimal(n).scaleb(-9))),
    st.integers(0, 2 * 10**10).map(str),
    st.floats(0, 1e10).map(repr),
    st.floats(0, 100).map(repr),
    st.decimals(0, 10**10, allow_nan=False, allow_infinity=False).map(str),
    st.tuples(
        st.integers(0, 5 * 10**6),
        st.integers(0, 10**9 - 1),
        st.integers(10, 60),
        st.integers(-1, 1),
    ).map(near_a_tie),
).filter(lambda text: "." not in text or text[-1] != ".")


@KINDS
@given(text=TEXTS)
@example(text="0.0000000005")
@example(text="0.0000000015")
@example(text="1.00000000050000000000000000000000000000000000000000001")
@example(text="4194303.9999999995")
@example(text="4294967295.9999995")
@example(text="-0.0")
@example(text="0E-30")
@example(text="0E+30")
def test_every_way_gives_the_same_integer(kind: Kind, text: str) -> None:
    """A float tells it or refuses; a text and a decimal always do, up to 64 bits."""
    decimals, of_float, of_text, _ = kind
    value = wanted(text, decimals)
    if value >= INTEGER_BELOW:
        with pytest.raises(TooLargeError):
            of_text(text.encode())
        with pytest.raises(TooLargeError):
            scaled(Decimal(text), decimals)
    else:
        assert of_text(text.encode()) == value
        assert scaled(Decimal(text), decimals) == value
    try:
        found = of_float(float(text))
    except InexactError:
        return
    assert found == value


@KINDS
@given(fraction=st.integers(0, 10**9 - 1), whole=st.integers(0, 2**33))
def test_what_is_written_needs_no_second_look(kind: Kind, fraction: int, whole: int) -> None:
    """Numbers with as many decimals as the format has are told by floats up to the bound."""
    decimals, of_float, _, below = kind
    value = Decimal(whole) + Decimal(fraction % 10**decimals).scaleb(-decimals)
    if float(value) < below:
        assert of_float(float(value)) == int(value.scaleb(decimals))
    else:
        with pytest.raises(TooLargeError):
            of_float(float(value))


@KINDS
@given(value=st.floats(0, 1e5))
def test_long_floats_seldom_need_one_either(kind: Kind, value: float) -> None:
    """Only those near a tie are refused: more than nine decimals are what Python writes."""
    decimals, of_float, _, _ = kind
    scaled_up = Fraction(value) * 10**decimals
    if abs(scaled_up % 1 - Fraction(1, 2)) > Fraction(1, 4):
        assert of_float(value) == wanted(repr(value), decimals)


@KINDS
@pytest.mark.parametrize("text", ["-1", "-0.5", "-1e-10", "-1e300"])
def test_a_float_below_zero_is_never_taken(kind: Kind, text: str) -> None:
    """Times and counters have none; a text says which it was."""
    with pytest.raises(InexactError):
        kind[1](float(text))


def test_texts_below_zero_are_told_as_they_are() -> None:
    """Also just below it."""
    assert ns_of_text(b"-1.5") == -1_500_000_000
    assert ns_of_text(b"-0.5") == -500_000_000
    assert ns_of_text(b"-0.0000000001") == 0


@pytest.mark.parametrize("text", [b'"1.5"', b"null", b"true", b"[1.5]", b"1e99999999999999999999"])
def test_what_is_no_number_is_refused(text: bytes) -> None:
    """Whatever JSON it is."""
    with pytest.raises(ArithmeticError):
        ns_of_text(text)


@pytest.mark.parametrize("text", ["1e999999999", "NaN", "Infinity", "9223372036.854775808"])
def test_numbers_beyond_64_bits_cost_no_memory(text: str) -> None:
    """An exponent is looked at before it is carried out."""
    with pytest.raises(TooLargeError):
        scaled(Decimal(text), 9)


def test_the_decimal_context_of_the_process_does_not_matter() -> None:
    """Half to even, once, at full length."""
    text = "8388608.0000000005000000000000000000000000000001"
    assert scaled(Decimal(text), 9) == 8_388_608_000_000_001
    assert Decimal(text).scaleb(9).to_integral_value(ROUND_HALF_EVEN) == 8_388_608_000_000_000
