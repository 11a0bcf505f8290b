"""Who truly pays: every joule that the boards drew, on the request or account that caused it.

The cost game of ``meter.attribution`` on the steps' *real* energy. A step that took
``noise·(dynamic + static)`` joules is split by the coefficients ``noise·(joules +
static_w·seconds)``: equal parts of the fixed one, the rest by each row's own features. Static power
over the gap before a step goes in equal parts to its requests; where several engines are busy on
one board it flows once, and each carries an equal part; where none is, it is idle.

Under the power limit a step's duration is the greater of two sums, so its value is taken along the
diagonal (Aumann and Shapley): exact for one request, and for many alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tests.truth.board import Board, Spell
from tests.truth.costs import Array, Ints, Shape
from tests.truth.curve import Piecewise, Pulses, count_of, stacked
from tests.truth.layouts import Log


class Passes(NamedTuple):
    """The log as columns. ``totals``: (n, 6); ``row_pass``: which pass each row is in."""

    engine: Ints
    start_s: Array
    end_s: Array
    totals: Array
    members: Ints
    rows: Ints
    features: Array
    row_pass: Ints


class Span(NamedTuple):
    """Stretches of one board's time that passes pay for."""

    start: Array
    end: Array
    pass_id: Ints


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one board drew: its power, and the parts of it that are nobody's work."""

    power: Piecewise
    idle: Piecewise
    stranger_j: float


@dataclass(frozen=True, slots=True)
class Settled:
    """``share_j``: of each row; ``pass_j``: of each pass; ``gap_j``: the part of that which is
    static power before it; ``noise``: of each pass, on the last board; ``drawn``: by board."""

    passes: Passes
    share_j: Array
    pass_j: Array
    gap_j: Array
    noise: Array
    drawn: list[Drawn]


def columns(log: Log, shape: Shape) -> Passes:
    members = np.array([len(rows) for rows in log.rows], dtype=np.int64)
    rows = np.concatenate([np.zeros((0, 5), dtype=np.int64), *log.rows])
    features = np.concatenate([np.zeros((0, 6)), *log.features])
    row_pass = np.repeat(np.arange(len(members)), members)
    totals = np.zeros((len(members), 6))
    for place, column in enumerate(features.T):
        totals[:, place] = np.bincount(row_pass, column, minlength=len(members))
    totals[members == 0] = shape.dummy()
    engine = np.array(log.engine, dtype=np.int64)
    start_s, end_s = np.array(log.start_s), np.array(log.end_s)
    return Passes(engine, start_s, end_s, totals, members, rows, features, row_pass)


def settle(
    log: Log,
    shape: Shape,
    boards: Sequence[Board],
    busy_since: Sequence[Array],
    strangers: Sequence[Pulses],
) -> Settled:
    """``busy_since``: by engine, when it began to hold requests, each time; ``strangers``: by
    board, what others drew there."""
    passes = columns(log, shape)
    prices = np.zeros((len(passes.engine), 6))
    gap_j = np.zeros(len(passes.engine))
    drawn = [
        _on_board(passes, board, busy_since, stranger, prices, gap_j)
        for board, stranger in zip(boards, strangers, strict=True)
    ]
    pass_j = (prices * passes.totals).sum(axis=1)
    _share_dummies(log.dummies, passes.members, pass_j, gap_j)
    own = (prices[passes.row_pass] * passes.features).sum(axis=1)
    share_j = own + gap_j[passes.row_pass] / passes.members[passes.row_pass]
    return Settled(passes, share_j, pass_j + gap_j, gap_j, _noise(boards, passes), drawn)


def _noise(boards: Sequence[Board], passes: Passes) -> Array:
    noise = np.ones(len(passes.engine))
    for board in boards:
        noise[[spell.pass_id for spell in board.spells]] = [s.noise for s in board.spells]
    return noise


def _share_dummies(
    dummies: dict[int, list[int]], members: Ints, pass_j: Array, gap_j: Array
) -> None:
    """A dummy step's joules belong to the requests that run beside it, in equal parts."""
    for dummy, beside in dummies.items():
        gap_j[beside] += pass_j[dummy] * members[beside] / members[beside].sum()
        pass_j[dummy] = 0.0


def _on_board(
    passes: Passes,
    board: Board,
    busy_since: Sequence[Array],
    stranger: Pulses,
    prices: Array,
    gap_j: Array,
) -> Drawn:
    """Add what one board's spells and gaps cost to ``prices`` and ``gap_j``."""
    runs = _runs(board)
    gaps = [_gaps(passes, runs, number, since) for number, since in enumerate(busy_since)]
    spans = [runs, *gaps]
    busy = count_of(
        np.concatenate([s.start for s in spans]),
        np.concatenate([s.end for s in spans]),
        board.begin_s,
    )
    static, idle = _flows(board.static, busy)
    for gap in gaps:
        np.add.at(gap_j, gap.pass_id, static.between(gap.start, gap.end))
    noise = np.array([spell.noise for spell in board.spells])
    static_j = static.between(runs.start, runs.end)
    work = passes.totals[runs.pass_id]
    length = runs.end - runs.start
    joules, seconds = _terms(board, work, length)
    prices[runs.pass_id] += noise[:, None] * (joules + (static_j / length)[:, None] * seconds)
    spent = noise * ((work * joules).sum(axis=1) + static_j)
    pulses = Pulses(runs.start, runs.end, (spent - static_j) / length)
    power = stacked(board.static, [pulses, stranger])
    return Drawn(power, idle, float((stranger.rate * (stranger.end - stranger.start)).sum()))


def _runs(board: Board) -> Span:
    spells = board.spells
    return Span(
        np.array([s.start_s for s in spells]),
        np.array([s.end_s for s in spells]),
        np.array([s.pass_id for s in spells], dtype=np.int64),
    )


def _gaps(passes: Passes, runs: Span, engine: int, since: Array) -> Span:
    """What a board waits for one engine's passes while that holds requests.

    Before a spell: since the one before it, or since the engine holds requests. Where a pipeline
    runs empty, a stage's wait until its last pass comes out belongs to that pass.
    """
    own = (passes.engine[runs.pass_id] == engine) & (passes.members[runs.pass_id] > 0)
    start, end, pass_id = runs.start[own], runs.end[own], runs.pass_id[own]
    if not len(start):
        return Span(start, end, pass_id)
    out = passes.end_s[pass_id]
    following = np.append(start[1:], np.inf)
    empties = following >= out
    free = np.concatenate(([-np.inf], np.where(empties, out, end)[:-1]))
    held = since[np.searchsorted(since, start, side="right") - 1]
    return _positive(
        Span(
            np.concatenate((np.maximum(free, held), end[empties])),
            np.concatenate((start, out[empties])),
            np.concatenate((pass_id, pass_id[empties])),
        )
    )


def _positive(span: Span) -> Span:
    some = span.end > span.start
    return Span(span.start[some], span.end[some], span.pass_id[some])


def _flows(static: Piecewise, busy: Piecewise) -> tuple[Piecewise, Piecewise]:
    """Static power that each of the busy engines carries; and that which none does."""
    times = np.sort(np.concatenate((static.times, busy.times)))
    watts, count = static.at(times), busy.at(times)
    idle = Piecewise.of(times, np.where(count == 0, watts, 0.0))
    return Piecewise.of(times, watts / np.maximum(count, 1.0)), idle


def _terms(board: Board, work: Array, length: Array) -> tuple[Array, Array]:
    """Joules and seconds by unit of each feature, by spell: the seconds sum up to its length."""
    seat = np.array([spell.seat for spell in board.spells], dtype=np.int64)
    joules = np.array([terms.array() for terms, _ in board.seats])[seat]
    plain = np.array([terms.array() for _, terms in board.seats])[seat]
    natural = np.array([_natural_s(spell) for spell in board.spells])
    seconds = plain * (natural / (work * plain).sum(axis=1))[:, None]
    limited = np.array([spell.natural_s is not None for spell in board.spells])
    if limited.any():
        seconds[limited] = _limited(*(a[limited] for a in (joules, work, length, seconds)))
    return joules, seconds


def _natural_s(spell: Spell) -> float:
    return spell.end_s - spell.start_s if spell.natural_s is None else spell.natural_s


def _limited(joules: Array, work: Array, length: Array, free: Array) -> Array:
    """The seconds where the power limit made a spell as long as its joules take.

    Along the diagonal the limit acts on the part of the batch beyond ``turn``.
    """
    held = joules * (length / (work * joules).sum(axis=1))[:, None]
    rest_free = (work[:, 1:] * free[:, 1:]).sum(axis=1)
    rest_held = (work[:, 1:] * held[:, 1:]).sum(axis=1)
    lead = free[:, 0] - held[:, 0]
    turn = np.clip(lead / np.maximum(rest_held - rest_free, 1e-12), 0.0, 1.0)[:, None]
    found = turn * free + (1.0 - turn) * held
    found[:, 0] = np.maximum(free[:, 0], held[:, 0])
    return np.asarray(found)
