"""The meter's end of the wire: one thread that drains the socket and pushes events.

The thread looks a hundred times a second rather than wait for a datagram: an engine that wakes a
reader pays for it, within its step. The kernel holds ten datagrams meanwhile; a faster engine finds
the queue full and merges. Once a second the thread looks whether the engines that spoke are still
alive: a killed engine says no good-bye.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from meter.model import Event
from meter.work.safely import User, acting_as
from meter.work.wire import Counters, Decoder, DevicesOf, Source

_DATAGRAM_MAX = 1 << 20
#: Of a socket's path (sun_path has 108, and a zero at its end).
PATH_BYTES = 107
_POLL_S = 0.01
_LIVENESS_S = 1.0


class ListenError(Exception):
    """The socket cannot be listened on; the message says why and what to do."""


class Listener:
    """Listens on the ``AF_UNIX`` datagram socket ``path`` and pushes what engines say.

    ``push`` takes one event, never blocks and may be called from any thread. ``devices_of`` finds
    the devices of an engine from its ``Hello``; it is called in the listener's thread, once for
    every hello. ``mode`` are the socket's permissions: who may write may be an engine.
    """

    def __init__(
        self,
        path: str | Path,
        push: Callable[[Event], None],
        devices_of: DevicesOf | None = None,
        mode: int = 0o600,
        user: User | None = None,
        engine: User | None = None,
    ) -> None:
        """``user``: as whom root makes the socket and removes it; ``engine``: whom root gives it to
        afterwards (only in a folder that is root's alone)."""
        self._path = Path(path)
        self._user = user
        self._engine = engine
        self._push = push
        self._mode = mode
        since_ns = time.monotonic_ns()
        self._decoder = Decoder(devices_of, lambda source: _lives(source.hello.pid), since_ns)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._watched: set[str] = set()
        self.last_ns: int | None = None

    @property
    def counters(self) -> Counters:
        """Live counts; only ever grow, and are written by the listener's thread alone."""
        return self._decoder.counters

    @property
    def sources(self) -> tuple[Source, ...]:
        """The engines that are heard now."""
        return self._decoder.sources

    @property
    def path(self) -> Path:
        return self._path

    def start(self) -> None:
        """Bind and start. Raises ``ListenError`` where the path cannot be used."""
        self._socket = self._bind()
        self._thread = threading.Thread(target=self._run, name="joulemeter-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take what has already arrived, then end the thread and remove the socket."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError), acting_as(self._user):
                self._path.unlink()

    def _bind(self) -> socket.socket:
        if (size := len(os.fsencode(self._path))) > PATH_BYTES:
            raise ListenError(
                f"cannot listen on {self._path}: it is {size} bytes long, a socket's path may be "
                f"{PATH_BYTES}; choose a shorter path"
            )
        try:
            with acting_as(self._user):
                return self._bound()
        except OSError as error:
            remedy = "choose a path in a folder that the engine's user can write"
            raise ListenError(f"cannot listen on {self._path}: {error}; {remedy}") from error

    def _bound(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ListenError(f"{self._path} exists and is no socket; choose another path")
            if _is_listened_on(self._path):
                raise ListenError(f"another meter listens on {self._path}: end that one first")
            self._path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _DATAGRAM_MAX)
            os.fchmod(listening.fileno(), self._mode)  # before it has a name that others may take
            listening.bind(str(self._path))
            if stat.S_IMODE(self._path.lstat().st_mode) != self._mode:  # the umask took from it
                self._path.chmod(self._mode)
            if self._engine is not None:
                os.chown(self._path, *self._engine, follow_symlinks=False)
        except OSError:
            listening.close()
            raise
        listening.setblocking(False)
        return listening

    def _run(self) -> None:
        listening = self._socket
        if listening is None:
            return
        view = memoryview(bytearray(_DATAGRAM_MAX))
        next_look = time.monotonic() + _LIVENESS_S
        stopping = False
        while not stopping:
            # What arrived before the stop is taken: look once more after it was asked for.
            stopping = self._stopping.wait(_POLL_S)
            self._drain(listening, view)
            if time.monotonic() >= next_look:
                self.look_for_the_dead()
                next_look = time.monotonic() + _LIVENESS_S

    def _drain(self, listening: socket.socket, view: memoryview) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(view[: listening.recv_into(view)])

    def _take(self, data: memoryview) -> None:
        self.last_ns = time.monotonic_ns()
        for event in self._decoder.decode(data):
            self._push(event)

    def look_for_the_dead(self) -> None:
        """Tell the end of engines whose process is gone; the thread does so once a second."""
        for source in self._decoder.sources:
            if self._is_gone(source):
                self._push(self._decoder.gone(source, time.monotonic_ns()))

    def _is_gone(self, source: Source) -> bool:
        """Only where its process was once seen: it may live in another PID namespace."""
        pid = source.hello.pid
        if pid is None:
            return False
        if _exists(pid):
            self._watched.add(source.name)
            return False
        return source.name in self._watched


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _lives(pid: int | None) -> bool:
    return pid is not None and _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
