"""Where the meter's folder lies, with its socket, the engine's plugin and the next meter's note.

A new one goes where a socket's path is short enough and a file can be written: ``TMPDIR`` first,
then wherever a machine lets its users write. One that an engine already looks at is taken as it is;
root works there as the user whose folder it is.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import structlog

from meter.system.files import User, acting_as
from meter.work import beside
from meter.work.listener import PATH_BYTES

PREFIX = "joulemeter-"
SOCKET = "meter.sock"
#: What the folder's and the socket's names add to a place: its separators, and eight letters.
_NAMES_BYTES = len(f"/{PREFIX}12345678/{SOCKET}")
_VARIABLES = ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR")
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class NoPlaceError(OSError):
    """No folder can be had; the message says what was tried and what to do."""


class Place(NamedTuple):
    """``folder``, and the ``socket`` in it. ``user``: as whom root works there; ``engine``: whom
    root gives the socket to; ``is_guest``: it was there before, and stays."""

    folder: Path
    socket: Path
    user: User | None = None
    engine: User | None = None
    is_guest: bool = False


def new_place(
    environ: Mapping[str, str] = os.environ, folders: tuple[str, ...] = _FOLDERS
) -> Place:
    """A new folder of ours with the plugin in it. Raises ``NoPlaceError``."""
    reasons: dict[str, str] = {}
    for name, within in _places(environ, folders):
        folder = None
        try:
            if (over := len(os.fsencode(within)) + _NAMES_BYTES - PATH_BYTES) > 0:
                raise NoPlaceError(f"its path is {over} bytes too long for a socket in it")
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=within))
            _open_to_others(folder, beside.directory(folder / "beside"))
        except OSError as error:
            reasons[name] = error.strerror or str(error)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        if reasons:
            structlog.get_logger("joulemeter").info(
                "socket_elsewhere", place=str(within), reasons=reasons
            )
        return Place(folder, folder / SOCKET)
    tried = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NoPlaceError(
        f"no folder for the socket ({tried}): set TMPDIR to one that can be written, its path "
        f"of {PATH_BYTES - _NAMES_BYTES} bytes at most"
    )


def _open_to_others(folder: Path, plugin: Path) -> None:
    """Root may start a command that becomes another user (``setpriv``, ``gosu``): its engine has to
    read the plugin, in which nothing is secret, and to find the socket, which it is given then."""
    if os.geteuid() == 0:
        folder.chmod(0o711)
        for made in (plugin, *plugin.iterdir()):
            made.chmod(0o755)


def let_in(place: Place, pids: Iterable[int]) -> None:
    """Give the socket in our own folder to the first of these processes that is not root's."""
    if os.geteuid() != 0 or place.is_guest:
        return
    for user in map(_user_of, pids):
        if user is not None and user.uid != 0:
            os.chown(place.socket, *user, follow_symlinks=False)
            return


def _places(environ: Mapping[str, str], folders: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Each with its name: a variable's, where that says so."""
    seen = set()
    runtime = (f"/run/user/{os.geteuid()}",) if folders == _FOLDERS else ()
    named = [(f"{name}={environ[name]}", environ[name]) for name in _VARIABLES if environ.get(name)]
    for name, value in [*named, *((folder, folder) for folder in (*runtime, *folders))]:
        place = Path(value)
        if place not in seen and place.is_absolute():
            seen.add(place)
            yield name, place


def given_place(socket: Path, server: int | None, was_told: bool) -> Place:
    """The folder of a socket that an engine looks at. Raises ``OSError``.

    ``server``: the engine's process. ``was_told``: whether it is we who were told the path; else it
    is from the server's environment, and root must not be led anywhere by that.
    """
    folder, engine = socket.parent, _user_of(server)
    user = given = None
    if os.geteuid() == 0:
        if not was_told and engine is None:
            raise OSError(f"nobody knows whose {socket} is: give it by --socket")
        owner = _owner_of(folder)
        if not was_told:
            user = engine
        elif owner.uid != 0:
            user = owner
        elif _keeps_ours(folder):
            given = engine
        else:
            user = engine
    with acting_as(user):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _must_be_of(folder, user, engine)
    return Place(folder, socket, user, given, is_guest=True)


def _must_be_of(folder: Path, user: User | None, engine: User | None) -> None:
    """Another user's folder may be anything. Raises ``OSError``."""
    found = folder.stat()
    allowed = {0, os.geteuid(), *(one.uid for one in (user, engine) if one is not None)}
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is no folder")
    if found.st_uid not in allowed:
        raise OSError(
            f"{folder} belongs to user {found.st_uid}, neither to the server's user nor to ours: "
            "give another --socket"
        )


def _keeps_ours(folder: Path) -> bool:
    """Whether in root's folder nobody else can put a file in the place of root's."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:  # it is made by us
        return True
    return not mode & 0o022 or bool(mode & stat.S_ISVTX)


def _owner_of(folder: Path) -> User:
    """Of the folder, or of the nearest above it that is there."""
    for place in (folder, *folder.parents):
        with suppress(FileNotFoundError):
            found = place.stat()
            return User(found.st_uid, found.st_gid)
    return User(0, 0)


def _user_of(pid: int | None) -> User | None:
    try:
        if pid is None:
            return None
        process = psutil.Process(pid)
        return User(process.uids().effective, process.gids().effective)
    except (psutil.Error, OSError):
        return None
