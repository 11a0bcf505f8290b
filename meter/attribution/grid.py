"""Times the ticks of a counter that moves regularly, from the polls that saw it move.

Change ``n`` is known to lie in ``(lower_n, upper_n]`` and to be tick number ``m_n``, so
``lower_n < phase + m_n·period ≤ upper_n``. For one period the bounds leave a slot for the phase;
the slot's middle is taken. A tick of whole milliseconds is believed as long as it leaves a slot;
else the period that leaves the widest one, found by ternary search, since the width is concave in
the period. (A line through the bounds' midpoints does worse: polls that beat with the tick bias
all midpoints one way for minutes. So does the middle of all periods that are possible: it tilts.)

Where in a slot the true phase lies is the same for all its ticks: it shifts all edges alike, and
the counter's delay, learned from the work, takes it up. So bounds are kept as long as they leave a
slot, and once there are many the edges move no further than a narrower slot makes them. Only a
small part of a slot is doubt of single edges; but where ticks wander no slot is left, and what is
missing among the last ticks is doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution.curve import Array

#: A value anywhere in a range: the range over this is its standard deviation.
UNIFORM = 12**0.5

_FIT_TICKS = 256
_FIT_MIN_TICKS = 5
_FIT_EACH_UNTIL = 32
_FIT_EVERY = 8
_FIT_SELDOM = 32
_HOLD_TICKS = 24
_SEARCH_ROUNDS = 24
_ROUND_NS = 1e6
_KNOWN_WITHIN = 0.002
_COMMON = 0.05
_SURE_NS = 500_000


class Bound(NamedTuple):
    """Tick ``number`` lies in ``(lower, upper]``, ns from the first one."""

    number: int
    lower_ns: int
    upper_ns: int


class _Slot(NamedTuple):
    """Where the phase may lie for a period (ns): nowhere if it ends before it starts."""

    period_ns: float
    start_ns: float
    end_ns: float

    @property
    def width_ns(self) -> float:
        return self.end_ns - self.start_ns

    @property
    def middle_ns(self) -> float:
        return (self.start_ns + self.end_ns) / 2

    @property
    def is_left(self) -> bool:
        return self.end_ns >= self.start_ns

    @property
    def doubt_ns(self) -> float:
        """Standard doubt of one edge."""
        return (_COMMON * self.width_ns if self.is_left else -self.width_ns) / UNIFORM


#: The number of a change that is no tick's, as long as the counter seemed to move at every poll.
NOT_TOLD = -1


class Grid:
    """A counter's ticks, learned change by change. ``refresh_s``: the period, where it is known."""

    def __init__(self, refresh_s: float | None) -> None:
        self._known_ns = refresh_s * 1e9 if refresh_s else None
        self.period_ns: float | None = self._known_ns
        self._origin_ns = 0
        self._phase_ns = 0.0
        self._doubt_ns = 0.0
        self._slack_ns = 0.0
        #: By how much all edges have been moved since the first ones were given out.
        self.shifted_ns = 0.0
        self._learned = 0
        self._last: Bound | None = None
        self._bounds: list[Bound] = []

    @property
    def certain(self) -> bool:
        """Have enough ticks been seen to time them well?"""
        return self._learned >= _HOLD_TICKS

    @property
    def last_number(self) -> int:
        """The number of the last tick that was told apart."""
        return self._last.number if self._last else 0

    def learn(self, lower_ns: int, upper_ns: int) -> int | None:
        """At least one tick lies in ``(lower, upper]`` (ns): returns the number of the last.

        ``None``: a poll so late that two ticks may be in it, at just such a moment that it cannot
        be told whether the second is. What moved then belongs to the next change.
        """
        if self._last is None:
            self._origin_ns = lower_ns
        lower, upper = lower_ns - self._origin_ns, upper_ns - self._origin_ns
        number = self._number(lower, upper)
        if number is None:
            return None
        self._last = bound = Bound(number, lower, upper)
        if self._is_narrow(bound):
            self._bounds.append(bound)
            self._learned += 1
            self._fit()
        return bound.number

    def edge_ns(self, number: int, lower_ns: int, upper_ns: int) -> tuple[int, float]:
        """When tick ``number`` was, within its bounds, and its standard doubt, both ns."""
        lower, upper = lower_ns - self._origin_ns, upper_ns - self._origin_ns
        own_doubt = (upper - lower) / UNIFORM
        if number == NOT_TOLD or self._learned < _FIT_MIN_TICKS or self.period_ns is None:
            return round((lower_ns + upper_ns) / 2), own_doubt
        ticked = self._phase_ns + number * self.period_ns
        edge = min(max(ticked, lower + 1), upper)
        off = abs(edge - ticked)
        return self._origin_ns + round(edge), min(own_doubt, self._doubt_ns + off)

    def in_hindsight(self, ticks: Sequence[tuple[int, int, int]]) -> list[tuple[int, float]]:
        """The edges of many ticks (``number, lower, upper`` as of ``edge_ns``), by all of them.

        Where ticks wander so that all together leave no slot, each is timed by those near it.
        """
        bounds = [Bound(n, low - self._origin_ns, high - self._origin_ns) for n, low, high in ticks]
        narrow = np.array([self._is_narrow(bound) for bound in bounds], dtype=bool)
        table = np.array(bounds, dtype=np.float64).reshape(len(bounds), 3)
        near = len(bounds)
        if (
            narrow.sum() >= _FIT_MIN_TICKS
            and not self._adopt(self._best_slot(table[narrow])).is_left
        ):
            near = _FIT_TICKS // 2
        edges = []
        for first in range(0, len(bounds), max(near, 1)):
            around = slice(max(0, first - near), first + 2 * near)
            used = table[around][narrow[around]]
            if near < len(bounds) and len(used) >= _FIT_MIN_TICKS:
                self._adopt(self._best_slot(used))
            edges += [self.edge_ns(*tick) for tick in ticks[first : first + near]]
        return edges

    def _is_narrow(self, bound: Bound) -> bool:
        """Is there at most one tick or two in it, and is it told which?"""
        if bound.number == NOT_TOLD:
            return False
        return self.period_ns is None or bound.upper_ns - bound.lower_ns < 1.5 * self.period_ns

    def _number(self, lower: int, upper: int) -> int | None:
        """The number of the last tick in ``(lower, upper]``, counted from the first change."""
        if self._last is None:
            return 0
        last, last_lower, last_upper = self._last
        if self.period_ns is None:
            return last + 1
        middle = (lower + upper) / 2
        if self._learned < _FIT_MIN_TICKS:
            return last + max(1, round((middle - (last_lower + last_upper) / 2) / self.period_ns))
        if upper - lower < self.period_ns / 2:
            return max(last + 1, round((middle - self._phase_ns) / self.period_ns))
        at_most = int((upper + self._slack_ns - self._phase_ns) // self.period_ns)
        ticked = self._phase_ns + at_most * self.period_ns
        may_be_after = ticked > upper - self._slack_ns
        another = at_most - 1 > last and ticked - self.period_ns > lower - self._slack_ns
        return None if may_be_after and another else max(last + 1, at_most)

    def _fit(self) -> None:
        count = self._learned
        every = _FIT_EVERY if count < _FIT_TICKS else _FIT_SELDOM
        if count < _FIT_MIN_TICKS or (count > _FIT_EACH_UNTIL and count % every):
            return
        table = np.array(self._bounds, dtype=np.float64)
        slot = self._best_slot(table)
        if not slot.is_left and len(table) > _FIT_TICKS:
            self._bounds = self._bounds[-_FIT_TICKS:]
            table = table[-_FIT_TICKS:]
            slot = self._best_slot(table)
        number, before_ns = self._bounds[-1].number, self._phase_ns
        if self.period_ns is not None:
            before_ns += number * self.period_ns
        self._adopt(slot)
        if count > _FIT_TICKS and slot.is_left:
            stays_ns = before_ns - number * slot.period_ns
            self._phase_ns = min(max(stays_ns, slot.start_ns), slot.end_ns)
        if count > _HOLD_TICKS:
            self.shifted_ns += self._phase_ns + number * slot.period_ns - before_ns
        off_ns = max(self._phase_ns - slot.start_ns, slot.end_ns - self._phase_ns)
        self._slack_ns = (off_ns if slot.is_left else 3 * slot.doubt_ns) + _SURE_NS
        if len(self._bounds) >= 2 * _FIT_TICKS:
            tight = _tight(table[:-_FIT_TICKS])
            self._bounds = [self._bounds[i] for i in tight] + self._bounds[-_FIT_TICKS:]

    def _adopt(self, slot: _Slot) -> _Slot:
        self.period_ns, self._doubt_ns = slot.period_ns, slot.doubt_ns
        self._phase_ns = slot.middle_ns
        return slot

    def _best_slot(self, table: Array) -> _Slot:
        """The most likely slot that bounds (n, 3) leave; if they leave none, the least bad one."""
        low, high = self._period_range(table)
        whole_ns = round((low + high) / 2 / _ROUND_NS) * _ROUND_NS
        if low <= whole_ns <= high and (slot := _slot(table, whole_ns)).is_left:
            return slot
        for _ in range(_SEARCH_ROUNDS):
            third = (high - low) / 3
            left, right = _slot(table, low + third), _slot(table, high - third)
            if left.width_ns < right.width_ns:
                low += third
            else:
                high -= third
        return _slot(table, (low + high) / 2)

    def _period_range(self, table: Array) -> tuple[float, float]:
        """What the first and the last bounds leave for the period."""
        # As Python's own numbers: the period goes into what is published and kept.
        first, first_lower, first_upper = table[0].tolist()
        last, last_lower, last_upper = table[-1].tolist()
        ticks = max(last - first, 1.0)  # all bounds may be of one tick
        low, high = (last_lower - first_upper) / ticks, (last_upper - first_lower) / ticks
        if self._known_ns is None:
            return low, high
        least, most = self._known_ns * (1 - _KNOWN_WITHIN), self._known_ns * (1 + _KNOWN_WITHIN)
        return (max(low, least), min(high, most)) if low < most and high > least else (least, most)


def _slot(table: Array, period_ns: float) -> _Slot:
    """What bounds (n, 3) leave for the phase, for one period."""
    numbers, lower, upper = table.T
    ticked = numbers * period_ns
    return _Slot(period_ns, float((lower - ticked).max()), float((upper - ticked).min()))


def _tight(table: Array) -> list[int]:
    """Which bounds (n, 3) can be the tightest one for some period: the others say nothing."""
    numbers, lower, upper = table.T
    return sorted({*_hull(numbers, lower), *_hull(numbers, -upper)})


def _hull(x: Array, y: Array) -> list[int]:
    """The corners of the upper hull of points in order of ``x`` (Andrew's monotone chain)."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) >= 2:
            a, b = kept[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) > (y[i] - y[a]) * (x[b] - x[a]):
                break
            kept.pop()
        kept.append(i)
    return kept
