"""A trace's file: its bytes, plain or compressed as its name says, and its lines.

What can still be read of a damaged file is read: the decompressors are driven by hand, since those
that behave like files lose what they hold when they meet the break.

A file of some kilobytes may unpack to gigabytes. So decompressors get little at a time, a line has
a greatest length, and a file that unpacks to far more than any trace would breaks off there.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from meter.trace.errors import TraceError

VERSION = 1
#: A step of 50,000 requests is shorter.
LINE_BYTES_MAX = 4 * 1024 * 1024

_PLAIN_BYTES = 256 * 1024
# What is unpacked at once. Of it, what comes before an error is lost. A byte of gzip data may
# unpack to a thousand bytes, four bytes of zstd data to 128 KiB.
_GZIP_BYTES = 4 * 1024
_ZSTD_BYTES = 128
# `zstd --long` needs so much.
_ZSTD_WINDOW_BYTES = 1 << 27
# A trace unpacks to five to fifty times its size.
_TIMES_MAX = 300
_TIMES_FROM_BYTES = 8 * 1024 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


# Enough to see that a line is too long.
_KEPT_BYTES = LINE_BYTES_MAX + 1


class _BreaksOffError(Exception):
    """Nothing can be read from here on."""


def open_for_writing(path: Path) -> IO[str]:
    """A new file: plain, ``.gz`` or ``.zst``."""
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "wt", encoding="utf-8"))
    if path.suffix == ".zst":
        import zstandard

        stream: IO[bytes] = zstandard.open(path, "wb")
        return io.TextIOWrapper(stream, encoding="utf-8")
    return path.open("w", encoding="utf-8")


class Lines:
    """The lines of a file, without their ends, in lists as they come. To be iterated once.

    Of a line beyond ``LINE_BYTES_MAX`` only the beginning is kept. ``count``: lines up to the end
    of the list that was given last. With the last one ``broken`` says why nothing more could be
    read (``None``: the file is whole), and ``unfinished`` that the line has no end.

    Raises ``TraceError`` where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.broken: str | None = None
        self.unfinished = False
        self.count = 0
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise TraceError(f"{path}: no such trace file") from error
        except IsADirectoryError as error:
            raise TraceError(f"{path}: is a folder, not a trace file") from error
        except OSError as error:
            raise TraceError(f"{path}: cannot be opened: {error.strerror}") from error
        if path.is_char_device():
            self._file.close()  # /dev/zero has no end, nor has a terminal
            raise TraceError(f"{path}: is a device, not a trace file")
        self._unpack = _UNPACK.get(path.suffix, _plain)

    def __iter__(self) -> Generator[list[bytes], None, None]:
        rest = b""
        with self._file as file:
            pieces = self._unpack(file)
            while (piece := self._next(pieces)) is not None:
                lines = piece.split(b"\n")
                if len(piece) > _KEPT_BYTES:
                    lines = [line[:_KEPT_BYTES] for line in lines]
                lines[0] = rest + lines[0][: _KEPT_BYTES - len(rest)]
                rest = lines.pop()
                if lines:
                    self.count += len(lines)
                    yield lines
        if rest:
            self.count += 1
            self.unfinished = True
            yield [rest]

    def close(self) -> None:
        self._file.close()

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        try:
            return next(pieces, None)
        except (_BreaksOffError, OSError) as error:
            self.broken = str(error)
            return None


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PLAIN_BYTES):
        yield piece


def _unpacked(
    file: IO[bytes],
    kind: str,
    magic: bytes,
    at_once: int,
    new: Callable[[], Any],
    error: type[Exception],
) -> Iterator[bytes]:
    """What one or more members (frames) of ``kind`` hold, one after the other."""
    unpack = None
    data = start = file.read(at_once)
    packed_bytes, unpacked_bytes = len(data), 0
    while data:
        unpack = unpack or new()
        try:
            piece = unpack.decompress(data)
        except error as broken:
            if data is start and not data.startswith(magic):
                raise _BreaksOffError(
                    f"no {kind} data: {magic.hex(' ')} should come first, not "
                    f"{data[:4].hex(' ')}; if the file is not compressed, name it without "
                    "the ending"
                ) from broken
            raise _BreaksOffError(f"damaged {kind} data ({broken})") from broken
        yield piece
        unpacked_bytes += len(piece)
        if unpacked_bytes > max(_TIMES_FROM_BYTES, _TIMES_MAX * packed_bytes):
            raise _BreaksOffError(
                f"{kind} data that unpacks to more than {_TIMES_MAX} times its size: no trace does"
            )
        data = unpack.unused_data
        if unpack.eof:
            unpack = None
        while not data or (unpack is None and not (data := data.lstrip(b"\0"))):
            # Some tools fill files up with zeros.
            data = file.read(at_once)
            packed_bytes += len(data)
            if not data:
                break
    if unpack is not None:
        raise _BreaksOffError(f"{kind} data without its end: cut off, or still being written")


def _gzip_members(file: IO[bytes]) -> Iterator[bytes]:
    new = partial(zlib.decompressobj, wbits=31)
    return _unpacked(file, "gzip", _GZIP, _GZIP_BYTES, new, zlib.error)


def _zstd_frames(file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    new = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj
    return _unpacked(file, "zstd", _ZSTD, _ZSTD_BYTES, new, zstandard.ZstdError)


_UNPACK: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    ".gz": _gzip_members,
    ".zst": _zstd_frames,
}


def compressed_name(start: bytes) -> str | None:
    """The ending that a file beginning so should have had, where it is a compressed one."""
    if start.startswith(_GZIP):
        return ".gz"
    return ".zst" if start.startswith(_ZSTD) else None
