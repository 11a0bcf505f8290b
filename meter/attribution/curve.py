"""Cumulative quantities over time, and how a counter sees them.

A counter's tick at ``t`` shows what was drawn until ``t − delay``, smeared over a window of
``width`` (it may average power before it sums it). So an interval of the counter is not a stretch
of time with sharp edges but the difference of two smeared ones. The same window works both ways:
a work curve seen through it, between two edges, is the work of the interval; a curve of the
intervals' factors seen through it, between a step's start and end, is the factor that the step
pays. The two sums are the same integral, so what is handed out is what the counter moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

_S_PER_NS = 1e-9
_SHARP_S = 1e-4
_FAR_S = 1e4


def seconds(ns: Ints) -> Array:
    """Nanoseconds from some near origin in seconds."""
    return np.asarray(ns * _S_PER_NS, dtype=np.float64)


class Curve:
    """Running totals of ``c`` quantities, straight between ``times`` (s) and level beyond them.

    ``times``: shape (n,), ascending; ``totals``: shape (n, c).
    """

    def __init__(self, times: Array, totals: Array) -> None:
        first, last = times[0] - _FAR_S, times[-1] + _FAR_S
        self._times = np.concatenate(([first], times, [last]))
        self._totals = np.concatenate((totals[:1], totals, totals[-1:]))
        self._integral: Array | None = None

    @classmethod
    def of_segments(cls, starts: Array, ends: Array, amounts: Array) -> Curve:
        """Each row of ``amounts`` (n × c) is spread evenly from its start to its end."""
        rates = amounts / np.maximum(ends - starts, 1e-12)[:, None]
        times = np.concatenate((starts, ends))
        order = np.argsort(times, kind="stable")
        times = times.take(order)
        slopes = np.concatenate((rates, -rates)).take(order, axis=0)
        np.cumsum(slopes, axis=0, out=slopes)
        totals = np.zeros_like(slopes)
        np.multiply(slopes[:-1], np.diff(times)[:, None], out=totals[1:])
        np.cumsum(totals, axis=0, out=totals)
        return cls(times, totals)

    @classmethod
    def of_steps(cls, edges: Array, rates: Array) -> Curve:
        """``rates`` (n × c) per second, each from one edge (n + 1) to the next."""
        grown = np.cumsum(rates * np.diff(edges)[:, None], axis=0)
        return cls(edges, np.concatenate((np.zeros((1, rates.shape[1])), grown)))

    def at(self, t: Array) -> Array:
        """The totals at times ``t`` (m,): shape (m, c)."""
        index, part = self._place(t)
        low, grown = self._pieces(index)
        grown *= part[:, None]
        grown += low
        return grown

    def through(self, t: Array, width_s: float) -> Array:
        """The totals at ``t``, averaged over a window of ``width_s`` around it: shape (m, c)."""
        if width_s < _SHARP_S:
            return self.at(t)
        half = width_s / 2
        return np.asarray((self._integrated(t + half) - self._integrated(t - half)) / width_s)

    def _place(self, t: Array) -> tuple[Ints, Array]:
        index = self._times[1:-1].searchsorted(t, side="right")
        left = self._times.take(index)
        return index, (t - left) / np.maximum(self._times.take(index + 1) - left, 1e-300)

    def _integrated(self, t: Array) -> Array:
        """The integral of the totals from the first time on."""
        if self._integral is None:
            lengths = np.diff(self._times)[:, None]
            areas = (self._totals[:-1] + self._totals[1:]) / 2 * lengths
            areas[0] = 0.0
            self._integral = np.concatenate(
                (np.zeros((1, areas.shape[1])), np.cumsum(areas, axis=0))
            )
        index, part = self._place(t)
        low, grown = self._pieces(index)
        grown *= part[:, None] / 2
        grown += low
        grown *= (t - self._times[index])[:, None]
        # Before the first time the totals are those at it, and their integral counts from there.
        before = index == 0
        if before.any():
            grown[before] -= low[before] * (self._times[1] - self._times[0])
        grown += self._integral.take(index, axis=0)
        return grown

    def _pieces(self, index: Ints) -> tuple[Array, Array]:
        """The totals at the start of these pieces, and what they grow by in them."""
        low = self._totals.take(index, axis=0)
        grown = self._totals.take(index + 1, axis=0)
        grown -= low
        return low, grown
