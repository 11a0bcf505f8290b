"""An estimate of the CPU's energy where no counter can be read: its busy time and a power range.

``P = idle + (max − idle) · utilisation``, integrated over the monotonic clock. The integral of
utilisation is the busy CPU time over the number of CPUs, which the kernel counts itself: nothing is
sampled, so nothing between two readings is missed. It is as good as the two powers that it is given
(by default a small server's), and every figure on it says ``estimated``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meter.model import Device, Quality, Reading
from meter.power.cpu_time import busy_s
from meter.power.errors import ReadError
from meter.power.rapl import CPU

_POWER_OVER_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class _Mark:
    """What had been used by a moment."""

    t_ns: int
    energy_uj: int


class CpuEstimate:
    """The whole host's CPU as one device. ``idle_w``, ``max_w``: its power idle and fully loaded.

    The kernel counts CPU time in ticks of some 10 ms. Readings come no closer than ``every_s``, so
    that one tick more or less is little of what lies between them; polls in between read nothing.
    ``busy_s`` gives the busy seconds of all ``cpus`` together, ``clock`` the monotonic time in ns.
    """

    name = "estimate"

    def __init__(
        self,
        idle_w: float = 20.0,
        max_w: float = 100.0,
        every_s: float = 0.1,
        busy_s: Callable[[], float] = busy_s,
        clock: Callable[[], int] = time.monotonic_ns,
        cpus: int | None = None,
    ) -> None:
        self._idle_w = idle_w
        self._per_busy_s = (max_w - idle_w) / (cpus or os.cpu_count() or 1)
        self._every_ns = round(every_s * 1e9)
        self._busy_s = busy_s
        self._clock = clock
        self._name = f"CPU (estimated, {idle_w:g} to {max_w:g} W)"
        self._begun: tuple[int, float] | None = None
        self._last = self._power_mark = _Mark(0, 0)
        self._power_w: float | None = None

    def open(self) -> Sequence[Device]:
        """Begin to count. There is always a CPU: nothing to raise."""
        now_ns = self._clock()
        self._begun = (now_ns, self._busy_s())
        self._last = _Mark(now_ns - self._every_ns, 0)
        self._power_mark = _Mark(now_ns, 0)
        self._power_w = None
        return [Device(CPU, self._name, Quality.ESTIMATED, "cpu", "host", refresh_s=0.0)]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """Energy since ``open``, or nothing where the last reading is too near."""
        if self._begun is None:
            raise ReadError("the CPU's estimate is read before it was opened")
        now_ns = self._clock()
        if now_ns - self._last.t_ns < self._every_ns:
            return []
        begun_ns, begun_busy_s = self._begun
        used_s = (now_ns - begun_ns) / 1e9
        busy_s = max(0.0, self._busy_s() - begun_busy_s)
        energy_uj = round((self._idle_w * used_s + self._per_busy_s * busy_s) * 1e6)
        # The kernel's counts may step back by a tick: the counter waits until it is past that.
        self._last = _Mark(now_ns, max(self._last.energy_uj, energy_uj))
        self._update_power()
        latency_s = (self._clock() - now_ns) / 1e9
        return [Reading(CPU, now_ns, self._last.energy_uj, self._power_w, latency_s)]

    def _update_power(self) -> None:
        """The mean over the last half second: shorter ones show the kernel's ticks alone."""
        passed_ns = self._last.t_ns - self._power_mark.t_ns
        if passed_ns >= _POWER_OVER_NS:
            self._power_w = (self._last.energy_uj - self._power_mark.energy_uj) * 1e3 / passed_ns
            self._power_mark = self._last

    def close(self) -> None:
        """Nothing is held."""
        self._begun = None
