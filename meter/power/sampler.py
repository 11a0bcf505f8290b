"""The one thread that polls: absolute deadlines, a little jitter, every failure counted.

The thread opens the sources itself (handles belong to it) and tells the caller of ``start`` whether
that worked. Deadlines stand on an absolute grid, so they do not drift; a seeded jitter of some per
cent around it keeps polls from beating with periodic steps. A poll that comes late says so in its
readings; deadlines that passed meanwhile are left out and counted, never caught up with. A source
whose ``read`` raises is counted, named in the log at most once a minute, and asked again.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from meter.model import Device, Event
from meter.power.errors import PowerError
from meter.power.source import PowerSource

__all__ = ["PowerSource", "Sampler", "SamplerCounters"]

_JITTER = 0.08
_LOG_EVERY_NS = 60_000_000_000
_START_WITHIN_S = 30.0
_STOP_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class SamplerCounters:
    """What the sampler has done so far. Replaced as a whole after each poll, never changed.

    ``samples``: readings pushed; ``errors``: failed ones by source; ``late_s``: how long after its
    deadline the last poll began; ``missed``: polls left out, since one before took too long;
    ``last_ns``: when the last poll ended.
    """

    samples: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    late_s: float = 0.0
    missed: int = 0
    last_ns: int | None = None


class Sampler:
    """Polls ``sources`` at ``rate_hz`` and pushes each reading.

    ``push`` must not block; where it raises, the reading is lost and counted as a failed one.
    ``seed`` is the jitter's.
    """

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
        self._missed = 0
        self._errors: Counter[str] = Counter()
        self._logged_ns: dict[str, int] = {}
        self._log = structlog.get_logger("joulemeter.power")
        self.devices: tuple[Device, ...] = ()
        self.counters = SamplerCounters()

    def start(self, within_s: float = _START_WITHIN_S) -> tuple[Device, ...]:
        """Open the sources in the sampler's thread and begin; returns the devices found.

        Raises the ``PowerError`` of the first source that cannot be opened, or one that says that
        opening took longer than ``within_s``; no reading is pushed then.
        """
        self._thread.start()
        if not self._started.wait(within_s):
            self._failure = PowerError(
                f"the power source did not open within {within_s:g} s: the driver hangs "
                "(does `nvidia-smi` answer?)"
            )
            self._stopping.set()
        if self._failure is not None:
            raise self._failure
        return self.devices

    def stop(self, within_s: float = _STOP_WITHIN_S) -> None:
        """Take one last reading and end the thread; wait for that no longer than ``within_s``."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

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
        first_ns = due_ns = time.monotonic_ns()
        number = 0
        while True:
            stopping = self._stopping.is_set()
            late_ns = max(0, time.monotonic_ns() - due_ns)
            for source in self._sources:
                self._read(source, late_ns / 1e9)
            done_ns = time.monotonic_ns()
            self.counters = SamplerCounters(
                self._samples, dict(self._errors), late_ns / 1e9, self._missed, done_ns
            )
            if stopping:
                return
            passed = (done_ns - first_ns) // self._period_ns
            self._missed += max(0, passed - number)
            number = max(number, passed) + 1
            jitter = self._random.uniform(-_JITTER, _JITTER)
            due_ns = first_ns + round((number + jitter) * self._period_ns)
            self._stopping.wait(max(0, due_ns - done_ns) / 1e9)

    def _read(self, source: PowerSource, late_s: float) -> None:
        try:
            for reading in source.read():
                if reading.error is not None:
                    self._failed(source, reading.error)
                self._push(replace(reading, late_s=late_s))
                self._samples += 1
        except Exception as error:
            self._failed(source, repr(error))

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
