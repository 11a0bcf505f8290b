"""What a step costs on the simulated card: an 8B model in bf16 on one H100.

A step takes ``step + prefill + pairs + decode + context`` seconds and, on top of static power, as
many joules, each term linear in the work. Noise of 3 % a step, seeded, on both: on the time, and
apart from it on the joules.

As the joules are additive but for the fixed part, each request's **true Shapley value** is known
at once: equal parts of what any request alone would cause, and its own. Static power over the step
belongs to whoever makes the step longer, in proportion to the seconds.

Where the figures come from: no trace of ours. They are chosen so that output tokens cost what the
ML.ENERGY leaderboard (version 3, vLLM 0.11.1, Llama-3.1-8B in bf16 on one H100) measured at batches
of 8 to 256, with static power as published for that card with a context. A trace of a real card in
``tests/data`` takes their place (``deploy/gpu-evidence``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from meter.model import Phase, Work

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """One kind of cost (seconds, or joules): of a step, a prompt token, a token pair that a prompt
    token attends to, a decoded token, and a context token read."""

    step: float
    prompt: float
    pair: float
    decode: float
    context: float

    def own(self, work: Work) -> float:
        """What ``work`` adds to a step."""
        if work.phase is Phase.DECODE:
            return self.decode * work.tokens + self.context * work.context
        pairs = work.tokens * work.context + work.tokens * (work.tokens + 1) / 2
        return self.prompt * work.tokens + self.pair * pairs


@dataclass(frozen=True, slots=True)
class Hardware:
    """The card: seconds and joules (beyond static power) of work, its static power, its noise."""

    seconds: Terms = Terms(6.6e-3, 29e-6, 1.1e-9, 50e-6, 45e-9)
    joules: Terms = Terms(2.0, 16.5e-3, 0.75e-6, 30e-3, 24e-6)
    static_w: float = 115.0
    bare_idle_w: float = 70.0
    noise: float = 0.03


@dataclass(frozen=True, slots=True)
class Cost:
    """One step as it happens: how long it takes, at which power, and each request's share.

    ``shares_j`` has one figure for each row of the step's work; they sum to ``energy_j``, which is
    ``power_w`` over ``duration_ns``.
    """

    duration_ns: int
    power_w: float
    energy_j: float
    shares_j: tuple[float, ...]


class Physics:
    """Rolls the dice of one card. ``seed`` makes it repeatable."""

    def __init__(self, hardware: Hardware | None = None, seed: int = 0) -> None:
        self.hardware = hardware or Hardware()
        self._random = random.Random(seed)

    def cost(self, work: Sequence[Work]) -> Cost:
        """A step with this work. Precondition: at least one row."""
        if not work:
            raise ValueError("expected a step with work in it: an empty one is never run")
        hardware = self.hardware
        duration_ns, seconds = self._times(work)
        factor = self._factor()
        fixed_j = (hardware.static_w * seconds[0] + hardware.joules.step * factor) / len(work)
        shares = tuple(
            fixed_j + hardware.static_w * own_s + factor * hardware.joules.own(row)
            for own_s, row in zip(seconds[1:], work, strict=True)
        )
        energy_j = sum(shares)
        return Cost(duration_ns, energy_j * NS / duration_ns, energy_j, shares)

    def _times(self, work: Sequence[Work]) -> tuple[int, list[float]]:
        """The step's duration, and its parts: the fixed one, then each row's own."""
        terms = self.hardware.seconds
        plain = [terms.step, *(terms.own(row) for row in work)]
        total = sum(plain)
        duration_ns = max(1, round(total * self._factor() * NS))
        return duration_ns, [part * duration_ns / (total * NS) for part in plain]

    def _factor(self) -> float:
        """Noise: around 1, never near 0 (four sigma at most)."""
        sigmas = max(-4.0, min(4.0, self._random.gauss(0.0, 1.0)))
        return 1.0 + self.hardware.noise * sigmas
