"""Joules from watts, where a GPU has no energy counter, and beside it to check the one it has."""

from __future__ import annotations

#: Between two readings further apart than this the power is not known: it is not made up.
BRIDGE_NS = 1_000_000_000


class PowerIntegral:
    """The integral of power readings (trapezoids), as a cumulative counter in microjoules.

    After a gap longer than ``BRIDGE_NS`` it starts again from zero, as a counter does after a
    reset: so no interval covers a time of which nothing is known.
    """

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._total = 0  # microwatts times nanoseconds: exact however long it runs

    def add(self, t_ns: int, power_w: float) -> int:
        """Take a reading; the microjoules since the last start."""
        power_uw = round(power_w * 1e6)
        before, self._last = self._last, (t_ns, power_uw)
        if before is None or t_ns - before[0] > BRIDGE_NS:
            self._total = 0
        else:
            self._total += (before[1] + power_uw) * max(0, t_ns - before[0]) // 2
        return self._total // 10**9
