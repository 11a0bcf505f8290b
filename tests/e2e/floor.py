"""How near to the truth a meter of this form can come in this run, told more than it is ever told.

The card's power in a step is static power plus the step's joules over the time it was *expected* to
take, so a step that the machine stalls draws more than its work foresees. On a busy machine that is
a factor of several in many steps, and every meter's errors grow with it. So the limits of this run
are stated in those of a taught meter: same form of costs, but fitted to each step's **true joules**
(a real meter sees sums over ticks), static power known, and an ideal counter without lag that
closes every tick of 100 ms. What it gets wrong comes from the machine and from the form alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from accuracy import Bill
from numpy.typing import NDArray
from truth import Life, LoggedStep, true_joules

TICK_NS = 100_000_000
STATIC_W = 110.0
"""The hook's, without its drift."""

Array = NDArray[np.float64]


def floor(
    steps: Sequence[LoggedStep], lives: Sequence[Life], start_ns: int, end_ns: int, before_w: float
) -> dict[str, Bill]:
    """The taught meter's receipts, by the client's id. Arguments as of ``true_joules``."""
    work = [_features(step) for step in steps]
    costs = _fit(
        np.array([rows.sum(axis=0) for rows in work]),
        np.array([step.power_w * step.seconds for step in steps]),
    )
    own = [rows @ costs for rows in work]
    times = np.array([start_ns, *(t for s in steps for t in (s.t0_ns, s.t1_ns)), end_ns], float)
    drawn = np.array([before_w, *(w for s in steps for w in (s.power_w, s.after_w))])
    foreseen = np.array(
        [STATIC_W, *(w for s, j in zip(steps, own, strict=True) for w in (_w(s, j), STATIC_W))]
    )
    power = _scales(times, drawn, foreseen) * foreseen
    guessed = [
        replace(
            step,
            power_w=power[2 * k + 1],
            after_w=power[2 * k + 2],
            static_w=0.0,
            fixed_j=0.0,
            parts=tuple(part._replace(own_j=j) for part, j in zip(step.parts, own[k], strict=True)),
        )
        for k, step in enumerate(steps)
    ]
    guess = true_joules(guessed, lives, start_ns, end_ns, power[0])
    return {id: Bill(joules, guess.prefill_j[id]) for id, joules in guess.requests_j.items()}


def _w(step: LoggedStep, own_j: Array) -> float:
    return float(own_j.sum()) / step.seconds


def _features(step: LoggedStep) -> Array:
    """Shape (parts, 5): its part of the step, prefill tokens and pairs, decode tokens, context."""
    rows = np.zeros((len(step.parts), 5))
    for row, part in zip(rows, step.parts, strict=True):
        row[0] = 1.0 / len(step.parts)
        pairs = part.tokens * part.context + part.tokens * (part.tokens + 1) / 2
        row[1:] = (part.tokens, pairs, 0, 0) if part.prefill else (0, 0, part.tokens, part.context)
    return rows


def _fit(features: Array, joules: Array) -> Array:
    """The costs, none negative, that foresee steps best: least squares of the relative errors.

    Coordinate descent, as for any non-negative least squares.
    """
    x = features / joules[:, None]
    products, target = x.T @ x, x.sum(axis=0)
    costs = np.zeros(x.shape[1])
    for _ in range(2000):
        for i in range(len(costs)):
            costs[i] = max(0.0, costs[i] + (target[i] - products[i] @ costs) / products[i, i])
    return costs


def _scales(times: Array, drawn: Array, foreseen: Array) -> Array:
    """By how much each piece of time must be scaled, on average, to close every tick.

    ``times``: the pieces' n + 1 edges in ns; ``drawn`` and ``foreseen``: n powers in W.
    """
    ticks = np.append(np.arange(times[0], times[-1], TICK_NS), times[-1])
    moved = np.diff(np.interp(ticks, times, np.append(0.0, np.cumsum(drawn * np.diff(times)))))
    should = np.diff(np.interp(ticks, times, np.append(0.0, np.cumsum(foreseen * np.diff(times)))))
    sums = np.append(0.0, np.cumsum(moved / should * np.diff(ticks)))
    return np.diff(np.interp(times, ticks, sums)) / np.maximum(np.diff(times), 1.0)
