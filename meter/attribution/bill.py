"""What one request has been charged so far, and what its doubt rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from meter.attribution.curve import Array
from meter.attribution.fit import DOUBTED

#: Intervals that direct work is remembered by.
_PARTS_MAX = 16


class Segment(NamedTuple):
    """A stretch of plain decoding: since pass ``k`` with ``context`` tokens, sums as they stood."""

    k: int
    context: int
    sums: Array


#: An interval's number; what it shows of a pass's work, and that weighted by the pass's share in
#: it; what decoding takes there afterwards; and the interval's facts: see ``_Part``.
_Shown = tuple[int, float, float, float, float, float, float]


@dataclass(slots=True)
class _Part:
    """What an interval shows of one request's direct work: its joules ``X``; ``Y``, the same
    weighted by the passes' shares in the interval; ``later_j``: what decoding takes there after
    it; and the interval's facts (``resolution``)."""

    squares: float
    shared: float
    edge2: float
    shown_j: float = 0.0
    weighted_j: float = 0.0
    later_j: float = 0.0

    def given_back_j2(self, decode_j: float) -> float:
        """``X·X'·(s + s' − Q/E²)``: how far the errors of decoding in the interval undo this one's.

        ``s``, ``s'``: the shares in the interval of one pass of the direct work, and of another.
        """
        if not self.shown_j:
            return 0.0
        share = self.weighted_j / self.shown_j
        other = max(0.0, self.squares - share**2) / max(1.0 - share, 0.1)
        return self.shown_j * min(self.later_j, decode_j) * (share + other - self.squares)


class Own:
    """Direct work of one request: what the intervals that show it cannot tell of it."""

    __slots__ = ("_noise2", "_parts", "_settled_j2", "_squares_j2")

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}
        self._squares_j2 = 0.0
        self._settled_j2 = 0.0
        self._noise2 = 0.0

    def add(self, energy_j: float, noise2: float, shown: Iterable[_Shown]) -> None:
        """Take a pass's work, and what intervals show of it."""
        self._squares_j2 += noise2 * energy_j**2
        self._noise2 = noise2
        for number, shown_j, weighted_j, later_j, *facts in shown:
            part = self._parts.get(number)
            if part is None:
                part = self._parts[number] = _Part(*facts)
            part.shown_j += shown_j
            part.weighted_j += weighted_j
            part.later_j = later_j
        if len(self._parts) > _PARTS_MAX:
            self._settle_oldest()

    def variance_j2(self, decode_j: float) -> float:
        """Of what the noise of steps and the intervals' edges may misplace.

        ``decode_j``: what plain decoding after it took in all.
        """
        back = sum(part.given_back_j2(decode_j) for part in self._parts.values())
        variance = self._squares_j2 + self._settled_j2 + self._unsettled_j2(self._parts)
        return max(0.0, variance - 2 * self._noise2 * back)

    def _unsettled_j2(self, parts: Mapping[int, _Part]) -> float:
        variance = 0.0
        for number, part in parts.items():
            x = part.shown_j
            noise = x * (x * part.squares - 2 * part.weighted_j)
            before = parts.get(number - 1)
            if before is not None:
                noise += 2 * x * before.shown_j * part.shared
            variance += self._noise2 * noise
            variance += part.edge2 * (x - (before.shown_j if before else 0.0)) ** 2
            if number + 1 not in parts:
                variance += part.edge2 * x**2
        return variance

    def _settle_oldest(self) -> None:
        """Long direct work (speculation): what its first intervals say is said."""
        numbers = sorted(self._parts)
        half = numbers[: len(numbers) // 2]
        everything = self._unsettled_j2(self._parts)
        for number in half[:-1]:
            del self._parts[number]
        self._settled_j2 += everything - self._unsettled_j2(self._parts)


@dataclass(slots=True)
class Bill:
    """Joules by phase; λ-weighted features; and the parts of the doubt.

    ``work``, two rows of 8: ``features``, what the request computed, and ``mean_work``, what its
    joules would buy of the work in its intervals: an error of the coefficients that both share is
    undone by the closure. (The last column is the power that a later look would have seen more.)
    ``noise_j2``: variance that intervals cannot resolve, but for direct work's, which is in
    ``own``; ``unlearned``: passes split before the calibration had converged.
    ``prefilled``: computed tokens of the prompt; ``decoded``: tokens that decoding emitted.
    """

    prefill_j: float = 0.0
    decode_j: float = 0.0
    recompute_j: float = 0.0
    work: Array = field(default_factory=lambda: np.zeros((2, DOUBTED)))
    noise_j2: float = 0.0
    unlearned: float = 0.0
    passes: int = 0
    prefilled: int = 0
    decoded: int = 0
    segment: Segment | None = None
    own: Own | None = None

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j

    @property
    def unresolved_j2(self) -> float:
        """Variance that intervals cannot resolve."""
        return self.noise_j2 + (
            self.own.variance_j2(self.decode_j) if self.own is not None else 0.0
        )

    @property
    def features(self) -> Array:
        return np.asarray(self.work[0])

    @property
    def mean_work(self) -> Array:
        return np.asarray(self.work[1])

    def copy(self) -> Bill:
        """A copy that takes stretches, but no more direct work: that it shares."""
        other = Bill(*(getattr(self, name) for name in Bill.__slots__))
        other.work = self.work.copy()
        return other
