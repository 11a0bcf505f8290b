"""The whole meter, built by hand in one function, and its life from first to last reading."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from meter.attribution import Boundaries, Learned, to_facts
from meter.config import CalibrationSettings, Settings
from meter.export import PORTS_TRIED
from meter.export.http import create_app
from meter.export.live import WATCHERS_MAX
from meter.export.publisher import Publisher
from meter.export.state import State
from meter.model import Clock, Device, DeviceFound, Engine, EngineEvent
from meter.power.errors import PowerError
from meter.power.rapl import CPU
from meter.power.sampler import Sampler
from meter.pricing import Tariff
from meter.runtime.devices import Claims, wanted
from meter.runtime.find import family
from meter.runtime.gauges import Gauges, Readers
from meter.runtime.http_server import connections_max
from meter.runtime.late import Latecomers
from meter.runtime.memory import Memory, state_directory
from meter.runtime.place import Place, given_place, let_in, new_place
from meter.runtime.port import Port, PortError, hosts_of
from meter.runtime.power import start_power
from meter.runtime.takeover import Gate, Notes, missed
from meter.runtime.threads import Deaths
from meter.runtime.watch import Watch
from meter.runtime.writer import Inbox, Record, Writer
from meter.trace import TraceWriter
from meter.work.hello import DevicesOf
from meter.work.listener import Listener, ListenError

T = TypeVar("T")
SOCKET_VARIABLE = "JOULEMETER_SOCKET"
ENGINE = "0"
EXPECTED = (PowerError, ListenError, PortError, OSError)
# The counter of a GPU refreshes every 100 ms: what the engine drew last shows within two periods.
_LAST_READING_S = 0.25


@dataclass(frozen=True, slots=True)
class Meter:
    """A running meter. Each part but the writer may be missing.

    ``owned``: the devices of an engine that says nothing else; ``heard``: when each source last
    said something.
    """

    place: Place | None
    inbox: Inbox
    writer: Writer
    sampler: Sampler | None
    listener: Listener | None
    port: Port | None
    devices: tuple[Device, ...]
    owned: tuple[str, ...]
    heard: Mapping[str, int]
    deaths: Deaths

    def environment(self) -> dict[str, str]:
        """What an engine needs in its environment to be metered."""
        if self.listener is None or self.place is None:
            return {}
        plugin = self.place.folder / "beside"
        return {SOCKET_VARIABLE: str(self.listener.path), "PYTHONPATH": str(plugin)}

    def engine_is(self, event: str) -> None:
        """The engine's process has started (``up``) or ended (``down``)."""
        self.inbox.push(EngineEvent(ENGINE, time.monotonic_ns(), event))

    def let_in(self, pid: int) -> None:
        """An engine of the command ``pid`` that runs as another user. Raises ``OSError``."""
        if self.place is not None and self.listener is not None and not self.listener.sources:
            let_in(self.place, _pids_of(pid))

    def watch(self, pid: int | None) -> Watch:
        """A look at the engines of the server ``pid``."""
        return Watch(self.listener, self.writer.state, lambda: self.heard.get("engine"), pid)

    def close(self) -> State | None:
        """Take the last reading, settle everything, stop; returns the last state."""
        if self.listener is not None:
            self.listener.stop()
        if self.sampler is not None:
            time.sleep(_LAST_READING_S)
            self.sampler.stop()
        last = self.writer.finish()
        if self.port is not None:
            self.port.stop()
        self.deaths.leave()
        if self.place is not None and not self.place.is_guest:
            shutil.rmtree(self.place.folder, ignore_errors=True)
        return last


def _pids_of(pid: int) -> Iterator[int]:
    """The processes of a command, looked for when the first is asked for: that reads all /proc."""
    yield from (process.pid for process in family(pid))


class _Parts:
    """Builds optional parts; what cannot be had is logged, remembered and left out."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._log = structlog.get_logger("joulemeter")

    def attempt(self, part: str, build: Callable[[], T]) -> T | None:
        """What ``build`` gives, or ``None`` where it fails, whatever the reason."""
        try:
            return build()
        except Exception as error:
            self.problems.append(f"{part}: {error}")
            if isinstance(error, EXPECTED):
                self._log.error("part_left_out", part=part, reason=str(error))
            else:
                self._log.exception("part_left_out", part=part, remedy="please report this")
            return None


def build(
    settings: Settings,
    environ: Mapping[str, str],
    socket: Path | None = None,
    server: int | None = None,
    socket_was_told: bool = False,
) -> Meter:
    """Build and start everything. ``environ`` is the engine's environment.

    ``socket``: where engines that run already look for a meter; else there is a new one.
    ``socket_was_told``: by whom we are told, not by the engine's environment.
    ``server``: the pid of a server that is not our child, whose CPU time is claimed.
    """
    parts = _Parts()
    deaths, inbox = Deaths(), _inbox()
    configured = settings.engine.devices

    names = wanted(settings.power.devices, configured, environ)
    gate = Gate(inbox.push)
    if socket is None:
        gate.open({})
    late = Latecomers(gate.push)
    power = parts.attempt(
        "energy", lambda: start_power(settings.power, names, late.push, server, environ)
    )
    sampler = power.sampler if power is not None else None
    devices = sampler.devices if sampler is not None else ()

    def found() -> tuple[Device, ...]:
        """Also what comes later: from a driver that is slow to answer, or another meter."""
        return sampler.found if sampler is not None else ()

    turn_to = sampler.turn_to if sampler is not None and not settings.power.devices else None
    devices_of = Claims(found, configured, environ, turn_to)
    ours = partial(devices_of.of_command, server)
    engine = _nameless(ours())

    def make_place() -> Place:
        return new_place() if socket is None else given_place(socket, server, socket_was_told)

    place = parts.attempt("the meter's folder", make_place)
    notes = Notes(place.folder, place.user) if place is not None else None
    note = notes.read() if notes is not None else None
    listener = parts.attempt("the engine's steps", lambda: _listen(place, inbox, devices_of))
    late.owners = partial(_owners, listener, devices_of, ours if engine.devices else tuple)
    memory = _memory(settings.calibration, os.environ)
    restored = memory.restore(devices) if memory is not None else []
    record = parts.attempt(
        "the record", lambda: _record(settings.record, devices, engine, restored)
    )
    publisher = Publisher(
        Tariff(**settings.pricing.model_dump()),
        start_ns=time.monotonic_ns(),
        utc_offset_ns=time.time_ns() - time.monotonic_ns(),
    )
    heard: dict[str, int] = {}
    host = power.host if power is not None else None
    problems = tuple(parts.problems)
    gauges = Gauges(inbox, sampler, listener, heard, problems, host=host, deaths=deaths)
    beside = CPU if power is not None and power.beside else None
    there = sampler.beside if sampler is not None else None
    core = Boundaries(devices, (engine,), restored, beside, there)
    remember = partial(_remember, core, memory) if memory is not None else None
    recall = partial(_recall, memory) if memory is not None else None
    writer = Writer(
        inbox,
        core,
        publisher,
        gauges.health,
        heard,
        record,
        remember=remember,
        recall=recall,
        beside=beside,
    )
    gauges.writer = writer
    if notes is not None and listener is not None:
        writer.leave_notes(lambda snapshot: notes.write(snapshot, names_of(listener)))
    view = Readers(writer, gauges)
    http = settings.http
    port = parts.attempt(
        "the HTTP port",
        lambda: Port(
            create_app(
                view,
                hosts=hosts_of(http.host, http.allowed_hosts),
                watchers_max=min(WATCHERS_MAX, connections_max() // 2),
            ),
            http.host,
            http.port,
            others=0 if http.port_is_set else PORTS_TRIED - 1,
        ),
    )
    writer.start()
    if port is not None:
        port.start()
    if socket is not None:
        gate.open(missed(note, lambda: names_of(listener)))
    parts_of_it = (place, inbox, writer, sampler, listener, port, tuple(devices))
    return Meter(*parts_of_it, engine.devices, heard, deaths)


def _nameless(devices: tuple[str, ...] | None) -> Engine:
    """The command's engine, until one says its name; ``None``: its devices are not known yet."""
    return Engine(ENGINE, devices or (), owns_none=devices == ())


def _inbox() -> Inbox:
    """A queue that begins with the time of day."""
    inbox = Inbox()
    inbox.push(Clock(time.monotonic_ns(), time.time_ns()))
    return inbox


def _owners(
    listener: Listener | None,
    devices_of: DevicesOf,
    ours: Callable[[], tuple[str, ...] | None],
    device: str,
) -> tuple[str, ...] | None:
    """The labels of the engines that own a device. While none speaks it is the nameless engine's,
    if that has some already (``ours``: all that it owns now); else it is not known."""
    sources = listener.sources if listener is not None else ()
    if sources:
        owned = ((source.label, devices_of(source.hello)) for source in sources)
        return tuple(label for label, devices in owned if device in (devices or ()))
    return (ENGINE,) if device in (ours() or ()) else None


def names_of(listener: Listener | None) -> list[str]:
    """The lives of engines that are heard now."""
    return [source.name for source in listener.sources] if listener is not None else []


def _listen(place: Place | None, inbox: Inbox, devices_of: DevicesOf) -> Listener:
    """A running listener. Raises ``ListenError``."""
    if place is None:
        raise ListenError("there is no folder for its socket: see above")
    listener = Listener(
        place.socket,
        inbox.push,
        devices_of,
        has_room=inbox.has_room,
        user=place.user,
        engine=place.engine,
    )
    listener.start()
    return listener


def _memory(settings: CalibrationSettings, environ: Mapping[str, str]) -> Memory | None:
    """Where calibrations are kept, unless they are not to be or there is no place."""
    if not settings.remember:
        return None
    directory = state_directory(settings.directory, environ)
    if directory is None:
        structlog.get_logger("joulemeter").warning(
            "calibration_not_kept",
            reason="no HOME, XDG_STATE_HOME or STATE_DIRECTORY",
            remedy="set calibration.directory, or calibration.remember to false",
        )
        return None
    return Memory(directory)


def _recall(memory: Memory, found: DeviceFound) -> DeviceFound:
    """A device that comes late, with what is known of it."""
    known = memory.restore([found.device])
    return replace(found, learned=tuple(to_facts(one) for one in known))


def _remember(core: Boundaries, memory: Memory) -> None:
    memory.keep(core.learned(), core.snapshot())


def _record(
    path: Path | None, devices: Sequence[Device], engine: Engine, restored: Sequence[Learned]
) -> Record | None:
    """The trace, where one is asked for. Raises ``OSError``."""
    if path is None:
        return None
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise OSError(f"{path} is another user's link: name another file")
    learned = {"learned": [to_facts(known) for known in restored]} if restored else None
    return TraceWriter(path, tuple(devices), (engine,), time.time_ns(), learned)
