"""The host's joules beside the GPUs': the same requests, other costs, and nothing mixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import pytest

from meter.attribution import Attributor, Boundaries
from meter.attribution.coefficients import prefill_pairs
from meter.model import (
    Account,
    Device,
    DeviceFound,
    EngineEvent,
    Event,
    Phase,
    Quality,
    Reading,
    Snapshot,
    Step,
    Work,
)
from tests.attribution.scenes import ENGINE, GPU, TIME, Scene

CPU = Device("cpu", "CPU", Quality.ESTIMATED, "cpu", "host", refresh_s=0.0)
IDLE_W, STEP_J, EACH_J = 15.0, 0.4, 0.02
INFO = replace(ENGINE, id="0", layers=7)


def own_time_s(work: Work) -> float:
    """By how much this makes a step longer: the idle power of that time is its own."""
    if work.phase is Phase.DECODE:
        return TIME.decode_j * work.tokens + TIME.context_j * work.context
    pairs = prefill_pairs(work.tokens, work.context)
    return TIME.prefill_j * work.tokens + TIME.pair_j * pairs


class OnHost:
    """What a scene's engine takes of the host, by a model of its own: idle power all the time,
    joules for a step and for each request in it. Read every 100 ms."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.truth_j: dict[str, float] = {}
        self.readings: list[Reading] = []
        steps = [event for event in scene.events if isinstance(event, Step)]
        cost_j: list[tuple[int, float]] = []
        for step in steps:
            members = [work.request for work in step.work]
            cost_j.append((step.t1_ns, STEP_J + EACH_J * len(members)))
            fixed_j = STEP_J + IDLE_W * TIME.step_j
            for work in step.work:
                share_j = fixed_j / len(members) + EACH_J + IDLE_W * own_time_s(work)
                self.truth_j[work.request] = self.truth_j.get(work.request, 0.0) + share_j
        self._read(cost_j, scene.events[0].t_ns, scene.events[-1].t_ns)

    def _read(self, cost_j: list[tuple[int, float]], start_ns: int, end_ns: int) -> None:
        done_j = 0.0
        for t_ns in range(start_ns, end_ns + 1, 100_000_000):
            while cost_j and cost_j[0][0] <= t_ns:
                done_j += cost_j.pop(0)[1]
            joules = done_j + IDLE_W * (t_ns - start_ns) / 1e9
            self.readings.append(Reading("cpu", t_ns, round(joules * 1e6)))

    def events(self) -> Iterator[Event]:
        both = [*self.scene.events, *self.readings]
        yield from sorted(both, key=lambda event: event.t_ns)


def conserved(snapshot: Snapshot) -> bool:
    return abs(snapshot.conservation_error_j) < 1e-6


@pytest.fixture(scope="module")
def played() -> tuple[OnHost, Boundaries]:
    """Two minutes of both."""
    on_host = OnHost(Scene(seed=4, seconds=60, arrivals_per_s=4.0))
    core = Boundaries([GPU], [ENGINE], beside="cpu", host=CPU)
    for event in on_host.events():
        core.feed(event)
    core.finish()
    return on_host, core


def test_the_gpus_figures_are_those_without_the_host(played: tuple[OnHost, Boundaries]) -> None:
    """To the last bit: nothing of the host is in them, nor in what they taught."""
    on_host, core = played
    alone = Attributor([GPU], [ENGINE])
    for event in on_host.scene.events:
        alone.feed(event)
    alone.finish()
    assert replace(core.snapshot(), host=None, t_ns=0) == replace(alone.snapshot(), t_ns=0)
    assert core.drain() == alone.drain()
    assert [known.device for known in core.learned()] == ["GPU-0"]


def test_a_request_has_its_share_of_the_host(played: tuple[OnHost, Boundaries]) -> None:
    """By the host's own costs, which are not the GPU's: it is as good there as here."""
    on_host, core = played
    receipts = core.drain_host()
    assert len(receipts) == len(on_host.truth_j)
    late = [r for r in receipts if r.opened_ns > 20_000_000_000]
    wrong = [abs(r.energy_j / on_host.truth_j[r.id] - 1) for r in late]
    assert fmean(wrong) < 0.15
    assert {r.quality for r in receipts} == {Quality.ESTIMATED}
    assert core.host_receipt(receipts[0].id) == receipts[0]


def test_the_hosts_joules_are_all_in_its_accounts(played: tuple[OnHost, Boundaries]) -> None:
    """Measured = attributed + idle + unattributed, and none is in the GPUs'."""
    on_host, core = played
    snapshot = core.snapshot()
    host = snapshot.host
    assert host is not None
    assert host.measured_j == pytest.approx(on_host.readings[-1].energy_uj / 1e6)
    assert conserved(host)
    assert conserved(snapshot)
    assert host.attributed_j == pytest.approx(sum(on_host.truth_j.values()), rel=0.1)
    assert host.total_j(Account.UNATTRIBUTED) < 0.02 * host.measured_j
    assert [d.device.id for d in host.devices] == ["cpu"]
    assert {e.devices for e in host.engines} == {("cpu",)}


def test_the_host_may_come_later_and_engines_change() -> None:
    """As GPUs do; there too an engine's facts are what it says of itself."""
    core = Boundaries([], [replace(ENGINE, devices=())], beside="cpu")
    assert core.snapshot().host is None
    core.feed(EngineEvent("0", 1_000_000_000, "ready", info=INFO))
    core.feed(DeviceFound(1_000_000_000, CPU, ()))
    core.feed(Reading("cpu", 1_000_000_001, 0))
    core.feed(Reading("cpu", 2_000_000_000, 7_000_000))
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.host is not None
    assert (snapshot.measured_j, snapshot.host.measured_j) == (0.0, 7.0)
    assert snapshot.devices == ()
    assert snapshot.engines == (INFO,)
    assert snapshot.host.engines == (replace(INFO, devices=("cpu",)),)


def test_an_engine_on_the_cpu_has_it_as_its_device() -> None:
    """There is no second boundary then."""
    core = Boundaries([CPU], [replace(ENGINE, devices=("cpu",))])
    core.feed(Reading("cpu", 1_000_000_000, 0))
    core.feed(Reading("cpu", 2_000_000_000, 7_000_000))
    core.finish()
    assert core.snapshot().measured_j == 7.0
    assert core.snapshot().host is None
    assert core.host_receipt("r") is None
    assert core.drain_host() == []
