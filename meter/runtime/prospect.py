"""Whether a process in which no engine is found may still become a server, and what to do.

An engine runs in Python, or is started by a shell or a launcher that will start Python; and it
listens on a port, or has the plugin, once it serves. So a process with neither that runs something
else, or has been there for longer than any model takes to load, never will.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil

from meter.runtime.find import Server, family, listening_ports
from meter.work.scrape import ScrapeError, fetch, read

#: The largest models take this long from a slow disk.
LOADED_WITHIN_S = 1800.0
_SHELLS = {"sh", "ash", "bash", "dash", "zsh", "busybox", "tini", "dumb-init", "docker-init"}
_NAME_CHARS = 60
_ANSWER_WITHIN_S = 1.0


class Prospect(NamedTuple):
    """``line``: what to tell; ``hopeless``: waiting is of no use."""

    line: str
    hopeless: bool


class Seen(NamedTuple):
    """A process: its pid, its name (``python3``), its command line, its age in seconds."""

    pid: int
    name: str
    command: str
    age_s: float


def prospect(server: Server) -> Prospect | None:
    """What can be said of a server from which nothing has been heard; ``None`` where its process
    is unknown or gone. Asks the processes that started it for an engine's counters."""
    if server.pid is None:
        return None
    members = list(_seen(family(server.pid)))
    if not members or members[0].pid != server.pid:
        return None
    ports = listening_ports({seen.pid for seen in members})
    return judge(server, members, ports, _serving_parent(server.pid))


def judge(
    server: Server, members: Sequence[Seen], ports: Iterable[int], parent: tuple[Seen, str] | None
) -> Prospect:
    """``members``: the process and what it has started; ``ports``: those they listen on;
    ``parent``: who started it and serves, and its URL."""
    who = f"process {members[0].pid} ({members[0].command})"
    if parent is not None:
        starter, url = parent
        line = f"{who} is a part of process {starter.pid} ({starter.command}), which serves {url}"
        return Prospect(f"{line}: attach to that one", True)
    if ports := sorted(ports):
        where = "port " + ", ".join(map(str, ports))
        return Prospect(f"{who} listens on {where}, but no engine answers there. {_WAITING}", False)
    if server.socket is not None:
        line = f"{who} listens on nothing, and no engine of it speaks to the meter. {_WAITING}"
        return Prospect(line, False)
    line = f"{who} has no engine: it was started without joulemeter, and listens on nothing"
    if min(seen.age_s for seen in members) > LOADED_WITHIN_S:
        return Prospect(f"{line} after {LOADED_WITHIN_S / 60:.0f} minutes. {_INSTEAD}", True)
    if not any(_may_serve(seen) for seen in members):
        return Prospect(f"{line}; nor does it run Python, as engines do. {_INSTEAD}", True)
    return Prospect(f"{line}. {_WAITING}", False)


_INSTEAD = (
    "Give the pid or the URL of a server that runs (joulemeter attach http://127.0.0.1:8000), "
    "or start it by: joulemeter run -- CMD…"
)
_WAITING = (
    "It may still be starting, so it is waited for. If it is no server, press Ctrl-C and give the "
    "pid or the URL of one"
)


def _may_serve(seen: Seen) -> bool:
    return seen.name in _SHELLS or "python" in seen.name or "vllm" in seen.command


def _seen(processes: Iterable[psutil.Process]) -> Iterable[Seen]:
    for process in processes:
        try:
            words = process.cmdline()
            name = process.name()
            age_s = time.time() - process.create_time()
        except psutil.Error:
            continue
        command = " ".join(words) or name
        shown = command if len(command) <= _NAME_CHARS else command[: _NAME_CHARS - 1] + "…"
        yield Seen(process.pid, name, shown, age_s)


def _serving_parent(pid: int) -> tuple[Seen, str] | None:
    """The nearest of those that started a process who shows an engine's counters, and where."""
    try:
        parents = psutil.Process(pid).parents()
    except psutil.Error:
        return None
    for seen in _seen(parents):
        for port in sorted(listening_ports({seen.pid})):
            url = f"http://127.0.0.1:{port}"
            with contextlib.suppress(ScrapeError):
                read(fetch(url, _ANSWER_WITHIN_S))
                return seen, url
    return None
