"""Do the coefficients foresee what the counter will show? On other load, alone, at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution.coefficients import GENERIC, with_experts
from meter.attribution.fit import Fit, fit_rows, in_one_row
from meter.model import Receipt
from meter.selftest.look import Array, Intervals, Ints, runs

_FEW = 30
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_FEW_ALONE = 5
_FEW_PULSES = 3
_PHASES = 4
_PULSE_S = 0.8
_QUIET_S = 0.25


class Foreseen(NamedTuple):
    """Intervals with work of one half, by coefficients that the other half taught.

    ``factors``: measured / foreseen, one an interval; ``off``: Σ|measured − foreseen| / Σ measured;
    ``bias``: Σ measured / Σ foreseen − 1.
    """

    factors: tuple[float, ...]
    off: float
    bias: float

    def quantile(self, share: float) -> float:
        """Of ``|factor − 1|``."""
        return float(np.quantile(np.abs(np.array(self.factors) - 1.0), share))

    def quantiles(self) -> tuple[tuple[str, float], ...]:
        """How the factors are distributed: (per cent of them, at most so much)."""
        values = np.percentile(np.array(self.factors), _PERCENTILES).tolist()
        return tuple(zip((f"p{share}" for share in _PERCENTILES), values, strict=True))


class Alone(NamedTuple):
    """Requests that ran alone, by coefficients learned in company alone.

    ``ratios``: measured / foreseen of each, without idle power. ``off``: median of |ratio − 1|.
    """

    ratios: tuple[float, ...]
    off: float
    bias: float


class Sweep(NamedTuple):
    """Short loads between idle, by where in the counter's tick they began.

    ``ratios``: (phase from 0 to 1, measured / foreseen, how many); ``swing``: the largest less the
    smallest: a counter that looks away for a part of its tick shows some of them too small.
    """

    ratios: tuple[tuple[float, float, int], ...]
    swing: float


def foreseen(intervals: Intervals, fit: Fit | None, from_ns: int) -> Foreseen | None:
    """The intervals from a moment on, as the core foresaw them with ``fit``."""
    if fit is None or not fit.converged:
        return None
    chosen = intervals.busy & intervals.known & (intervals.start_ns >= from_ns)
    chosen &= intervals.foreseen_j > 0
    if chosen.sum() < _FEW:
        return None
    measured, expected = intervals.energy_j[chosen], intervals.foreseen_j[chosen]
    return Foreseen(
        factors=tuple((measured / expected).tolist()),
        off=float(np.abs(measured - expected).sum() / measured.sum()),
        bias=float(measured.sum() / expected.sum() - 1.0),
    )


class Company:
    """How many requests an engine of the device held, over time."""

    def __init__(self, receipts: Sequence[Receipt]) -> None:
        opened = [r.opened_ns for r in receipts]
        closed = [r.closed_ns for r in receipts if r.closed_ns is not None]
        times = np.array([*opened, *closed], dtype=np.int64)
        change = np.repeat([1, -1], [len(opened), len(closed)])
        order = np.lexsort((change, times))
        self._times = times[order]
        self._held = np.cumsum(change[order])

    def most(self, low_ns: Ints, high_ns: Ints) -> Ints:
        """The most of them at once, in each stretch."""
        first = np.searchsorted(self._times, low_ns, side="right") - 1
        last = np.searchsorted(self._times, high_ns, side="left")
        held = np.concatenate((self._held, [0]))  # place −1: before the first
        return np.array(
            [max(held[i] if i >= 0 else 0, *held[i + 1 : j], 0)
             for i, j in zip(first, last, strict=True)], dtype=np.int64
        )  # fmt: skip

    def spells(self) -> list[tuple[int, int]]:
        """From when to when somebody was there."""
        ends = np.flatnonzero(self._held == 0)
        if not len(ends):
            return []
        starts = np.concatenate(([0], ends[:-1] + 1))
        return [
            (int(self._times[a]), int(self._times[b])) for a, b in zip(starts, ends, strict=True)
        ]


def alone(intervals: Intervals, company: Company, fit: Fit, experts: bool) -> Alone | None:
    """Learn from intervals in company and idle ones; foresee the requests that ran alone."""
    late_ns = round(fit.window.delay_s * 1e9)
    half_ns = round(fit.window.width_s / 2 * 1e9)
    most = company.most(
        intervals.start_ns - late_ns - half_ns, intervals.end_ns - late_ns + half_ns
    )
    lone = (most == 1) & intervals.busy & intervals.known
    others = intervals.known & ((most > 1) | ~intervals.busy)
    if (others & intervals.busy).sum() < _FEW:
        return None
    prior = with_experts(GENERIC) if experts else GENERIC
    priors = [prior] * len(fit.coefficients)
    learned = fit_rows(intervals.rows(others), priors, True, fit.window, shared=fit.shared)
    theta = in_one_row(learned.coefficients)
    idle_j = intervals.features[:, 0] * theta[0]
    expected, measured = intervals.features @ theta - idle_j, intervals.energy_j - idle_j
    ratios = [
        float(measured[run].sum() / expected[run].sum())
        for run in runs(lone)
        if len(run) >= 2 and expected[run].sum() > 0
    ]
    if len(ratios) < _FEW_ALONE:
        return None
    off = np.array(ratios) - 1.0
    return Alone(tuple(ratios), float(np.median(np.abs(off))), float(np.median(off)))


def sweep(intervals: Intervals, company: Company, fit: Fit) -> Sweep | None:
    """Every short load with idle around it, measured against foreseen, by its phase."""
    delay_ns = fit.window.delay_s * 1e9
    reach_ns = fit.window.width_s / 2 * 1e9
    static_j = intervals.seconds * fit.coefficients[0].static_w
    spells = company.spells()
    found: list[tuple[float, float]] = []
    for number, (t0, t1) in enumerate(spells):
        before = t0 - spells[number - 1][1] if number else _QUIET_S * 1e9
        after = spells[number + 1][0] - t1 if number + 1 < len(spells) else _QUIET_S * 1e9
        if min(before, after) < _QUIET_S * 1e9 or t1 - t0 > _PULSE_S * 1e9:
            continue
        low, high = t0 + delay_ns - reach_ns, t1 + delay_ns + reach_ns
        inside = (intervals.end_ns > low) & (intervals.start_ns < high)
        expected = float((intervals.foreseen_j - static_j)[inside].sum())
        if not inside.any() or not intervals.known[inside].all() or expected <= 0:
            continue
        first = int(np.flatnonzero(inside)[0])
        start, end = intervals.start_ns[first], intervals.end_ns[first]
        phase = float(np.clip((low - start) / (end - start), 0.0, 1.0))
        found.append((phase, float((intervals.energy_j - static_j)[inside].sum()) / expected))
    return _by_phase(found)


def _by_phase(found: list[tuple[float, float]]) -> Sweep | None:
    ratios = []
    for number in range(_PHASES):
        inside: Array = np.array([r for p, r in found if int(min(p, 0.999) * _PHASES) == number])
        if len(inside) < _FEW_PULSES:
            return None
        ratios.append(((number + 0.5) / _PHASES, float(np.median(inside)), len(inside)))
    values = [ratio for _, ratio, _ in ratios]
    return Sweep(tuple(ratios), max(values) - min(values))
