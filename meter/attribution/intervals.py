"""From polls of a cumulative counter to intervals: from one change of the counter to the next.

A GPU's energy counter moves every ``refresh`` (100 ms on Hopper) while it is polled faster. The
poll that sees a change says only that the tick lies between it and the poll before. Ticks come
regularly, so period and phase fitted to many such bounds time each tick far better than one poll
does; the fitted tick is then held to the bounds that its own polls prove. A counter that moves at
every poll (RAPL, an estimate) needs no grid: its edges are its readings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.model import Device, Reading

_Array = NDArray[np.float64]

_FIT_TICKS = 256
_FIT_MIN_TICKS = 5
_FIT_EACH_UNTIL = 32
_FIT_EVERY = 8
_FIT_SELDOM = 32
_HOLD_TICKS = 24
_SEARCH_ROUNDS = 24
_KNOWN_WITHIN = 0.002
_UNIFORM = 12**0.5
_COMMON = 0.05
_CONTINUOUS_SHARE = 0.8
_MERGED_NS = 100_000_000
#: No board draws more, as far as is known; where the power limit is known, three times that.
_POWER_W_MAX = 20_000.0
_JUMP_NS_MIN = 200_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """``energy_uj`` moved on ``device`` between the edges. ``jitter_ns``: doubt of the edges."""

    device: str
    start_ns: int
    end_ns: int
    energy_uj: int
    jitter_ns: float


class _Grid:
    """The counter's tick: the period and phase that the bounds of the last changes allow.

    Change ``n`` is known to lie in ``(lower_n, upper_n]`` and to be tick number ``m_n``, so
    ``lower_n < phase + m_n·period ≤ upper_n``. For one period the bounds leave a slot for the
    phase; its width is concave in the period, so the period that leaves the widest slot is found
    by ternary search, and the phase is the slot's middle. (A line through the bounds' midpoints
    does worse: polls that beat with the tick bias all midpoints one way for minutes.)

    Where in a slot the true phase lies is the same for all its ticks: it shifts all edges alike,
    and the counter's delay, learned from the work, takes it up. Only a small part of a slot is
    doubt of single edges; but where ticks wander no slot is left, and what is missing is doubt.
    """

    def __init__(self, refresh_s: float | None) -> None:
        self._known_ns = refresh_s * 1e9 if refresh_s else None
        self.period_ns: float | None = self._known_ns
        self._origin_ns = 0
        self._phase_ns = 0.0
        self._doubt_ns = 0.0
        self._bounds: deque[tuple[int, int, int]] = deque(maxlen=_FIT_TICKS)

    @property
    def certain(self) -> bool:
        """Have enough ticks been seen to time them well?"""
        return len(self._bounds) >= _HOLD_TICKS

    def learn(self, lower_ns: int, upper_ns: int) -> int:
        """A tick lies in ``(lower, upper]`` (ns): returns its number."""
        if not self._bounds:
            self._origin_ns = lower_ns
        lower, upper = lower_ns - self._origin_ns, upper_ns - self._origin_ns
        number = self._number(lower, upper)
        if self.period_ns is None or upper - lower < 1.5 * self.period_ns:
            self._bounds.append((number, lower, upper))
            self._fit()
        return number

    def edge_ns(self, number: int, lower_ns: int, upper_ns: int) -> tuple[int, float]:
        """When tick ``number`` was, within its bounds, and its standard doubt, both ns."""
        lower, upper = lower_ns - self._origin_ns, upper_ns - self._origin_ns
        own_doubt = (upper - lower) / _UNIFORM
        if len(self._bounds) < _FIT_MIN_TICKS or self.period_ns is None:
            return round((lower_ns + upper_ns) / 2), own_doubt
        ticked = self._phase_ns + number * self.period_ns
        edge = min(max(ticked, lower + 1), upper)
        off = abs(edge - ticked)
        return self._origin_ns + round(edge), min(own_doubt, self._doubt_ns + off)

    def _number(self, lower: int, upper: int) -> int:
        """The number of the last tick in ``(lower, upper]``, counted from the first change."""
        if not self._bounds:
            return 0
        last, last_lower, last_upper = self._bounds[-1]
        if self.period_ns is None:
            return last + 1
        middle = (lower + upper) / 2
        if len(self._bounds) < _FIT_MIN_TICKS:
            return last + max(1, round((middle - (last_lower + last_upper) / 2) / self.period_ns))
        number = last + max(1, round((middle - self._phase_ns) / self.period_ns - last))
        while self._phase_ns + (number + 1.5) * self.period_ns <= upper:
            number += 1
        return number

    def _fit(self) -> None:
        count = len(self._bounds)
        every = _FIT_EVERY if count < _FIT_TICKS else _FIT_SELDOM
        if count < _FIT_MIN_TICKS or (count > _FIT_EACH_UNTIL and self._bounds[-1][0] % every):
            return
        numbers, lower, upper = np.array(self._bounds, dtype=np.float64).T
        self.period_ns, self._phase_ns, self._doubt_ns = self._widest(numbers, lower, upper)

    def _widest(self, numbers: _Array, lower: _Array, upper: _Array) -> tuple[float, float, float]:
        """Period, phase and its standard doubt (ns) of the widest slot that the bounds leave."""
        low, high = self._period_range(numbers, lower, upper)
        for _ in range(_SEARCH_ROUNDS):
            third = (high - low) / 3
            left = _slot(numbers, lower, upper, low + third)
            right = _slot(numbers, lower, upper, high - third)
            if left[1] - left[0] < right[1] - right[0]:
                low += third
            else:
                high -= third
        period_ns = (low + high) / 2
        start, end = _slot(numbers, lower, upper, period_ns)
        doubt_ns = (start - end) / _UNIFORM if end < start else _COMMON * (end - start) / _UNIFORM
        return period_ns, (start + end) / 2, doubt_ns

    def in_hindsight(self, changes: Sequence[_Change]) -> Iterator[tuple[int, float]]:
        """The edges of many changes, each timed by the ticks before and after it."""
        bounds = np.array(
            [
                (c.number, c.lower_ns - self._origin_ns, c.upper_ns - self._origin_ns)
                for c in changes
            ],
            dtype=np.float64,
        )
        narrow = np.ones(len(changes), dtype=bool)
        if self.period_ns is not None:
            narrow = bounds[:, 2] - bounds[:, 1] < 1.5 * self.period_ns
        for first in range(0, len(changes), _FIT_TICKS // 2):
            near = slice(max(0, first - _FIT_TICKS // 2), first + _FIT_TICKS)
            used = bounds[near][narrow[near]]
            if len(used) >= _FIT_MIN_TICKS:
                self.period_ns, self._phase_ns, self._doubt_ns = self._widest(*used.T)
            for change in changes[first : first + _FIT_TICKS // 2]:
                yield self.edge_ns(change.number, change.lower_ns, change.upper_ns)

    def _period_range(self, numbers: _Array, lower: _Array, upper: _Array) -> tuple[float, float]:
        """What the first and the last bounds leave for the period."""
        if self._known_ns is not None:
            return self._known_ns * (1 - _KNOWN_WITHIN), self._known_ns * (1 + _KNOWN_WITHIN)
        span = numbers[-1] - numbers[0]
        return float((lower[-1] - upper[0]) / span), float((upper[-1] - lower[0]) / span)


def _slot(numbers: _Array, lower: _Array, upper: _Array, period_ns: float) -> tuple[float, float]:
    """Where the phase may lie for a period: ``(start, end)``, empty where ``end < start``."""
    ticked = numbers * period_ns
    return float((lower - ticked).max()), float((upper - ticked).min())


class _Change(NamedTuple):
    """The counter moved by ``moved_uj`` between two polls; ``number`` is the tick's."""

    number: int
    lower_ns: int
    upper_ns: int
    moved_uj: int


class Counter:
    """One device's counter: takes its readings in order of time, gives its intervals.

    ``moved_uj`` is all that the counter has moved since its first reading. The first changes are
    held back until the tick is known, so that the first intervals have true edges too; with
    ``hindsight`` all are. A reading below the one before is a reset (driver reload, GPU reset); one
    that no device could have drawn is a jump: nothing is known of the time between, so no interval
    covers it and nothing is invented. A counter that moves at every poll and whose ticks are not
    known to be exact gives intervals of at least 100 ms: in shorter ones the edges' doubt, up to a
    poll, would drown what moved.
    """

    def __init__(self, device: Device, hindsight: bool = False) -> None:
        self.device = device
        self.moved_uj = 0
        self.resets = 0
        self.jumps = 0
        self.first_ns: int | None = None
        self.last: Reading | None = None
        self._hindsight = hindsight
        self._edge_ns = 0
        self._edge_doubt_ns = 0.0
        self._begun = True
        self._last_uj = 0
        self._last_change_ns = 0
        self._polls = 0
        self._changes = 0
        self._grid = _Grid(device.refresh_s)
        self._held: list[_Change] = []

    @property
    def refresh_s(self) -> float | None:
        """The counter's refresh as found (or known), ``None`` while unknown."""
        if self._continuous:
            return 0.0
        return self._grid.period_ns / 1e9 if self._grid.period_ns else None

    @property
    def _continuous(self) -> bool:
        """Does the counter move at every poll? Then each reading is exact at its time."""
        if self.device.refresh_s is not None:
            return self.device.refresh_s == 0
        return self._polls >= 10 and self._changes > _CONTINUOUS_SHARE * self._polls

    def add(self, reading: Reading) -> list[Interval]:
        """Take a reading; return the intervals it closes (none while the counter stands)."""
        if reading.energy_uj is None:
            return []
        before = self.last
        if before is None:
            self._begin(reading)
            return []
        if reading.t_ns <= before.t_ns:
            return []
        self.last = reading
        self._polls += 1
        moved_uj = reading.energy_uj - self._last_uj
        if moved_uj == 0:
            return []
        if moved_uj < 0 or self._impossible(moved_uj, reading.t_ns):
            self.resets += moved_uj < 0
            self.jumps += moved_uj > 0
            closed = self.flush()
            self._begin(reading)
            return closed
        self._last_uj = reading.energy_uj
        self._last_change_ns = reading.t_ns
        self._changes += 1
        self.moved_uj += moved_uj
        number = 0 if self._continuous else self._grid.learn(before.t_ns, reading.t_ns)
        self._held.append(_Change(number, before.t_ns, reading.t_ns, moved_uj))
        if self._hindsight or not (self._continuous or self._grid.certain):
            return []
        if self._merges and reading.t_ns - self._edge_ns < _MERGED_NS:
            return []
        return self.flush()

    def flush(self) -> list[Interval]:
        """The intervals of all changes that are still held back."""
        held, self._held = self._held, []
        if not held:
            return []
        if self._continuous:
            changes = _merged(held, self._edge_ns) if self._merges else held
            doubt_ns = 0.25 / _UNIFORM if self._merges else 0.0
            edges = [(c.upper_ns, doubt_ns * (c.upper_ns - c.lower_ns)) for c in changes]
        elif self._hindsight:
            changes, edges = held, list(self._grid.in_hindsight(held))
        else:
            changes = held
            edges = [self._grid.edge_ns(c.number, c.lower_ns, c.upper_ns) for c in held]
        return [self._interval(*pair) for pair in zip(changes, edges, strict=True)]

    @property
    def _merges(self) -> bool:
        return self._continuous and self.device.refresh_s is None

    def _impossible(self, moved_uj: int, t_ns: int) -> bool:
        """More than any such device draws in the time since the last change?"""
        limit = self.device.power_limit_w
        power_w_max = 3 * limit if limit else _POWER_W_MAX
        since_ns = max(t_ns - self._last_change_ns, _JUMP_NS_MIN)
        return moved_uj / 1e6 > power_w_max * since_ns / 1e9

    def _begin(self, reading: Reading) -> None:
        assert reading.energy_uj is not None
        self.last = reading
        self._last_uj = reading.energy_uj
        self._last_change_ns = reading.t_ns
        self._edge_ns, self._edge_doubt_ns, self._begun = reading.t_ns, 0.0, True
        if self.first_ns is None:
            self.first_ns = reading.t_ns

    def _interval(self, change: _Change, timed: tuple[int, float]) -> Interval:
        edge, doubt = max(timed[0], self._edge_ns + 1), timed[1]
        if self._begun and not self._continuous and self._grid.period_ns is not None:
            # The first reading shows the tick before it, which came up to a period earlier.
            self._edge_doubt_ns = self._grid.period_ns / _UNIFORM
        self._begun = False
        interval = Interval(
            device=self.device.id,
            start_ns=self._edge_ns,
            end_ns=edge,
            energy_uj=change.moved_uj,
            jitter_ns=(doubt**2 + self._edge_doubt_ns**2) ** 0.5,
        )
        self._edge_ns, self._edge_doubt_ns = edge, doubt
        return interval


def _merged(changes: Sequence[_Change], edge_ns: int) -> list[_Change]:
    """Neighbouring changes joined into ones of at least 100 ms; what is left over joins too."""
    merged: list[_Change] = []
    moved_uj = 0
    for change in changes:
        moved_uj += change.moved_uj
        if change.upper_ns - edge_ns >= _MERGED_NS:
            merged.append(change._replace(moved_uj=moved_uj))
            edge_ns, moved_uj = change.upper_ns, 0
    if moved_uj:
        merged.append(changes[-1]._replace(moved_uj=moved_uj))
    return merged
