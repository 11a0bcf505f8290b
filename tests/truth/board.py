"""One device while it works: its static power, its noise, its limit, and a diary of its spells.

Static power may drift with temperature (first order: the die follows the board's power with one
time constant, and leakage follows the die). Where a step would draw more than the power limit it
takes longer: its dynamic joules stay, and static power flows for longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tests.truth.costs import Array, Terms
from tests.truth.curve import Piecewise

_IDLE_PIECE_S = 0.5
_CLIP = 4.0


@dataclass(frozen=True, slots=True)
class Thermal:
    """``rise``: by how much static power grows, as a share, when the board draws ``full_w`` for
    good; ``tau_s``: how fast it gets there."""

    rise: float = 0.15
    full_w: float = 600.0
    tau_s: float = 40.0


class Spell(NamedTuple):
    """The device worked for a pass, from a seat. ``noise`` scales its whole energy, static power
    included; ``natural_s`` is how long it would take without the power limit (None: the limit did
    not act).
    """

    pass_id: int
    seat: int
    start_s: float
    end_s: float
    noise: float
    natural_s: float | None


class Draw(NamedTuple):
    """A step that is about to begin on a board: how long it takes there, and its dice."""

    seconds: float
    noise: float
    natural_s: float | None
    dynamic_j: float


@dataclass(slots=True)
class Board:
    """One device. ``levels``: static watts from given times on; ``begin_s``: when its power curve
    begins; ``seats``: by engine that computes here, the joules and seconds of its work.
    """

    id: str
    static_w: float
    rng: np.random.Generator
    noise: float = 0.03
    limit_w: float = math.inf
    thermal: Thermal | None = None
    begin_s: float = -5.0
    levels: list[tuple[float, float]] = field(default_factory=list)
    seats: list[tuple[Terms, Terms]] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    _warmth: float = 0.0
    _reached_s: float = -math.inf

    def __post_init__(self) -> None:
        if not self.levels:
            self.levels.append((self.begin_s, self.static_w))
        self._reached_s = self.begin_s

    def seat(self, joules: Terms, seconds: Terms) -> Seat:
        """A place for one more engine."""
        self.seats.append((joules, seconds))
        return Seat(self, len(self.seats) - 1)

    def draw(self, dynamic_j: float, natural_s: float) -> Draw:
        """Roll the dice for a step; ``natural_s``: how long it takes by itself."""
        spread = max(-_CLIP, min(_CLIP, float(self.rng.standard_normal())))
        noise = 1.0 + self.noise * spread
        limited_s = dynamic_j / (self.limit_w / noise - self.levels[-1][1])
        if limited_s <= natural_s:
            return Draw(natural_s, noise, None, dynamic_j)
        return Draw(limited_s, noise, natural_s, dynamic_j)

    def spend(self, spell: Spell, dynamic_j: float) -> None:
        """Write the step down."""
        self.spells.append(spell)
        if self.thermal is not None:
            self._cool_until(spell.start_s, self.thermal)
            dynamic_w = dynamic_j / (spell.end_s - spell.start_s)
            power_w = spell.noise * (self.levels[-1][1] + dynamic_w)
            self._warm(self.thermal, spell.end_s, power_w)

    def cool(self, until_s: float) -> None:
        """Nothing more to do until then."""
        if self.thermal is not None:
            self._cool_until(until_s, self.thermal)

    def _cool_until(self, until_s: float, thermal: Thermal) -> None:
        while self._reached_s < until_s:
            next_s = min(until_s, self._reached_s + _IDLE_PIECE_S)
            self._warm(thermal, next_s, self.levels[-1][1])

    def _warm(self, thermal: Thermal, until_s: float, power_w: float) -> None:
        """Static power is level within a spell, and moves between them."""
        near = math.exp(-(until_s - self._reached_s) / thermal.tau_s)
        target = power_w / thermal.full_w
        self._warmth = target + (self._warmth - target) * near
        self._reached_s = until_s
        self.levels.append((until_s, self.static_w * (1.0 + thermal.rise * self._warmth)))

    @property
    def static(self) -> Piecewise:
        """Static power over time."""
        times, watts = zip(*self.levels, strict=True)
        return Piecewise.of(np.array(times), np.array(watts))


@dataclass(slots=True)
class Seat:
    """An engine's place on a board: what its work costs there."""

    board: Board
    number: int
    _joules: Array = field(init=False)
    _seconds: Array = field(init=False)

    def __post_init__(self) -> None:
        joules, seconds = self.board.seats[self.number]
        self._joules, self._seconds = joules.array(), seconds.array()

    def natural_s(self, totals: Array) -> float:
        return float(self._seconds @ totals)

    def draw(self, totals: Array, natural_s: float) -> Draw:
        return self.board.draw(float(self._joules @ totals), natural_s)

    def spend(self, pass_id: int, start_s: float, end_s: float, draw: Draw) -> None:
        spell = Spell(pass_id, self.number, start_s, end_s, draw.noise, draw.natural_s)
        self.board.spend(spell, draw.dynamic_j)
