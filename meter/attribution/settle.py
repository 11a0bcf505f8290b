"""Closes one interval of one device: who was at work in it, what that should have cost, who pays.

An interval's joules go to what happened in it in proportion to what the coefficients foresee:
one factor ``λ = ΔE / foreseen`` for steps, gaps and idle together, so that what is handed out is
exactly what the counter moved. Only where a *sustained* excess shows that somebody else drew power
does the interval keep λ = 1, and the whole excess is ``unattributed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from meter.attribution.batch import Pass
from meter.attribution.calibration import Fit
from meter.attribution.coefficients import GENERIC, Coefficients, Features
from meter.attribution.engine import EngineState, Lost
from meter.attribution.intervals import Interval

_EXCESS_SIGMAS = 4.0
_EXCESS_SPREAD_MIN = 0.03
_SUSTAINED = 3
_SUSTAINED_OF = 5


class Part(NamedTuple):
    """The part of a pass that lies in an interval.

    ``run_share``: share of the step's time. ``crowd_run_s`` and ``crowd_gap_s``: seconds of static
    power that other engines on the same device carry (see ``_crowding``).
    """

    engine: str
    done: Pass
    run_share: float
    run_ns: int
    gap_ns: int
    crowd_run_s: float
    crowd_gap_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An interval with its work and what the fit of that moment foresees for it."""

    interval: Interval
    coefficients: Coefficients
    fit: Fit
    parts: tuple[Part, ...]
    lost: tuple[tuple[Lost, int], ...]
    idle_ns: int
    startup_ns: int
    work: Features
    foreseen_j: float
    stalled_j: float
    lost_j: float

    @property
    def energy_j(self) -> float:
        return self.interval.energy_uj / 1e6

    @property
    def excess(self) -> bool:
        """Far more than foreseen? Never said before the fit has converged.

        A step that stalls at its usual power is dear, but no stranger's: ``stalled_j`` is let off.
        """
        if not self.fit.converged or self.lost or self.startup_ns:
            return False
        spread = max(self.fit.spread, _EXCESS_SPREAD_MIN)
        expected_j = self.foreseen_j + self.stalled_j
        return self.energy_j - expected_j > _EXCESS_SIGMAS * spread * expected_j

    @property
    def teaches(self) -> bool:
        """Is its work wholly known, so that the calibration may learn from it?"""
        return not self.lost and self.startup_ns == 0


def _overlap(start_a: int, end_a: int, start_b: int, end_b: int) -> int:
    return max(0, min(end_a, end_b) - max(start_a, start_b))


def evaluate(interval: Interval, engines: Sequence[EngineState], fit: Fit) -> Evaluated:
    """Gather what the device's engines did in ``interval`` and price it."""
    start, end = interval.start_ns, interval.end_ns
    parts = [part for engine in engines for part in _parts(engine, start, end)]
    if len(engines) > 1:
        parts = _crowding(parts, start, end)
    lost = tuple(
        (loss, ns)
        for engine in engines
        for loss in engine.lost
        if (ns := _overlap(loss.start_ns, loss.end_ns, start, end)) > 0
    )
    lost_ns = sum(ns for _, ns in lost)
    outside_ns = max(0, end - start - _busy_ns(parts, start, end) - lost_ns)
    startup_ns = min(outside_ns, sum(_startup_ns(engine, start, end) for engine in engines))
    work = _features(parts, outside_ns)
    coefficients = fit.coefficients
    foreseen = _foreseen_j(parts, outside_ns, coefficients)
    if foreseen <= 0 and parts:
        coefficients = GENERIC.coefficients
        foreseen = _foreseen_j(parts, outside_ns, coefficients)
    lost_j = sum(ns * 1e-9 * _neighbours_w(loss, coefficients) for loss, ns in lost)
    return Evaluated(
        interval=interval,
        coefficients=coefficients,
        fit=fit,
        parts=tuple(parts),
        lost=lost,
        idle_ns=outside_ns - startup_ns,
        startup_ns=startup_ns,
        work=work,
        foreseen_j=foreseen + lost_j,
        stalled_j=sum(_stalled_j(e, parts, coefficients) for e in engines),
        lost_j=lost_j,
    )


def is_foreign(index: int, evaluated: Sequence[Evaluated]) -> bool:
    """Is the excess at ``index`` sustained: in some 5 intervals around it at least 3?

    They have to lie in different steps: one slow step over several intervals is one witness.
    """
    for first in range(max(0, index - _SUSTAINED_OF + 1), index + 1):
        window = evaluated[first : first + _SUSTAINED_OF]
        high = [e for e in window if e.excess]
        if len(high) < _SUSTAINED:
            continue
        steps = {(part.engine, part.done.k) for e in high for part in e.parts if part.run_ns}
        idle = sum(not any(part.run_ns for part in e.parts) for e in high)
        if len(steps) + idle >= _SUSTAINED:
            return True
    return False


class Shares(NamedTuple):
    """What an interval hands out, in joules; the parts of passes are booked on the passes."""

    factor: float
    idle_j: float
    startup_j: float
    lost_j: float
    foreign_j: float


def distribute(e: Evaluated, foreign: bool, devices: int, jump_w: float) -> Shares:
    """Hand out the interval's joules; ``devices`` is how many devices share each engine's work.

    ``jump_w``: how much power changed at the interval's edge; with the edge's jitter it says how
    many joules may belong to the neighbour. Adds each part's weights to its pass. Everything
    handed out sums to what the counter moved.
    """
    static_w = e.coefficients.static_w
    outside_ns = e.idle_ns + e.startup_ns
    if e.foreseen_j <= 0:
        startup_j = e.energy_j * e.startup_ns / outside_ns if outside_ns else 0.0
        return Shares(0.0, e.energy_j - startup_j, startup_j, 0.0, 0.0)
    factor = 1.0 if foreign else e.energy_j / e.foreseen_j
    variance = _relative_variance(e, jump_w)
    for part in e.parts:
        booked_j = _book(part, e.coefficients, factor, e.interval.device, devices)
        part.done.variance_j2 += variance * booked_j**2
        if not e.fit.converged:
            part.done.unlearned_j += booked_j
    return Shares(
        factor=factor,
        idle_j=factor * static_w * e.idle_ns * 1e-9,
        startup_j=factor * static_w * e.startup_ns * 1e-9,
        lost_j=factor * e.lost_j,
        foreign_j=e.energy_j - e.foreseen_j if foreign else 0.0,
    )


def _relative_variance(e: Evaluated, jump_w: float) -> float:
    """What the interval cannot tell of a part of it: which step was dear, and its edges."""
    edge = e.interval.jitter_ns * 1e-9 * jump_w / max(e.energy_j, 1e-9)
    return e.fit.spread**2 * max(0.0, e.work.steps - 1.0) + edge**2


def _book(
    part: Part, coefficients: Coefficients, factor: float, device: str, devices: int
) -> float:
    """Put a part's joules on its pass; returns them."""
    done = part.done
    run_j, refund_j, gap_s = _part(part, coefficients)
    keep = factor * part.run_share * (1.0 - refund_j / run_j if run_j > 0 else 1.0)
    gap_j = factor * coefficients.static_w * gap_s
    done.step_w += keep * coefficients.step_j
    done.prefill_w += keep * coefficients.prefill_j
    done.pair_w += keep * coefficients.pair_j
    done.decode_w += keep * coefficients.decode_j
    done.context_w += keep * coefficients.context_j
    done.gap_j += gap_j
    done.lambda_sum += keep / devices
    done.gap_lambda_s += factor * gap_s / devices
    booked_j = factor * (run_j - refund_j) + gap_j
    done.pending_j[device] = done.pending_j.get(device, 0.0) + booked_j
    return booked_j


def _part(part: Part, coefficients: Coefficients) -> tuple[float, float, float]:
    """Modelled joules of the part's run, what others carry of them, and seconds of gap it pays."""
    run_j = part.run_share * coefficients.cost_j(part.done.work)
    refund_j = min(run_j, coefficients.static_w * part.crowd_run_s)
    return run_j, refund_j, max(0.0, part.gap_ns * 1e-9 - part.crowd_gap_s)


def _stalled_j(engine: EngineState, parts: Sequence[Part], coefficients: Coefficients) -> float:
    """Joules beyond the foreseen that the engine's steps take by lasting longer than usual."""
    pace = engine.pace.fit
    extra_j = 0.0
    for part in parts:
        if part.engine != engine.info.id or not part.run_ns or not pace.converged:
            continue
        usual_s = pace.coefficients.cost_j(part.done.work)
        stretch = part.done.duration_ns * 1e-9 / usual_s if usual_s > 0 else 1.0
        run_j = part.run_share * coefficients.cost_j(part.done.work)
        extra_j += run_j * max(0.0, stretch - 1.0)
    return extra_j


def _foreseen_j(parts: Sequence[Part], outside_ns: int, coefficients: Coefficients) -> float:
    total = coefficients.static_w * outside_ns * 1e-9
    for part in parts:
        run_j, refund_j, gap_s = _part(part, coefficients)
        total += run_j - refund_j + coefficients.static_w * gap_s
    return total


def _parts(engine: EngineState, start: int, end: int) -> list[Part]:
    parts = []
    for done in engine.passes:
        if done.gap_ns >= end:
            break
        run_ns = _overlap(done.t0_ns, done.t1_ns, start, end)
        gap_ns = _overlap(done.gap_ns, done.t0_ns, start, end)
        if run_ns or gap_ns:
            share = run_ns / done.duration_ns
            parts.append(Part(engine.info.id, done, share, run_ns, gap_ns, 0.0, 0.0))
    return parts


def _features(parts: Sequence[Part], outside_ns: int) -> Features:
    seconds = outside_ns * 1e-9
    steps = prefill = pairs = decode = context = 0.0
    for part in parts:
        share, done = part.run_share, part.done
        seconds += part.gap_ns * 1e-9 - part.crowd_gap_s - part.crowd_run_s
        steps += share
        prefill += share * done.prefill_tokens
        pairs += share * done.pairs
        decode += share * done.decode.tokens
        context += share * done.decode.context
    return Features(seconds, steps, prefill, pairs, decode, context)


def _busy_ns(parts: Sequence[Part], start: int, end: int) -> int:
    """Nanoseconds of the interval in which at least one engine had a step or a gap."""
    spans = sorted((max(p.done.gap_ns, start), min(p.done.t1_ns, end)) for p in parts)
    busy, reached = 0, start
    for span_start, span_end in spans:
        busy += max(0, span_end - max(span_start, reached))
        reached = max(reached, span_end)
    return busy


def _startup_ns(engine: EngineState, start: int, end: int) -> int:
    return sum(
        _overlap(up, end if ready is None else ready, start, end) for up, ready in engine.startups
    )


def _neighbours_w(loss: Lost, coefficients: Coefficients) -> float:
    """Mean power of the passes on both sides of a loss."""
    known = [done for done in (loss.before, loss.after) if done is not None]
    watts = [coefficients.cost_j(done.work) / (done.duration_ns * 1e-9) for done in known]
    return sum(watts) / len(watts)


def _crowding(parts: list[Part], start: int, end: int) -> list[Part]:
    """Static power where several engines share a device at the same time.

    Each engine's modelled cost holds the static power of its own time. Where ``m`` of them are
    busy for ``o`` seconds it flows once: each is lowered by ``o·(1 − 1/m)`` seconds of it.
    """
    edges = sorted(
        {
            start,
            end,
            *(
                t
                for p in parts
                for t in (p.done.gap_ns, p.done.t0_ns, p.done.t1_ns)
                if start < t < end
            ),
        }
    )
    run_s = [0.0] * len(parts)
    gap_s = [0.0] * len(parts)
    for left, right in pairwise(edges):
        present = [i for i, p in enumerate(parts) if p.done.gap_ns <= left < p.done.t1_ns]
        saved = (right - left) * 1e-9 * (1 - 1 / len(present)) if present else 0.0
        for i in present:
            (run_s if left >= parts[i].done.t0_ns else gap_s)[i] += saved
    return [
        part._replace(crowd_run_s=run_s[i], crowd_gap_s=gap_s[i]) for i, part in enumerate(parts)
    ]
