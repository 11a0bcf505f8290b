"""How near to the truth anybody can come in this run, with every cost known but no step's luck.

The card's power in a step is static power plus the step's joules over the time it was *expected* to
take. So a step that the machine stalls draws more than its work foresees, and each step has noise
and drift of its own: no meter can know these, only what the counter moved. The allocator here knows
the hook's own costs of every part of every step, and gives what an ideal counter moved in each tick
to the steps and gaps in it, in proportion to what they should have drawn. A machine that is busy
makes its errors grow as it does the meter's: the limits of the end-to-end run are stated in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from accuracy import Bill
from numpy.typing import NDArray
from truth import Life, LoggedStep, true_joules

TICK_NS = 100_000_000
STATIC_W, FIXED_J = 110.0, 7.0
"""The hook's: static power without its drift, a step's fixed joules without noise."""

Array = NDArray[np.float64]


def floor(
    steps: Sequence[LoggedStep], lives: Sequence[Life], start_ns: int, end_ns: int, before_w: float
) -> dict[str, Bill]:
    """The allocator's receipts, by the client's id. Arguments as of ``true_joules``."""
    times = np.array([start_ns, *(t for s in steps for t in (s.t0_ns, s.t1_ns)), end_ns], float)
    drawn = np.array([before_w, *(w for s in steps for w in (s.power_w, s.after_w))])
    foreseen = np.array([STATIC_W, *(w for s in steps for w in (_foreseen_w(s), STATIC_W))])
    scale = _scales(times, drawn, foreseen)
    guessed = [
        replace(
            step,
            power_w=scale[2 * k + 1] * foreseen[2 * k + 1],
            static_w=scale[2 * k + 1] * STATIC_W * _expected_s(step) / step.seconds,
            after_w=scale[2 * k + 2] * STATIC_W,
        )
        for k, step in enumerate(steps)
    ]
    guess = true_joules(guessed, lives, start_ns, end_ns, scale[0] * STATIC_W)
    return {id: Bill(joules, guess.prefill_j[id]) for id, joules in guess.requests_j.items()}


def _scales(times: Array, drawn: Array, foreseen: Array) -> Array:
    """By how much each piece of time must be scaled, on average, to close every tick.

    ``times``: the pieces' n + 1 edges in ns; ``drawn`` and ``foreseen``: n powers in W.
    """
    ticks = np.append(np.arange(times[0], times[-1], TICK_NS), times[-1])
    moved = np.diff(np.interp(ticks, times, np.append(0.0, np.cumsum(drawn * np.diff(times)))))
    should = np.diff(np.interp(ticks, times, np.append(0.0, np.cumsum(foreseen * np.diff(times)))))
    sums = np.append(0.0, np.cumsum(moved / should * np.diff(ticks)))
    return np.diff(np.interp(times, ticks, sums)) / np.maximum(np.diff(times), 1.0)


def _foreseen_w(step: LoggedStep) -> float:
    """What its work should have drawn, over the time that it took."""
    luck = step.fixed_j / FIXED_J
    dynamic_j = (step.fixed_j + sum(part.own_j for part in step.parts)) / luck
    return (dynamic_j + STATIC_W * _expected_s(step)) / step.seconds


def _expected_s(step: LoggedStep) -> float:
    return step.fixed_s + sum(part.own_s for part in step.parts)
