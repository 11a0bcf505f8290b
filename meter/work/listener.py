"""The meter's end of the wire: one thread that drains the socket and pushes events.

The thread looks a hundred times a second rather than wait for a datagram: an engine that wakes a
reader pays for it, within its step. The kernel holds ten datagrams meanwhile; a faster engine finds
the queue full and merges. Once a second the thread looks whether the engines that spoke are still
alive: a killed engine says no good-bye.

Nothing that arrives ends the thread: an error is counted, logged, and costs one datagram. Whoever
floods the socket is given a thousand datagrams at a time, and holds up neither the look at the
living nor the end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from meter.model import Event
from meter.system.files import User, acting_as
from meter.work.hello import DevicesOf
from meter.work.peer import ANCILLARY_BYTES, Peer, ask_for_peers, peer_of
from meter.work.wire import Counters, Decoder, Source

_DATAGRAM_MAX = 1 << 20
#: Of a socket's path (sun_path has 108, and a zero at its end).
PATH_BYTES = 107
_POLL_S = 0.01
_LIVENESS_S = 1.0
#: So many datagrams are taken before anything else is looked at.
_AT_ONCE = 1000
#: An engine whose process cannot be seen from here lives while it speaks: twice a second.
_SPEAKS_NS = 3_000_000_000
_SAY_EVERY_S = 60.0


class ListenError(Exception):
    """The socket cannot be listened on; the message says why and what to do."""


class Listener:
    """Listens on the ``AF_UNIX`` datagram socket ``path`` and pushes what engines say.

    ``push`` takes one event, never blocks and may be called from any thread. ``devices_of`` finds
    the devices of an engine from its ``Hello``; it is called in the listener's thread, once for
    every hello. ``mode`` are the socket's permissions. Who may write may be an engine, if it is of
    our user, of the socket's owner, or root. ``has_room``: whether events are taken now; while they
    are not, the engines keep what they have to say.
    """

    def __init__(
        self,
        path: str | Path,
        push: Callable[[Event], None],
        devices_of: DevicesOf | None = None,
        mode: int = 0o600,
        has_room: Callable[[], bool] = lambda: True,
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
        self._has_room = has_room
        now_ns = time.monotonic_ns
        self._decoder = Decoder(devices_of, _is_alive, since_ns=now_ns(), now_ns=now_ns)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._users = {0, os.geteuid()}
        self._said_s = -_SAY_EVERY_S
        self._log = structlog.get_logger("joulemeter.wire")
        self.last_ns: int | None = None
        self.looked_s: float | None = None
        self.errors = 0

    @property
    def counters(self) -> Counters:
        """Live counts; only ever grow, and are written by the listener's thread alone."""
        return self._decoder.counters

    @property
    def sources(self) -> tuple[Source, ...]:
        """The engines that are heard now."""
        return self._decoder.sources

    def alive(self) -> bool:
        """Whether the thread runs. (``looked_s``, monotonic: when it looked at the socket last;
        ``errors``: how many of its own it has survived.)"""
        return self._thread is not None and self._thread.is_alive()

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
            ask_for_peers(listening)
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
        view = memoryview(bytearray(_DATAGRAM_MAX))
        next_look = time.monotonic() + _LIVENESS_S
        stopping = False
        while not stopping:
            # What arrived before the stop is taken: look once more after it was asked for.
            stopping = self._stopping.wait(_POLL_S)
            self.looked_s = time.monotonic()
            if stopping or self._has_room():
                self._guard(partial(self._drain, view))
            if time.monotonic() >= next_look:
                self._guard(self.look_for_the_dead)
                next_look = time.monotonic() + _LIVENESS_S

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something; whatever goes wrong there, the thread goes on."""
        try:
            action()
        except Exception:
            self.errors += 1
            now_s = time.monotonic()
            if now_s - self._said_s >= _SAY_EVERY_S:
                self._said_s = now_s
                self._log.exception(
                    "listener_failed", errors=self.errors, note="it goes on", remedy="report this"
                )

    def _drain(self, view: memoryview) -> None:
        listening = self._socket
        if listening is None:
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                count, ancillary, _, _ = listening.recvmsg_into([view], ANCILLARY_BYTES)
                self._guard(partial(self.take, view[:count], peer_of(ancillary)))

    def take(self, data: bytes | memoryview, peer: Peer | None) -> None:
        """One datagram and who wrote it; the thread calls this."""
        self.last_ns = time.monotonic_ns()
        if peer is not None and not self._may_speak(peer):
            counters = self._decoder.counters
            counters.datagrams += 1
            self._decoder.refusals.add("user", f"of user {peer.uid}", pid=peer.pid)
            return
        for event in self._decoder.decode(data, peer):
            self._push(event)

    def _may_speak(self, peer: Peer) -> bool:
        """Of our user, of root, or of whom the socket was given to."""
        if peer.uid in self._users:
            return True
        with contextlib.suppress(OSError):
            return peer.uid == self._path.stat().st_uid
        return False

    def look_for_the_dead(self) -> None:
        """Tell the end of engines whose process is gone; the thread does so once a second."""
        for source in self._decoder.sources:
            if source.lives() is False:
                self._push(self._decoder.gone(source, time.monotonic_ns()))


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _is_alive(source: Source) -> bool:
    lives = source.lives()
    return time.monotonic_ns() - source.heard_ns < _SPEAKS_NS if lives is None else lives
