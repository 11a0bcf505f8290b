"""What intervals can tell apart: which part of each run each interval shows.

A step's noise ``ε_k`` moves interval ``i`` by ``K_ik·p_k·ε_k``, where ``p_k`` are the step's joules
and ``K_ik`` the part of it that the interval shows. The closure hands that back to all that the
interval shows, so a request that pays ``x_k`` of step ``k`` is wrong by::

    Σ_k ε_k·(x_k − p_k·Σ_i K_ik·X_i/E_i)    with X_i = Σ_k K_ik·x_k, and E_i the interval's joules

The variance of that, for a step noise of ``ε²``, is ``ε²`` times::

    Σ x_k² − 2·Σ_i X_i·Y_i/E_i + Σ_i X_i²·Q_ii/E_i² + 2·Σ_i X_i·X_(i+1)·Q_(i,i+1)/(E_i·E_(i+1))

with ``Y_i = Σ_k K_ik·x_k·p_k`` and ``Q_ij = Σ_k p_k²·K_ik·K_jk``. (No more than neighbours share a
step, unless it lasts longer than an interval.) Where it decodes after that within the same
intervals, ``X'`` joules of each, the closure gives back part of what it took.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from meter.attribution.curve import Array, Ints

_SHARP_S = 1e-6


class Sight(NamedTuple):
    """Entries in order of run and interval: interval ``place`` shows ``part`` of ``run``.

    ``place`` -1 is an interval as long as the first, before it. ``alone``: (intervals,), the run
    that fills an interval from edge to edge, or -1.
    """

    run: Ints
    place: Ints
    part: Array
    alone: Ints

    @classmethod
    def of(cls, t0: Array, t1: Array, edges: Array, width_s: float) -> Sight:
        """``t0``, ``t1``: of the runs; ``edges``: (n + 1), less the delay; ``width_s``: the smear.

        Times in seconds from one origin.
        """
        edges = np.concatenate(([2 * edges[0] - edges[1]], edges))
        count, half = len(edges) - 1, width_s / 2
        first = np.clip(np.searchsorted(edges, t0 - half, side="right") - 1, 0, count - 1)
        last = np.clip(np.searchsorted(edges, t1 + half, side="left") - 1, 0, count - 1)
        times = np.maximum(last - first, 0) + 1
        run = np.repeat(np.arange(len(t0)), times)
        place = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(times) - times, times)
        start, end = t0[run], t1[run]
        until = _shown(edges[place + 1], start, end, width_s)
        part = until - _shown(edges[place], start, end, width_s)
        alone = np.full(count, -1, dtype=np.int64)
        filled = (start <= edges[place]) & (end >= edges[place + 1])
        alone[place[filled]] = run[filled]
        return cls(run, place - 1, part, alone[1:])

    def summed(self, amounts: Array, count: int) -> Array:
        """What each of ``count`` intervals shows of the runs' ``amounts``."""
        shown = np.bincount(self.place + 1, self.part * amounts[self.run], minlength=count + 1)
        return np.asarray(shown[1 : count + 1])

    def squares(self, amounts: Array, count: int) -> Array:
        """Σ of the squares of what each interval shows of the single runs."""
        return Sight(self.run, self.place, np.square(self.part), self.alone).summed(
            np.square(amounts), count
        )

    def shared(self, amounts: Array, count: int) -> Array:
        """Σ over runs of what each interval shows times what the one before it does."""
        same = np.flatnonzero(self.run[1:] == self.run[:-1]) if len(self.run) else np.zeros(0, int)
        both = self.part[same] * self.part[same + 1] * np.square(amounts[self.run[same]])
        return np.asarray(np.bincount(self.place[same + 1], both, minlength=count)[:count])

    def later(self, amounts: Array, count: int) -> Array:
        """For each entry, what its interval shows of the ``amounts`` of later runs."""
        order = np.argsort(self.place, kind="stable")
        shown, place = self.part[order] * amounts[self.run[order]], self.place[order] + 1
        ends = np.cumsum(np.bincount(place, shown, minlength=count + 1))
        later = np.empty(len(order))
        later[order] = ends[place] - np.cumsum(shown)
        return np.maximum(later, 0.0)

    def handed_back(self, rates: Array, runs: int) -> Array:
        """Each run's mean of the intervals' ``rates``, by the part of it that each shows."""
        inside = (self.place >= 0) & (self.place < len(rates))
        run, place = self.run[inside], self.place[inside]
        return np.asarray(np.bincount(run, self.part[inside] * rates[place], minlength=runs))


def _shown(t: Array, start: Array, end: Array, width_s: float) -> Array:
    """Which part of each run is shown by ``t`` through a window of ``width_s``."""
    if width_s < _SHARP_S:
        return np.asarray(np.clip((t - start) / np.maximum(end - start, 1e-12), 0.0, 1.0))
    half = width_s / 2
    return np.asarray((_area(t + half, start, end) - _area(t - half, start, end)) / width_s)


def _area(t: Array, start: Array, end: Array) -> Array:
    """The integral up to ``t`` of the part of a run that is over."""
    inside = np.clip(t, start, end) - start
    return np.square(inside) / (2.0 * np.maximum(end - start, 1e-12)) + np.maximum(t - end, 0.0)


#: Columns of what is kept of an interval, as shares of its joules and its length: ``Q_ii``,
#: ``Q_(i−1,i)``, and the squared doubt of an edge.
SQUARES, SHARED, EDGE = range(3)
FACTS = 3
#: Of a run so many intervals are told apart; what later ones show counts with the last.
PARTS = 4
