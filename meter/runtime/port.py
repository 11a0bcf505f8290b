"""The HTTP port on its own thread; the socket is bound first, so a taken port is known early."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from meter.export.guard import Hosts
from meter.runtime.http_server import STALL_S, serve


class PortError(Exception):
    """The port cannot be opened; the message has the remedy."""


class Port:
    """A bound and listening port that serves an ASGI application."""

    def __init__(self, app: Any, host: str, port: int, others: int = 0) -> None:
        """Bind, where ``port`` is taken to one of so many ``others`` after it, and say so.

        Raises ``PortError``.
        """
        self._socket = _bind_near(host, port, others)
        self.url = _url(self._socket)
        self._server = serve(app)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [self._socket]},
            name="joulemeter-http",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop serving; waits no more than a few seconds."""
        self._server.should_exit = True
        self._thread.join(3.0)


def hosts_of(listens: str, allowed: Iterable[str], hosts_file: Path = Path("/etc/hosts")) -> Hosts:
    """The names under which the port may be asked. ``listens``: what it was told to listen on."""
    return Hosts.of(own_names(hosts_file), (listens, *allowed))


def own_names(hosts_file: Path) -> set[str]:
    """This machine's name, and what else the hosts file calls it. No name server is asked: that
    can take long, and whoever answers could be the attacker."""
    name = socket.gethostname().lower()
    found = {name}
    try:
        lines = hosts_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        names = line.partition("#")[0].lower().split()[1:]
        if name in names:
            found.update(names)
    return found - {""}


def _url(bound: socket.socket) -> str:
    """Where it listens; the real port where 0 was asked for."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_near(host: str, port: int, others: int) -> socket.socket:
    for number in range(port, min(65535, port + others) + 1):
        try:
            bound = _bind(host, number)
        except PortError as error:
            cause = error.__cause__
            taken = isinstance(cause, OSError) and cause.errno in (errno.EADDRINUSE, errno.EACCES)
            if not taken or number == min(65535, port + others):
                raise
            continue
        if number != port:
            structlog.get_logger("joulemeter.http").warning(
                "port_taken",
                port=port,
                instead=number,
                remedy="nothing, or set one of your own (--port, http.port): Prometheus must know",
            )
        return bound
    raise PortError(f"no port from {port} on: choose another (--port, http.port)")


def _bind(host: str, port: int) -> socket.socket:
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: one whose peer takes no more is given up also while it closes.
        with contextlib.suppress(OSError, AttributeError):  # Linux has it
            stall_ms = int(1000 * STALL_S)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise PortError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): {_remedy(error)}"
        ) from error
    return bound


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            "choose an address of this machine (--host, http.host): 127.0.0.1 for it alone, "
            "0.0.0.0 for others too"
        )
    return "choose another port (--port, http.port), 0 for any free one"
