"""Files cut off, damaged, or none at all: what can be read is read, and the break is named."""

from __future__ import annotations

import gzip
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from meter.model import Clock, Device, Quality
from meter.trace import TraceError, TraceReader, TraceWriter, read_trace
from tests.trace.lines import META, clock, put, reading, step

NO_END = "data without its end: cut off, or still being written"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def many_lines(count: int = 20_000) -> bytes:
    """Lines that do not compress to nothing."""
    chance = random.Random(7)
    lines = (reading(round(k / 100, 2), chance.randrange(10**9) / 1000) for k in range(count))
    return "\n".join([META, *lines, ""]).encode()


PACKED = pytest.mark.parametrize(
    ("suffix", "kind", "pack"), [(".gz", "gzip", gzip.compress), (".zst", "zstd", zstd)]
)
Pack = Callable[[bytes], bytes]


@PACKED
@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_compressed_file_cut_off(
    tmp_path: Path, suffix: str, kind: str, pack: Pack, part: float
) -> None:
    """What comes before the cut is read, the line in which it lies is named once."""
    data = many_lines()
    packed = pack(data)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(packed[: int(len(packed) * part)])
    trace = read_trace(path)
    assert part - 0.1 < len(trace.events) / 20_000 <= part + 0.001
    assert trace.events == read_trace(put(tmp_path / "t.jsonl", data)).events[: len(trace.events)]
    (bad,) = trace.bad_lines
    assert bad == (len(trace.events) + 2, f"the file breaks off: {kind} {NO_END}")


def test_zstd_without_its_end_frame(tmp_path: Path) -> None:
    """As a writer leaves it that was killed: every line flushed is there."""
    path = tmp_path / "t.jsonl.zst"
    with path.open("wb") as file:
        writer = zstandard.ZstdCompressor().stream_writer(file, closefd=False)
        writer.write(f"{META}\n{clock(1)}\n{clock(2)}\n".encode())
        writer.flush(zstandard.FLUSH_BLOCK)
    trace = read_trace(path)
    assert len(trace.events) == 2
    assert trace.bad_lines == [(4, f"the file breaks off: zstd {NO_END}")]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_trace_can_be_read_while_it_is_written(tmp_path: Path, suffix: str) -> None:
    """Up to the last flush."""
    path = tmp_path / f"t.jsonl{suffix}"
    writer = TraceWriter(path, (Device("GPU-0", "x", Quality.MEASURED),))
    writer.write(Clock(10**9, 5))
    writer.flush()
    try:
        trace = read_trace(path)
    finally:
        writer.close()
    assert trace.events == [Clock(10**9, 5)]
    assert len(trace.bad_lines) == (1 if suffix else 0)
    assert read_trace(path).bad_lines == []


@PACKED
def test_damage_in_the_middle(tmp_path: Path, suffix: str, kind: str, pack: Pack) -> None:
    """What lies before it is read; what comes after it is lost, and the file says so."""
    packed = bytearray(pack(many_lines()))
    middle = len(packed) // 2
    packed[middle : middle + 64] = os.urandom(64)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(packed)
    trace = read_trace(path)
    assert 0 < len(trace.events) < 20_000
    assert any(f"the file breaks off: damaged {kind} data (" in b.reason for b in trace.bad_lines)


@PACKED
def test_garbage_in_place_of_compressed_data(
    tmp_path: Path, suffix: str, kind: str, pack: Pack
) -> None:
    """It is called what it is, with the remedy."""
    path = put(tmp_path / f"t.jsonl{suffix}", META, clock(1))
    magic = pack(b"")[: 2 if kind == "gzip" else 4].hex(" ")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == (
        f"{path}: nothing of it can be read: no {kind} data: {magic} should come first, not "
        "7b 22 74 79; if the file is not compressed, name it without the ending"
    )


@PACKED
def test_compressed_data_under_a_plain_name(
    tmp_path: Path, suffix: str, kind: str, pack: Pack
) -> None:
    """The name that it should have is said."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(pack(many_lines()))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}: is compressed: its name should end in {suffix}"


@PACKED
def test_several_members_are_one_file(tmp_path: Path, suffix: str, kind: str, pack: Pack) -> None:
    """Compressed files may be appended to each other, filled up with zeros; garbage is named."""
    path = tmp_path / f"t.jsonl{suffix}"
    members = pack(f"{META}\n{clock(1)}\n".encode()) + pack(clock(2).encode()) + bytes(40_000)
    path.write_bytes(members)
    assert len(read_trace(path).events) == 2
    assert read_trace(path).bad_lines == []
    path.write_bytes(members + pack(b"\n") + b"garbage, and not a little of it")
    trace = read_trace(path)
    assert len(trace.events) == 2
    (bad,) = trace.bad_lines
    assert bad.number == 4
    assert bad.reason.startswith(f"the file breaks off: damaged {kind} data (")


EMPTY = 'the trace is empty; its first line must be the meta line, with "type":"meta"'


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \r\n\t\n"])
@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_an_empty_file(tmp_path: Path, content: bytes, suffix: str, pack: Pack) -> None:
    """Or one of blank lines, compressed or not."""
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(pack(content))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}: {EMPTY}"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_of_no_bytes_that_should_be_compressed(tmp_path: Path, suffix: str) -> None:
    """Is as empty."""
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(b"")
    with pytest.raises(TraceError, match="the trace is empty"):
        read_trace(path)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([clock(1)], "line 1 is no meta line: it has type 'clock'"),
        (["", "x"], "line 2 is no meta line: not JSON: Expecting value (column 1)"),
        ([b"\x80\x81"], "line 1 is no meta line: the line is not UTF-8: byte 1 is 0x80"),
        (
            [META[:-20]],
            "line 1 is no meta line: not JSON: Unterminated string starting at (column 126)",
        ),
        ([clock(1)] * 5000 + [META], "line 1 is no meta line: it has type 'clock'"),
    ],
)
def test_no_meta_line(tmp_path: Path, lines: list[str | bytes], reason: str) -> None:
    """What was found in its place is said."""
    path = put(tmp_path / "t.jsonl", *lines)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    wanted = 'its first line must be the meta line, with "type":"meta"'
    assert str(caught.value) == f"{path}: {reason}; {wanted}"


@PACKED
def test_cut_off_before_anything_can_be_read(
    tmp_path: Path, suffix: str, kind: str, pack: Pack
) -> None:
    """The reason is the break, not a missing meta line."""
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(pack(many_lines())[:12])
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}: nothing of it can be read: {kind} {NO_END}"


def test_a_plain_file_that_ends_in_a_line(tmp_path: Path) -> None:
    """The line is named; where it is whole but for its end, it is used."""
    path = tmp_path / "t.jsonl"
    path.write_text(f"{META}\n{clock(1)}\n{clock(2)}")
    assert read_trace(path).bad_lines == []
    assert len(read_trace(path).events) == 2
    path.write_text(f"{META}\n{clock(1)}\n{clock(2)[:-4]}")
    trace = read_trace(path)
    assert len(trace.events) == 1
    assert trace.bad_lines == [
        (
            3,
            "not JSON: Unterminated string starting at (column 23) (the file ends in this line)",
        )
    ]


def test_bytes_that_are_no_text_spoil_their_line_alone(tmp_path: Path) -> None:
    """In the middle of many."""
    lines: list[str | bytes] = [step(seq, t1=1 + seq / 100) for seq in range(1000)]
    lines[500] = str(lines[500]).encode().replace(b'"r"', b'"r\xc3"')
    trace = read_trace(put(tmp_path / "t.jsonl", META, *lines))
    assert len(trace.events) == 999
    assert [tuple(bad) for bad in trace.bad_lines] == [
        (502, "the line is not UTF-8: byte 56 is 0xc3")
    ]


def test_no_file(tmp_path: Path) -> None:
    """A missing file is named, and so is a folder."""
    with pytest.raises(TraceError) as caught:
        read_trace(tmp_path / "none.jsonl")
    assert str(caught.value) == f"{tmp_path / 'none.jsonl'}: no such trace file"
    with pytest.raises(TraceError) as caught:
        read_trace(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder, not a trace file"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_trace(device: str) -> None:
    """One may have no end: it is not read at all."""
    with pytest.raises(TraceError) as caught:
        read_trace(device)
    assert str(caught.value) == f"{device}: is a device, not a trace file"


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """The system's reason is said."""
    path = put(tmp_path / "t.jsonl", META) / "t.jsonl"
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}: cannot be opened: Not a directory"


class FailingFile(io.BytesIO):
    """A disk that gives out after its first block."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_a_disk_that_gives_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is used."""
    data = many_lines()
    monkeypatch.setattr(Path, "open", lambda self, mode: FailingFile(data))
    trace = read_trace(tmp_path / "t.jsonl")
    assert 0 < len(trace.events) < 20_000
    assert trace.bad_lines == [
        (len(trace.events) + 2, "the file breaks off: [Errno 5] Input/output error")
    ]


# --- line by line


def test_a_reader_gives_one_event_after_the_other(tmp_path: Path) -> None:
    """And knows devices and engines before the first."""
    path = put(tmp_path / "t.jsonl", META, clock(1), "x", clock(2))
    reader = TraceReader(path)
    assert [device.id for device in reader.devices] == ["GPU-0"]
    assert [engine.id for engine in reader.engines] == ["0"]
    assert list(reader) == read_trace(path).events
    assert reader.bad_lines == read_trace(path).bad_lines


def test_a_reader_may_stop_early(tmp_path: Path) -> None:
    """The file is closed (a warning would fail this test)."""
    reader = TraceReader(put(tmp_path / "t.jsonl", META, *[clock(1)] * 100_000))
    for _ in reader:
        break
    reader.close()
    TraceReader(tmp_path / "t.jsonl").close()
