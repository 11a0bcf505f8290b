"""Power over time, piecewise constant, and its integrals.

A counter that averages power over a window before it sums it shows a mean of the energy curve:
the difference of the energy's own integral. So two integrals are kept at each breakpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.truth.costs import Array, Ints


class Piecewise(NamedTuple):
    """A rate that is ``rates[i]`` from ``times[i]`` on; the last one holds for good.

    ``total[i]`` and ``integral[i]`` are what the rate, and what its total, sum up to by
    ``times[i]``; both are 0 at the first time.
    """

    times: Array
    rates: Array
    total: Array
    integral: Array

    @classmethod
    def of(cls, times: Array, rates: Array) -> Piecewise:
        length = np.diff(times)
        total = np.concatenate(([0.0], np.cumsum(rates[:-1] * length)))
        mean = total[:-1] + rates[:-1] * length / 2
        integral = np.concatenate(([0.0], np.cumsum(mean * length)))
        return cls(times, rates, total, integral)

    def _place(self, t: Array) -> tuple[Ints, Array]:
        index = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, None)
        return index, t - self.times[index]

    def at(self, t: Array) -> Array:
        """The rate at each time."""
        return np.asarray(self.rates[self._place(t)[0]])

    def until(self, t: Array) -> Array:
        """The rate's total by each time."""
        index, after = self._place(t)
        return np.asarray(self.total[index] + self.rates[index] * after)

    def between(self, start: Array, end: Array) -> Array:
        return self.until(end) - self.until(start)

    def smeared(self, t: Array, width: float) -> Array:
        """The mean of ``until`` over the ``width`` seconds before each time."""
        if width <= 0:
            return self.until(t)
        return (self._integral(t) - self._integral(t - width)) / width

    def _integral(self, t: Array) -> Array:
        index, after = self._place(t)
        straight = (self.total[index] + self.rates[index] * after / 2) * after
        return np.asarray(self.integral[index] + straight)


class Pulses(NamedTuple):
    """Rates that are added from a start to an end, each."""

    start: Array
    end: Array
    rate: Array


def stacked(base: Piecewise, pulses: Sequence[Pulses]) -> Piecewise:
    """The base with all pulses on it. Precondition: no pulse begins before the base."""
    times = np.concatenate((base.times, *(p.start for p in pulses), *(p.end for p in pulses)))
    steps = np.concatenate(
        (
            np.diff(base.rates, prepend=0.0),
            *(p.rate for p in pulses),
            *(-p.rate for p in pulses),
        )
    )
    order = np.argsort(times, kind="stable")
    return Piecewise.of(times[order], np.cumsum(steps[order]))


def count_of(start: Array, end: Array, begin: float) -> Piecewise:
    """How many of the spans cover each moment, from ``begin`` on."""
    nothing = Piecewise.of(np.array([begin]), np.zeros(1))
    covered = stacked(nothing, [Pulses(start, end, np.ones(len(start)))])
    return Piecewise.of(covered.times, np.round(covered.rates))
