"""Plays a scenario and tells it: from a declaration and a seed to a ``Case``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meter.model import Device, Engine, EngineEvent, Event, Quality
from tests.truth import telling
from tests.truth.card import Shown, show
from tests.truth.case import Case, Charge, DeviceTruth, Truth
from tests.truth.costs import DECODE, PHASE, PREFILL, RECOMPUTE, WHO, Array, Ints, Mask
from tests.truth.curve import Pulses
from tests.truth.engine import Scheduler
from tests.truth.plant import Plant, Unit
from tests.truth.settle import Settled, settle
from tests.truth.spec import Scenario, Stranger
from tests.truth.workload import ask

_ORIGIN_NS = 86_400 * 10**9 * 3 + 123_456_789
_FIRST_S = 2.0
_LAST_S = 6.0
_TAIL_S = 1.0
_NAMES = ("F", "a", "q", "b", "c", "e")
_EXACT = 1e-9


def build_case(scenario: Scenario) -> Case:
    """Deterministic: the same declaration gives the same case."""
    rng = np.random.default_rng([scenario.seed, 11])
    first_s = max(_FIRST_S, scenario.startup_s[1] + 1.0 if scenario.startup_s else 0.0)
    arrivals = scenario.profile.times(rng, first_s, scenario.seconds - _LAST_S)
    plant = Plant(scenario, ask(rng, scenario.mix, arrivals))
    end_s = max(scenario.seconds, max(plant.log.end_s) + _TAIL_S)
    for board in plant.boards:
        board.cool(end_s)
    nobody = Pulses(*np.zeros((3, 0)))
    strangers = [nobody for _ in plant.boards]
    if scenario.stranger is not None:
        strangers[0] = _bursts(scenario.stranger, rng, end_s)
    busy = [_busy_since(unit.schedulers) for unit in plant.units]
    settled = settle(plant.log, plant.shape, plant.boards, busy, strangers)
    shown = [
        show(board.id, scenario.counter, drawn.power, dice, end_s, _ORIGIN_NS)
        for board, drawn, dice in zip(
            plant.boards, settled.drawn, rng.spawn(len(plant.boards)), strict=True
        )
    ]
    events, unknown = _tell(plant, settled, shown, rng)
    return Case(
        name=scenario.name,
        about=scenario.about,
        targets=scenario.targets,
        devices=tuple(_device(scenario, board.id) for board in plant.boards),
        engines=tuple(_engine(scenario, plant, unit) for unit in plant.units),
        events=events,
        truth=_truth(plant, settled, shown, unknown, end_s),
        origin_ns=_ORIGIN_NS,
        noise=scenario.noise,
        ticks=[seen.ticks for seen in shown],
        settled=settled,
    )


def _busy_since(schedulers: Sequence[Scheduler]) -> Array:
    """When an engine began to hold requests, each time."""
    opened = [t for s in schedulers for t, _ in s.opened]
    closed = [c.t_s for s in schedulers for c in s.closed]
    times = np.array(opened + closed)
    change = np.repeat([1, -1], [len(opened), len(closed)])
    order = np.lexsort((-change, times))
    held = np.cumsum(change[order])
    begins = (held == 1) & (change[order] == 1)
    return np.asarray(times[order][begins])


def _bursts(stranger: Stranger, rng: np.random.Generator, end_s: float) -> Pulses:
    starts, ends, watts = [], [], []
    t_s = 6.0
    while t_s < end_s - 12.0:
        length = float(rng.uniform(3.0, 8.0))
        starts.append(t_s)
        ends.append(t_s + length)
        watts.append(float(rng.uniform(stranger.low_w, stranger.high_w)))
        t_s += length + length * (1.0 / stranger.share - 1.0) * float(rng.uniform(0.6, 1.4))
    return Pulses(np.array(starts), np.array(ends), np.array(watts))


# --- the truth


def _truth(
    plant: Plant, settled: Settled, shown: Sequence[Shown], unknown: Ints, end_s: float
) -> Truth:
    startup = plant.scenario.startup_s
    ends = np.array([end_s])
    integral = [float(d.power.until(ends)[0]) for d in settled.drawn]
    idle_j = sum(float(d.idle.until(ends)[0]) for d in settled.drawn)
    startup_j = 0.0
    if startup is not None:
        up, ready = (np.array([t]) for t in startup)
        startup_j = sum(float(d.idle.between(up, ready)[0]) for d in settled.drawn)
    stranger_j = sum(d.stranger_j for d in settled.drawn)
    accounts_j = float(settled.share_j.sum()) + idle_j + stranger_j
    if abs(accounts_j - sum(integral)) > _EXACT * sum(integral):
        raise AssertionError(f"truth {accounts_j} J is not the integral {sum(integral)} J")
    unseen_j = sum(integral) - sum(s.moved_j for s in shown)
    lost = np.isin(settled.passes.row_pass, unknown)
    return Truth(
        requests=_charges(plant, settled, lost),
        idle_j=idle_j - startup_j - unseen_j,
        startup_j=startup_j,
        stranger_j=stranger_j,
        lost_j=float(settled.share_j[lost].sum()),
        devices={
            board.id: _device_truth(plant, number, integral_j, seen)
            for number, (board, integral_j, seen) in enumerate(
                zip(plant.boards, integral, shown, strict=True)
            )
        },
    )


def _charges(plant: Plant, settled: Settled, lost: Mask) -> dict[str, Charge]:
    requests, phase = plant.requests, settled.passes.rows[:, PHASE]
    who = settled.passes.rows[:, WHO]

    def joules(chosen: Mask) -> Array:
        return np.asarray(np.bincount(who, settled.share_j * chosen, minlength=len(requests)) * 1.0)

    prefill, decode, recompute = (joules(phase == p) for p in (PREFILL, DECODE, RECOMPUTE))
    hidden = joules(lost)
    return {
        requests.id(i): Charge(
            prefill_j=float(prefill[i]),
            decode_j=float(decode[i]),
            recompute_j=float(recompute[i]),
            lost_j=float(hidden[i]),
            opened_s=t_s,
            tenant=requests.tenant[i],
        )
        for i, t_s in sorted(_opened(plant).items())
    }


def _opened(plant: Plant) -> dict[int, float]:
    """When each request was first taken, by any engine."""
    opened: dict[int, float] = {}
    for unit in plant.units:
        for scheduler in unit.schedulers:
            for t_s, who in scheduler.opened:
                opened[who] = min(t_s, opened.get(who, t_s))
    return opened


def _device_truth(plant: Plant, number: int, integral_j: float, shown: Shown) -> DeviceTruth:
    board = plant.boards[number]
    joules, seconds = board.seats[0]
    whole = joules.array() + board.static_w * seconds.array()
    coefficients = {"static_w": board.static_w} | dict(zip(_NAMES, whole.tolist(), strict=True))
    return DeviceTruth(
        integral_j=integral_j,
        moved_j=shown.moved_j,
        delay_s=shown.delay_s,
        smear_s=shown.smear_s,
        refresh_s=plant.scenario.counter.refresh_s,
        coefficients=coefficients,
    )


# --- what is told


def _tell(
    plant: Plant, settled: Settled, shown: Sequence[Shown], rng: np.random.Generator
) -> tuple[list[Event], Ints]:
    """All events in order of arrival; and the passes that the meter cannot know of."""
    scenario, origin = plant.scenario, telling.Origin(_ORIGIN_NS)
    events: list[Event] = []
    unknown: list[Ints] = [np.zeros(0, dtype=np.int64)]
    for number, unit in enumerate(plant.units):
        mine = np.flatnonzero(settled.passes.engine == number)
        told = telling.steps(
            unit.name, settled.passes, number, origin, scenario.telling, unit.schedulers
        )
        gone = telling.losses(scenario.telling, len(told), rng)
        unknown.append(mine[~np.array(telling.understood(told, gone.tolist()), dtype=bool)])
        hidden = set(gone.tolist())
        events += [step for place, step in enumerate(told) if place not in hidden]
        for scheduler in unit.schedulers:
            events += telling.lives(unit.name, unit.model, scheduler, origin)
        if scenario.startup_s is not None:
            up_s, ready_s = scenario.startup_s
            events.append(EngineEvent(unit.name, origin.at(up_s), "up"))
            events.append(EngineEvent(unit.name, origin.at(ready_s), "ready"))
    return _arrivals(events, shown, scenario, rng), np.concatenate(unknown)


def _arrivals(
    events: list[Event], shown: Sequence[Shown], scenario: Scenario, rng: np.random.Generator
) -> list[Event]:
    arrives: dict[int, int] = {}
    for number, seen in enumerate(shown):
        for reading in seen.readings:
            if number and scenario.late_readings_s:
                late_ns = round(float(rng.uniform(0.0, scenario.late_readings_s)) * 1e9)
                arrives[len(events)] = reading.t_ns + late_ns
            events.append(reading)
    return telling.in_order(events, arrives)


def _device(scenario: Scenario, id: str) -> Device:
    setup = scenario.setup
    if scenario.facts != "all":
        return Device(id, setup.card, Quality.SIMULATED)
    limit_w = setup.limit_w if scenario.limit_w is None else scenario.limit_w
    return Device(
        id,
        setup.card,
        Quality.SIMULATED,
        mem_bandwidth=setup.mem_bandwidth,
        power_limit_w=limit_w,
    )


def _engine(scenario: Scenario, plant: Plant, unit: Unit) -> Engine:
    model = scenario.setup.model
    devices = tuple(plant.boards[number].id for number in unit.boards)
    experts = None if scenario.facts == "none" else model.experts
    if scenario.facts != "all":
        return Engine(unit.name, devices, model=unit.model, experts=experts, layout=unit.layout)
    return Engine(
        unit.name,
        devices,
        model=unit.model,
        params=model.params,
        active_params=model.active_params,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        layers=model.layers,
        heads=model.heads,
        head_dim=model.head_dim,
        experts=experts,
        layout=unit.layout,
    )
