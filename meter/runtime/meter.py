"""The whole meter, built by hand in one function, and its life from first to last reading."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from meter.attribution import Attributor
from meter.config import Settings
from meter.export.http import create_app
from meter.export.publisher import Publisher
from meter.export.receipts import Priced
from meter.export.state import Health, State
from meter.model import Clock, Device, Engine, EngineEvent
from meter.power.errors import PowerError
from meter.power.sampler import Sampler
from meter.pricing import Tariff
from meter.runtime.devices import CUDA_VARIABLE, owned, wanted
from meter.runtime.port import Port, PortError
from meter.runtime.power import start_power
from meter.runtime.writer import Inbox, Record, Writer
from meter.trace import TraceWriter
from meter.work import beside
from meter.work.listener import Listener, ListenError
from meter.work.wire import Hello

SOCKET_VARIABLE = "JOULEMETER_SOCKET"
ENGINE = "0"
_SILENT_S = 3.0
# The counter of a GPU refreshes every 100 ms: what the engine drew last shows within two periods.
_LAST_READING_S = 0.25


@dataclass(slots=True)
class Meter:
    """A running meter. Each part but the writer may be missing; ``problems`` says which and why."""

    directory: Path
    inbox: Inbox
    writer: Writer
    sampler: Sampler | None
    listener: Listener | None
    port: Port | None
    devices: tuple[Device, ...]
    problems_at_start: tuple[str, ...]

    # --- what the HTTP port asks (``meter.export.http.View``)

    def state(self) -> State | None:
        return self.writer.state()

    def receipt(self, request: str) -> Priced | None:
        return self.writer.receipt(request)

    def recent(self, limit: int) -> list[Priced]:
        return self.writer.recent(limit)

    def alive(self) -> bool:
        return self.writer.alive()

    def problems(self) -> tuple[str, ...]:
        """What is missing now: what failed at the start, and silent counters."""
        if self.sampler is None:
            return self.problems_at_start
        last_ns = self.writer.source_last_ns.get("power")
        silent_s = None if last_ns is None else (time.monotonic_ns() - last_ns) / 1e9
        if silent_s is None or silent_s > _SILENT_S:
            said = "no reading yet" if silent_s is None else f"no reading for {silent_s:.0f} s"
            return (*self.problems_at_start, f"{said}: see joulemeter_sample_errors_total")
        return self.problems_at_start

    # --- life

    def environment(self) -> dict[str, str]:
        """What an engine needs in its environment to be metered."""
        if self.listener is None:
            return {}
        directory = beside.directory(self.directory / "beside")
        return {SOCKET_VARIABLE: str(self.listener.path), "PYTHONPATH": str(directory)}

    def engine_is(self, event: str) -> None:
        """The engine's process has started (``up``) or ended (``down``)."""
        self.inbox.push(EngineEvent(ENGINE, time.monotonic_ns(), event))

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
        shutil.rmtree(self.directory, ignore_errors=True)
        return last


def build(settings: Settings, environ: Mapping[str, str]) -> Meter:
    """Build and start everything. What cannot be had is logged and left out.

    ``environ`` is the engine's environment.
    """
    log = structlog.get_logger("joulemeter")
    problems: list[str] = []

    def missing(part: str, error: Exception) -> None:
        problems.append(f"{part}: {error}")
        log.error("without", part=part, reason=str(error))

    inbox = Inbox()
    inbox.push(Clock(time.monotonic_ns(), time.time_ns()))

    sampler: Sampler | None = None
    try:
        names = wanted(settings.power.devices, settings.engine.devices, environ)
        sampler = start_power(settings.power, names, inbox.push)
    except PowerError as error:
        missing("energy", error)
    devices = tuple(sampler.devices) if sampler is not None else ()
    engine = Engine(ENGINE, owned(devices, settings.engine.devices, environ.get(CUDA_VARIABLE)))

    def devices_of(hello: Hello) -> tuple[str, ...]:
        cuda = hello.cuda_visible_devices or environ.get(CUDA_VARIABLE)
        return owned(devices, settings.engine.devices, cuda)

    directory = Path(tempfile.mkdtemp(prefix="joulemeter-"))
    listener: Listener | None = Listener(directory / "meter.sock", inbox.push, devices_of)
    try:
        listener.start()
    except ListenError as error:
        missing("the engine's steps", error)
        listener = None

    record: Record | None = None
    if settings.record is not None:
        try:
            record = TraceWriter(settings.record, devices, (engine,), time.time_ns())
        except OSError as error:
            missing("the record", error)

    tariff = Tariff(**settings.pricing.model_dump())
    publisher = Publisher(tariff, time.time_ns() - time.monotonic_ns())
    writer: Writer

    def health() -> Health:
        counters = listener.counters if listener is not None else None
        return Health(
            samples=sampler.counters.samples if sampler is not None else 0,
            sample_errors=dict(sampler.counters.errors) if sampler is not None else {},
            datagrams=counters.datagrams if counters is not None else 0,
            datagrams_lost=counters.lost if counters is not None else 0,
            events_dropped=inbox.dropped,
            source_last_ns=dict(writer.source_last_ns),
            problems=meter.problems(),
        )

    writer = Writer(inbox, Attributor(devices, (engine,)), publisher, health, record)
    meter = Meter(directory, inbox, writer, sampler, listener, None, devices, tuple(problems))
    try:
        meter.port = Port(create_app(meter), settings.http.host, settings.http.port)
    except PortError as error:
        missing("the HTTP port", error)
    meter.problems_at_start = tuple(problems)
    writer.start()
    if meter.port is not None:
        meter.port.start()
    return meter
