"""The HTTP server of the port: uvicorn's, with bounds that hold against a client that means harm.

The server's process and its log are the engine's neighbours, so nothing here may grow or repeat
without end: how many connections there are, how long one may take to say what it wants or to read
its answer, how much it may say, and how often is tried and told that files have run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import time
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from meter.export import SERVER

CONNECTIONS_MAX = 256
HEADER_S = 10.0
"""In which a whole request must have come, from the connection's or its first byte on."""
STALL_S = 30.0
"""For how long an answer may wait for its reader."""
IDLE_S = 65.0
"""For how long a connection without a request is kept: longer than most scrape intervals."""
REQUEST_BYTES_MAX = 16_384
_BODY_BYTES_MAX = 65_536
_ACCEPT_AGAIN_S = 0.5
_ACCEPTED_AT_ONCE = 16
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: 37\r\n\r\ntoo many connections: ask again later"
)


def connections_max() -> int:
    """How many connections are kept at most: a quarter of the files that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else soft // 4
    return max(4, min(CONNECTIONS_MAX, files))


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._bytes = 0
        self.used_s = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether nothing is being answered: it can be closed without harm."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self.waits:
            self._expect()
        super().data_received(data)
        if self.waits:
            return
        self._dismiss()
        self.used_s = time.monotonic()
        self._bytes += len(data)
        if self._bytes > REQUEST_BYTES_MAX + _BODY_BYTES_MAX:
            self.transport.abort()  # this port only reads: nobody has that much to say

    def on_response_complete(self) -> None:
        self._bytes = 0
        self.used_s = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._dismiss()
        if self._stalled is not None:
            self._stalled.cancel()

    def _expect(self) -> None:
        """A whole request by then."""
        if self._late is None:
            self._late = self.loop.call_later(HEADER_S, self.transport.abort)

    def _dismiss(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Acceptor:
    """Takes connections from a listening socket, so many and no more.

    Where there are as many as may be, the longest unused makes room; where all are being answered
    the new one is told so. Where the process has no file left it waits before it tries again:
    asyncio (3.11) tries again as often as its backlog allows, at once, and logs each.
    """

    def __init__(
        self, listening: socket.socket, server: BoundedServer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._socket = listening
        self._server = server
        self._loop = loop
        self._most = connections_max()
        self._again: asyncio.TimerHandle | None = None
        self._coming: dict[asyncio.Task[None], BoundedProtocol] = {}
        self._log = structlog.get_logger("joulemeter.http")

    def start(self) -> None:
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._again is not None:
            self._again.cancel()

    async def wait_closed(self) -> None:
        """There is nothing to wait for; uvicorn asks."""

    def _accept(self) -> None:
        # Few at once: only of those that are connected is it known which can make room.
        for _ in range(max(1, min(_ACCEPTED_AT_ONCE, self._most // 8))):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(error)
                return
            self._take(connection)

    def _wait(self, error: OSError) -> None:
        self._loop.remove_reader(self._socket)
        self._again = self._loop.call_later(_ACCEPT_AGAIN_S, self.start)
        out = error.errno in _OUT_OF_FILES
        self._log.warning(
            "http_accepts_nothing",
            reason=error.strerror or str(error),
            remedy="raise the limit of open files (ulimit -n)" if out else "please report this",
        )

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if not self._has_room():
            with contextlib.suppress(OSError):
                connection.send(_FULL)
            connection.close()
            self._log.warning(
                "http_is_full",
                connections=self._most,
                remedy="close pages and watchers; who is it? `ss -tnp` lists them",
            )
            return
        coming = self._server.protocol()
        task = self._loop.create_task(self._connect(connection, coming))
        self._coming[task] = coming
        task.add_done_callback(self._coming.pop)

    def _has_room(self) -> bool:
        connections = self._server.server_state.connections
        # One that is connected has a transport, and is among the connections already.
        coming = sum(one.transport is None for one in self._coming.values())
        if len(connections) + coming < self._most:
            return True
        waiting = [one for one in connections if isinstance(one, BoundedProtocol) and one.waits]
        if not waiting:
            return False
        longest = min(waiting, key=lambda one: one.used_s)
        longest.transport.abort()
        connections.discard(longest)
        return True

    async def _connect(self, connection: socket.socket, coming: BoundedProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: coming, connection)
        except OSError:
            connection.close()


class BoundedServer(uvicorn.Server):
    """uvicorn's server over sockets that listen already."""

    def protocol(self) -> BoundedProtocol:
        """A new connection's."""
        return BoundedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from the sockets. There is no lifespan to start."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_say)
        acceptors = [Acceptor(one, self, loop) for one in sockets or []]
        self.servers: list[Any] = list(acceptors)
        for acceptor in acceptors:
            acceptor.start()
        self.started = True


def _say(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop has to say, in the meter's own form."""
    error = context.get("exception")
    structlog.get_logger("joulemeter.http").warning(
        "http_failed",
        reason=str(context.get("message"))[:200],
        error=None if error is None else repr(error)[:200],
        remedy="please report this",
    )


def serve(app: Any) -> BoundedServer:
    """A server of ``app``, to be run on a thread of its own."""
    # Each request that is none, of whoever looks for open ports, would be a warning.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        headers=[("Server", SERVER)],  # by which `joulemeter top` knows us
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
    )
    return BoundedServer(config)
