"""What ``/proc`` says of a process: whether it is still the one that was met, whose child it is.

A pid is used again; with the time at which its process began it names one process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_GENERATIONS = 8


class _Stat(NamedTuple):
    state: str
    parent: int
    began: str


def _stat(pid: int) -> _Stat | None:
    """Of ``/proc/PID/stat``; ``None`` where it cannot be read."""
    try:
        told = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    words = told.rpartition(")")[2].split()
    return _Stat(words[0], int(words[1]), words[19]) if len(words) > 19 else None


def began(pid: int | None) -> str | None:
    """When a process began, in the kernel's ticks: tells it from a later one of the same pid."""
    stat = None if pid is None else _stat(pid)
    return None if stat is None else stat.began


def lives(pid: int, since: str | None) -> bool:
    """Whether the process ``pid`` that began at ``since`` (``None``: not known) still runs."""
    stat = _stat(pid)
    if stat is not None:
        return stat.state not in "ZX" and since in (None, stat.began)
    try:
        os.kill(pid, 0)  # /proc may hide the processes of others
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def comes_of(pid: int, ancestor: int) -> bool:
    """Whether the process ``pid`` comes of ``ancestor``, by ``fork``."""
    for _ in range(_GENERATIONS):
        stat = _stat(pid)
        if stat is None or stat.parent <= 1:
            return False
        pid = stat.parent
        if pid == ancestor:
            return True
    return False
