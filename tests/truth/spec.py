"""What a scenario is: a small declaration from which a seed makes a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.truth.board import Thermal
from tests.truth.card import Counter
from tests.truth.costs import H100, Setup
from tests.truth.engine import Limits
from tests.truth.layouts import Pace
from tests.truth.telling import Telling
from tests.truth.workload import Mix, Profile


@dataclass(frozen=True, slots=True)
class Stranger:
    """Another process on the first board: it draws for ``share`` of the time, in bursts.

    Each burst draws one power between ``low_w`` and ``high_w`` for 3 to 8 seconds.
    """

    low_w: float = 150.0
    high_w: float = 250.0
    share: float = 0.25


@dataclass(frozen=True, slots=True)
class Scenario:
    """``targets``: which of the issue's targets hold (see ``targets``); ``facts``: what meta says
    of model and card: ``none``, ``experts`` alone, or ``all``; ``short_chunks``: see ``Shape``;
    ``noise``: of each step's energy; ``levels``: static power from given seconds on, as a share of
    its usual value; ``startup_s``: the engine's ``up`` and ``ready``; ``late_readings_s``: by how
    much at most the readings of every board but the first come late.
    """

    name: str
    about: str
    targets: str = "none"
    setup: Setup = H100
    mix: Mix = field(default_factory=Mix)
    profile: Profile = field(default_factory=lambda: Profile(((7.0, 12.0), (3.0, 0.3))))
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)
    counter: Counter = field(default_factory=Counter)
    telling: Telling = field(default_factory=Telling)
    layout: str = "alone"
    facts: str = "none"
    seed: int = 1
    seconds: float = 150.0
    noise: float = 0.03
    short_chunks: float = 0.0
    thermal: Thermal | None = None
    limit_w: float | None = None
    stranger: Stranger | None = None
    levels: tuple[tuple[float, float], ...] = ()
    startup_s: tuple[float, float] | None = None
    late_readings_s: float = 0.0
