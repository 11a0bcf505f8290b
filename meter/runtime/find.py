"""Finds a server that runs already: its process, its address, and whether the plugin is in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from meter.work.beside import NAME
from meter.work.vllm import SOCKET

PLUGINS_VARIABLE = "VLLM_PLUGINS"
_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
_NO_METER = "it was started without joulemeter ({variable} is not in its environment)"
_CLOSED = (
    "process {pid} belongs to {owner} and may not be looked into: attach as that user or as root, "
    "or give the server's URL (joulemeter attach http://127.0.0.1:8000), for its totals"
)


class FindError(Exception):
    """There is no such server; the message says what was looked for."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``url``: its HTTP side, where that was told; ``socket``: where its engine's
    plugin looks for a meter; ``unplugged``: why there is no such plugin; ``readable``: whether its
    environment may be read."""

    pid: int | None
    environ: Mapping[str, str]
    url: str | None = None
    socket: Path | None = None
    unplugged: str | None = None
    readable: bool = True

    def urls(self) -> tuple[str, ...]:
        """Where it may be asked for its counters: as told, else wherever it listens now."""
        if self.url is not None:
            return (self.url,)
        return () if self.pid is None else tuple(_urls(self.pid))


def find(target: str, socket: Path | None = None) -> Server:
    """The server of a pid or a URL. ``socket``: where its engine looks for a meter, where that was
    told. Raises ``FindError``."""
    server = _find(target)
    if socket is not None:
        return replace(server, socket=socket)
    if not server.readable and server.url is None:
        raise FindError(_CLOSED.format(pid=server.pid, owner=_owner(server.pid)))
    return server


def _find(target: str) -> Server:
    if target.isdigit():
        if not psutil.pid_exists(int(target)):
            raise FindError(f"there is no process {target}")
        return _server(int(target), None)
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FindError(f"{target} is neither a pid nor a URL such as http://127.0.0.1:8000")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    pid = _listener_on(port) if parts.hostname in _LOCAL else None
    return _server(pid, target)


def _server(pid: int | None, url: str | None) -> Server:
    if pid is None:
        reason = "its process is not to be seen from here"
        return Server(None, {}, url, unplugged=reason)
    environ = environment_of(pid)
    if environ is None:
        reason = "its environment may not be read: run as its user, or as root"
        return Server(pid, {}, url, unplugged=reason, readable=False)
    if SOCKET not in environ:
        return Server(pid, environ, url, unplugged=_NO_METER.format(variable=SOCKET))
    return Server(pid, environ, url, Path(environ[SOCKET]), left_out(environ))


def left_out(environ: Mapping[str, str]) -> str | None:
    """Why vLLM would not load the plugin in this environment; ``None`` where it would."""
    names = environ.get(PLUGINS_VARIABLE)
    if names is None or NAME in names.split(","):
        return None
    return f"{PLUGINS_VARIABLE}={names} leaves {NAME} out: add it there"


def family(pid: int) -> list[psutil.Process]:
    """The process and all that it has started; empty where it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment of a process, or that of the first of its family which names the meter's
    socket (a script may set it); ``None`` where none may be read."""
    found: dict[str, str] | None = None
    for process in family(pid):
        try:
            environ = process.environ()
        except (psutil.Error, OSError):
            continue
        if SOCKET in environ:
            return environ
        found = found or environ
    return found


def _owner(pid: int | None) -> str:
    try:
        return str(psutil.Process(pid).username())
    except (psutil.Error, OSError):
        return "another user"


def _listener_on(port: int) -> int | None:
    for connection in _listening():
        if connection.laddr.port == port and connection.pid is not None:
            return int(connection.pid)
    return None


def _urls(pid: int) -> Iterator[str]:
    ports = listening_ports({process.pid for process in family(pid)})
    return (f"http://127.0.0.1:{port}" for port in sorted(ports))


def listening_ports(pids: Collection[int]) -> set[int]:
    """The TCP ports on which these processes listen, as far as they may be looked into."""
    return {int(c.laddr.port) for c in _listening() if c.pid in pids}


def _listening() -> list[Any]:
    try:
        return [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except (psutil.Error, OSError):
        return []
