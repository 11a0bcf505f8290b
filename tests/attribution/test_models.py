"""Engines of several models on one device: each has costs of its own, from whenever it comes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest

from meter.attribution import Attributor
from meter.attribution.coefficients import Coefficients
from meter.model import Engine, EngineEvent, Event, Reading, Receipt, Step
from tests.truth.case import Case
from tests.truth.scenarios import build

from .scenes import COST, ENGINE, GPU, Scene

pytestmark = pytest.mark.slow

ALONE_S = 40.0
#: When who came later is known well.
LEARNED_S = 45.0
LARGE = replace(ENGINE, model="large")


@cache
def alone() -> Scene:
    """The larger model by itself; the light card of the truth generator costs the same."""
    return Scene(seed=4, seconds=ALONE_S)


@cache
def together() -> Case:
    return build("shared-mixed")


def after(events: Iterable[Event], later_s: float, energy_uj: int) -> list[Event]:
    """The same events, so much later; the engine has been started anew, the counter goes on."""
    shift_ns = round(later_s * 1e9)
    moved: list[Event] = []
    for event in events:
        match event:
            case Step():
                t0_ns, t1_ns = event.t0_ns + shift_ns, event.t1_ns + shift_ns
                moved.append(replace(event, t0_ns=t0_ns, t1_ns=t1_ns, epoch=event.epoch + 1))
            case Reading(energy_uj=int(counted)):
                t_ns = event.t_ns + shift_ns
                moved.append(replace(event, t_ns=t_ns, energy_uj=counted + energy_uj))
            case _:
                moved.append(replace(event, t_ns=event.t_ns + shift_ns))  # type: ignore[call-arg]
    return moved


def errors(receipts: Iterable[Receipt], truth_j: dict[str, float], from_ns: float) -> list[float]:
    return [
        abs(r.energy_j / truth_j[r.id] - 1)
        for r in receipts
        if r.opened_ns > from_ns and truth_j.get(r.id, 0) > 0
    ]


def test_a_second_model_that_comes_later_has_its_own_costs() -> None:
    """What was learned of the first one stays, and soon both are charged what they take."""
    scene, case = alone(), together()
    last = [e for e in scene.events if isinstance(e, Reading)][-1]
    first_ns = min(event.t_ns for event in case.events)
    shift_s = (last.t_ns - first_ns) * 1e-9 + 0.5
    assert last.energy_uj is not None
    core = Attributor([replace(GPU, id=case.devices[0].id)], [LARGE])
    for event in scene.events:
        core.feed(event)
    core.drain()
    ((before, *_),) = [fit.coefficients for fit in core.fits().values()]
    for info in case.engines:
        core.feed(EngineEvent(info.id, last.t_ns + 400_000_000, "up", info=info))
    for event in after(case.events, shift_s, last.energy_uj):
        core.feed(event)
    core.finish()
    snapshot = core.snapshot()
    device = snapshot.devices[0]
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    assert device.by_model.keys() == {"large", "small"}
    assert device.coefficients.keys() == {"static_w"}
    step_j = {model: costs["F"][0] for model, costs in device.by_model.items()}
    assert step_j["large"] == pytest.approx(before.step_j, rel=0.05)
    assert step_j["small"] < 0.6 * step_j["large"]
    truth_j = {id: charge.energy_j for id, charge in case.truth.requests.items()}
    found = errors(core.drain(), truth_j, last.t_ns + LEARNED_S * 1e9)
    assert len(found) > 100
    assert statistics.mean(found) < 0.01


def test_another_model_in_the_place_of_the_first_is_learned_anew() -> None:
    """Restarted with a model that costs half as much: soon its receipts are right."""
    scene = alone()
    other = Cheaper(seed=5, seconds=ALONE_S)
    last = [e for e in scene.events if isinstance(e, Reading)][-1]
    assert last.energy_uj is not None
    core = Attributor([GPU], [LARGE])
    for event in scene.events:
        core.feed(event)
    core.feed(EngineEvent("0", last.t_ns + 1, "down"))
    core.drain()
    info = replace(LARGE, model="other")
    core.feed(EngineEvent("0", last.t_ns + 400_000_000, "up", info=info))
    for event in after(other.events, last.t_ns * 1e-9, last.energy_uj):
        core.feed(event)
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    assert not snapshot.devices[0].by_model
    found = errors(core.drain(), other.truth_j, last.t_ns + 15e9)
    assert len(found) > 50
    assert statistics.mean(found) < 0.02
    assert snapshot.devices[0].coefficients["F"] == pytest.approx(COST.step_j / 2, rel=0.1)


def test_engines_of_one_model_share_their_costs() -> None:
    engines = [Engine(id, ("GPU-0",), model="m") for id in ("0", "1")]
    core = Attributor([GPU], engines)
    assert len(core.fits()["GPU-0"].coefficients) == 1


class Cheaper(Scene):
    """An engine whose every piece of work takes half the joules."""

    costs = Coefficients(COST.static_w, *(value / 2 for value in COST[1:]))
