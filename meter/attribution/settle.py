"""Closes a block of intervals of one device: what they should have cost, and who pays.

An interval's joules go to what happened in it in proportion to what the coefficients foresee:
one factor ``λ = ΔE / foreseen`` for steps, gaps and idle together, so that what is handed out is
exactly what the counter moved. Only where a *sustained* excess shows that somebody else drew power
does the interval keep λ = 1, and the whole excess is ``unattributed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.attribution import passes
from meter.attribution.coefficients import GENERIC, Coefficients
from meter.attribution.curve import Array, Curve, Ints, seconds
from meter.attribution.engine import EngineState
from meter.attribution.fit import SIZE, Fit
from meter.attribution.intervals import Interval
from meter.attribution.load import (
    FORESEEN_J,
    LOST_J,
    RUN_J,
    RUN_S,
    STARTUP_S,
    Load,
    Priced,
    Segments,
    gather,
)

# Columns of what passes pay: factor, doubt of edges, presence, Σ of squared shares, 1/joules, mix.
_FIRST_MIX = 5
_S = 1e-9
_EXCESS_SIGMAS = 4.0
_EXCESS_SPREAD_MIN = 0.03
#: What is foreseen below this share of what moved is rounding, not a forecast.
_FACTOR_MIN = 1e-6
_SUSTAINED = 3
_SUSTAINED_OF = 5
#: An excess is judged when so many later intervals are known.
FOREIGN_WAIT = _SUSTAINED_OF - 1


class Past(NamedTuple):
    """What the intervals before a block say about an excess at its start (the last 4)."""

    high: tuple[bool, ...] = ()
    witness: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring intervals of one device, with their work and what a fit foresees for it.

    ``edges``: seconds from the load's origin (n + 1); ``energy_j``, ``jitter_s``: (n,);
    ``totals``: (n, columns of the load's curve); ``run_share``: (n,), Σ of the squared shares that
    single steps have in the foreseen joules (1/m for m equal steps).
    """

    load: Load
    priced: Priced
    theta: Coefficients
    fit: Fit
    edges: Array
    energy_j: Array
    jitter_s: Array
    segments: Segments
    totals: Array
    run_share: Array
    high: NDArray[np.bool_]
    witness: NDArray[np.bool_]

    @property
    def foreseen_j(self) -> Array:
        return np.asarray(self.totals[:, FORESEEN_J])

    @property
    def teaches(self) -> NDArray[np.bool_]:
        """Where the work is wholly known, so that the calibration may learn from it."""
        return np.asarray((self.totals[:, LOST_J] <= 0) & (self.totals[:, STARTUP_S] <= 1e-9))


def evaluate(intervals: Sequence[Interval], engines: Sequence[EngineState], fit: Fit) -> Block:
    """Gather what the device's engines did in ``intervals`` (each begins where one ends)."""
    reach_ns = round((fit.window.delay_s + fit.window.width_s / 2) / _S)
    ahead_ns = round((fit.window.width_s / 2 - fit.window.delay_s) / _S)
    low_ns = intervals[0].start_ns - reach_ns - 1
    load = gather(engines, low_ns, intervals[-1].end_ns + ahead_ns + 1)
    ends = [intervals[0].start_ns, *(i.end_ns for i in intervals)]
    edges = seconds(np.array(ends, dtype=np.int64) - low_ns)
    energy_j = np.array([i.energy_uj for i in intervals], dtype=np.float64) / 1e6
    jitter_s = np.array([i.jitter_ns for i in intervals]) * _S
    theta = fit.coefficients
    priced = load.priced(theta)
    if len(load.t0) and priced.run_j.min() <= 0:
        theta = GENERIC.coefficients
        priced = load.priced(theta)
    segments = load.segments(priced, theta.static_w)
    totals = _totals(segments, edges, fit)
    run_share, alone = _run_shares(load, priced, edges - fit.window.delay_s, totals[:, FORESEEN_J])
    block = Block(
        load=load,
        priced=priced,
        theta=theta,
        fit=fit,
        edges=edges,
        energy_j=energy_j,
        jitter_s=jitter_s,
        segments=segments,
        totals=totals,
        run_share=run_share,
        high=np.zeros(len(energy_j), dtype=bool),
        witness=np.zeros(len(energy_j), dtype=bool),
    )
    _mark_excess(block)
    repeats = (alone >= 0) & (alone == np.concatenate(([-1], alone[:-1])))
    block.witness[:] = block.high & ~repeats
    return block


def _totals(segments: Segments, edges: Array, fit: Fit) -> Array:
    """The load's curve as the counter sees it, from edge to edge."""
    curve = Curve.of_segments(*segments)
    seen = curve.through(edges - fit.window.delay_s, fit.window.width_s)
    totals = np.diff(seen, axis=0)
    totals[:, 1:] = np.maximum(totals[:, 1:], 0.0)  # rounding; seconds may truly be negative
    return np.asarray(totals)


def _run_shares(load: Load, priced: Priced, edges: Array, foreseen_j: Array) -> tuple[Array, Ints]:
    """Σ of squared shares of single runs by interval; and the run that fills one alone, or -1."""
    count = len(edges) - 1
    first = np.searchsorted(edges, load.t0, side="right") - 1
    last = np.searchsorted(edges, load.t1, side="left") - 1
    first, last = np.clip(first, 0, count - 1), np.clip(last, 0, count - 1)
    times = np.maximum(last - first, 0) + 1
    run = np.repeat(np.arange(len(load.t0)), times)
    place = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(times) - times, times)
    t0, t1 = load.t0[run], load.t1[run]
    within = np.minimum(t1, edges[place + 1]) - np.maximum(t0, edges[place])
    part = np.maximum(within, 0.0) / np.maximum(t1 - t0, 1e-12)
    squares = np.bincount(place, np.square(part * priced.run_j[run]), minlength=count)
    alone = np.full(count, -1, dtype=np.int64)
    filled = (t0 <= edges[place]) & (t1 >= edges[place + 1])
    alone[place[filled]] = run[filled]
    share = squares / np.maximum(np.square(foreseen_j), 1e-300)
    return np.minimum(share, 1.0), alone


def _mark_excess(block: Block) -> None:
    """Where far more was drawn than foreseen. Never said before the fit has converged.

    A step that stalls at its usual power is dear, but no stranger's: what the engine's steps take
    by lasting longer than usual is let off.
    """
    fit = block.fit
    if not fit.converged:
        return
    foreseen = block.foreseen_j
    usual_s = block.totals[:, :SIZE] @ np.array(fit.pace)
    stretch = np.maximum(block.totals[:, RUN_S] / np.maximum(usual_s, 1e-9) - 1.0, 0.0)
    stretch[usual_s <= 0] = 0.0
    expected = foreseen + block.totals[:, RUN_J] * stretch
    relative = fit.relative_variance(
        block.totals[:, :SIZE], foreseen, block.run_share, block.jitter_s / np.diff(block.edges)
    )
    sigma = np.maximum(np.sqrt(relative), _EXCESS_SPREAD_MIN) * expected
    block.high[:] = (block.energy_j - expected > _EXCESS_SIGMAS * sigma) & block.teaches


def foreign(block: Block, past: Past, finishing: bool) -> tuple[NDArray[np.bool_], int]:
    """Which intervals hold a sustained excess, and how many of them can be closed now.

    Sustained: in some 5 neighbours at least 3 are high, in different steps: one slow step over
    several intervals is one witness. A high interval waits until 4 later ones are known.
    """
    skip = len(past.high)
    high = np.concatenate((np.array(past.high, dtype=bool), block.high))
    witness = np.concatenate((np.array(past.witness, dtype=bool), block.witness))
    counted = np.convolve(witness, np.ones(_SUSTAINED_OF), mode="full")
    # counted[j] is the number of witnesses in the window that ends with j.
    best = np.max([counted[i : i + len(high)] for i in range(_SUSTAINED_OF)], axis=0)
    is_foreign = (high & (best >= _SUSTAINED))[skip:]
    if finishing:
        return is_foreign, len(is_foreign)
    undecided = block.high & ~is_foreign
    undecided[: max(0, len(undecided) - FOREIGN_WAIT)] = False
    waits = np.flatnonzero(undecided)
    return is_foreign, int(waits[0]) if len(waits) else len(is_foreign)


def remember(block: Block, past: Past, closed: int) -> Past:
    """What the next block has to know of the first ``closed`` intervals of this one."""
    if not closed:
        return past
    high = (*past.high, *block.high[:closed].tolist())[-FOREIGN_WAIT:]
    witness = (*past.witness, *block.witness[:closed].tolist())[-FOREIGN_WAIT:]
    return Past(high, witness)


class Shares(NamedTuple):
    """What a block hands out beside passes, in joules."""

    idle_j: float
    startup_j: float
    lost_j: float
    foreign_j: float


def distribute(
    block: Block, is_foreign: NDArray[np.bool_], closed: int, first_number: int, device: str
) -> Shares:
    """Hand out the joules of the first ``closed`` intervals: book the passes, return the rest.

    ``first_number``: the number of the block's first interval on this device.
    """
    foreseen, energy = block.foreseen_j[:closed], block.energy_j[:closed]
    priced = foreseen > _FACTOR_MIN * energy
    factor = np.where(priced, energy / np.where(priced, foreseen, 1.0), 0.0)
    factor = np.where(is_foreign[:closed] & priced, 1.0, factor)
    edges = block.edges[: closed + 1]
    # Steps that the counter's window smears over several intervals are told apart less well.
    smeared = 1.0 + block.fit.window.width_s / np.diff(edges)
    rates = np.zeros((closed, _FIRST_MIX + SIZE))
    rates[:, 0] = factor
    late_s = block.fit.window.doubt_s or 0.0
    rates[:, 1] = (np.square(block.jitter_s[:closed]) + late_s**2) / np.square(np.diff(edges))
    rates[:, 2] = 1.0
    rates[:, 3] = block.run_share[:closed] / smeared
    rates[:, 4] = 1.0 / np.maximum(energy, 1e-12) / smeared
    rates[:, _FIRST_MIX:] = np.where(
        priced[:, None],
        block.totals[:closed, :SIZE] / np.where(priced, foreseen, 1.0)[:, None],
        0.0,
    )
    window, load = block.fit.window, block.load
    paid = Curve.of_steps(edges, rates)

    def seen(t: Array) -> Array:
        return paid.through(t + window.delay_s, window.width_s)

    def factor_s(spans: Array) -> Array:
        """Seconds weighted by the factor, of each span."""
        if not len(spans):
            return np.zeros(0)
        return np.asarray(seen(spans[:, 1])[:, 0] - seen(spans[:, 0])[:, 0])

    static_w = block.theta.static_w
    if len(load.t0):
        _book(block, seen, edges, first_number, device)
    startup_j = float(factor_s(load.startup).sum()) * static_w
    outside_j = float(factor_s(load.outside).sum()) * static_w
    lost_w = block.priced.lost_j / np.maximum(np.diff(load.lost_spans)[:, 0], 1e-12)
    lost_j = float((factor_s(load.lost_spans) * lost_w).sum())
    strange = is_foreign[:closed] & priced
    unexplained = energy[~priced]
    starting = block.totals[:closed, STARTUP_S][~priced] / np.diff(edges)[~priced]
    unexplained_startup_j = float((unexplained * np.minimum(starting, 1.0)).sum())
    return Shares(
        idle_j=outside_j - startup_j + float(unexplained.sum()) - unexplained_startup_j,
        startup_j=startup_j + unexplained_startup_j,
        lost_j=lost_j,
        foreign_j=float((energy - foreseen)[strange].sum()),
    )


def _book(
    block: Block, seen: Callable[[Array], Array], edges: Array, first_number: int, device: str
) -> None:
    """Put what the passes pay into their tables."""
    load, theta, fit = block.load, block.theta, block.fit
    at_t0, at_t1, at_gap = seen(load.t0), seen(load.t1), seen(load.gap)
    mean = (at_t1 - at_t0) / np.maximum(load.t1 - load.t0, 1e-12)[:, None]
    gap_factor = (at_t0 - at_gap)[:, 0] / np.maximum(load.t0 - load.gap, 1e-12)
    keep = mean[:, 0] * block.priced.kept
    gap_j = gap_factor * block.priced.gap_j
    total_j = mean[:, 0] * block.priced.run_j + gap_j
    middle = (load.t0 + load.t1) / 2 + fit.window.delay_s
    number = np.searchsorted(edges, middle, side="right") - 1
    inside = (number >= 0) & (number < len(edges) - 1)
    span = max(1, round(1.0 + fit.window.width_s / float(np.diff(edges).mean())))
    for engine, rows, first in load.shares:
        own = slice(first, first + len(rows))
        table, parts = engine.table, max(1, len(engine.info.devices))
        booked = table.booked
        booked[rows, : passes.GAP_J] += keep[own, None] * np.array(theta[1:])
        booked[rows, passes.GAP_J] += gap_j[own]
        booked[rows, passes.LAMBDA] += keep[own] / parts
        booked[rows, passes.GAP_S] += gap_factor[own] * load.gap_s[own] / parts
        if not fit.converged:
            booked[rows, passes.UNLEARNED_J] += total_j[own]
        booked[rows, passes.EDGE] += mean[own, 1] / parts
        booked[rows, passes.NOISE] += mean[own, 2] * fit.noise**2 / parts**2
        booked[rows, passes.RUN_SHARE] += mean[own, 3] / parts
        booked[rows, passes.SHARE] += mean[own, 4] * total_j[own] / parts
        booked[rows, passes.MIX :] += mean[own, _FIRST_MIX:] / parts**2
        table.on_device(device)[rows] += total_j[own]
        if engine.info.devices[:1] == (device,):
            placed = rows[inside[own]]
            table.interval[placed] = (first_number + number[own][inside[own]]) // span
