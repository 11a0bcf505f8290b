"""Who wrote a datagram, as the kernel says it; nobody can claim another's process or user.

A socket with ``SO_PASSCRED`` gets the sender's credentials with every datagram (``unix(7)``,
``SCM_CREDENTIALS``). The kernel translates the pid into the reader's PID namespace; that of a
process which is not visible there (a container's, for a meter in another one) becomes 0.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

_CREDENTIALS = struct.Struct("iII")
#: Room for the credentials and nothing else: files that somebody sends along are not taken.
ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


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
