"""What a batch takes in joules, on the card that is imagined.

Not the meter's form, on purpose: prefill grows faster than its tokens, attention grows slower
than its context, each step has noise, and the card warms up and cools down slowly.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What one request does in a step: ``tokens`` computed after ``context`` tokens."""

    request: str
    tokens: int
    context: int
    prefill: bool

    @property
    def pairs(self) -> float:
        """Token pairs that the attention of this part sees."""
        return self.tokens * self.context + self.tokens * (self.tokens + 1) / 2


@dataclass(frozen=True)
class Joules:
    """A step's dynamic energy: ``fixed_j`` for anyone being there, ``own_j`` for each request."""

    fixed_j: float
    own_j: tuple[float, ...]

    @property
    def total_j(self) -> float:
        return self.fixed_j + sum(self.own_j)


class Cost:
    """The cost model: seeded noise, slow drift. Joules, watts, seconds."""

    static_w = 110.0
    noise = 0.03
    fixed_j = 7.0

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def static_at(self, t_s: float) -> float:
        """Static power at a time: it drifts by 3 % either way, in three minutes and a half."""
        return self.static_w * (1 + 0.03 * math.sin(2 * math.pi * t_s / 210.0))

    def step(self, parts: list[Part], t_s: float) -> Joules:
        """The dynamic joules of a step that starts at ``t_s``."""
        drift = 1 + 0.05 * math.sin(2 * math.pi * t_s / 160.0 + 1.0)
        scale = drift * math.exp(self._random.gauss(0.0, self.noise))
        return Joules(scale * self.fixed_j, tuple(scale * self._own(part) for part in parts))

    @staticmethod
    def _own(part: Part) -> float:
        if part.prefill:
            return 1.05 * part.tokens**1.1 + 1.2e-3 * part.pairs
        return 1.2 + 2.2e-2 * part.context**0.8
