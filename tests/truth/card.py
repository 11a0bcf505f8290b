"""What a board's energy counter shows of its power, and when it is read.

At each tick the counter takes over the energy drawn up to ``lag_s`` before; with ``smear_s`` it is
the mean of that energy over so long a time before (the power went through a box filter first). The
mean delay of a joule is ``lag_s + smear_s / 2``. A poll sees the last tick before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meter.model import Reading
from tests.truth.costs import Array, Ints
from tests.truth.curve import Piecewise

_FIRST_UJ = 1_234_567_890_000


@dataclass(frozen=True, slots=True)
class Counter:
    """How a counter ticks and how it is polled. ``None``: drawn from the seed.

    ``step_uj``: quantisation; ``jitter_s``: standard deviation of a tick; ``late``: share of polls
    that come late, by ``late_s`` on average; ``failed``: share of readings that fail; ``reset_s``:
    when it starts over; ``jump_s``: when it leaps by ``jump_j``.
    """

    refresh_s: float = 0.1
    lag_s: float | None = None
    smear_s: float | None = None
    phase: float | None = None
    step_uj: int = 1000
    jitter_s: float = 0.0
    poll_s: float = 0.02
    poll_noise: float = 0.1
    late: float = 0.005
    late_s: float = 0.03
    failed: float = 0.0
    reset_s: float | None = None
    jump_s: float | None = None
    jump_j: float = 5e5


class Shown(NamedTuple):
    """A counter's readings, its true delays, the joules that they moved by, and its ticks (of
    those, the ones that a poll saw)."""

    readings: list[Reading]
    lag_s: float
    smear_s: float
    moved_j: float
    ticks: Array

    @property
    def delay_s(self) -> float:
        return self.lag_s + self.smear_s / 2


def show(
    device: str,
    counter: Counter,
    power: Piecewise,
    rng: np.random.Generator,
    end_s: float,
    origin_ns: int,
) -> Shown:
    """Poll the counter from 0 to ``end_s``."""
    lag_s = _or_drawn(counter.lag_s, rng, 0.15)
    smear_s = _or_drawn(counter.smear_s, rng, 0.15)
    polls = _polls(counter, rng, end_s)
    ticks = _ticks(counter, rng, end_s)
    seen = np.searchsorted(ticks, polls, side="right") - 1
    exact_uj = 1e6 * power.smeared(ticks - lag_s, smear_s)
    shown = _quantised(counter, exact_uj)[seen]
    told = shown + _FIRST_UJ + _leap(counter, polls)
    told = _after_reset(counter, polls, told)
    failed = rng.random(len(polls)) < counter.failed
    failed[[0, -1]] = False
    times = origin_ns + np.round(polls * 1e9).astype(np.int64)
    readings = [
        Reading(device, t, None, error="timeout") if bad else Reading(device, t, uj)
        for t, uj, bad in zip(times.tolist(), told.tolist(), failed.tolist(), strict=True)
    ]
    return Shown(readings, lag_s, smear_s, (shown[-1] - shown[0]) / 1e6, ticks[seen])


def _or_drawn(value: float | None, rng: np.random.Generator, most: float) -> float:
    drawn = float(rng.uniform(0.0, most))
    return drawn if value is None else value


def _polls(counter: Counter, rng: np.random.Generator, end_s: float) -> Array:
    """Absolute deadlines with a little jitter; now and then the host is late."""
    due = np.arange(0.0, end_s, counter.poll_s)
    noise = rng.uniform(-1.0, 1.0, len(due)) * counter.poll_noise * counter.poll_s / 2
    late = np.where(
        rng.random(len(due)) < counter.late, rng.exponential(counter.late_s, len(due)), 0
    )
    polls = np.maximum.accumulate(due + counter.poll_s + noise + late)
    return polls[np.diff(polls, prepend=-1.0) > 1e-4]


def _ticks(counter: Counter, rng: np.random.Generator, end_s: float) -> Array:
    drawn = float(rng.random())
    first = (drawn if counter.phase is None else counter.phase) - 2.0
    count = int((end_s + 1.0) / counter.refresh_s) + 3
    ticks = (first + np.arange(count)) * counter.refresh_s
    return np.maximum.accumulate(ticks + counter.jitter_s * rng.standard_normal(count))


def _quantised(counter: Counter, exact_uj: Array) -> Ints:
    return (np.floor(exact_uj / counter.step_uj) * counter.step_uj).astype(np.int64)


def _leap(counter: Counter, polls: Array) -> Ints:
    if counter.jump_s is None:
        return np.zeros(len(polls), dtype=np.int64)
    return (polls >= counter.jump_s) * round(counter.jump_j * 1e6)


def _after_reset(counter: Counter, polls: Array, told: Ints) -> Ints:
    if counter.reset_s is None or counter.reset_s > polls[-1]:
        return told
    after = polls >= counter.reset_s
    return np.where(after, told - told[np.flatnonzero(after)[0]], told)
