"""Builds engines and boards for a scenario's layout, and plays them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from meter.model import Layout
from tests.truth.board import Board, Seat
from tests.truth.costs import Setup, Shape, Terms
from tests.truth.engine import Limits, Scheduler
from tests.truth.layouts import Log, Server, in_waves, pipelined, take_turns
from tests.truth.spec import Scenario
from tests.truth.workload import Requests

_HANDOVER_S = (0.002, 0.010)


@dataclass(slots=True)
class Unit:
    """One engine as the meter knows it: its name, model, boards (by number) and schedulers."""

    name: str
    model: str
    boards: list[int]
    schedulers: list[Scheduler] = field(default_factory=list)
    layout: Layout | None = None


class Plant:
    """Everything of one run that is not told: boards, engines, and the log of their passes."""

    def __init__(self, scenario: Scenario, requests: Requests) -> None:
        self.scenario = scenario
        self.requests = requests
        setup = scenario.setup
        self.shape = Shape(setup.model.experts, scenario.short_chunks)
        self.log = Log()
        self.boards: list[Board] = []
        self.units: list[Unit] = []
        self._dice = iter(np.random.default_rng([scenario.seed, 77]).spawn(64))
        _LAYOUTS[scenario.layout](self)

    # --- parts

    def board(self, spread: float = 0.0) -> Board:
        scenario, rng = self.scenario, next(self._dice)
        static_w = scenario.setup.static_w * (1.0 + spread * float(rng.uniform(-1, 1)))
        limit_w = math.inf if scenario.limit_w is None else scenario.limit_w
        number = len(self.boards)
        self.boards.append(
            Board(
                f"GPU-{number}",
                static_w,
                rng,
                noise=scenario.noise,
                limit_w=limit_w,
                thermal=scenario.thermal,
                levels=[(t, w * static_w) for t, w in scenario.levels],
            )
        )
        return self.boards[-1]

    def unit(
        self, boards: list[int], model: str | None = None, layout: Layout | None = None
    ) -> Unit:
        name = model or self.scenario.setup.model.name
        self.units.append(Unit(str(len(self.units)), name, boards, layout=layout))
        return self.units[-1]

    def server(self, unit: Unit, seats: list[Seat], limits: Limits | None = None) -> Server:
        rng = next(self._dice)
        scheduler = Scheduler(self.requests, limits or self.scenario.limits, rng)
        unit.schedulers.append(scheduler)
        number = self.units.index(unit)
        pace = self.scenario.pace
        return Server(number, scheduler, seats, self.shape, pace, rng, self.log)

    def submit(self, servers: list[Server]) -> None:
        """Requests go to the servers in turn."""
        for who, t_s in enumerate(self.requests.arrival_s.tolist()):
            servers[who % len(servers)].scheduler.submit(t_s, who)


# --- layouts


def _costs(setup: Setup, share: float = 1.0, time: float | None = None) -> tuple[Terms, Terms]:
    return setup.joules.scaled(share), setup.seconds.scaled(share if time is None else time)


def _tensor(plant: Plant, ranks: int) -> None:
    """One engine on so many boards, each a little different."""
    several = ranks > 1
    unit = plant.unit(list(range(ranks)), layout=Layout(tp=ranks) if several else None)
    joules, seconds = _costs(plant.scenario.setup)
    seats = []
    for _ in range(ranks):
        board = plant.board(spread=0.04 if several else 0.0)
        own = 1.0 + (0.04 * float(board.rng.uniform(-1, 1)) if several else 0.0)
        seats.append(board.seat(joules.scaled(own), seconds))
    server = plant.server(unit, seats)
    plant.submit([server])
    take_turns([server])


def _pipeline(plant: Plant, stages: int) -> None:
    """One engine of so many stages, each as dear as the whole model of one board."""
    unit = plant.unit(list(range(stages)), layout=Layout(pp=stages))
    costs = _costs(plant.scenario.setup)
    seats = [plant.board(spread=0.02).seat(*costs) for _ in range(stages)]
    lanes = [plant.server(unit, seats[:1]) for _ in range(stages)]
    plant.submit(lanes)
    pipelined(lanes, seats)


def _waves(plant: Plant) -> None:
    """Two ranks; the second gets few requests, so it often runs along with nothing to do."""
    ranks = []
    for number in range(2):
        unit = plant.unit([number], layout=Layout(dp=2, ep=2))
        ranks.append(plant.server(unit, [plant.board().seat(*_costs(plant.scenario.setup))]))
    for who, t_s in enumerate(plant.requests.arrival_s.tolist()):
        ranks[int(who % 4 == 0)].scheduler.submit(t_s, who)
    in_waves(ranks)


def _handover(plant: Plant) -> None:
    """Prompts on one engine, the rest on another that is given their KV."""
    limits = plant.scenario.limits
    costs = _costs(plant.scenario.setup)
    first = plant.server(
        plant.unit([0]), [plant.board().seat(*costs)], replace(limits, prefill_only=True)
    )
    second = plant.server(plant.unit([1]), [plant.board().seat(*costs)], limits)
    wanted, prompt = plant.requests.wanted, plant.requests.prompt

    def hand_over(done: list[int], t_s: float) -> None:
        for who in done:
            if wanted[who] > 1:
                later_s = t_s + float(second.rng.uniform(*_HANDOVER_S))
                second.scheduler.submit(later_s, who, computed=int(prompt[who]))

    first.finished = hand_over
    plant.submit([first])
    take_turns([first, second])


def _shared(plant: Plant, slow: float, share: float, time: float, models: tuple[str, str]) -> None:
    """Two engines on one board; the second's work costs ``share`` of the first's."""
    board = plant.board()
    servers = []
    for model, part in zip(models, (1.0, share), strict=True):
        seat = board.seat(*_costs(plant.scenario.setup, part, part * time))
        servers.append(plant.server(plant.unit([0], model), [seat]))
    plant.submit(servers)
    take_turns(servers, slow)


_LAYOUTS: dict[str, Callable[[Plant], None]] = {
    "alone": lambda p: _tensor(p, 1),
    "tp2": lambda p: _tensor(p, 2),
    "tp8": lambda p: _tensor(p, 8),
    "pp2": lambda p: _pipeline(p, 2),
    "pp4": lambda p: _pipeline(p, 4),
    "dp2": _waves,
    "handover": _handover,
    "shared": lambda p: _shared(p, 1.0, 1.0, 1.0, ("twin-a", "twin-b")),
    "shared-slow": lambda p: _shared(p, 1.6, 1.0, 1.0, ("twin-a", "twin-b")),
    "shared-mixed": lambda p: _shared(p, 1.6, 0.4, 1.0, ("large", "small")),
    "mig": lambda p: _shared(p, 1.0, 1.0, 2.0, ("slice", "slice")),
}
