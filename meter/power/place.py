"""A folder of one user's own, among folders of others whom one need not trust.

``joulemeter-UID`` in a base folder that others may write, too (``/dev/shm``, a shared lock folder).
Whoever comes first may have made that name, or a link of it: the folder counts only where it is a
true folder of that user which nobody else may write. Files in it are opened from the folder itself,
never through a link, and only where they are that user's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meter.system.files import replace_in

PREFIX = "joulemeter-"
_NOTE_MAX = 200
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NoPlaceError(Exception):
    """There is no such folder, or it is not to be trusted; says which and what to do."""


def me() -> int:
    """Whose the files are that this process makes."""
    return os.geteuid()


def uid_of(status: os.stat_result) -> int:
    return status.st_uid


class Place:
    """The folder of the user ``uid`` in ``base``."""

    def __init__(self, base: Path, uid: int) -> None:
        self.base = base
        self.uid = uid
        self.path = base / f"{PREFIX}{uid}"

    def make(self) -> None:
        """Make it where it is missing, and its base for all users. Raises ``NoPlaceError``."""
        try:
            if not self.base.exists():
                with suppress(FileExistsError):
                    self.base.mkdir(parents=True)
                    self.base.chmod(0o1777)
            self._check_base()
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o755)
                self.path.chmod(0o755)
        except OSError as error:
            raise NoPlaceError(f"{self.path} cannot be made: {error.strerror}; {REMEDY}") from error

    def _check_base(self) -> None:
        """Who owns the base could put another folder in the place of ours at any time."""
        status = self.base.lstat()
        if stat.S_ISLNK(status.st_mode) and uid_of(status) != 0:
            raise NoPlaceError(f"{self.base} is a link: name the folder itself")
        status = self.base.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise NoPlaceError(f"{self.base} is no folder; {REMEDY}")
        if uid_of(status) not in (0, me()):
            raise NoPlaceError(f"{self.base} belongs to another user; {REMEDY}")
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            raise NoPlaceError(f"{self.base} lets anybody rename what is in it; {REMEDY}")

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Its descriptor. Raises ``NoPlaceError`` where it is not there or not that user's."""
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
        except OSError as error:
            raise NoPlaceError(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(folder)
            if uid_of(status) != self.uid or status.st_mode & _OTHERS_WRITE:
                raise NoPlaceError(f"{self.path} is not a folder of user {self.uid}'s; {REMEDY}")
            yield folder
        finally:
            os.close(folder)

    def open(self, name: str, make: bool = False) -> int:
        """A descriptor of that file, which nobody but its user (and root) can open. Raises
        ``NoPlaceError``; ``FileNotFoundError`` where it is not there and not to be made."""
        flags = (os.O_RDWR | os.O_CREAT if make else os.O_RDONLY) | _OPEN
        with self.opened() as folder:
            try:
                file = os.open(name, flags, 0o600, dir_fd=folder)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise NoPlaceError(
                    f"{self.path / name} cannot be opened: {error.strerror}; {REMEDY}"
                ) from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or uid_of(status) != self.uid:
            os.close(file)
            raise NoPlaceError(f"{self.path / name} is no file of user {self.uid}'s; {REMEDY}")
        return file

    def write(self, name: str, text: str) -> None:
        """A small file that everybody may read, whole or not at all. Raises ``OSError`` or
        ``NoPlaceError``."""
        with self.opened() as folder:
            replace_in(folder, name, text.encode(), 0o644)

    def read(self, name: str) -> str | None:
        """Such a file's beginning; ``None`` where there is none, or it is not that user's."""
        with suppress(OSError, NoPlaceError), self.opened() as folder:
            file = os.open(name, os.O_RDONLY | _OPEN, dir_fd=folder)
            try:
                status = os.fstat(file)
                if stat.S_ISREG(status.st_mode) and uid_of(status) == self.uid:
                    return os.read(file, _NOTE_MAX).decode("utf-8", "replace")
            finally:
                os.close(file)
        return None

    def remove(self, name: str) -> None:
        with suppress(OSError, NoPlaceError), self.opened() as folder:
            os.unlink(name, dir_fd=folder)

    def names(self) -> list[str]:
        """What is in it; nothing where it is not that user's."""
        with suppress(OSError, NoPlaceError), self.opened() as folder, os.scandir(folder) as all_:
            return [entry.name for entry in all_]
        return []


REMEDY = "set power.lock_directory to a folder that only you or root may write"
