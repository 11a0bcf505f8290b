"""What the engines of one device did in a stretch of time, as segments that a curve is made of.

Every moment is in exactly one kind of segment, for each engine: a *run* (a step), a *gap* (static
power before a step, which that step pays), *lost* (steps were lost here), or, where no engine has
any of these, *outside* (idle or start-up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meter.attribution import passes
from meter.attribution.batch import PassRow
from meter.attribution.coefficients import Coefficients
from meter.attribution.curve import Array, Curve, Ints, seconds
from meter.attribution.engine import EngineState, Lost
from meter.attribution.fit import OWN, SIZE, Fit, columns_of

_S = 1e-9

#: Where a run's features are priced at less than this share of its joules, its step takes them all:
#: of a model that nothing is known of but that it lasts.
_PRICED_MIN = 1e-6

#: Columns of the load's curve: these, and then the features of all models in one row.
FORESEEN_J, LOST_J, STARTUP_S, RUN_S, RUN_J = range(5)
FEATURES = 5


class Owner(NamedTuple):
    """An engine on a device, and which of the device's models it serves."""

    engine: EngineState
    model: int


class Share(NamedTuple):
    """Which passes of an engine a load holds: their places in its table, and in the load."""

    engine: EngineState
    model: int
    rows: Ints
    first: int

    @property
    def own(self) -> slice:
        """Their places in the load."""
        return slice(self.first, self.first + len(self.rows))


@dataclass(frozen=True, slots=True)
class Load:
    """Segments in seconds from ``origin_ns``.

    ``runs``: what each run computed (n × 6, the features but for seconds); ``model``: whose it is;
    ``heads``: how many requests take part in it; ``crowd_s``: seconds of static power in it that
    other engines on the device carry (see ``_crowding``). ``gap_s``: seconds of static power that
    each gap pays, for the same passes. What two known neighbours of a loss draw on average is found
    by ``priced``, from their work per second ``lost`` (n × 7), of ``lost_model``; ``lost_crowd_s``:
    as ``crowd_s``.
    """

    origin_ns: int
    shares: tuple[Share, ...]
    gap: Array
    t0: Array
    t1: Array
    runs: Array
    model: Ints
    heads: Ints
    crowd_s: Array
    gap_s: Array
    outside: Array
    startup: Array
    lost_spans: Array
    lost: Array
    lost_model: Ints
    lost_crowd_s: Array

    @property
    def carried_s(self) -> Array:
        """Seconds of static power that each run carries."""
        return np.asarray(self.t1 - self.t0 - self.crowd_s)

    def priced(self, fit: Fit) -> Priced:
        """What ``fit`` foresees for each segment, in joules."""
        theta = fit.coefficients
        static_w = theta[0].static_w
        prices = np.array(theta)[self.model, 1:]
        run_j = _summed(self.runs, prices)
        static_s = np.zeros(len(run_j))
        lost_s = self.lost_spans[:, 1] - self.lost_spans[:, 0]
        lost_j = _summed(self.lost, np.array(theta)[self.lost_model]) * lost_s
        if len(self.shares) > 1:
            static_s = self.carried_s if fit.shared else -self.crowd_s
            if fit.shared and fit.pace:
                prices += static_w * self._time_taken(fit.pace)
            run_j = np.maximum(run_j + static_w * static_s, 0.0)
            told_j = _summed(self.runs, prices)
            told = told_j > _PRICED_MIN * run_j
            prices *= np.divide(run_j, told_j, out=np.zeros(len(told)), where=told)[:, None]
            prices[~told, 0] = run_j[~told]
            lost_static_s = (lost_s if fit.shared else 0.0) - self.lost_crowd_s
            lost_j = np.maximum(lost_j + static_w * lost_static_s, 0.0)
        return Priced(run_j, prices, static_s, self.gap_s * static_w, lost_j)

    def _time_taken(self, pace: Sequence[Coefficients]) -> Array:
        """Seconds that each run carries by unit of its features (n × 6); zero where unknown."""
        usual = np.array(pace)[self.model, 1:]
        usual_s = _summed(self.runs, usual)
        slower = np.where(usual_s > 0, self.carried_s / np.maximum(usual_s, 1e-12), 0.0)
        return np.asarray(usual * slower[:, None])

    def per_member(self, priced: Priced) -> tuple[Array, Array]:
        """Joules of each run (and its gap) that a plainly decoding request pays: (n,) each.

        First but for its context, then per token of context.
        """
        step_j, _, _, decode_j, context_j, expert_j = priced.prices.T
        heads = np.maximum(self.heads, 1)
        tokens = np.maximum(self.runs[:, 1] + self.runs[:, 3], 1.0)
        own_j = decode_j + expert_j * self.runs[:, 5] / tokens
        some = self.heads > 0
        member_j = (step_j + priced.gap_j) / heads + own_j
        return np.where(some, member_j, 0.0), context_j * some

    def segments(self, priced: Priced, fit: Fit) -> Segments:
        """All segments for ``Curve.of_segments``: starts, ends, amounts."""
        static_w = fit.coefficients[0].static_w
        outside_s = self.outside[:, 1] - self.outside[:, 0]
        counts = [len(self.t0), len(self.t0), len(outside_s), len(self.startup), len(self.lost)]
        runs, gaps, outside, startup, lost = np.split(
            amounts := np.zeros((sum(counts), FEATURES + len(fit.covariance))),
            np.cumsum(counts)[:-1],
        )
        for share in self.shares:
            columns = [FEATURES + column for column in columns_of(share.model)[1:]]
            runs[share.own, columns] = self.runs[share.own]
        runs[:, FEATURES] = priced.static_s
        runs[:, FORESEEN_J] = runs[:, RUN_J] = priced.run_j
        runs[:, RUN_S] = self.t1 - self.t0
        gaps[:, FEATURES] = self.gap_s
        gaps[:, FORESEEN_J] = priced.gap_j
        outside[:, FEATURES] = outside_s
        outside[:, FORESEEN_J] = outside_s * static_w
        startup[:, STARTUP_S] = self.startup[:, 1] - self.startup[:, 0]
        lost[:, FORESEEN_J] = lost[:, LOST_J] = priced.lost_j
        spans = (self.outside, self.startup, self.lost_spans)
        starts = np.concatenate((self.t0, self.gap, *(s[:, 0] for s in spans)))
        ends = np.concatenate((self.t1, self.t0, *(s[:, 1] for s in spans)))
        return Segments(starts, ends, amounts)


class Segments(NamedTuple):
    """What ``Curve.of_segments`` takes: ``starts`` and ``ends`` (n,), ``amounts`` (n, columns)."""

    starts: Array
    ends: Array
    amounts: Array


class Priced(NamedTuple):
    """Joules foreseen by segment; ``prices``: of each run's features (n × 6); ``static_s``: seconds
    of static power in a run that the coefficients do not hold (below zero: hold too much)."""

    run_j: Array
    prices: Array
    static_s: Array
    gap_j: Array
    lost_j: Array


def gather(owners: Sequence[Owner], low_ns: int, high_ns: int) -> Load:
    """What a device's engines did between two moments (and beyond, where a pass reaches there)."""
    engines = [owner.engine for owner in owners]
    shares: list[Share] = []
    columns: list[Ints] = []
    features: list[Array] = []
    first = 0
    for engine, model in owners:
        rows = _touching(engine, low_ns, high_ns)
        shares.append(Share(engine, model, rows, first))
        first += len(rows)
        columns.append(engine.table.rows[rows])
        features.append(_features(engine, columns[-1]))
    rows = (
        np.concatenate(columns) if columns else np.zeros((0, len(PassRow._fields)), dtype=np.int64)
    )
    runs = np.concatenate(features) if features else np.zeros((0, OWN))
    gap, t0, t1 = seconds(rows[:, passes.GAP_NS : passes.P_HEADS].T - low_ns)
    lost = [(o.model, loss) for o in owners for loss in o.engine.lost]
    lost = [(model, loss) for model, loss in lost if _meets(loss, low_ns, high_ns)]
    losses = [loss for _, loss in lost]
    lost_spans = _spans([(loss.start_ns - low_ns, loss.end_ns - low_ns) for loss in losses])
    starts, ends = lost_spans.T
    gap_s, crowd_s, lost_crowd_s = t0 - gap, np.zeros(len(t0)), np.zeros(len(lost))
    if len(engines) > 1 and len(t0) + len(lost):
        crowded = _crowding(np.concatenate((gap, starts)), np.concatenate((t1, ends)))
        gap_s = np.maximum(gap_s - crowded(gap, t0), 0.0)
        crowd_s, lost_crowd_s = crowded(t0, t1), crowded(starts, ends)
    busy = np.concatenate((np.stack((gap, t1), axis=1), lost_spans))
    length_s = (high_ns - low_ns) * _S
    outside = _complement(busy, length_s)
    startups = [
        (up - low_ns, (high_ns if ready is None else ready) - low_ns)
        for e in engines
        for up, ready in e.startups
        if up < high_ns and (ready is None or ready > low_ns)
    ]
    return Load(
        origin_ns=low_ns,
        shares=tuple(shares),
        gap=gap,
        t0=t0,
        t1=t1,
        runs=runs,
        model=np.repeat([s.model for s in shares], [len(s.rows) for s in shares]).astype(np.int64),
        heads=passes.heads(rows),
        crowd_s=crowd_s,
        gap_s=gap_s,
        outside=outside,
        startup=_within(outside, _union(_spans(startups), length_s)),
        lost_spans=lost_spans,
        lost=np.array([_neighbours(loss) for loss in losses]).reshape(len(losses), SIZE),
        lost_model=np.array([model for model, _ in lost], dtype=np.int64),
        lost_crowd_s=lost_crowd_s,
    )


def _summed(features: Array, prices: Array) -> Array:
    """Each row (n × c) of features at the prices of its own row."""
    return np.asarray(np.einsum("ij,ij->i", features, prices))


def experts_awake(engine: EngineState, tokens: Ints) -> Array:
    """The share of a mixture's experts that a step over ``tokens`` tokens reads: ``m(T)``."""
    experts = engine.info.experts
    if experts is None or experts.total <= 0:
        return np.zeros(len(tokens))
    return np.asarray(1.0 - (1.0 - experts.active / experts.total) ** tokens)


def _touching(engine: EngineState, low_ns: int, high_ns: int) -> Ints:
    """Places of the passes with somebody in them that reach into the time between."""
    table = engine.table
    table.gather()
    first = table.ended_by(low_ns)
    rows = table.rows[first : table.before(high_ns)]
    somebody = passes.heads(rows) + rows[:, passes.DUMMY] > 0
    return np.flatnonzero(somebody & (rows[:, passes.GAP_NS] < high_ns)) + first


def _features(engine: EngineState, rows: Ints) -> Array:
    """Shape (n, 6): all but ``seconds``."""
    runs = np.zeros((len(rows), OWN))
    runs[:, 0] = 1.0
    runs[:, 1] = passes.prefill_tokens(rows)
    runs[:, 2] = passes.pairs(rows)
    runs[:, 3] = rows[:, passes.D_TOKENS]
    runs[:, 4] = rows[:, passes.D_CONTEXT]
    runs[:, 5] = experts_awake(engine, passes.tokens(rows))
    return runs


def _meets(loss: Lost, low_ns: int, high_ns: int) -> bool:
    return loss.start_ns < high_ns and loss.end_ns > low_ns


def _neighbours(loss: Lost) -> Array:
    """Work per second of the passes on both sides of a loss, on average."""
    known = [row for row in (loss.before, loss.after) if row is not None]
    rates = [np.array(row.work()) / ((row.t1_ns - row.t0_ns) * _S) for row in known]
    return np.asarray(sum(rates) / len(rates)) if rates else np.zeros(SIZE)


def _spans(pairs_ns: Sequence[tuple[int, int]]) -> Array:
    return np.array(pairs_ns, dtype=np.float64).reshape(len(pairs_ns), 2) * _S


def _complement(busy: Array, length_s: float) -> Array:
    """The spans of ``[0, length)`` that no busy span covers."""
    busy = busy[np.argsort(busy[:, 0], kind="stable")]
    reached = np.maximum.accumulate(np.concatenate(([0.0], busy[:, 1])))
    starts = np.minimum(reached, length_s)
    ends = np.clip(np.concatenate((busy[:, 0], [length_s])), 0.0, length_s)
    free = ends > starts
    return np.stack((starts[free], ends[free]), axis=1)


def _union(spans: Array, length_s: float) -> Array:
    """What any of the spans covers of ``[0, length)``, each moment once."""
    return _complement(_complement(spans, length_s), length_s)


def _within(spans: Array, wanted: Array) -> Array:
    """The parts of ``spans`` that lie in the first wanted span that covers them."""
    parts = [
        (max(start, a), min(end, b))
        for a, b in wanted.tolist()
        for start, end in spans.tolist()
        if max(start, a) < min(end, b)
    ]
    return np.array(parts).reshape(len(parts), 2)


def _crowding(starts: Array, ends: Array) -> Callable[[Array, Array], Array]:
    """Seconds of static power that others carry, between two moments of an engine's busy time.

    Each engine's modelled cost holds the static power of its own time. Where ``m`` of them are
    busy for ``o`` seconds it flows once: each is lowered by ``o·(1 − 1/m)`` seconds of it.
    """
    times = np.concatenate((starts, ends))
    order = np.argsort(times, kind="stable")
    change = np.concatenate((np.ones(len(starts)), -np.ones(len(ends))))[order]
    present = np.maximum(np.cumsum(change)[:-1], 1.0)
    saved = Curve.of_steps(times[order], (1.0 - 1.0 / present)[:, None])
    return lambda start, end: np.asarray((saved.at(end) - saved.at(start))[:, 0])
