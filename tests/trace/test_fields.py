"""What may stand in a field, in a trace and on the wire alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.trace import fields
from meter.trace.errors import LineError

any_text = st.text(st.characters(), max_size=40) | st.text(max_size=2000)


@given(any_text)
def test_a_clean_text_may_stand_anywhere(text: str) -> None:
    """Cleaning leaves alone what is clean; what it gives is accepted, and fits UTF-8."""
    clean = fields.clean(text)
    assert fields.as_text(clean, "id") == clean == fields.clean(clean)
    clean.encode()
    try:
        assert fields.as_text(text, "id") == clean
    except LineError:
        assert clean != text


def test_two_odd_texts_stay_two() -> None:
    """Requests whose ids differ in what may not stand there are not taken for one."""
    odd = ["\ud800", "\ud801", "a\nb", "a\rb", "x" * 1025, "x" * 1026, "x" * 1024 + "\n"]
    assert len({fields.clean(text) for text in odd}) == len(odd)
    assert all(len(fields.clean(text)) <= fields.TEXT_MAX for text in odd)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "params nan is not a finite number"),
        (float("inf"), "params inf is not a finite number"),
        (10**400, "is not a finite number"),
        (1e19, "params 1e+19 is more than 1e+18"),
        (-1, "params -1 is below zero"),
        (True, "params true is not a number"),
        ("8", "params '8' is not a number"),
    ],
)
def test_an_amount_is_finite_and_in_reason(value: object, said: str) -> None:
    """A coefficient's first guess is computed from it: NaN would reach every account."""
    with pytest.raises(LineError) as caught:
        fields.as_amount(value, "params")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200
