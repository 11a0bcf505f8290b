"""What one request has been charged so far, and what its doubt rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from meter.attribution.curve import Array
from meter.attribution.fit import SIZE


class Segment(NamedTuple):
    """A stretch of plain decoding: since pass ``k`` with ``context`` tokens, sums as they stood."""

    k: int
    context: int
    sums: Array


@dataclass(slots=True)
class Own:
    """Direct work of one request in the interval at hand: what the interval cannot tell of it.

    ``own_j``, ``own_j2``: Σx and Σx² over its passes, ``shared_j``: Σx·p/P with the passes' shares
    in the interval; ``noise2``, ``edge2``: squared relative noise of a step, and doubt of the
    edges; ``concentration``: Σp²/P² there; ``before_j``: Σx in the interval before.
    """

    interval: int
    noise2: float
    edge2: float
    concentration: float
    own_j: float = 0.0
    own_j2: float = 0.0
    shared_j: float = 0.0
    before_j: float = 0.0

    @property
    def variance_j2(self) -> float:
        """Variance of Σ(x − X·p/P)·ε, and of what the edge to the interval before may misplace."""
        own = self.own_j2 + self.own_j**2 * self.concentration
        own -= 2 * self.own_j * self.shared_j
        return max(0.0, self.noise2 * own) + self.edge2 * (self.own_j - self.before_j) ** 2


@dataclass(slots=True)
class Bill:
    """Joules by phase; λ-weighted features; and the parts of the doubt.

    ``work``, two rows of 7: ``features``, what the request computed, and ``mean_work``, what its
    joules would buy of the work in its intervals: an error of the coefficients that both share is
    undone by the closure. ``noise_j2``: variance that intervals cannot resolve; ``unlearned``:
    passes split before the calibration had converged.
    """

    prefill_j: float = 0.0
    decode_j: float = 0.0
    recompute_j: float = 0.0
    work: Array = field(default_factory=lambda: np.zeros((2, SIZE)))
    noise_j2: float = 0.0
    unlearned: float = 0.0
    passes: int = 0
    decoded: int = 0
    segment: Segment | None = None
    own: Own | None = None

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j

    @property
    def features(self) -> Array:
        return np.asarray(self.work[0])

    @property
    def mean_work(self) -> Array:
        return np.asarray(self.work[1])

    def end_own(self) -> None:
        """The interval of the direct work at hand is over."""
        if self.own is not None:
            self.noise_j2 += self.own.variance_j2 + self.own.edge2 * self.own.own_j**2
            self.own = None

    def next_own(self, own: Own) -> None:
        """Direct work begins in another interval."""
        if self.own is not None and own.interval == self.own.interval + 1:
            self.noise_j2 += self.own.variance_j2
            own.before_j = self.own.own_j
        else:
            self.end_own()
        self.own = own

    def copy(self) -> Bill:
        """An independent copy."""
        other = Bill(*(getattr(self, name) for name in Bill.__slots__))
        other.work = self.work.copy()
        return other
