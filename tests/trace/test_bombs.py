"""Small files that unpack, or grow, to very much: what is read of them is bounded."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from meter.replay import replay, summary
from meter.trace import BAD_LINES_MAX, TraceError, read_trace
from meter.trace.errors import shown
from tests.trace.lines import META, clock, line, opened, put, reading, step

pytestmark = pytest.mark.slow

MIB = 1 << 20
TOO_MUCH = "data that unpacks to more than 300 times its size: no trace does"


def repeated(byte: bytes, mib: int) -> bytes:
    """A zstd frame of so many MiB of one byte: four bytes for every 128 KiB."""
    frame = zstandard.FRAME_HEADER + bytes([0x00, 0x38])
    for number in range(8 * mib):
        last = number == 8 * mib - 1
        frame += struct.pack("<I", (128 * 1024) << 3 | 1 << 1 | last)[:3] + byte
    return frame


def zst(path: Path, *frames: bytes) -> Path:
    """A trace's first line, and what follows it."""
    path.write_bytes(zstandard.compress(f"{META}\n".encode()) + b"".join(frames))
    return path


_CHILD = """
import resource, sys
from pathlib import Path
from meter.trace import TraceError, read_trace
allowed = int(sys.argv[1])
base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + allowed, base + allowed))
for path in sys.argv[2:]:
    try:
        print(read_trace(path).bad_lines[-1].reason)
    except TraceError as error:
        print(error)
"""


def read_within(allowed: int, *paths: Path) -> list[str]:
    """What is said of traces by a process that may take so many bytes."""
    words = [sys.executable, "-c", _CHILD, str(allowed), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """One line without end, lines that are empty, lines of nonsense: some kB that unpack to 500 MB
    are read within 128 MiB."""
    line_without_end = zst(tmp_path / "a.jsonl.zst", repeated(b"[", 500))
    empty_lines = zst(tmp_path / "b.jsonl.zst", repeated(b"\n", 500))
    nonsense = tmp_path / "c.jsonl.gz"
    nonsense.write_bytes(gzip.compress(f"{META}\n".encode() + (b"x" * 63 + b"\n") * (12 << 14)))
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 40_000
    said = read_within(128 * MIB, line_without_end, empty_lines, nonsense)
    assert said == [f"the file breaks off: {kind} {TOO_MUCH}" for kind in ("zstd", "zstd", "gzip")]


@pytest.mark.parametrize("row", ["{}", "1.1", '"a"', "[0]"])
def test_a_line_takes_little_memory(tmp_path: Path, row: str) -> None:
    """A few bytes of JSON become hundreds in Python: a line has a greatest length."""
    within, beyond = ",".join([row] * (4 * MIB // (len(row) + 1) - 20)), ",".join([row] * 4 * MIB)
    paths = [
        put(tmp_path / f"{name}.jsonl", META, f'{{"type":"clock","t":"x","y":[{rows}]}}')
        for name, rows in (("within", within), ("beyond", beyond))
    ]
    within_reason, beyond_reason = read_within(300 * MIB, *paths)
    assert within_reason == "t 'x' is not a number"
    assert beyond_reason == "the line is longer than 4194304 bytes"


def test_a_window_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """The frame asks for it before it says anything."""
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(zstandard.FRAME_HEADER + bytes([0x00, 0xA8]) + repeated(b"\n", 1)[6:])
    (said,) = read_within(64 * MIB, path)
    assert "nothing of it can be read: damaged zstd data" in said
    assert "too much memory" in said


def test_an_honest_trace_that_shrinks_well_is_read(tmp_path: Path) -> None:
    """An idle card for hours: every reading like the one before."""
    lines = [reading(k / 50, 5 + k // 5) for k in range(60_000)]
    data = "\n".join([META, *lines, ""]).encode()
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(data))
    trace = read_trace(path)
    assert (len(trace.events), trace.bad_lines) == (60_000, [])


# --- how much is said


def test_bad_lines_are_named_up_to_a_number_and_then_counted(tmp_path: Path) -> None:
    """All of them count, also in a replay's summary."""
    path = put(tmp_path / "t.jsonl", META, *["x"] * 3000, reading(1), reading(2, 9))
    trace = read_trace(path)
    assert len(trace.bad_lines) == BAD_LINES_MAX
    assert trace.bad_lines[-1].number == BAD_LINES_MAX + 1
    assert trace.bad_unlisted == 3000 - BAD_LINES_MAX
    assert len(trace.events) == 2
    replayed = replay(path)
    assert (len(replayed.bad_lines), replayed.bad_count) == (BAD_LINES_MAX, 3000)
    assert summary(replayed)["bad_lines"] == 3000


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "A" * MIB},
        {"type": "clock", "t": "B" * MIB},
        {"type": "clock", "t": [{"C" * 500: ["D" * MIB] * 3}] * 10},
        {"type": "reading", "t": 1, "device": "E" * MIB, "energy_j": 5},
        {"type": "step", "seq": 0, "t0": 1, "t1": 1, "work": [[["F"] * 100_000]]},
        {"type": "step", "seq": 0, "t0": 1, "t1": 1, "work": [["G" * MIB, 0, 0, "d"]]},
        {"type": "step", "seq": 0, "t0": 1, "t1": 1, "work": [], "engine": "H" * MIB},
        {"type": "request", "event": {"I" * MIB: 1}, "id": "x", "t": 1},
        {"type": "engine", "event": "up", "t": 1, "info": {"devices": ["J"] * 10 + [["K" * MIB]]}},
        {"type": "device", "t": 1, "device": "L" * MIB, "quality": ["M"] * 100_000},
        {"type": "gap", "t": 1, "from": int("9" * 4000), "to": 1},
    ],
)
def test_what_is_said_of_a_line_is_short(tmp_path: Path, bad: dict[str, Any]) -> None:
    """Values are cut, whatever they are."""
    trace = read_trace(put(tmp_path / "t.jsonl", META, json.dumps(bad)))
    assert len(trace.bad_lines) == 1
    assert len(trace.bad_lines[0].reason) < 400


@pytest.mark.parametrize(
    "meta",
    [
        {"version": "9" * MIB},
        {"devices": ["A" * MIB]},
        {"devices": {"B" * MIB: {"quality": "C" * MIB}}},
        {"engines": {"0": {"devices": {"D" * MIB: 1}}}},
        {"engines": {str(k): {} for k in range(20_000)}},
        {"devices": {str(k): {} for k in range(20_000)}},
    ],
)
def test_what_is_said_of_the_meta_line_is_short(tmp_path: Path, meta: dict[str, Any]) -> None:
    """And it may not name thousands of devices or engines."""
    path = put(tmp_path / "t.jsonl", json.dumps(json.loads(META) | meta), clock(1))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_value_is_shown_as_python_would_and_cut() -> None:
    """Short ones whole, of long ones the beginning; a nest is not followed to its end."""
    for value in ({}, {"a": [1, "b'", None, True]}, (), (1,), (1, "x"), [], [[]], 1.5, "it's"):
        assert shown(value) == repr(value)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in (
        deep,
        ["x"] * 10**6,
        {"k" * 10**6: 1},
        "y" * 10**6,
        {k: {} for k in range(10**5)},
    ):
        text = shown(value)
        assert len(text) == 60
        assert text.endswith("…")


# --- how many there may be


def test_engines_and_devices_are_bounded(tmp_path: Path) -> None:
    """Each has state of its own in the core: lines that name more are bad, the rest is used."""
    engines = [line("engine", event="up", engine=f"e{k}", t=1) for k in range(300)]
    devices = [line("device", device=f"d{k}", t=1) for k in range(300)]
    trace = read_trace(put(tmp_path / "t.jsonl", META, *engines, *devices, engines[0], reading(1)))
    assert len(trace.events) == 255 + 255 + 2
    assert trace.bad_lines[0] == (
        257,
        "engines: 256 are known already, and 'e255' is one too many",
    )
    assert trace.bad_lines[-1].reason.startswith("devices: 256 are known already")


def test_requests_that_never_close_are_bounded(tmp_path: Path) -> None:
    """Once one closes there is room again."""
    many = 1 << 18
    lines = [opened(str(k)) for k in range(many + 1)]
    path = tmp_path / "t.jsonl.gz"
    closes = line("request", event="close", id="5", t=1)
    text = "\n".join([META, *lines, closes, opened("new"), ""])
    path.write_bytes(gzip.compress(text.encode(), 1))
    trace = read_trace(path)
    assert len(trace.events) == many + 2
    assert [bad.reason for bad in trace.bad_lines] == [
        f"{many} requests are open already on engine '0': their close lines are missing"
    ]


def test_a_step_of_too_many_rows_is_bad(tmp_path: Path) -> None:
    """In both readers alike."""
    fits, too_many = ([[str(k), 1, 0, "d"] for k in range(n)] for n in (1 << 14, (1 << 14) + 1))
    trace = read_trace(
        put(tmp_path / "t.jsonl", META, step(0, work=fits), step(1, work=too_many), step(2))
    )
    assert [bad.reason for bad in trace.bad_lines] == ["work has 16385 rows, and 16384 is the most"]
    assert len(trace.events) == 2


def test_lives_of_an_engine_are_bounded(tmp_path: Path) -> None:
    """What is remembered of each is a little, and not without end."""
    lines = [step(0, work=[], epoch=k) for k in range((1 << 16) + 2)]
    trace = read_trace(put(tmp_path / "t.jsonl", META, *lines))
    assert [bad.reason for bad in trace.bad_lines] == [
        f"epoch {k}: 65536 lives of engines came before" for k in (65536, 65537)
    ]


def test_the_limit_is_the_processes_own(tmp_path: Path) -> None:
    """The tests above would pass for nothing where the child had no limit."""
    path = put(tmp_path / "t.jsonl", META, *[clock(k) for k in range(100_000)], "x")
    with pytest.raises(AssertionError, match="MemoryError"):
        read_within(8 * MIB, path)
