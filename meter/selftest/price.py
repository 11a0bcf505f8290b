"""What metering costs the server: interleaved pairs of metered and bare runs, with an interval.

Runs come as A B B A A B B A …: a drift of machine or card falls on both alike, and neighbours that
are alike share a life of the server. What differs from start to start is the same for all runs of a
life, so lives are what is compared: the logarithm of a figure, averaged over each, by metered or
bare and a straight drift, and Student's interval of that difference. Pure: samples in, figures out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import groupby
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

#: A run is cut into slots of so many seconds.
SLOT_S = 0.5
_FEW_PAIRS = 4


class Slot(NamedTuple):
    """What came in a stretch of a run: output tokens, and seconds since the one before of each."""

    tokens: int
    gaps_s: tuple[float, ...]


class Counted(StrEnum):
    """How tokens were counted: as each event of a stream says, as its end says, or not at all."""

    EACH = "usage of each event"
    ENDS = "usage at the end of each stream"
    EVENTS = "events"


class Run(NamedTuple):
    """A stretch of load, whole slots; ``metered``: under the meter."""

    metered: bool
    slots: tuple[Slot, ...]
    counted: Counted = Counted.EACH


class Ratio(NamedTuple):
    """Metered over bare, and the interval that holds it with 95 %."""

    value: float
    low: float
    high: float


class Price(NamedTuple):
    """``throughput``: of output tokens a second; ``itl_p99``: of the 99th percentile of the time
    between two tokens. ``bare_tokens_per_s``, ``bare_itl_p99_s``: what the ratios stand on;
    ``counted``: how tokens were counted."""

    pairs: int
    throughput: Ratio
    itl_p99: Ratio
    bare_tokens_per_s: float
    bare_itl_p99_s: float
    counted: Counted = Counted.EACH


def order(pairs: int) -> list[bool]:
    """Which runs are metered: A B B A A B B A …; neighbours that are alike need no restart."""
    return [metered for n in range(pairs) for metered in ((True, False), (False, True))[n % 2]]


def price(runs: Sequence[Run]) -> Price | None:
    """Runs in the order of ``order``. ``None`` where there are fewer than four whole pairs, or
    where tokens were not counted alike in all of them."""
    if len({run.counted for run in runs}) > 1:
        return None
    if any(one.metered == other.metered for one, other in zip(runs[::2], runs[1::2], strict=False)):
        raise ValueError("expected a metered and a bare run in each pair: see order()")
    figures = _figures(runs)
    whole: list[_Figures] = []
    for one, other in zip(figures[::2], figures[1::2], strict=False):
        if one is not None and other is not None:
            whole += (one, other)
    bare = [run for run in whole if not run.metered]
    if len(bare) < _FEW_PAIRS:
        return None
    return Price(
        pairs=len(bare),
        throughput=_ratio(whole, lambda run: run.tokens_per_s),
        itl_p99=_ratio(whole, lambda run: run.itl_p99_s),
        bare_tokens_per_s=float(np.mean([run.tokens_per_s for run in bare])),
        bare_itl_p99_s=float(np.mean([run.itl_p99_s for run in bare])),
        counted=runs[0].counted,
    )


class _Figures(NamedTuple):
    """Of one run; ``life``: which life of the server it lies in."""

    metered: bool
    life: int
    tokens_per_s: float
    itl_p99_s: float


def _figures(runs: Sequence[Run]) -> list[_Figures | None]:
    """Of each run; ``None`` where it holds nothing."""
    found: list[_Figures | None] = []
    life = 0
    for number, run in enumerate(runs):
        life += number > 0 and run.metered != runs[number - 1].metered
        tokens = sum(slot.tokens for slot in run.slots)
        gaps_s = np.array([gap for slot in run.slots for gap in slot.gaps_s])
        if not tokens or not len(gaps_s):
            found.append(None)
            continue
        per_s = tokens / (SLOT_S * len(run.slots))
        found.append(_Figures(run.metered, life, per_s, float(np.quantile(gaps_s, 0.99))))
    return found


def _ratio(runs: Sequence[_Figures], figure: Callable[[_Figures], float]) -> Ratio:
    """Of the mean logarithms of lives, beside a straight drift: ordinary least squares, with
    Student's interval."""
    lives = [list(same) for _, same in groupby(runs, key=lambda run: run.life)]
    logs = np.array([np.mean([math.log(figure(run)) for run in life]) for life in lives])
    runs_each = np.array([len(life) for life in lives])
    place = np.cumsum(runs_each) - runs_each / 2
    x = np.stack((np.ones(len(lives)), [life[0].metered for life in lives], place), axis=1)
    inverse = np.linalg.inv(x.T @ x)
    found = inverse @ x.T @ logs
    free = len(lives) - x.shape[1]
    spread = math.sqrt(float(np.square(logs - x @ found).sum()) / free * inverse[1, 1])
    off = student(free) * spread
    middle = float(found[1])
    return Ratio(math.exp(middle), math.exp(middle - off), math.exp(middle + off))


def student(free: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom (2 or more).

    Within 0.3 % of the exact one: Abramowitz and Stegun 26.7.5, exact for 2 and 3.
    """
    if free < 4:
        return {2: 4.30265, 3: 3.18245}[free]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / free**power for power, term in enumerate(terms)))
