"""Who wrote a datagram, as the kernel says it; nobody can claim another's process or user.

A socket with ``SO_PASSCRED`` gets the sender's credentials with every datagram (``unix(7)``,
``SCM_CREDENTIALS``). The kernel translates the pid into the reader's PID namespace; that of a
process which is not visible there (a container's, for a meter in another one) becomes 0.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_CREDENTIALS = struct.Struct("iII")
#: Room for the credentials and nothing else: files that somebody sends along are not taken.
ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
_GENERATIONS = 8


class Peer(NamedTuple):
    """``pid``: as seen here, ``None`` where it is not visible here; ``uid``: the real user."""

    pid: int | None
    uid: int


def ask_for_peers(listening: socket.socket) -> None:
    """Have the kernel name the sender of each datagram; before ``bind``, so of every one."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def peer_of(ancillary: Iterable[tuple[int, int, bytes]]) -> Peer | None:
    """The sender in a datagram's ancillary data; ``None`` where it is not there."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            return Peer(pid or None, uid)
    return None


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
