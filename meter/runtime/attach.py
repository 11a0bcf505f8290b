"""Meters a server that runs already, and leaves it as it was.

Where its engine has the plugin, the meter takes its place on the plugin's socket (``step``: another
meter started the server and was killed, or somebody put the plugin beside it). Where it has not,
the server's own counters are read (``counter``: totals by model, no receipts), and that is said.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import psutil

from meter.config import Settings
from meter.runtime.collector import collect_rarely
from meter.runtime.find import FindError, Server, find
from meter.runtime.lines import first_line, last_line
from meter.runtime.logs import configure_logs, say
from meter.runtime.meter import Meter, build
from meter.runtime.place import PREFIX
from meter.runtime.prospect import Tried, prospect
from meter.runtime.signals import heeded, next_signal
from meter.system.files import acting_as
from meter.work.scrape import NoCountersError, RefusedError, ScrapeError, Scraper

_POLL_S = 0.5
#: Engines that live join within a second; one that has not by now may not have the plugin.
_JOINED_S = 3.0
_AGAIN_S = 10.0


def attach(target: str | None, socket: Path | None, settings: Settings) -> int:
    """Meter until the server ends or we are told to; returns the exit code.

    ``target``: a pid or URL; ``socket``: where to listen for engines instead, or as well. The
    signals of ``ENDING`` are blocked.
    """
    configure_logs(settings.log_level, settings.log_format)
    collect_rarely()
    try:
        server = find(target, socket) if target is not None else Server(None, {}, socket=socket)
    except FindError as error:
        say(f"joulemeter: {error}")
        return 2
    meter = build(settings, server.environ, server.socket, server.pid, socket is not None)
    if target is None and meter.listener is None:  # the reason is in the log
        say("joulemeter: nothing can be heard: give another --socket")
        meter.close()
        return 2
    say(first_line(meter))
    attached = Attached(server, meter)
    try:
        return attached.stay()
    finally:
        attached.leave()


class Attached:
    """A meter beside a server. All methods belong to the main thread."""

    def __init__(self, server: Server, meter: Meter) -> None:
        self._server = server
        self._meter = meter
        self._process = _process(server.pid)
        self._scraper: Scraper | None = None
        may_join = meter.listener is not None and (server.socket or server.pid is None)
        self._scrape_s = time.monotonic() + (_JOINED_S if may_join else 0.0)
        self._watch = meter.watch(server.pid)
        self._plugged: bool | None = None
        self._said: set[str] = set()
        self._began_s = time.monotonic()
        self._tried = Tried(0.0)
        self._judge_s = time.monotonic() + _JOINED_S

    def stay(self) -> int:
        """Until the server has ended or a signal comes (0), or it is clear that there is none and
        never will be (2)."""
        while self._lives():
            self._look()
            if self._is_hopeless():
                return 2
            if next_signal(heeded(), _POLL_S) is not None:
                break
        return 0

    def leave(self) -> None:
        """Stop metering; what the meter put beside the server stays as long as that lives."""
        if self._scraper is not None:
            self._scraper.stop()
        say(last_line(self._meter.close()))
        place = self._meter.place
        if place is not None and not self._lives() and place.folder.name.startswith(PREFIX):
            with contextlib.suppress(OSError), acting_as(place.user):
                shutil.rmtree(place.folder, ignore_errors=True)

    def _lives(self) -> bool:
        """A process that nobody has waited for yet is over all the same."""
        if self._process is None:
            return True
        try:
            over = self._process.status() == psutil.STATUS_ZOMBIE
            return self._process.is_running() and not over
        except psutil.Error:
            return False

    def _look(self) -> None:
        """Steps where an engine tells them; else counters."""
        listener = self._meter.listener
        plugged = listener is not None and bool(listener.sources)
        if plugged and self._scraper is not None:
            self._scraper.stop()
            self._scraper = None
        if plugged and not self._plugged:
            say("joulemeter: the engine's plugin tells its steps; requests have receipts")
        self._plugged = plugged
        if not plugged and self._scraper is None and time.monotonic() >= self._scrape_s:
            self._scrape_s = time.monotonic() + _AGAIN_S
            self._scrape()
        self._watch.look()

    def _is_hopeless(self) -> bool:
        """While nothing is heard: say once, in words, why that may be, and look again."""
        if self._plugged or self._scraper is not None or time.monotonic() < self._judge_s:
            return False
        self._judge_s = time.monotonic() + _AGAIN_S
        found = prospect(self._server, self._tried)
        if found is not None and found.line not in self._said:
            self._said.add(found.line)
            say(f"joulemeter: {found.line}")
        return found is not None and found.hopeless

    def _scrape(self) -> None:
        reasons: list[ScrapeError] = []
        for url in self._server.urls():
            scraper = self._scraper_at(url, reasons)
            if scraper is None:
                continue
            self._scraper = scraper
            why = self._server.unplugged or "its plugin has not spoken"
            say(
                f"joulemeter: counters alone ({scraper.url}/metrics): totals by model, no "
                f"receipts; {why}. For receipts start it by: joulemeter run -- CMD…"
            )
            return
        self._tried = Tried(time.monotonic() - self._began_s, reasons)

    def _scraper_at(self, url: str, reasons: list[ScrapeError]) -> Scraper | None:
        """One that reads counters there; else it is said why not. Where the process itself says
        that it listens there, it may speak TLS as well."""
        is_told = self._server.url is not None
        secure = [] if is_told else [f"https{url.removeprefix('http')}"]
        for at in (url, *secure):
            scraper = Scraper(at, self._meter.inbox.push, self._meter.owned, is_known=not is_told)
            try:
                scraper.start()
                return scraper
            except (RefusedError, NoCountersError) as error:
                reasons.append(error)
                return None
            except ScrapeError as error:
                if at == url:
                    reasons.append(error)
        return None


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return None if pid is None else psutil.Process(pid)
    except psutil.Error:
        return None
