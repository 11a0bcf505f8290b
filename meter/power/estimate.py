"""An estimate of the CPU's energy where no counter can be read: utilisation times a power range.

``P = idle + (max − idle) · utilisation``, integrated over time. It is as good as the two powers
that it is given (by default a small server's), and every figure on it says ``estimated``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psutil

from meter.model import Device, Quality, Reading
from meter.power.rapl import CPU


def _cpu_seconds() -> tuple[float, float]:
    """Busy and total CPU seconds since boot, over all cores."""
    t = psutil.cpu_times()
    idle = t.idle + getattr(t, "iowait", 0.0)
    total = sum(t) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0)
    return total - idle, total


class CpuEstimate:
    """The whole CPU as one device. ``idle_w``, ``max_w``: its power idle and fully loaded.

    ``cpu_seconds`` gives busy and total CPU seconds, ``clock`` the monotonic time in ns.
    """

    name = "estimate"

    def __init__(
        self,
        idle_w: float = 20.0,
        max_w: float = 100.0,
        cpu_seconds: Callable[[], tuple[float, float]] = _cpu_seconds,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._idle_w = idle_w
        self._max_w = max_w
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._last: tuple[int, float, float] | None = None
        self._power_w = idle_w
        self._energy_uj = 0.0

    def open(self) -> Sequence[Device]:
        busy_s, total_s = self._cpu_seconds()
        self._last = (self._clock(), busy_s, total_s)
        name = f"CPU (estimated, {self._idle_w:g} to {self._max_w:g} W)"
        return [Device(CPU, name, Quality.ESTIMATED, "cpu", "host", refresh_s=0.0)]

    def read(self) -> Sequence[Reading]:
        """Energy up to now. The kernel counts CPU time in ticks: between two of them the last
        known utilisation goes on."""
        assert self._last is not None, "open() comes first"
        then_ns, then_busy, then_total = self._last
        now_ns = self._clock()
        busy_s, total_s = self._cpu_seconds()
        if total_s > then_total:
            share = min(1.0, max(0.0, (busy_s - then_busy) / (total_s - then_total)))
            self._power_w = self._idle_w + (self._max_w - self._idle_w) * share
        self._energy_uj += self._power_w * (now_ns - then_ns) / 1000
        self._last = (now_ns, busy_s, total_s)
        done_ns = self._clock()
        return [
            Reading(
                CPU,
                now_ns,
                round(self._energy_uj),
                power_w=self._power_w,
                latency_s=(done_ns - now_ns) / 1e9,
            )
        ]

    def close(self) -> None:
        self._last = None
