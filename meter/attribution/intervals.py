"""From polls of a cumulative counter to intervals: from one change of the counter to the next.

A GPU's energy counter moves every ``refresh`` (100 ms on Hopper) while it is polled faster. The
poll that sees a change says only that the tick lies between it and the poll before. Ticks come
regularly, so a straight line through the last ones (tick number against midpoint) times each far
better than one poll does; the line's value is then held to the bounds that the polls prove.
A counter that moves at every poll (RAPL, an estimate) needs no grid: its edges are its readings.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from meter.model import Device, Reading

_FIT_TICKS = 64
_FIT_MIN_TICKS = 6
_CONTINUOUS_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Interval:
    """``energy_uj`` moved on ``device`` between the edges. ``jitter_ns``: doubt of each edge."""

    device: str
    start_ns: int
    end_ns: int
    energy_uj: int
    jitter_ns: float
    latest_ns: int

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class _Grid:
    """The counter's tick: period and phase, fitted to the bounds of the last changes."""

    def __init__(self, refresh_s: float | None) -> None:
        self.period_ns: float | None = refresh_s * 1e9 if refresh_s else None
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_FIT_TICKS)
        self._origin_ns = 0
        self._phase_ns = 0.0
        self._early: list[float] = []

    def edge_ns(self, lower_ns: int, upper_ns: int) -> tuple[int, float]:
        """The tick in ``(lower, upper]`` and its standard doubt, both ns; learns from it."""
        middle = (lower_ns + upper_ns) / 2
        width = upper_ns - lower_ns
        if self.period_ns is None:
            self._guess_period(middle)
            return round(middle), width / 3.5
        if not self._ticks:
            self._origin_ns = lower_ns
            self._ticks.append((0, middle - self._origin_ns))
            self._phase_ns = middle - self._origin_ns
            return round(middle), width / 3.5
        number = self._number(upper_ns, middle)
        if width < 1.5 * self.period_ns:
            self._learn(number, middle - self._origin_ns)
        fitted = self._origin_ns + self._phase_ns + number * self.period_ns
        edge = min(max(fitted, lower_ns + 1), upper_ns)
        doubt = width / 3.5 / max(1.0, len(self._ticks) ** 0.5) if edge == fitted else width / 7
        return round(edge), doubt

    def _guess_period(self, middle: float) -> None:
        self._early.append(middle)
        if len(self._early) > _FIT_MIN_TICKS:
            gaps = sorted(b - a for a, b in zip(self._early, self._early[1:], strict=False))
            self.period_ns = gaps[len(gaps) // 2]
            self._early.clear()

    def _number(self, upper_ns: int, middle: float) -> int:
        """The number of the last tick before ``upper``."""
        assert self.period_ns is not None
        offset = (middle - self._origin_ns - self._phase_ns) / self.period_ns
        number = round(offset)
        last = self._ticks[-1][0]
        while self._origin_ns + self._phase_ns + (number + 1) * self.period_ns <= upper_ns:
            number += 1
        return max(number, last + 1)

    def _learn(self, number: int, offset_ns: float) -> None:
        self._ticks.append((number, offset_ns))
        count = len(self._ticks)
        if count < _FIT_MIN_TICKS:
            return
        mean_n = sum(n for n, _ in self._ticks) / count
        mean_o = sum(o for _, o in self._ticks) / count
        spread = sum((n - mean_n) ** 2 for n, _ in self._ticks)
        slope = sum((n - mean_n) * (o - mean_o) for n, o in self._ticks) / spread
        self.period_ns = slope
        self._phase_ns = mean_o - slope * mean_n


class Counter:
    """One device's counter: takes its readings in order of time, gives its intervals.

    ``moved_uj`` is all that the counter has moved since its first reading. A reading below the one
    before is a reset (driver reload, GPU reset): nothing is known of the time between, so no
    interval covers it and nothing is invented.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.moved_uj = 0
        self.closed_uj = 0
        self.resets = 0
        self.errors = 0
        self.first_ns: int | None = None
        self.edge_ns: int | None = None
        self.last: Reading | None = None
        self._last_uj = 0
        self._edge_jitter_ns = 0.0
        self._polls = 0
        self._changes = 0
        self._grid = _Grid(device.refresh_s)

    @property
    def refresh_s(self) -> float | None:
        """The counter's refresh as found (or known), ``None`` while unknown."""
        if self._continuous:
            return 0.0
        return self._grid.period_ns / 1e9 if self._grid.period_ns else None

    @property
    def _continuous(self) -> bool:
        if self.device.refresh_s is not None:
            return self.device.refresh_s == 0
        return self._polls >= 10 and self._changes > _CONTINUOUS_SHARE * self._polls

    def add(self, reading: Reading) -> Interval | None:
        """Take a reading; return the interval it closes, if the counter moved."""
        if reading.energy_uj is None:
            self.errors += 1
            return None
        before, self.last = self.last, reading
        if before is None:
            self._begin(reading)
            return None
        if reading.t_ns <= before.t_ns:
            self.last = before
            return None
        self._polls += 1
        moved = reading.energy_uj - self._last_uj
        if moved < 0:
            self.resets += 1
            self._begin(reading)
            return None
        if moved == 0:
            return None
        self._changes += 1
        return self._close(before.t_ns, reading, moved)

    def _begin(self, reading: Reading) -> None:
        assert reading.energy_uj is not None
        self._last_uj = reading.energy_uj
        self.edge_ns = reading.t_ns
        self._edge_jitter_ns = 0.0
        if self.first_ns is None:
            self.first_ns = reading.t_ns

    def _close(self, lower_ns: int, reading: Reading, moved_uj: int) -> Interval | None:
        assert self.edge_ns is not None
        assert reading.energy_uj is not None
        edge, jitter = self._grid.edge_ns(lower_ns, reading.t_ns)
        if self._continuous:
            edge, jitter = reading.t_ns, 0.0
        edge = max(edge, self.edge_ns + 1)
        interval = Interval(
            device=self.device.id,
            start_ns=self.edge_ns,
            end_ns=edge,
            energy_uj=moved_uj,
            jitter_ns=(jitter**2 + self._edge_jitter_ns**2) ** 0.5,
            latest_ns=reading.t_ns,
        )
        self._last_uj = reading.energy_uj
        self.moved_uj += moved_uj
        self.edge_ns, self._edge_jitter_ns = edge, jitter
        return interval
