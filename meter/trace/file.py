"""A trace's file, compressed as its name says."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, cast

VERSION = 1


def open_trace(path: Path, mode: str) -> IO[str]:
    """Open for ``r`` or ``w``: plain, ``.gz`` or ``.zst``."""
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, mode + "t", encoding="utf-8"))
    if path.suffix == ".zst":
        import zstandard

        stream: IO[bytes] = zstandard.open(path, mode + "b")
        return io.TextIOWrapper(stream, encoding="utf-8")
    return path.open(mode, encoding="utf-8")
