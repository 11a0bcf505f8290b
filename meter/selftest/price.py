"""What metering costs the server: interleaved pairs of metered and bare runs, with an interval.

Runs come as A B B A A B B A …: a drift of machine or card falls on both alike. A pair is an A
beside a B. The ratio of a figure is the geometric mean over pairs; its interval is a bootstrap that
draws pairs anew, and in each the half seconds of its two runs (all answers share a step, so time is
drawn and not answers): what differs between runs and what differs within them both widen it. Pure:
seed and samples in, figures out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from meter.selftest.look import Array, Ints

#: A run is cut into slots of so many seconds.
SLOT_S = 0.5
_FEW_PAIRS = 4
_DRAWS = 1000
_LEVEL = 0.95


class Slot(NamedTuple):
    """What came in a stretch of a run: output tokens, and seconds since the one before of each."""

    tokens: int
    gaps_s: tuple[float, ...]


class Run(NamedTuple):
    """A stretch of load, whole slots; ``metered``: under the meter."""

    metered: bool
    slots: tuple[Slot, ...]


class Ratio(NamedTuple):
    """Metered over bare, and the interval that holds it with 95 %."""

    value: float
    low: float
    high: float


class Price(NamedTuple):
    """``throughput``: of output tokens a second; ``itl_p99``: of the 99th percentile of the time
    between two tokens. ``bare_tokens_per_s``, ``bare_itl_p99_s``: what the ratios stand on."""

    pairs: int
    throughput: Ratio
    itl_p99: Ratio
    bare_tokens_per_s: float
    bare_itl_p99_s: float


def order(pairs: int) -> list[bool]:
    """Which runs are metered: A B B A A B B A …; neighbours that are alike need no restart."""
    return [metered for n in range(pairs) for metered in ((True, False), (False, True))[n % 2]]


def price(runs: Sequence[Run], seed: int = 0) -> Price | None:
    """Runs in the order of ``order``. ``None`` where there are fewer than four whole pairs."""
    pairs = [_pair(a, b) for a, b in zip(runs[::2], runs[1::2], strict=False)]
    whole = [pair for pair in pairs if pair is not None]
    if len(whole) < _FEW_PAIRS:
        return None
    bare = [run for _, run in whole]
    return Price(
        pairs=len(whole),
        throughput=_ratio(whole, _Samples.tokens_per_s, np.random.default_rng(seed)),
        itl_p99=_ratio(whole, _Samples.itl_p99_s, np.random.default_rng(seed)),
        bare_tokens_per_s=float(np.mean([run.tokens_per_s(run.once) for run in bare])),
        bare_itl_p99_s=float(np.mean([run.itl_p99_s(run.once) for run in bare])),
    )


class _Samples:
    """A run as arrays: the gaps in ascending order, and the slot of each."""

    def __init__(self, run: Run) -> None:
        self.tokens: Array = np.array([slot.tokens for slot in run.slots], dtype=np.float64)
        gaps_s = np.array([gap for slot in run.slots for gap in slot.gaps_s])
        owner = np.repeat(np.arange(len(run.slots)), [len(slot.gaps_s) for slot in run.slots])
        place = np.argsort(gaps_s)
        self.gaps_s: Array = gaps_s[place]
        self.owner: Ints = owner[place]

    @property
    def once(self) -> Array:
        """Each slot counts once."""
        return np.ones(len(self.tokens))

    def drawn(self, random: np.random.Generator) -> Array:
        """How often each slot counts."""
        count = len(self.tokens)
        return np.bincount(random.integers(0, count, count), minlength=count).astype(np.float64)

    def tokens_per_s(self, counts: Array) -> float:
        return float(counts @ self.tokens) / (SLOT_S * float(counts.sum()))

    def itl_p99_s(self, counts: Array) -> float:
        below = np.cumsum(counts[self.owner])
        at = int(np.searchsorted(below, 0.99 * below[-1]))
        return float(self.gaps_s[at])


def _pair(one: Run, other: Run) -> tuple[_Samples, _Samples] | None:
    """(Metered, bare); ``None`` where one of them holds nothing."""
    if one.metered == other.metered:
        raise ValueError("expected a metered and a bare run in each pair: see order()")
    made = [_Samples(run) for run in ((one, other) if one.metered else (other, one))]
    if any(not len(run.gaps_s) or not run.tokens.sum() for run in made):
        return None
    return made[0], made[1]


def _ratio(
    pairs: Sequence[tuple[_Samples, _Samples]],
    figure: Callable[[_Samples, Array], float],
    random: np.random.Generator,
) -> Ratio:
    """Geometric mean over pairs, with its interval by percentiles of the bootstrap."""
    once = [math.log(figure(a, a.once) / figure(b, b.once)) for a, b in pairs]
    drawn = np.empty(_DRAWS)
    for number in range(_DRAWS):
        chosen = [pairs[i] for i in random.integers(0, len(pairs), len(pairs)).tolist()]
        drawn[number] = np.mean(
            [math.log(figure(a, a.drawn(random)) / figure(b, b.drawn(random))) for a, b in chosen]
        )
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
    return Ratio(math.exp(float(np.mean(once))), math.exp(low), math.exp(high))
