"""The trace format: what is written is read, exactly, and the lines of the design are."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.model import (
    Clock,
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Experts,
    Fidelity,
    Gap,
    Layout,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace import TraceError, TraceWriter, read_trace
from meter.trace.fields import clean
from tests.trace.lines import META, put

DEVICE = Device("GPU-0", "NVIDIA H100", Quality.MEASURED, refresh_s=0.1)
ENGINE = Engine("0", ("GPU-0",), model="m", params=8e9)

#: As a trace may hold them, whatever was said: control characters are written out.
names = st.text(min_size=1, max_size=12).map(clean)
counts = st.integers(0, 10**7)
maybe = st.none() | counts
works = st.builds(Work, names, st.integers(1, 10**6), counts, st.sampled_from(Phase), maybe)
engines = st.builds(
    Engine,
    st.just("0"),
    st.just(("GPU-0",)),
    st.none() | names,
    st.sampled_from(Fidelity),
    params=st.none() | st.floats(1, 1e12),
    layers=st.none() | st.integers(1, 10**6),
    engine_version=st.none() | names,
    experts=st.none()
    | st.tuples(st.integers(1, 512), st.integers(1, 512)).map(lambda n: Experts(max(n), min(n))),
    layout=st.none() | st.builds(Layout, *[st.integers(1, 64)] * 4),
)


def steps(t: int, k: int) -> st.SearchStrategy[Event]:
    """Step ``k``, which ends at ``t``."""
    return st.builds(
        lambda length, rows, same, drop: Step(
            "0", 0, k, max(0, t - length), t, tuple(rows), same, tuple(drop) if same else ()
        ),
        counts,
        st.lists(works, max_size=4, unique_by=lambda work: work.request),
        st.booleans(),
        st.lists(names, max_size=3),
    )


def events_at(t: int, k: int) -> st.SearchStrategy[Event]:
    """Whatever may be the ``k``-th event of a trace, at ``t``."""
    at = st.just(t)
    return st.one_of(
        st.builds(
            Reading,
            device=st.just("GPU-0"),
            t_ns=at,
            energy_uj=st.integers(0, 2**63 - 1) | st.integers(0, 10**15),
            power_w=st.none() | st.floats(0, 1e4),
            latency_s=st.none() | st.floats(0, 1),
            missed=st.none() | names,
            missed_uj=st.none() | st.integers(0, 10**15),
        ),
        st.builds(Reading, device=st.just("GPU-0"), t_ns=at, energy_uj=st.none(), error=names),
        st.builds(
            RequestOpened, st.just("0"), st.just(f"r{k}"), at, st.none() | names, st.none() | names
        ),
        st.builds(RequestClosed, st.just("0"), names, at, st.none() | names, maybe, maybe, maybe),
        st.builds(
            lambda epoch, first, n: Gap("0", t, epoch, first, first + n), counts, counts, counts
        ),
        st.builds(Clock, at, st.integers(0, 2**63 - 1)),
        st.builds(
            EngineEvent,
            st.just("0"),
            at,
            st.sampled_from(["up", "ready", "down"]),
            counts,
            st.none() | engines | engines.map(lambda e: replace(e, devices=(), owns_none=True)),
        ),
        st.builds(
            DeviceFound,
            at,
            st.just(DEVICE),
            st.none() | st.sampled_from([(), ("0",), ("0", "1")]),
            st.lists(st.dictionaries(names, learned), max_size=2).map(tuple),
        ),
        steps(t, k),
    )


#: What is known of a device, as JSON: each float is the same float again.
learned = st.recursive(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def traces(draw: st.DrawFn) -> list[Event]:
    """Events in an order that a trace may have: at most two seconds back."""
    base = draw(st.integers(2 * 10**9, 10**15) | st.integers(2 * 10**9, 2**63 - 10**12))
    waits = draw(st.lists(st.integers(-2, 10).map(lambda s: s * 10**9 + s), max_size=20))
    newest, events = base, []
    for k, wait in enumerate(waits):
        t = max(newest - 2 * 10**9, newest + wait)
        newest = max(newest, t)
        events.append(draw(events_at(t, k)))
    return events


@given(traces(), engines, st.sampled_from(["", ".gz", ".zst"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Event], engine: Engine, suffix: str
) -> None:
    """Every event survives the round trip exactly, to the nanosecond and the microjoule."""
    path = tmp_path_factory.mktemp("trace") / f"t.jsonl{suffix}"
    writer = TraceWriter(path, (DEVICE,), (engine,))
    for event in written:
        writer.write(event)
    writer.close()
    trace = read_trace(path)
    assert trace.bad_lines == []
    assert trace.devices == (DEVICE,)
    assert trace.engines == (engine,)
    assert trace.events == written


@pytest.mark.parametrize("said", ["\x00", "\x001.5\x00", "line\nline", "x" * 2000, "\ud800"])
def test_odd_texts_of_ours_are_written_as_they_may_be_read(tmp_path: Path, said: str) -> None:
    """A driver's message, a board's or a model's name: nothing of them makes a line unreadable."""
    device, engine = replace(DEVICE, name=said), replace(ENGINE, model=said)
    writer = TraceWriter(tmp_path / "t.jsonl", (device,), (engine,))
    writer.write(Reading("GPU-0", 5, None, error=said))
    writer.close()
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.bad_lines == []
    assert [d.name for d in trace.devices] == [e.model for e in trace.engines] == [clean(said)]
    assert trace.events == [Reading("GPU-0", 5, None, error=clean(said))]


def test_meta_as_it_is_written(tmp_path: Path) -> None:
    """Experts, layout, the wall clock and the calibration, and all of it is kept."""
    engine = Engine("0", ("GPU-0",), experts=Experts(128, 8), layout=Layout(tp=8))
    calibration = {"GPU-0": {"static_w": 115.5, "intervals": 7, "covariance": [[0.25, 1e-9]]}}
    path = tmp_path / "t.jsonl"
    TraceWriter(path, (DEVICE,), (engine,), 2**60 + 1, calibration).close()
    meta = json.loads(path.read_text())
    assert meta["engines"]["0"]["experts"] == {"total": 128, "active": 8}
    assert meta["engines"]["0"]["layout"] == {"tp": 8, "pp": 1, "dp": 1, "ep": 1}
    trace = read_trace(path)
    assert trace.meta == meta
    assert trace.meta["calibration"] == calibration
    assert trace.meta["wall_utc_ns"] == 2**60 + 1
    assert trace.engines == (engine,)


def test_a_layout_says_what_it_knows(tmp_path: Path) -> None:
    """What it leaves out is one."""
    meta = META.replace('"model": "m"', '"layout": {"tp": 2, "x": 3}, "experts": null')
    (engine,) = read_trace(put(tmp_path / "t.jsonl", meta)).engines
    assert engine.layout == Layout(2, 1, 1, 1)
    assert engine.experts is None


@pytest.mark.parametrize("claimed", [False, True])
def test_a_claim_is_known_again(tmp_path: Path, claimed: bool) -> None:
    """Whether a device's joules are its engines' alone decides who pays: a replay knows it too."""
    device = replace(DEVICE, claimed=claimed)
    TraceWriter(tmp_path / "t.jsonl", (device,)).close()
    assert read_trace(tmp_path / "t.jsonl").devices == (device,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_json_does_not_have_is_not_written(tmp_path: Path, bad: float) -> None:
    """It would be a line that cannot be read; a file is only begun with a good meta line."""
    path = tmp_path / "t.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        TraceWriter(path, calibration={"GPU-0": bad})
    assert not path.exists()
    writer = TraceWriter(path, (DEVICE,))
    with pytest.raises(ValueError, match="JSON"):
        writer.write(Reading("GPU-0", 1, 1, power_w=bad))
    writer.write(Clock(1, 1))
    writer.close()
    assert read_trace(path).events == [Clock(1, 1)]


def test_the_lines_of_the_design(tmp_path: Path) -> None:
    """The example lines of the format are read as they are meant."""
    trace = read_trace(
        put(
            tmp_path / "t.jsonl",
            META,
            '{"type":"request","event":"open","id":"r1","t":100.06,"tenant":"acme","model":"m"}',
            '{"type":"step","seq":0,"engine":"0","t0":100.07,"t1":100.09,'
            '"work":[["r1",512,0,"p"],["r0",4,903,"d",2]],"other":1}',
            '{"type":"reading","t":100.10,"device":"GPU-0","energy_j":1234567.890}',
        )
    )
    opened, step, reading = trace.events
    assert opened == RequestOpened("0", "r1", 100_060_000_000, "m", "acme")
    assert isinstance(step, Step)
    assert step.work[1] == Work("r0", 4, 903, Phase.DECODE, 2)
    assert reading == Reading("GPU-0", 100_100_000_000, 1_234_567_890_000)


def test_collection_goes_on_as_before(tmp_path: Path) -> None:
    """Reading stands without the garbage collector, and leaves it as it was."""
    path = put(tmp_path / "t.jsonl", META)
    assert gc.isenabled()
    read_trace(path)
    assert gc.isenabled()
    gc.disable()
    try:
        read_trace(path)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(TraceError):
        read_trace(put(path, META.replace("GPU-0", "x").replace('"devices": {"x"', '"y": {"x"')))
    assert gc.isenabled()
