"""Closes a block of intervals of one device: what they should have cost, and who pays.

An interval's joules go to what happened in it in proportion to what the coefficients foresee:
one factor ``λ = ΔE / foreseen`` for steps, gaps and idle together, so that what is handed out is
exactly what the counter moved. Only where a *sustained* excess shows that somebody else drew power
does the interval keep λ = 1, and the whole excess is ``unattributed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.attribution import passes
from meter.attribution.books import unless_rounding
from meter.attribution.coefficients import GENERIC
from meter.attribution.curve import Array, Curve, seconds
from meter.attribution.fit import Fit, columns_of, in_one_row
from meter.attribution.intervals import Interval
from meter.attribution.load import (
    FEATURES,
    FORESEEN_J,
    LOST_J,
    RUN_J,
    RUN_S,
    STARTUP_S,
    Load,
    Owner,
    Priced,
    Segments,
    gather,
)
from meter.attribution.resolution import EDGE, FACTS, SHARED, SQUARES, Sight

# Columns of what passes pay: factor, presence, mix.
_FIRST_MIX = 2
_AHEAD_S = 1e-3
_S = 1e-9
_EXCESS_SIGMAS = 4.0
_EXCESS_SPREAD_MIN = 0.03
#: What is foreseen below this share of what moved is rounding, not a forecast; and what is handed
#: out may differ from what moved by so much in rounding.
_FACTOR_MIN = 1e-6
_ROUNDED = 1e-4
_TAUGHT_MIN = 30
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
    ``totals``: (n, columns of the load's curve); ``later_w``: (n,), the power at an interval's end
    less that at its beginning; ``run_share``: (n,), Σ of the squared shares that single steps have
    in the foreseen joules (1/m for m equal steps).
    """

    load: Load
    priced: Priced
    fit: Fit
    edges: Array
    energy_j: Array
    jitter_s: Array
    segments: Segments
    totals: Array
    later_w: Array
    sight: Sight
    run_share: Array
    high: NDArray[np.bool_]
    witness: NDArray[np.bool_]

    @property
    def foreseen_j(self) -> Array:
        return np.asarray(self.totals[:, FORESEEN_J])

    @property
    def features(self) -> Array:
        """Of all models in one row: (n, 1 + 6·m)."""
        return np.asarray(self.totals[:, FEATURES:])

    @property
    def jitter(self) -> Array:
        """Doubt of the edges as a share of the interval."""
        return np.asarray(self.jitter_s / np.diff(self.edges))

    @property
    def teaches(self) -> NDArray[np.bool_]:
        """Where the work is wholly known, so that the calibration may learn from it."""
        return np.asarray((self.totals[:, LOST_J] <= 0) & (self.totals[:, STARTUP_S] <= 1e-9))


def evaluate(
    intervals: Sequence[Interval], owners: Sequence[Owner], fit: Fit, claimed: bool = False
) -> Block:
    """Gather what the device's engines did in ``intervals`` (each begins where one ends).

    ``claimed``: as in ``Device``; then an excess is the engines' own.
    """
    reach_ns = round((fit.window.delay_s + fit.window.width_s / 2) / _S)
    ahead_ns = round((fit.window.width_s / 2 - fit.window.delay_s) / _S)
    low_ns = intervals[0].start_ns - reach_ns - 1
    load = gather(owners, low_ns, intervals[-1].end_ns + ahead_ns + 1)
    ends = [intervals[0].start_ns, *(i.end_ns for i in intervals)]
    edges = seconds(np.array(ends, dtype=np.int64) - low_ns)
    energy_j = np.array([i.energy_uj for i in intervals], dtype=np.float64) / 1e6
    jitter_s = np.array([i.jitter_ns for i in intervals]) * _S
    priced = load.priced(fit)
    if len(load.t0) and priced.run_j.min() <= 0:
        fit = replace(fit, coefficients=(GENERIC.coefficients,) * len(fit.coefficients))
        priced = load.priced(fit)
    segments = load.segments(priced, fit)
    totals, later_w = _totals(segments, edges, fit)
    sight = Sight.of(load.t0, load.t1, edges - fit.window.delay_s, fit.window.width_s)
    squares = sight.squares(priced.run_j, len(energy_j))
    whole = np.square(totals[:, FORESEEN_J])
    run_share = np.minimum(squares, whole) / np.maximum(whole, 1e-300)
    block = Block(
        load=load,
        priced=priced,
        fit=fit,
        edges=edges,
        energy_j=energy_j,
        jitter_s=jitter_s,
        segments=segments,
        totals=totals,
        later_w=later_w,
        sight=sight,
        run_share=np.minimum(run_share, 1.0),
        high=np.zeros(len(energy_j), dtype=bool),
        witness=np.zeros(len(energy_j), dtype=bool),
    )
    if not claimed:
        _mark_excess(block)
    repeats = (sight.alone >= 0) & (sight.alone == np.concatenate(([-1], sight.alone[:-1])))
    block.witness[:] = block.high & ~repeats
    return block


def _totals(segments: Segments, edges: Array, fit: Fit) -> tuple[Array, Array]:
    """The load's curve as the counter sees it, from edge to edge; and ``Block.later_w``."""
    curve = Curve.of_segments(*segments)
    at = edges - fit.window.delay_s
    seen = curve.through(np.concatenate((at, at + _AHEAD_S)), fit.window.width_s)
    totals = np.diff(seen[: len(at)], axis=0)
    rounding = np.arange(totals.shape[1]) != FEATURES  # seconds alone may truly be negative
    np.maximum(totals, 0.0, out=totals, where=rounding)
    power_w = (seen[len(at) :, FORESEEN_J] - seen[: len(at), FORESEEN_J]) / _AHEAD_S
    return np.asarray(totals), np.diff(power_w)


def _mark_excess(block: Block) -> None:
    """Where far more was drawn than foreseen. Never said before the fit has converged, nor of work
    whose like it has hardly seen: what is strange does not teach, and so would stay so.

    A step that stalls at its usual power is dear, but no stranger's: what the engine's steps take
    by lasting longer than usual is let off.
    """
    fit = block.fit
    if not fit.converged:
        return
    foreseen = block.foreseen_j
    usual_s = block.features @ in_one_row(fit.pace) if fit.pace else np.zeros(len(foreseen))
    stretch = np.maximum(block.totals[:, RUN_S] / np.maximum(usual_s, 1e-9) - 1.0, 0.0)
    stretch[usual_s <= 0] = 0.0
    expected = foreseen + block.totals[:, RUN_J] * stretch
    relative = fit.relative_variance(block.features, foreseen, block.run_share, block.jitter)
    sigma = np.maximum(np.sqrt(relative), _EXCESS_SPREAD_MIN) * expected
    block.high[:] = (block.energy_j - expected > _EXCESS_SIGMAS * sigma) & block.teaches
    block.high[:] &= fit.knows(block.features, _TAUGHT_MIN)


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
    """What a block hands out beside passes, in joules. ``rest_j``: what nothing else took."""

    idle_j: float
    startup_j: float
    lost_j: float
    foreign_j: float
    rest_j: float


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
    per_joule = np.where(priced, 1.0 / np.where(priced, foreseen, 1.0), 0.0)
    features = block.features[:closed]
    rates = np.zeros((closed, _FIRST_MIX + features.shape[1] + 1))
    rates[:, 0] = factor
    rates[:, 1] = 1.0
    rates[:, _FIRST_MIX:-1] = features * per_joule[:, None]
    rates[:, -1] = block.later_w[:closed] * per_joule
    window, load = block.fit.window, block.load
    paid = Curve.of_steps(edges, rates)

    def seen(t: Array) -> Array:
        return paid.through(t + window.delay_s, window.width_s)

    def factor_s(spans: Array) -> Array:
        """Seconds weighted by the factor, of each span."""
        if not len(spans):
            return np.zeros(0)
        return np.maximum(seen(spans[:, 1])[:, 0] - seen(spans[:, 0])[:, 0], 0.0)

    static_w = block.fit.coefficients[0].static_w
    strange = is_foreign[:closed] & priced
    foreign_j = float((energy - foreseen)[strange].sum())
    runs = _Runs.of(load, seen)
    passes_j = runs.factor * block.priced.run_j + runs.gap_factor * block.priced.gap_j
    startup_j = float(factor_s(load.startup).sum()) * static_w
    outside_j = float(factor_s(load.outside).sum()) * static_w
    lost_w = block.priced.lost_j / np.maximum(np.diff(load.lost_spans)[:, 0], 1e-12)
    lost_j = float((factor_s(load.lost_spans) * lost_w).sum())
    # The two sides of the sum are the same integral; this takes what they differ by in rounding
    # (steps of nanoseconds, beside ones of a billion tokens) out of what is handed out. Were it
    # ever more than that, nobody would be charged more: the rest is unattributed.
    handed_j = float(passes_j.sum()) + outside_j + lost_j
    exact = (float(energy[priced].sum()) - foreign_j) / handed_j if handed_j > 0 else 1.0
    exact = exact if abs(exact - 1.0) < _ROUNDED else min(exact, 1.0)
    if len(load.t0):
        _book(block, runs.scaled(exact), passes_j * exact, device)
        _book_resolution(block, per_joule, first_number, device)
    unexplained = energy[~priced]
    starting = block.totals[:closed, STARTUP_S][~priced] / np.diff(edges)[~priced]
    unexplained_startup_j = float((unexplained * np.minimum(starting, 1.0)).sum())
    idle_j = (outside_j - startup_j) * exact + float(unexplained.sum()) - unexplained_startup_j
    startup_j = startup_j * exact + unexplained_startup_j
    lost_j *= exact
    moved_j = float(energy.sum())
    rest_j = moved_j - (float(passes_j.sum()) * exact + idle_j + startup_j + lost_j + foreign_j)
    return Shares(idle_j, startup_j, lost_j, foreign_j, unless_rounding(rest_j, moved_j))


class _Runs(NamedTuple):
    """What the intervals say of each run, (n,) each: its mean factor and its gap's; ``mean``: the
    factor, presence and mix as they were seen."""

    factor: Array
    gap_factor: Array
    mean: Array

    @classmethod
    def of(cls, load: Load, seen: Callable[[Array], Array]) -> _Runs:
        at_t0, at_t1, at_gap = seen(load.t0), seen(load.t1), seen(load.gap)
        mean = (at_t1 - at_t0) / np.maximum(load.t1 - load.t0, 1e-12)[:, None]
        gap_factor = (at_t0 - at_gap)[:, 0] / np.maximum(load.t0 - load.gap, 1e-12)
        # In steps of nanoseconds the difference may be rounding, also below zero.
        return cls(np.maximum(mean[:, 0], 0.0), np.maximum(gap_factor, 0.0), mean)

    def scaled(self, by: float) -> _Runs:
        return self._replace(factor=self.factor * by, gap_factor=self.gap_factor * by)


def _book(block: Block, runs: _Runs, total_j: Array, device: str) -> None:
    """Put what the passes pay, ``total_j`` in all, into their tables."""
    load, priced, fit = block.load, block.priced, block.fit
    factor, gap_factor, mean = runs
    gap_j = gap_factor * priced.gap_j
    for share in load.shares:
        engine, rows, own = share.engine, share.rows, share.own
        mix = [_FIRST_MIX + column for column in columns_of(share.model)] + [-1]
        table, parts = engine.table, max(1, len(engine.info.devices))
        booked = table.booked
        booked[rows, : passes.GAP_J] += factor[own, None] * priced.prices[own]
        booked[rows, passes.GAP_J] += gap_j[own]
        booked[rows, passes.LAMBDA] += factor[own] / parts
        booked[rows, passes.GAP_S] += gap_factor[own] * load.gap_s[own] / parts
        if not fit.converged:
            booked[rows, passes.UNLEARNED_J] += total_j[own]
        booked[rows, passes.NOISE] += mean[own, 1] * fit.noise**2 / parts**2
        booked[rows, passes.MIX :] += mean[own][:, mix] / parts**2
        table.on_device(device)[rows] += total_j[own]


def _book_resolution(block: Block, per_joule: Array, first_number: int, device: str) -> None:
    """Put what the intervals can tell of the passes into their tables; the first device's do.

    ``per_joule``: (closed,), one over the joules foreseen.
    """
    load, sight, closed = block.load, block.sight, len(per_joule)
    owners = [share for share in load.shares if share.engine.info.devices[:1] == (device,)]
    if not owners:
        return
    facts = np.zeros((closed, FACTS))
    facts[:, SQUARES] = block.run_share[:closed]
    before = np.concatenate((per_joule[:1], per_joule[:-1]))
    facts[:, SHARED] = sight.shared(block.priced.run_j, closed) * before * per_joule
    facts[:, EDGE] = (np.square(block.jitter[:closed]) + block.fit.misfit**2) / 2
    members = load.per_member(block.priced)
    inside = (sight.place >= 0) & (sight.place < closed) & (sight.part > 0)
    run, place, part = sight.run[inside], sight.place[inside], sight.part[inside]
    run_share = part * block.priced.run_j[run] * per_joule[place]
    context = load.runs[:, 4] / np.maximum(load.runs[:, 3], 1.0)
    for share in owners:
        table, rows, devices = share.engine.table, share.rows, len(share.engine.info.devices)
        table.add_facts(first_number, facts)
        mine = np.zeros(len(load.t0), dtype=bool)
        mine[share.own] = True
        plain, by_context = (joules * mine for joules in members)
        paid = [sight.summed(joules, closed) * per_joule for joules in (plain, by_context)]
        seen = [sight.handed_back(rates, len(mine))[share.own] for rates in paid]
        table.booked[rows, passes.MEMBER_SEEN] += seen[0]
        table.booked[rows, passes.CONTEXT_SEEN] += seen[1]
        if len(load.shares) > 1:
            noise = sight.squares(block.priced.run_j * ~mine, closed)
            steps = np.maximum(sight.summed(mine, closed), 1e-12)
            for column, (one, other) in enumerate(((0, 0), (0, 1), (1, 1))):
                spread = sight.handed_back(paid[one] * paid[other] * noise / steps, len(mine))
                table.booked[rows, passes.OTHERS + column] += spread[share.own]
        later = sight.later(plain + by_context * context, len(block.energy_j))[inside]
        ours = mine[run]
        told = (part[ours], run_share[ours], later[ours] * devices)
        table.note_parts(rows[run[ours] - share.first], first_number + place[ours], told)
