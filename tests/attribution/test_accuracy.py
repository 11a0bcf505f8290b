"""The core against scenes whose truth is known: what it learns, and how far off it is."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from meter.attribution import Attributor
from meter.attribution.rules import Rule, split
from meter.model import Account, Event, Reading, Receipt, RequestClosed
from meter.replay import CalibrationMode, Policy, replay_trace
from meter.trace import Trace

from .scenes import COST, ENGINE, GPU, Scene


def trace(scene: Scene) -> Trace:
    return Trace((GPU,), (ENGINE,), list(scene.events))


def errors(receipts: tuple[Receipt, ...], truth_j: dict[str, float]) -> list[float]:
    return sorted(
        abs(r.energy_j - truth_j[r.id]) / truth_j[r.id] for r in receipts if truth_j[r.id] > 0
    )


def p99(values: list[float]) -> float:
    return values[min(len(values) - 1, int(0.99 * len(values)))]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(seed=1, seconds=60.0)


@pytest.fixture(scope="module")
def finished(scene: Scene) -> dict[str, float]:
    closed = {e.request for e in scene.events if isinstance(e, RequestClosed)}
    return {id: j for id, j in scene.truth_j.items() if id in closed}


def test_whole_calibration_finds_each_request(scene: Scene, finished: dict[str, float]) -> None:
    """With the whole trace at hand: 100 ms counter, 3 % noise a step, nothing known before."""
    replayed = replay_trace(trace(scene))
    found = errors(replayed.receipts, finished)
    assert statistics.mean(found) < 0.015
    assert p99(found) < 0.08
    coefficients = replayed.snapshot.devices[0].coefficients
    assert coefficients["static_w"] == pytest.approx(COST.static_w, rel=0.02)
    assert coefficients["F"] == pytest.approx(COST.step_j, rel=0.10)
    assert coefficients["a"] == pytest.approx(COST.prefill_j, rel=0.10)


def test_online_calibration_settles_in(scene: Scene, finished: dict[str, float]) -> None:
    """Knowing only the past, after the first 20 seconds."""
    replayed = replay_trace(trace(scene), calibration=CalibrationMode.ONLINE)
    later = tuple(r for r in replayed.receipts if r.opened_ns > 20_000_000_000)
    found = errors(later, finished)
    assert statistics.mean(found) < 0.02
    assert p99(found) < 0.10


@pytest.mark.parametrize("policy", [Policy.TOKENS, Policy.TIME, Policy.INFLIGHT])
def test_other_rules_are_far_worse(
    scene: Scene, finished: dict[str, float], policy: Policy
) -> None:
    """The rules in use elsewhere miss by several times as much on the same trace."""
    ours = statistics.mean(errors(replay_trace(trace(scene)).receipts, finished))
    theirs = statistics.mean(errors(replay_trace(trace(scene), policy).receipts, finished))
    assert theirs > 4 * ours


def test_rules_conserve_busy_energy(scene: Scene) -> None:
    """`time` hands out exactly the energy of steps: more than that would be invented."""
    by_time = split(scene.events, Rule.TIME)
    readings = [e for e in scene.events if isinstance(e, Reading)]
    assert readings[-1].energy_uj is not None
    assert readings[0].energy_uj is not None
    moved_j = (readings[-1].energy_uj - readings[0].energy_uj) / 1e6
    assert sum(by_time.values()) <= moved_j - 0.9 * scene.idle_j


def test_change_form_tells_the_same(finished: dict[str, float]) -> None:
    """A trace in change form gives the receipts of the same trace in full form."""
    full = replay_trace(trace(Scene(seed=1, seconds=60.0)))
    changes = replay_trace(trace(Scene(seed=1, seconds=60.0, change_form=True)))
    assert [r.id for r in full.receipts] == [r.id for r in changes.receipts]
    for a, b in zip(full.receipts, changes.receipts, strict=True):
        assert a.energy_j == pytest.approx(b.energy_j, rel=1e-9)


def test_polling_rate_does_not_matter() -> None:
    """Polled at 20, 50 or 100 Hz, a noiseless run's receipts agree within their doubt."""
    runs = [
        replay_trace(trace(Scene(seed=4, seconds=40.0, noise=0.0, poll_s=poll))).receipts
        for poll in (0.05, 0.02, 0.01)
    ]
    for slow, fast in pairwise(runs):
        known = {r.id: r for r in fast}
        for receipt in slow:
            twin = known[receipt.id]
            doubt_j = (receipt.uncertainty_j**2 + twin.uncertainty_j**2) ** 0.5
            assert abs(receipt.energy_j - twin.energy_j) <= 3 * doubt_j


def test_the_counter_tick_is_found(scene: Scene) -> None:
    """The refresh period is found from polls that are each 20 ms wide."""
    replayed = replay_trace(trace(scene))
    assert replayed.snapshot.devices[0].refresh_s == pytest.approx(0.1, rel=0.002)


def test_doubt_covers_the_error(scene: Scene, finished: dict[str, float]) -> None:
    """A first doubt: most receipts lie within one, nearly all within three of it."""
    receipts = replay_trace(trace(scene)).receipts
    scores = [
        abs(r.energy_j - finished[r.id]) / r.uncertainty_j
        for r in receipts
        if r.id in finished and r.uncertainty_j > 0
    ]
    assert sum(score <= 1 for score in scores) / len(scores) > 0.5
    assert sum(score <= 3 for score in scores) / len(scores) > 0.95


def with_extra(scene: Scene, extra_w: float, start: float, end: float) -> list[Event]:
    """The scene's events; its counter moves by so much more between two times (s)."""
    events: list[Event] = []
    for event in scene.events:
        if isinstance(event, Reading) and event.energy_uj is not None:
            t = event.t_ns / 1e9
            extra_j = extra_w * min(max(t - start, 0.0), end - start)
            energy_uj = event.energy_uj + round(1e6 * extra_j)
            events.append(Reading(event.device, event.t_ns, energy_uj))
        else:
            events.append(event)
    return _held(events)


def test_a_stranger_is_not_charged_to_requests() -> None:
    """A sustained foreign load is unattributed, and requests keep their joules."""
    extra_w, start, end = 200.0, 35.0, 45.0
    events = with_extra(Scene(seed=2, seconds=60.0), extra_w, start, end)
    replayed = replay_trace(Trace((GPU,), (ENGINE,), events), calibration=CalibrationMode.ONLINE)
    foreign_j = replayed.snapshot.unattributed["foreign_load"]
    assert foreign_j == pytest.approx(extra_w * (end - start), rel=0.15)
    assert abs(replayed.snapshot.conservation_error_j) < 1e-9 * replayed.snapshot.measured_j


def test_what_the_engine_itself_claims_is_no_strangers() -> None:
    """On a device whose joules are its engine's claim an excess is the requests' that ran then."""
    scene = Scene(seed=2, seconds=60.0)
    events = with_extra(scene, 200.0, 35.0, 45.0)
    claim = replace(GPU, boundary="host", claimed=True)
    for mode in CalibrationMode:
        s = replay_trace(Trace((claim,), (ENGINE,), events), calibration=mode).snapshot
        assert "foreign_load" not in s.unattributed
        usual_j = sum(scene.truth_j.values())
        assert s.attributed_j == pytest.approx(usual_j + 200.0 * 10, rel=0.05)


def _held(events: list[Event]) -> list[Event]:
    """Let readings change only where the scene's own counter ticked."""
    held: list[Event] = []
    last: Reading | None = None
    tick = -1
    for event in events:
        if isinstance(event, Reading):
            now = event.t_ns // 100_000_000
            if now == tick and last is not None:
                held.append(Reading(event.device, event.t_ns, last.energy_uj))
                continue
            tick, last = now, event
        held.append(event)
    return held


def test_idle_is_its_own_account() -> None:
    """Joules of an engine that holds no request are idle, and nobody's."""
    scene = Scene(seed=3, seconds=60.0, arrivals_per_s=3.0)
    replayed = replay_trace(trace(scene))
    assert replayed.snapshot.total_j(Account.IDLE) == pytest.approx(scene.idle_j, rel=0.02)


def test_tenants_sum_up() -> None:
    """A tenant's energy is the sum of its receipts."""
    core = Attributor([GPU], [ENGINE])
    for event in Scene(seed=5, seconds=15.0, tenants=("acme", "zeta")).events:
        core.feed(event)
    core.finish()
    receipts = core.drain()
    for key, energy_j in core.snapshot().tenant_energy_j.items():
        own = sum(r.energy_j for r in receipts if r.tenant == key.tenant)
        assert energy_j == pytest.approx(own, rel=1e-12)
