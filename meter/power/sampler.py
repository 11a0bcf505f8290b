"""The one thread that polls: absolute deadlines, a little jitter, every failure counted.

The thread opens the sources itself (handles belong to it) and tells the caller of ``start`` whether
that worked. Deadlines are absolute, so they do not drift; a seeded jitter of some per cent keeps
polls from beating with periodic steps. A poll that comes late says so in its readings. A source
whose ``read`` raises is counted, named in the log at most once a minute, and asked again.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from meter.model import Device, Event, Reading
from meter.power.errors import PowerError
from meter.power.source import PowerSource

__all__ = ["PowerSource", "Sampler", "SamplerCounters"]

_JITTER = 0.08
_LOG_EVERY_NS = 60_000_000_000
_START_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class SamplerCounters:
    """What the sampler has done so far; ``errors`` by source, ``late_s`` the latest delay."""

    samples: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    late_s: float = 0.0
    last_ns: int | None = None


class Sampler:
    """Polls ``sources`` at ``rate_hz`` and pushes each reading; ``push`` must not block."""

    def __init__(
        self,
        sources: Sequence[PowerSource],
        push: Callable[[Event], None],
        rate_hz: float = 50.0,
        seed: int = 0,
    ) -> None:
        self._sources = list(sources)
        self._push = push
        self._period_ns = round(1e9 / rate_hz)
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._started = threading.Event()
        self._stopping = threading.Event()
        self._failure: PowerError | None = None
        self._samples = 0
        self._errors: Counter[str] = Counter()
        self._logged_ns: dict[str, int] = {}
        self._log = structlog.get_logger("joulemeter.power")
        self.devices: tuple[Device, ...] = ()
        self.counters = SamplerCounters()

    def start(self) -> tuple[Device, ...]:
        """Open the sources in the sampler's thread and begin; returns the devices found.

        Raises the ``PowerError`` of the first source that cannot be opened.
        """
        self._thread.start()
        if not self._started.wait(_START_WITHIN_S):
            self._stopping.set()
            raise PowerError(
                f"the power source did not open within {_START_WITHIN_S:g} s: the driver hangs"
            )
        if self._failure is not None:
            raise self._failure
        return self.devices

    def stop(self) -> None:
        """Take one last reading and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        opened: list[PowerSource] = []
        try:
            devices: list[Device] = []
            for source in self._sources:
                devices.extend(source.open())
                opened.append(source)
            self.devices = tuple(devices)
        except PowerError as error:
            self._failure = error
        except Exception as error:
            self._failure = PowerError(f"the power source broke while opening: {error!r}")
            self._failure.__cause__ = error
        self._started.set()
        if self._failure is None:
            self._poll()
        for source in opened:
            self._attempt(source, source.close)

    def _poll(self) -> None:
        deadline_ns = time.monotonic_ns()
        while True:
            late_ns = max(0, time.monotonic_ns() - deadline_ns)
            stopping = self._stopping.is_set()
            for source in self._sources:
                self._read(source, late_ns / 1e9)
            self.counters = SamplerCounters(
                self._samples, dict(self._errors), late_ns / 1e9, time.monotonic_ns()
            )
            if stopping:
                return
            now_ns = time.monotonic_ns()
            missed = max(0, now_ns - deadline_ns) // self._period_ns
            deadline_ns += (1 + missed) * self._period_ns
            jitter = 1 + self._random.uniform(-_JITTER, _JITTER)
            wait_ns = max(0.0, deadline_ns - now_ns) * jitter
            self._stopping.wait(wait_ns / 1e9)

    def _read(self, source: PowerSource, late_s: float) -> None:
        readings: Sequence[Reading] = ()
        try:
            readings = source.read()
        except Exception as error:
            self._failed(source, repr(error))
        for reading in readings:
            self._samples += 1
            if reading.error is not None:
                self._failed(source, reading.error)
            self._push(replace(reading, late_s=late_s) if late_s else reading)

    def _attempt(self, source: PowerSource, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._failed(source, repr(error))

    def _failed(self, source: PowerSource, reason: str) -> None:
        self._errors[source.name] += 1
        now_ns = time.monotonic_ns()
        if now_ns - self._logged_ns.get(source.name, -_LOG_EVERY_NS) >= _LOG_EVERY_NS:
            self._logged_ns[source.name] = now_ns
            self._log.warning(
                "no_reading", source=source.name, reason=reason, errors=self._errors[source.name]
            )
