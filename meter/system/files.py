"""Files in folders that others may own: nothing outside them is touched, whatever lies in them.

Root that meters another user's server works in that user's folder. There the user may have laid
links to files that are root's. So a file is written under a new name and put in the place of the
old one (a link is replaced, never followed); and what root does there it does as that user.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class User(NamedTuple):
    """A user and its group, by number."""

    uid: int
    gid: int


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """Touch files as ``user`` would, in this thread alone (``setfsuid``, Linux).

    Nothing changes where that is us, or where we are not root. Raises ``PermissionError`` where
    root may not become another user (a container without ``CAP_SETUID``).
    """
    own = User(os.geteuid(), os.getegid())
    if user is None or own.uid != 0 or user.uid == own.uid:
        yield
        return
    libc = ctypes.CDLL(None)
    try:
        libc.setfsgid(user.gid)
        libc.setfsuid(user.uid)
        if libc.setfsuid(-1) != user.uid:  # it tells no error; what is no user changes nothing
            raise PermissionError(1, f"root may not act as user {user.uid} here")
        yield
    finally:
        libc.setfsuid(own.uid)
        libc.setfsgid(own.gid)


def replace_file(folder: Path, name: str, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` in the place of ``folder/name``. A crash leaves the old file or the new one.

    Raises ``OSError``, also where the folder itself is a link.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        replace_in(place, name, data, mode)
    finally:
        os.close(place)


def replace_in(
    place: int, name: str, data: bytes, mode: int = 0o600, durable: bool = False
) -> None:
    """The same in an open folder. The name beside it is a new one: a second writer cannot mix its
    bytes in. ``durable``: it outlives a crash of the machine, too. Raises ``OSError``."""
    beside = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(beside, flags, mode, dir_fd=place)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        os.replace(beside, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=place)
        raise
    if durable:  # the rename; a crash before it brings the old file back, which does no harm
        os.fsync(place)


def read_file(path: Path, bytes_max: int, owners: Collection[int]) -> bytes:
    """A plain file's bytes. Raises ``OSError`` for a link, a pipe, a device, one too large, and
    one of any other user than root and ``owners``."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no plain file")
        if found.st_uid not in {0, *owners}:
            raise OSError(f"{path} belongs to user {found.st_uid}")
        data = opened.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise OSError(f"{path} is larger than {bytes_max} bytes")
    return data
