"""Of the host's CPU, what the metered engine claims; the rest is others', and said to be.

``claimed = idle · share of the idle + (package − idle) · share of the CPU time``: of what the CPU
takes doing nothing the engine has its part (its GPUs' of the host's; without GPUs one part of the
engines), of what work adds the part of its processes. Measured is claimed plus other, to the
microjoule. The idle power is learned: the lowest mean over a second so far. CPU time comes in the
kernel's ticks of some 10 ms, so a claim is made no more often than every 0.1 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meter.model import Device, Quality, Reading
from meter.power.cpu_time import busy_s
from meter.power.source import PowerSource

_EVERY_NS = 100_000_000
_IDLE_OVER_NS = 1_000_000_000
_POWER_OVER_NS = 500_000_000
#: More than any host's CPUs draw: a counter that was set anew.
_POWER_W_MAX = 20_000.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """Microjoules of the host's CPU since the meter began; ``idle_w``: idle power as learned."""

    quality: Quality
    claimed_uj: int = 0
    other_uj: int = 0
    idle_w: float | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    """What had been used by a moment: of energy, of CPU time by the engine and by all."""

    t_ns: int
    energy_uj: int
    engine_s: float
    busy_s: float


class CpuClaim:
    """A source whose one device, the CPU of ``source``, shows what the engine claims of it.

    ``engine_s``: CPU seconds of the engine's processes so far; ``busy_s``: of all; ``idle_share``:
    the engine's part of the idle power, from 0 to 1; ``idle_w``: that power, where it is known
    (else it is learned). ``totals`` is replaced, never changed.
    """

    def __init__(
        self,
        source: PowerSource,
        engine_s: Callable[[], float],
        busy_s: Callable[[], float] = busy_s,
        idle_share: Callable[[], float] = lambda: 1.0,
        idle_w: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._source = source
        self._engine_s = engine_s
        self._busy_s = busy_s
        self._idle_share = idle_share
        self._idle_w = idle_w
        self._clock = clock
        self._last: _Mark | None = None
        self._idle_mark: _Mark | None = None
        self._shown_from_uj = 0
        self._power_mark: tuple[int, int] | None = None
        self._power_w: float | None = None
        self.totals: Claimed | None = None

    @property
    def name(self) -> str:
        return self._source.name

    def open(self) -> Sequence[Device]:
        """Raises ``PowerError`` as the source does."""
        (device,) = self._source.open()
        self.totals = Claimed(device.quality, idle_w=self._idle_w)
        note = "what the engine claims of the CPU by its processes' time"
        return [replace(device, note=note, claimed=True)]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """The claim so far; nothing where the last one is too near."""
        if self._last is not None and self._clock() - self._last.t_ns < _EVERY_NS:
            return []
        return [shown for reading in self._source.read() if (shown := self._claim(reading))]

    def close(self) -> None:
        self._source.close()

    def _claim(self, reading: Reading) -> Reading | None:
        if reading.energy_uj is None:
            return reading
        last = self._last
        if last is not None and reading.t_ns - last.t_ns < _EVERY_NS:
            return None
        now = _Mark(reading.t_ns, reading.energy_uj, self._engine_s(), self._busy_s())
        assert self.totals is not None
        if last is None or not _possible(last, now):
            # Nothing is known of the time before: the claim starts from zero, as the counter did.
            self._shown_from_uj, self._idle_mark = self.totals.claimed_uj, now
        else:
            self._learn_idle(now)
            self._add(last, now)
        self._last = now
        self._update_power(now.t_ns, self.totals.claimed_uj)
        shown_uj = self.totals.claimed_uj - self._shown_from_uj
        return replace(reading, energy_uj=shown_uj, power_w=self._power_w)

    def _update_power(self, t_ns: int, claimed_uj: int) -> None:
        """The mean over the last half second: shorter ones show the kernel's ticks alone."""
        mark = self._power_mark
        if mark is not None and t_ns - mark[0] < _POWER_OVER_NS:
            return
        if mark is not None:
            self._power_w = (claimed_uj - mark[1]) * 1e3 / (t_ns - mark[0])
        self._power_mark = (t_ns, claimed_uj)

    def _learn_idle(self, now: _Mark) -> None:
        assert self.totals is not None
        assert self._idle_mark is not None
        if self._idle_w is not None:
            return
        passed_ns = now.t_ns - self._idle_mark.t_ns
        if passed_ns < _IDLE_OVER_NS:
            return
        mean_w = (now.energy_uj - self._idle_mark.energy_uj) * 1e3 / passed_ns
        idle_w = min(mean_w, self.totals.idle_w if self.totals.idle_w is not None else mean_w)
        self.totals = replace(self.totals, idle_w=idle_w)
        self._idle_mark = now

    def _add(self, last: _Mark, now: _Mark) -> None:
        """Split what moved. Before anything is known of the idle power, all of it may be idle."""
        assert self.totals is not None
        moved_uj = now.energy_uj - last.energy_uj
        idle_uj = float(moved_uj)
        if self.totals.idle_w is not None:
            idle_uj = min(idle_uj, self.totals.idle_w * (now.t_ns - last.t_ns) / 1e3)
        busy_s = now.busy_s - last.busy_s
        engine_s = max(0.0, now.engine_s - last.engine_s)
        share = min(1.0, engine_s / busy_s) if busy_s > 0 else 0.0
        claimed_uj = round(idle_uj * self._idle_share() + (moved_uj - idle_uj) * share)
        self.totals = replace(
            self.totals,
            claimed_uj=self.totals.claimed_uj + claimed_uj,
            other_uj=self.totals.other_uj + moved_uj - claimed_uj,
        )


def _possible(last: _Mark, now: _Mark) -> bool:
    """Did the counter move as a counter can?"""
    moved_uj, passed_ns = now.energy_uj - last.energy_uj, now.t_ns - last.t_ns
    return 0 <= moved_uj <= _POWER_W_MAX * passed_ns / 1e3
