"""What ``run`` prints, and what keeps a meter from being ready."""

from dataclasses import dataclass, field, replace

import pytest

from meter.export.state import State
from meter.model import Account, AccountKey, Device, DeviceState, Quality, Snapshot
from meter.power.errors import PowerError
from meter.power.lane import LaneState
from meter.power.sampler import SamplerCounters
from meter.pricing import Tariff
from meter.runtime.gauges import Gauges
from meter.runtime.lines import first_line, last_line
from meter.runtime.writer import Inbox

NS = 1_000_000_000
GPU = Device("GPU-0", "NVIDIA H100", Quality.ESTIMATED)


def test_the_last_line_adds_up():
    """Every account, and at which quality."""
    accounts = {
        AccountKey("0", "m", Account.DECODE, Quality.ESTIMATED): 800.0,
        AccountKey("0", "m", Account.IDLE, Quality.ESTIMATED): 200.0,
    }
    device = DeviceState(GPU, 1000.0, 0.0, None, None, None, {}, {}, 1, 0, None)
    snapshot = Snapshot(
        0, 0, accounts, devices=(device,), measured_j=1000.0, requests={("0", "m", "stop"): 2}
    )
    assert last_line(State(snapshot, Tariff("EUR"))) == (
        "joulemeter: measured 1,000.0 J (estimated) = 800.0 attributed + 200.0 idle + 0.0 startup "
        "+ 0.0 unattributed + 0.0 pending; residual 0.0e+00 J; 2 requests"
    )


def test_nothing_measured_is_said():
    """Rather than zeros."""
    assert "nothing was measured" in last_line(None)
    assert "nothing was measured" in last_line(State(Snapshot(0, None), Tariff("EUR")))


@dataclass
class FakeMeter:
    """As much of a meter as the first line names."""

    devices: tuple[Device, ...] = ()
    port: object = None
    sampler: object = None


def test_the_first_line_names_device_quality_and_what_is_missing():
    """A simulated card says so once."""
    assert first_line(FakeMeter()) == "joulemeter: no energy is read; no HTTP port"
    assert "metering NVIDIA H100 (estimated); " in first_line(FakeMeter((GPU, GPU)))
    simulated = replace(GPU, name="H100 (simulated)", quality=Quality.SIMULATED)
    assert "metering H100 (simulated); " in first_line(FakeMeter((simulated,)))
    shared = replace(GPU, name="A30", note="the whole board, shared by 2 MIG instances")
    said = "metering A30 (the whole board, shared by 2 MIG instances) (estimated); "
    assert said in first_line(FakeMeter((shared,)))


@dataclass
class Waiting:
    """As much of a sampler as tells what is waited for."""

    left_out: tuple[str, ...] = ()
    opening: bool = False
    lanes: tuple[LaneState, ...] = ()

    def states(self):
        return self.lanes


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (Waiting(), "no energy is read; "),
        (Waiting(("GPU 0: lost", "GPU 3: lost")), "waiting for GPU 0: lost; GPU 3: lost; "),
        (Waiting(opening=True), "waiting for the driver, which has not answered; "),
        (
            Waiting(lanes=(LaneState(GPU, "nvml", owned=False, owner=7),)),
            "waiting for NVIDIA H100 0 (pid 7 meters it); ",
        ),
    ],
)
def test_the_first_line_names_what_is_waited_for(sampler, said):
    """That nothing is read yet is not that nothing will be; what is read is named before it."""
    line = first_line(FakeMeter(sampler=sampler))
    assert said in line
    assert line.startswith("joulemeter: no energy is read")
    assert ("yet" in line) == (sampler != Waiting())
    beside = first_line(FakeMeter((GPU,), sampler=sampler))
    assert beside.startswith("joulemeter: metering NVIDIA H100 (estimated)")
    assert (said in beside) == (sampler != Waiting())


def test_the_first_line_stays_short():
    """However many GPUs are waited for, and whatever is said of them."""
    line = first_line(FakeMeter(sampler=Waiting(("GPU: " + "x" * 10_000,) * 500)))
    assert len(line) < 900
    assert "496 more" in line


@dataclass
class FakeSampler:
    counters: SamplerCounters = field(default_factory=lambda: SamplerCounters(7, {"nvml": 2}))
    lanes: tuple[LaneState, ...] = (LaneState(GPU, "nvml"),)
    opening: bool = False
    failure: PowerError | None = None
    left_out: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def states(self):
        return self.lanes


def test_a_silent_counter_is_a_problem():
    """None yet, or none for some seconds; what failed at the start stays a problem. The source is
    as old as the device that has been silent longest."""
    now = [10 * NS]
    sampler = FakeSampler()
    heard = {"power": 9 * NS, "engine": 8 * NS}
    gauges = Gauges(Inbox(), sampler, None, heard, ("the record: full",), lambda: now[0])
    assert gauges.problems() == ("the record: full", f"energy: {GPU.id}: no reading yet")
    fresh = LaneState(replace(GPU, id="GPU-1"), "nvml", good_ns=20 * NS)
    sampler.lanes = (LaneState(GPU, "nvml", good_ns=9 * NS), fresh)
    assert gauges.problems() == ("the record: full",)
    now[0] = 20 * NS
    assert f"{GPU.id}: no reading for 11 s" in gauges.problems()[1]
    health = gauges.health()
    assert (health.samples, health.sample_errors) == (7, {"nvml": 2})
    assert health.source_last_ns == {"power": 9 * NS, "engine": 8 * NS}


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (FakeSampler(lanes=(), opening=True), "has not answered yet"),
        (FakeSampler(lanes=(), failure=PowerError("no GPU after all")), "no GPU after all"),
        (FakeSampler(lanes=(LaneState(GPU, "nvml", owned=False, owner=42),)), "by pid 42"),
        (FakeSampler(lanes=(LaneState(GPU, "nvml", owned=False),)), "by another meter"),
        (FakeSampler(lanes=(LaneState(GPU, "nvml", good_ns=9, still_s=7.0),)), "still for 7 s"),
    ],
)
def test_what_is_wrong_with_a_device_is_said(sampler, says):
    """In words, with the device's name where it is one's own."""
    (problem,) = Gauges(Inbox(), sampler, None, {}, (), lambda: 10).problems()
    assert problem.startswith("energy: ")
    assert says in problem


def test_without_a_source_the_failure_at_the_start_is_the_problem():
    """And nothing is said of readings."""
    gauges = Gauges(Inbox(), None, None, {}, ("energy: no driver",))
    assert gauges.problems() == ("energy: no driver",)
    assert gauges.health().samples == 0
