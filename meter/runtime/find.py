"""Finds a server that runs already: its process, its address, and whether the plugin is in it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from meter.work.ask import checked_url
from meter.work.beside import NAME
from meter.work.vllm import SOCKET

PLUGINS_VARIABLE = "VLLM_PLUGINS"
_LOCAL = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
_EVERY = ("0.0.0.0", "::")
#: Who listens on every address is asked at this machine's own.
_ASKED_AT = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}
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
        if self.pid is None or network_of(self.pid) != network_of(os.getpid()):
            return ()
        return urls_of({process.pid for process in family(self.pid)})


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
    if target.isascii() and target.isdigit():
        return _server(_process_of(target), None)
    if "://" not in target:
        raise FindError(f"{target[:200]} is neither a pid nor a URL such as http://127.0.0.1:8000")
    try:
        parts = checked_url(target)
    except ValueError as error:
        raise FindError(str(error)) from error
    port = parts.port or (443 if parts.scheme == "https" else 80)
    pid = _listener_on(port, parts.hostname or "")
    return _server(pid, target.rstrip("/").removesuffix("/metrics"))


def _process_of(target: str) -> int:
    """Raises ``FindError`` where it is gone, or over and only not waited for yet."""
    try:
        process = psutil.Process(int(target))
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.pid
    except psutil.AccessDenied:
        return int(target)
    except (psutil.Error, OverflowError, ValueError):
        pass
    raise FindError(f"there is no process {target}")


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
    """The process and all that it has started, but for this one (a shell or a supervisor starts
    the server and its meter); empty where it is gone."""
    try:
        process = psutil.Process(pid)
        started = process.children(recursive=True)
        return [process, *(one for one in started if one.pid != os.getpid())]
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


def _listener_on(port: int, host: str) -> int | None:
    """Who listens there, if that is this machine: for a name only this machine's own are known."""
    ours = {a.address.partition("%")[0] for addresses in _addresses() for a in addresses}
    if host not in _LOCAL and host not in ours:
        return None
    hosts = {host, *_EVERY} if host not in _LOCAL else {*_LOCAL}
    for connection in _listening(None):
        ip, on = connection.laddr[:2]
        if on == port and ip in hosts and connection.pid is not None:
            return int(connection.pid)
    return None


def urls_of(pids: Collection[int]) -> tuple[str, ...]:
    """Where these processes may be asked: at the addresses on which they listen, as they say."""
    found: dict[str, None] = {}
    for ip, port in sorted(listening(pids), key=lambda one: (one[1], one[0])):
        hosts = _ASKED_AT.get(ip, (ip,))
        found |= dict.fromkeys(
            f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts
        )
    return tuple(found)


def listening(pids: Collection[int]) -> set[tuple[str, int]]:
    """The TCP addresses and ports on which these processes listen, as far as they may be looked
    into; each is asked in its own network namespace."""
    return {(str(c.laddr[0]), int(c.laddr[1])) for pid in pids for c in _listening(pid)}


def network_of(pid: int) -> int | None:
    """Names its network namespace; ``None`` where it may not be looked into."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116
    except OSError:
        return None


def _listening(pid: int | None) -> list[Any]:
    """The listening sockets of a process, or of all."""
    try:
        if pid is None:
            every: Any = psutil.net_connections("tcp")
        else:
            process: Any = psutil.Process(pid)
            ask = getattr(process, "net_connections", None) or process.connections
            every = ask("tcp")
        return [c for c in every if c.status == psutil.CONN_LISTEN]
    except (psutil.Error, OSError):
        return []


def _addresses() -> list[Any]:
    try:
        return list(psutil.net_if_addrs().values())
    except (psutil.Error, OSError):
        return []
