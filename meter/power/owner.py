"""One meter a device: a lock by the device's id, held as long as its meter lives.

Two meters that export the same board would count every joule twice in any sum. The lock is a file,
held with ``flock``: the kernel lets it go when its holder ends, however it ends. Who can open a
lock can hold it for ever, so each user's lie in a folder of its own (``place``), which only that
user and root can open: nobody else can keep a meter from its GPU.

* Of one user's meters the first has the device.
* Root's meter has it before any other user's: it writes down who it is (``*.owner``) where root
  alone may write, and the others give way as long as that process lives and is a meter.
* Meters of two other users do not keep each other out, since neither can be told from somebody who
  only means to be in the way. What each writes down is seen by the other, and said.

Not protected: root and the user itself may do as they like; meters of two users are named, not
prevented; a meter in a container sees the others where it shares their folder (``/dev/shm`` by
``--ipc=host``; root's: a ``power.lock_directory`` on a shared volume) and their user's number.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from meter.power.place import PREFIX, NoPlaceError, Place, me
from meter.system.processes import began

USERS, ROOTS = Path("/dev/shm"), Path("/run")
ROOT = 0
_PROC = Path("/proc")
#: Somebody may fill the folder of all: no more of it is looked at.
_LOOKED_AT = 1024
_RIVALS = 8
_METERS = ("joulemeter", "meter.cli")


class NoLockError(Exception):
    """The lock's folder cannot be used."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A living meter that says it has the device."""

    uid: int
    pid: int


def place_of(uid: int, directory: Path | None) -> Place:
    """Where a user's locks are; ``directory``: as configured, for all users."""
    return Place(directory or (ROOTS if uid == ROOT else USERS), uid)


class Ownership:
    """The right to meter one device, once it is taken."""

    def __init__(self, device: str, directory: Path | None = None, scope: str = "") -> None:
        """``scope``: told apart from other devices of that id (simulated cards of other files)."""
        self._name = f"{device.replace('/', '_')}{scope}"
        self._directory = directory
        self._place = place_of(me(), directory)
        self._file: int | None = None

    def take(self) -> bool:
        """Become the owner, unless another process is; true where we are.

        Raises ``NoLockError``.
        """
        if self._file is not None:
            return True
        if self._roots() is not None:
            return False
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            os.close(file)
            raise NoLockError(f"{self._name} cannot be locked: {error.strerror}") from error
        self._file = file
        with suppress(OSError, NoPlaceError):
            self._place.write(self._note, f"{os.getpid()} {_started(os.getpid())}\n")
        return True

    def is_kept(self) -> bool:
        """Is it still ours? Not where root's meter has come meanwhile."""
        return self._file is not None and self._roots() is None

    def owner(self) -> int | None:
        """The process that has it; ``None`` where that cannot be told, or none that lives does."""
        holder = self._roots() or _holder(self._place, self._note)
        return holder.pid if holder is not None else None

    def held_by(self) -> int | None:
        """The pid of the process that owns it now (0 where it is not known); ``None``: nobody who
        could keep us out."""
        roots = self._roots()
        if roots is not None:
            return roots.pid
        try:
            file = self._place.open(f"{self._name}.lock")
        except (OSError, NoPlaceError):
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

    def rivals(self) -> tuple[Holder, ...]:
        """Meters of other users that say they have it too: they do not keep us out."""
        base = self._directory or USERS
        found: list[Holder] = []
        with suppress(OSError), os.scandir(base) as entries:
            for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
                uid = entry.name.removeprefix(PREFIX)
                if not entry.name.startswith(PREFIX) or not uid.isdecimal() or len(uid) > 10:
                    continue
                if int(uid) in (ROOT, me()) or len(found) == _RIVALS:
                    continue
                holder = _holder(Place(base, int(uid)), self._note)
                found += [holder] if holder is not None else []
        return tuple(found)

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            self._place.remove(self._note)
            os.close(self._file)
            self._file = None

    @property
    def _note(self) -> str:
        return f"{self._name}.owner"

    def _roots(self) -> Holder | None:
        """Root's meter, where we are not root and it has the device."""
        if me() == ROOT:
            return None
        return _holder(place_of(ROOT, self._directory), self._note)

    def _open(self) -> int:
        """The lock's file, made where it is missing."""
        try:
            self._place.make()
            return self._place.open(f"{self._name}.lock", make=True)
        except (OSError, NoPlaceError) as error:
            raise NoLockError(str(error)) from error


def count(prefix: str, directory: Path | None = None) -> int:
    """How many locks of ours (and of root's) whose name begins so are held now; what nobody of ours
    holds any more is removed."""
    held = 0
    mine = place_of(me(), directory)
    for name in mine.names():
        if not name.startswith(prefix) or not name.endswith(".lock"):
            continue
        if Ownership(name.removesuffix(".lock"), directory).held_by() is not None:
            held += 1
        else:
            mine.remove(name)
            mine.remove(f"{name.removesuffix('.lock')}.owner")
    if me() == ROOT:
        return held
    roots = place_of(ROOT, directory)
    notes = [n for n in roots.names() if n.startswith(prefix) and n.endswith(".owner")]
    return held + sum(_holder(roots, note) is not None for note in notes)


def _holder(place: Place, note: str) -> Holder | None:
    """Who wrote that down, where it is a meter of that user's which lives."""
    words = (place.read(note) or "").split()
    if len(words) != 2 or not all(word.isdecimal() and len(word) < 20 for word in words):
        return None
    pid, started = map(int, words)
    if not 0 < pid < 1 << 31 or not _is_meter(pid, started, place.uid):
        return None
    return Holder(place.uid, pid)


def _is_meter(pid: int, started: int, uid: int) -> bool:
    """Is it the process that wrote that, alive, of that user, and a meter?

    Where ``/proc`` hides the processes of others, all that can be told is that it lives: root's
    word, which nobody else can have written, is then believed, another's is not.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's: it lives
    try:
        whose = (_PROC / str(pid)).stat().st_uid
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return uid == ROOT
    named = any(name.encode() in command for name in _METERS)
    return _started(pid) == started and whose in (uid, ROOT) and (named or pid == os.getpid())


def _started(pid: int) -> int:
    """When a process was started, in ticks since boot; 0 where it cannot be told."""
    return int(began(pid) or 0)
