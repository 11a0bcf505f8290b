"""How engines and boards play together: who steps when, and which boards work for a step.

``take_turns`` plays any number of engines side by side, each stepping when it can: alone, tensor
parallel, handing requests over, or sharing a board. ``in_waves`` plays ranks that share experts and
step together; ``pipelined`` one engine whose stages work for several micro-batches at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.truth.board import Draw, Seat
from tests.truth.costs import Array, Ints, Shape
from tests.truth.engine import Scheduler


@dataclass(frozen=True, slots=True)
class Pace:
    """Time between steps. ``gap_s``: mean gap after a step (0: asynchronous scheduling);
    ``late``: share of steps before which the host is late by some ms; ``pickup_s``: from a
    request's arrival at an idle engine to its first step; ``noise``: of a step's duration.
    """

    gap_s: float = 0.0
    late: float = 0.01
    pickup_s: float = 0.001
    noise: float = 0.01


@dataclass(slots=True)
class Log:
    """All passes of all engines, in the order in which they were run.

    ``features``: of each row; ``dummies``: for a dummy pass, the passes of its wave.
    """

    engine: list[int] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)
    features: list[Array] = field(default_factory=list)
    dummies: dict[int, list[int]] = field(default_factory=dict)

    def add(self, engine: int, rows: Ints, features: Array) -> int:
        self.engine.append(engine)
        self.rows.append(rows)
        self.features.append(features)
        self.start_s.append(math.nan)
        self.end_s.append(math.nan)
        return len(self.engine) - 1

    def timed(self, pass_id: int, start_s: float, end_s: float) -> None:
        self.start_s[pass_id], self.end_s[pass_id] = start_s, end_s


@dataclass(slots=True)
class Server:
    """An engine as it runs. ``seats``: on all of these boards it works for each step.

    ``finished``: called with the requests whose last step just ended, and when.
    """

    number: int
    scheduler: Scheduler
    seats: list[Seat]
    shape: Shape
    pace: Pace
    rng: np.random.Generator
    log: Log
    last_end_s: float = -math.inf
    finished: Callable[[list[int], float], None] | None = None
    _gap_s: float = 0.0

    def next_start_s(self) -> float:
        """When the next step can begin; infinite where nobody is there or will come."""
        if self.scheduler.holds:
            return self.last_end_s + self._gap_s
        arrival_s = self.scheduler.next_arrival_s + self.pace.pickup_s
        return max(arrival_s, self.last_end_s + self._gap_s)

    def prepare(self, start_s: float) -> tuple[Ints, Array]:
        """Schedule a step: its rows and their features."""
        rows = self.scheduler.batch(start_s)
        return rows, self.shape.features(rows, self.scheduler.requests.weight[rows[:, 0]])

    def natural_s(self, totals: Array) -> float:
        """How long such a step takes, with some noise."""
        noise = 1.0 + self.pace.noise * float(np.clip(self.rng.standard_normal(), -4, 4))
        return self.seats[0].natural_s(totals) * noise

    def draws(self, totals: Array, slow: float = 1.0) -> list[Draw]:
        natural_s = slow * self.natural_s(totals)
        return [seat.draw(totals, natural_s) for seat in self.seats]

    def step(self, start_s: float, slow: float = 1.0) -> None:
        """Run one step; nothing where those who waited have gone."""
        rows, features = self.prepare(start_s)
        if len(rows):
            draws = self.draws(features.sum(axis=0), slow)
            end_s = start_s + max(draw.seconds for draw in draws)
            self.complete(rows, features, start_s, end_s, draws)

    def complete(
        self, rows: Ints, features: Array, start_s: float, end_s: float, draws: Sequence[Draw]
    ) -> int:
        pass_id = self.log.add(self.number, rows, features)
        self.log.timed(pass_id, start_s, end_s)
        for seat, draw in zip(self.seats, draws, strict=True):
            seat.spend(pass_id, start_s, end_s, draw)
        self.end(rows, end_s)
        return pass_id

    def end(self, rows: Ints, end_s: float) -> None:
        before = len(self.scheduler.closed)
        self.scheduler.finish(rows, end_s)
        if self.finished is not None:
            self.finished([c.who for c in self.scheduler.closed[before:]], end_s)
        self.last_end_s = end_s
        self._gap_s = self._next_gap_s()

    def _next_gap_s(self) -> float:
        late_s = float(self.rng.exponential(0.003)) if self.rng.random() < self.pace.late else 0.0
        return float(self.rng.gamma(4.0, self.pace.gap_s / 4.0)) + late_s


def take_turns(servers: Sequence[Server], slow: float = 1.0) -> None:
    """Each engine steps when it can; ``slow``: how much longer beside another on its board."""
    while True:
        start_s, number = min((s.next_start_s(), i) for i, s in enumerate(servers))
        if math.isinf(start_s):
            return
        server = servers[number]
        crowded = any(s.last_end_s > start_s for s in servers if s is not server)
        server.step(start_s, slow if crowded else 1.0)


def in_waves(ranks: Sequence[Server]) -> None:
    """Ranks step together; one that has nothing to compute runs a dummy step along."""
    reached_s = -math.inf
    while True:
        start_s = max(reached_s, min(rank.next_start_s() for rank in ranks))
        if math.isinf(start_s):
            return
        reached_s = _wave(ranks, start_s)


def _wave(ranks: Sequence[Server], start_s: float) -> float:
    """One wave; returns its end."""
    batches = [rank.prepare(start_s) for rank in ranks]
    if not any(len(rows) for rows, _ in batches):
        return start_s
    draws = [
        rank.draws(features.sum(axis=0) if len(rows) else rank.shape.dummy())
        for rank, (rows, features) in zip(ranks, batches, strict=True)
    ]
    end_s = start_s + max(draw.seconds for drawn in draws for draw in drawn)
    real: list[int] = []
    idle: list[int] = []
    for rank, (rows, features), drawn in zip(ranks, batches, draws, strict=True):
        pass_id = rank.complete(rows, features, start_s, end_s, drawn)
        (real if len(rows) else idle).append(pass_id)
    ranks[0].log.dummies.update(dict.fromkeys(idle, real))
    return end_s


def pipelined(lanes: Sequence[Server], stages: Sequence[Seat]) -> None:
    """One engine with a virtual engine (lane) for each stage. Precondition: equally many.

    A micro-batch enters the first stage when that is free and its lane's last one has come back,
    and each later stage when the one before has passed it on. The engine tells a step from then
    on, or from the end of the step told before, to when the last stage has its output.
    """
    free_s = [-math.inf] * len(stages)
    while True:
        ready_s, number = min(
            (max(lane.next_start_s(), free_s[0]), i) for i, lane in enumerate(lanes)
        )
        if math.isinf(ready_s):
            return
        lane = lanes[number]
        rows, features = lane.prepare(ready_s)
        if len(rows):
            told_s = max(ready_s, free_s[-1])
            pass_id = lane.log.add(lane.number, rows, features)
            end_s = _through(stages, free_s, pass_id, ready_s, lane, features.sum(axis=0))
            lane.log.timed(pass_id, told_s, end_s)
            lane.end(rows, end_s)


def _through(
    stages: Sequence[Seat],
    free_s: list[float],
    pass_id: int,
    ready_s: float,
    lane: Server,
    totals: Array,
) -> float:
    """Send a micro-batch through all stages; returns when the last one is done."""
    for number, seat in enumerate(stages):
        start_s = max(ready_s, free_s[number])
        draw = seat.draw(totals, lane.natural_s(totals))
        ready_s = free_s[number] = start_s + draw.seconds
        seat.spend(pass_id, start_s, ready_s, draw)
    return ready_s
