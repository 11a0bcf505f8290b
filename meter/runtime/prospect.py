"""Whether a process in which no engine is found may still become a server, and what to do.

An engine runs in Python, or is started by a shell or a launcher that will start Python; and it
listens on a port, or has the plugin, once it serves. So a process with neither that runs something
else, or has been there for longer than any model takes to load, never will.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil

from meter.runtime.find import Server, family, listening, network_of, urls_of
from meter.work.scrape import NoCountersError, RefusedError, ScrapeError, fetch, read

#: The largest models take this long from a slow disk.
LOADED_WITHIN_S = 1800.0
_SHELLS = {"sh", "ash", "bash", "dash", "zsh", "busybox", "tini", "dumb-init", "docker-init"}
_NAME_CHARS = 60
_ANSWER_WITHIN_S = 1.0
#: A server that runs has answered by then.
_SURE_S = 60.0


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


class Tried(NamedTuple):
    """What came of asking for counters: for how long, and why each address gave none."""

    waited_s: float
    reasons: Sequence[ScrapeError] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.reasons))

    @property
    def is_refused(self) -> bool:
        return any(isinstance(reason, RefusedError) for reason in self.reasons)

    @property
    def is_other(self) -> bool:
        """Something answers, and it is no engine."""
        return any(isinstance(reason, NoCountersError) for reason in self.reasons)


def prospect(server: Server, tried: Tried) -> Prospect | None:
    """What can be said of a server from which nothing has been heard; ``None`` where its process
    is gone. Asks the processes that started it for an engine's counters."""
    if server.pid is None:
        return _of_url(server, tried)
    members = list(_seen(family(server.pid)))
    if not members or members[0].pid != server.pid:
        return None
    if network_of(server.pid) != network_of(os.getpid()) and server.url is None:
        return _elsewhere(server, members, tried)
    where = sorted(listening({seen.pid for seen in members}))
    return judge(server, members, where, _serving_parent(server.pid), tried)


def judge(
    server: Server,
    members: Sequence[Seen],
    where: Sequence[tuple[str, int]],
    parent: tuple[Seen, str] | None,
    tried: Tried,
) -> Prospect:
    """``members``: the process and what it has started; ``where`` they listen;
    ``parent``: who started it and serves, and its URL."""
    who = f"process {members[0].pid} ({members[0].command})"
    if parent is not None:
        starter, url = parent
        line = f"{who} is a part of process {starter.pid} ({starter.command}), which serves {url}"
        return Prospect(f"{line}: attach to that one", True)
    is_old = min(seen.age_s for seen in members) > LOADED_WITHIN_S
    engines = [seen for seen in members if _may_serve(seen)]
    if where:
        line = f"{who} listens on {', '.join(f'{ip} port {port}' for ip, port in where)}, but no "
        line += f"engine answers there ({tried or 'not asked yet'})"
        if server.socket is not None:
            return Prospect(f"{line}. {_WAITING}", False)
        # An engine's server answers only once the engine is there.
        over = tried.is_refused or (tried.is_other and len(engines) < 2)
        if over or (is_old and tried.waited_s > _SURE_S) or tried.waited_s > LOADED_WITHIN_S:
            return Prospect(f"{line}. {_INSTEAD}", True)
        return Prospect(f"{line}. {_WAITING_SO_LONG}", False)
    if server.socket is not None:
        line = f"{who} listens on nothing, and no engine of it speaks to the meter. {_WAITING}"
        return Prospect(line, False)
    line = f"{who} has no engine: it was started without joulemeter, and listens on nothing"
    if is_old:
        return Prospect(f"{line} after {LOADED_WITHIN_S / 60:.0f} minutes. {_INSTEAD}", True)
    if not engines:
        return Prospect(f"{line}; nor does it run Python, as engines do. {_INSTEAD}", True)
    return Prospect(f"{line}. {_WAITING_SO_LONG}", False)


def _of_url(server: Server, tried: Tried) -> Prospect | None:
    """A server whose process is not to be seen."""
    if server.url is None or not tried.reasons:
        return None
    over = tried.waited_s > LOADED_WITHIN_S or (tried.is_other and tried.waited_s > _SURE_S)
    if over or tried.is_refused:
        return Prospect(f"no counters of an engine: {tried}. {_INSTEAD}", True)
    return Prospect(f"no counters of an engine yet: {tried}. {_WAITING_SO_LONG}", False)


def _elsewhere(server: Server, members: Sequence[Seen], tried: Tried) -> Prospect:
    """In another network namespace its addresses are not ours."""
    pid = members[0].pid
    where = sorted(listening({seen.pid for seen in members}))
    on = ", ".join(f"{ip} port {port}" for ip, port in where) or "nothing yet"
    line = (
        f"process {pid} ({members[0].command}) is in another network namespace (a container), and "
        f"listens there on {on}: give the URL under which it is reached from here, or attach from "
        f"there (nsenter -t {pid} -n joulemeter attach {pid})"
    )
    return Prospect(line, server.socket is None and bool(where or tried.waited_s > _SURE_S))


_INSTEAD = (
    "Give the pid or the URL of a server that runs (joulemeter attach http://127.0.0.1:8000), "
    "or start it by: joulemeter run -- CMD…"
)
_WAITING = (
    "It may still be starting, so it is waited for. If it is no server, press Ctrl-C and give the "
    "pid or the URL of one"
)
_WAITING_SO_LONG = _WAITING.replace(
    "waited for.", f"waited for, {LOADED_WITHIN_S / 60:.0f} minutes at most."
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
        for url in urls_of({seen.pid}):
            with contextlib.suppress(ScrapeError):
                read(fetch(url, _ANSWER_WITHIN_S))
                return seen, url
    return None
