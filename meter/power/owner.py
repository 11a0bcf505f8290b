"""One meter a device: a lock by the device's id, held as long as its meter lives.

Two meters that export the same board would count every joule twice in any sum. The lock is a file
under ``directory``, held with ``flock``: the kernel lets it go when its holder ends, however it
ends. The default lies in ``/dev/shm``, which all users of a host share, and containers with
``--ipc=host`` too. Where it cannot be used, nobody is kept out, and that is said.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

DIRECTORY = Path("/dev/shm/joulemeter")


class NoLockError(Exception):
    """The lock's directory cannot be used."""


class Ownership:
    """The right to meter one device, once it is taken."""

    def __init__(self, device: str, directory: Path = DIRECTORY, scope: str = "") -> None:
        """``scope``: told apart from other devices of that id (simulated cards of other files)."""
        self._path = directory / f"{device.replace('/', '_')}{scope}.lock"
        self._file: int | None = None

    def take(self) -> bool:
        """Become the owner, unless another process is; true where we are.

        Raises ``NoLockError``.
        """
        if self._file is not None:
            return True
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            raise NoLockError(f"{self._path} cannot be locked: {error.strerror}") from error
        self._file = file
        with suppress(OSError):  # another user's file: locked all the same
            writable = os.open(self._path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.write(writable, f"{os.getpid()}\n".encode())
            os.close(writable)
        return True

    def owner(self) -> int | None:
        """The process that has it, as it wrote down; ``None`` where that cannot be told."""
        with suppress(OSError, ValueError):
            return int(self._path.read_text())
        return None

    def held_by(self) -> int | None:
        """The pid of the process that owns it now (0 where it is not known); ``None``: nobody."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self.owner() or 0
        except OSError:
            return None
        finally:
            os.close(file)
        return None

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        """The lock's file, made where it is missing. Locking needs no right to write it."""
        try:
            self._make_directory()
            with suppress(FileNotFoundError):
                return os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(self._path, flags, 0o666)
            with suppress(OSError):
                os.fchmod(file, 0o666)
        except OSError as error:
            raise NoLockError(f"{self._path} cannot be opened: {error.strerror}") from error
        return file

    def _make_directory(self) -> None:
        """For all users, as ``/tmp`` is, whoever comes first; anybody may have laid a link."""
        directory = self._path.parent
        if directory.is_symlink():
            raise NoLockError(f"{directory} is a link: name the directory itself")
        if not directory.is_dir():
            with suppress(FileExistsError):
                directory.mkdir(parents=True)
                directory.chmod(0o1777)


def count(prefix: str, directory: Path = DIRECTORY) -> int:
    """How many locks whose name begins so are held now; what nobody holds any more is removed."""
    held = 0
    for path in directory.glob(f"{prefix}*.lock"):
        if Ownership(path.stem, directory).held_by() is not None:
            held += 1
        else:
            with suppress(OSError):
                path.unlink()
    return held
