"""The trace format: exact round trips, and bad lines named by number and reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meter.model import (
    Clock,
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Gap,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace import TraceError, TraceWriter, read_trace

DEVICE = Device("GPU-0", "NVIDIA H100", Quality.MEASURED, refresh_s=0.1)
ENGINE = Engine("0", ("GPU-0",), model="m", params=8e9)

names = st.text(min_size=1, max_size=12)
times = st.integers(0, 10**18)
counts = st.integers(0, 10**7)
maybe = st.none() | counts
works = st.builds(Work, names, st.integers(1, 10**6), counts, st.sampled_from(Phase), maybe)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        Reading,
        device=names,
        t_ns=times,
        energy_uj=st.integers(0, 10**18),
        power_w=st.none() | st.floats(0, 1e4),
    ),
    st.builds(Reading, device=names, t_ns=times, energy_uj=st.none(), error=names),
    st.builds(RequestOpened, st.just("0"), names, times, st.none() | names, st.none() | names),
    st.builds(RequestClosed, st.just("0"), names, times, st.none() | names, maybe, maybe, maybe),
    st.builds(Gap, st.just("0"), times, counts, counts, counts),
    st.builds(Clock, times, times),
    st.builds(EngineEvent, st.just("0"), times, st.sampled_from(["up", "ready", "down"]), counts),
    st.builds(DeviceFound, times, st.just(DEVICE)),
    st.builds(
        lambda seq, t, length, work, same, drop: Step(
            "0", 0, seq, t, t + length, tuple(work), same, tuple(drop) if same else ()
        ),
        counts,
        times,
        counts,
        st.lists(works, max_size=4),
        st.booleans(),
        st.lists(names, max_size=3),
    ),
)


@given(st.lists(events, max_size=20), st.sampled_from(["", ".gz", ".zst"]))
@example([Reading("0", 0, None, error="\x00")], "")
@example([Reading("0", 0, None, error="\x001.5\x00")], "")
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Event], suffix: str
) -> None:
    """Every event survives the round trip exactly, to the nanosecond and the microjoule."""
    path = tmp_path_factory.mktemp("trace") / f"t.jsonl{suffix}"
    writer = TraceWriter(path, (DEVICE,), (ENGINE,))
    for event in written:
        writer.write(event)
    writer.close()
    trace = read_trace(path)
    assert trace.bad_lines == []
    assert trace.devices == (DEVICE,)
    assert trace.engines == (ENGINE,)
    assert trace.events == written


def put(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


META = json.dumps(
    {
        "type": "meta",
        "version": 1,
        "engines": {"0": {"devices": ["GPU-0"], "model": "m"}},
        "devices": {"GPU-0": {"name": "H100", "quality": "measured"}},
    }
)


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


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[1]", "a line must be a JSON object"),
        ('{"type":"what"}', "type 'what' is none of"),
        ('{"type":"reading","t":1,"device":"GPU-0"}', "energy_j is missing"),
        ('{"type":"reading","t":"x","device":"GPU-0","energy_j":1}', "t 'x' is not a number"),
        ('{"type":"reading","t":1,"device":"GPU-0","energy_j":-1}', "energy_j is below zero"),
        ('{"type":"step","seq":0,"t0":2,"t1":1,"work":[]}', "t1 is before t0"),
        ('{"type":"step","seq":0,"t0":1,"t1":2,"work":[["r",0,0,"p"]]}', "tokens must be"),
        ('{"type":"step","seq":0,"t0":1,"t1":2,"work":[["r",1,0,"x"]]}', "phase must be one of"),
        ('{"type":"request","event":"ope","id":"r","t":1}', "neither"),
        ('{"type":"request","event":"close","id":"r","t":1,"prompt_tokens":-4}', "prompt_tokens"),
        ('{"type":"engine","event":"gone","t":1}', "none of"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_used(tmp_path: Path, line: str, reason: str) -> None:
    """Number and reason, and the lines around it are read."""
    good = '{"type":"clock","t":1,"utc_ns":5}'
    trace = read_trace(put(tmp_path / "t.jsonl", META, good, line, good))
    assert len(trace.events) == 2
    (bad,) = trace.bad_lines
    assert bad.number == 3
    assert reason in bad.reason


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    """A truncated gzip gives what could be read, and says where it broke off."""
    path = tmp_path / "t.jsonl.gz"
    lines = "\n".join([META] + ['{"type":"clock","t":1,"utc_ns":5}'] * 20000)
    data = gzip.compress(lines.encode())
    path.write_bytes(data[: len(data) // 2])
    trace = read_trace(path)
    assert trace.events
    assert "breaks off" in trace.bad_lines[-1].reason


@pytest.mark.parametrize("content", ["", "\n\n", '{"type":"clock","t":1,"utc_ns":5}\n', "x\n"])
def test_nothing_usable(tmp_path: Path, content: str) -> None:
    """Empty, or no meta line first: one clear error."""
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(TraceError, match="meta"):
        read_trace(path)


def test_no_file(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(TraceError, match="no such trace file"):
        read_trace(tmp_path / "none.jsonl")
