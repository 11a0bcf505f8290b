"""The quick way and the careful way are one: a line means the same on both."""

from __future__ import annotations

import contextlib
import json
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meter.model import Event, Phase, Reading, RequestClosed, RequestOpened, Step, Work
from meter.trace.errors import LineError
from meter.trace.parse import Parser
from meter.trace.quick import REFUSED, Quick
from tests.trace.lines import closed, line, opened, reading, step

pytestmark = pytest.mark.slow

numbers = st.one_of(
    st.integers(-3, 10**10),
    st.floats(-1, 1e10, allow_nan=False),
    st.integers(0, 10**16).map(lambda n: n / 1e9),
)
odd = st.sampled_from([None, True, False, "", "1.5", "é\x00", -1, 0, 1.0, 10**18, 10**30, [], {}])
names = st.text(max_size=3) | st.integers(0, 3)
rows = st.one_of(
    st.tuples(names, st.integers(1, 99), st.integers(0, 9), st.sampled_from("pdre")),
    st.tuples(names, numbers, numbers, st.sampled_from("pdrex"), odd),
    st.lists(odd | numbers, max_size=6),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "engine": names,
    "epoch": numbers,
    "seq": st.integers(0, 99) | numbers,
    "t": numbers,
    "t0": numbers,
    "t1": numbers,
    "same": st.booleans(),
    "kind": st.sampled_from(["dummy", "x"]),
    "work": st.lists(rows, max_size=3),
    "add": st.lists(rows, max_size=3),
    "drop": st.lists(names, max_size=3),
    "device": names,
    "energy_j": numbers,
    "power_w": numbers,
    "latency_s": numbers,
    "late_s": numbers,
    "missed": names,
    "missed_j": numbers,
    "error": names,
    "event": st.sampled_from(["open", "close", "x"]),
    "id": names,
    "model": names,
    "tenant": names,
    "parent": names,
    "reason": names,
    "prompt_tokens": numbers,
    "cached_tokens": numbers,
    "completion_tokens": numbers,
    "other": st.recursive(numbers | names, st.lists, max_leaves=5),
}
BASES = [json.loads(text) for text in (reading(1), step(3), opened("r"), closed("r"))]
BASES += [{"type": "step", "seq": 1, "t0": 1, "t1": 2, "same": True}]


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of one of the kinds, with some of its fields changed, or gone."""
    said = dict(draw(st.sampled_from(BASES)))
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3)):
        said[name] = draw(FIELDS[name] | odd)
    if draw(st.integers(0, 9)) == 0:
        said.pop(draw(st.sampled_from(sorted(said))))
    text = json.dumps(said, ensure_ascii=draw(st.booleans()))
    return text.encode()


def careful(text: bytes) -> Event | None:
    try:
        return Parser("0").event(text, 0)
    except LineError:
        return None


@settings(max_examples=1000)
@given(lines())
@example(b'{"type":"reading","t":-1e-10,"device":"d","energy_j":1}')
@example(b'{"type":"reading","t":1,"device":"\\ud800","energy_j":1}')
@example(b'{"type":"reading","t":1,"t":2,"device":"d","energy_j":1}')
@example(b'{"t":1,"device":"d","energy_j":1e2,"type":"reading"}')
@example(b' {"type" : "reading" ,\t"t" : 1E0, "device":"d","energy_j":5e-7}\r')
@example(b'{"type":"reading","t":9e6,"device":"d","energy_j":"5"}')
@example(b'{"type":"reading","t":9e6,"device":"d","energy_j":null}')
@example(b'{"type":"reading","t":1,"device":"d","energy_j":5,"missed_j":null}')
@example(b'{"type":"reading","t":9e9,"device":"d","energy_j":9.3e12}')
@example(b'{"type":"reading","t":1e400,"device":"d","energy_j":1}')
def test_the_quick_way_says_what_the_careful_one_does(text: bytes) -> None:
    """Or refuses: whatever it takes, in floats or in texts, the careful way takes alike."""
    wanted = careful(text)
    floats, texts = Quick("0"), Quick("0")
    texts.again(reading(9e6).encode())
    for quick in (floats, texts):
        with contextlib.suppress(*REFUSED):
            assert quick.again(text) == wanted


@pytest.mark.parametrize("t", [5.25, 5_000_000.25])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: reading(t, power_w=3.5, latency_s=0.1, late_s=0.2),
        lambda t: reading(t, energy_j=5e9 + 0.25),
        lambda t: line("reading", t=t, device="GPU-0", error="gone"),
        lambda t: step(7, t, epoch=2, drop=["x"], kind="dummy"),
        lambda t: step(7, t, same=True, work=None, add=[["r", 4, 3, "d", 2], ["s", 9, 0, "p"]]),
        lambda t: step(7, t, same=True, work=None),
        lambda t: opened("r", t, tenant="a", model="m", parent="p", prompt_tokens=3),
        lambda t: closed("r", t, reason="stop", cached_tokens=1, completion_tokens=4),
    ],
)
def test_the_usual_lines_are_quick(make: Any, t: float) -> None:
    """None of them is left to the careful way: a busy engine's trace is all of these."""
    text = make(t).encode()
    quick = Quick("0")
    event = quick.again(text)
    assert event == careful(text)
    assert quick.decode(text).event(quick) == event


def test_what_is_made_quickly_is_the_real_thing() -> None:
    """Frozen, equal, hashable, and it can be pickled; a row's fields are those of ``Work``."""
    quick = Quick("0")
    made = [
        quick.again(text.encode())
        for text in (step(1, 2, work=[["r", 4, 3, "d", 2]]), reading(1), opened("r"), closed("r"))
    ]
    kinds = (Step, Reading, RequestOpened, RequestClosed)
    for event, kind in zip(made, kinds, strict=True):
        assert type(event) is kind
        assert pickle.loads(pickle.dumps(event)) == event
        assert hash(event) == hash(pickle.loads(pickle.dumps(event)))
        with pytest.raises(FrozenInstanceError):
            setattr(event, fields(event)[0].name, "1")
    (row,) = made[0].work  # type: ignore[union-attr]
    assert isinstance(row, Work)
    assert row == Work("r", 4, 3, Phase.DECODE, 2)
    assert (row.request, row.tokens, row.context, row.phase, row.kept) == ("r", 4, 3, "d", 2)
    assert row.phase is Phase.DECODE
    assert row._replace(kept=None).kept is None
