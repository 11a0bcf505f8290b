"""Power that misbehaves: each fault is scripted in the fake NVML library, seeded, and ends in a
stated account, a metric and a line in the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter.demo.card import Card, CardSpec, Fault
from meter.model import Account
from tests.power.rig import REFRESH_S, Rig, closes, hidden_s, moved_j, rig, wait_until

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
POWER_W = 400.0


@pytest.fixture
def card(tmp_path: Path, card: Card) -> Iterator[Card]:
    """Two cards that refresh fast and draw 400 W each."""
    specs = [CardSpec(uuid=uuid, refresh_s=REFRESH_S, seed=5) for uuid in (A, B)]
    made = Card.create(tmp_path / "card", specs)
    for device in (0, 1):
        made.post(device, POWER_W, time.monotonic_ns() - 10**9)
    yield made
    made.close()


def true_j(running: Rig, device: int = 0) -> float:
    """What the card drew between the first and the last good reading of it."""
    good = running.of((A, B)[device], good=True)
    return running.card.energy_j(device, good[-1].t_ns) - running.card.energy_j(
        device, good[0].t_ns
    )


#: The counter shows whole refreshes: two edges of one refresh each.
EDGES_J = 2 * POWER_W * (REFRESH_S + 0.01)


def test_a_call_that_hangs_loses_nothing(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it hangs the other GPU's figures go on, the source grows old and is said to be silent;
    afterwards all joules are there, in one interval. The reading of the call itself is not used:
    when in it the counter was read is not known."""
    monkeypatch.setattr("meter.power.lane._MOMENT_S", 0.2)
    monkeypatch.setattr("meter.power.sampler.SILENT_S", 0.3)
    with rig(library, card) as running:
        running.more(A)
        card.fault(0, Fault.HANG, time.monotonic_ns())
        wait_until(lambda: running.said("device_silent") == ["device_silent"], "the line")
        running.more(B, 50)
        age_s = running.metrics()
        assert age_s["joulemeter_device_age_seconds", A] >= 0.3
        assert age_s["joulemeter_device_age_seconds", B] < age_s["joulemeter_device_age_seconds", A]
        assert age_s["joulemeter_source_age_seconds", "power"] >= 0.3
        card.clear_faults(0)
        running.more(A)
        (hung,) = running.of(A, good=False)
        assert hung.error is not None
        assert "moment is not known" in hung.error
        wait_until(lambda: "device_back" in running.said("device_back"), "the line")
        snapshot = running.end()
        assert moved_j(running.of(A, good=True)) == pytest.approx(true_j(running), abs=EDGES_J)
        truth_j = true_j(running) + true_j(running, 1)
        assert snapshot.measured_j == pytest.approx(truth_j, abs=2 * EDGES_J)
        assert snapshot.total_j(Account.IDLE) == pytest.approx(snapshot.measured_j)
        assert closes(snapshot)
        assert running.metrics()["joulemeter_sample_errors_total", "nvml"] == 1


def test_stopping_does_not_wait_for_a_call_that_hangs(library: str, card: Card) -> None:
    """The meter ends while the driver hangs, and takes what it has."""
    with rig(library, card) as running:
        running.more(A)
        card.fault(0, Fault.HANG, time.monotonic_ns())
        running.more(B)
        running.sampler.stop(within_s=0.05)
        assert closes(running.end())
        card.clear_faults(0)


def test_a_lost_gpu_comes_back(library: str, card: Card) -> None:
    """While it is lost there are errors and no figures, and the other GPU goes on; then its joules
    are there, none lost, in the interval over the outage."""
    with rig(library, card) as running:
        running.more(A)
        card.fault(0, Fault.LOST, time.monotonic_ns())
        failed = running.more(A, good=False)
        running.more(B)
        assert all(r.error is not None and "GPU is lost" in r.error for r in failed)
        assert running.metrics()["joulemeter_sample_errors_total", "nvml"] >= len(failed)
        card.clear_faults(0)
        running.more(A)
        snapshot = running.end()
        assert moved_j(running.of(A)) == pytest.approx(true_j(running), abs=EDGES_J)
        assert snapshot.total_j(Account.IDLE) == pytest.approx(snapshot.measured_j)
        assert closes(snapshot)
        assert running.said("no_reading")[0] == "no_reading"


def test_a_gpu_that_is_lost_at_the_start_comes_later(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are metered meanwhile; when it can be read it is metered too, from then on."""
    monkeypatch.setattr("meter.power.sampler._LOOK_AGAIN_S", 0.05)
    card.fault(0, Fault.LOST, 0)
    with rig(library, card) as running:
        assert [device.id for device in running.sampler.devices] == [B]
        running.more(B)
        (problem,) = running.gauges.problems()
        assert "left out" in problem
        assert "GPU is lost" in problem
        card.clear_faults(0)
        running.more(A)
        assert {device.id for device in running.sampler.devices} == {A, B}
        wait_until(lambda: running.gauges.problems() == (), "health")
        assert running.said("gpu_left_out", "device_found") == ["gpu_left_out", "device_found"]
        snapshot = running.end()
        (state,) = (state for state in snapshot.devices if state.device.id == A)
        assert state.measured_j == pytest.approx(true_j(running), abs=EDGES_J)
        assert closes(snapshot)


def test_a_driver_reload_is_survived(library: str, card: Card) -> None:
    """NVML is started anew and the handles are found again. The counter starts from 0: what was
    drawn from the last tick before to the first reading after is in no account, and no more."""
    with rig(library, card) as running:
        running.more(A)
        before = time.monotonic_ns()
        card.reload_driver(before, before + 300_000_000)
        running.more(A, good=False)
        running.more(A)
        good = running.of(A, good=True)
        snapshot = running.end()
        (state, _) = snapshot.devices
        assert state.resets == 1
        assert running.metrics()["joulemeter_device_resets_total", ""] == 2, "one for each card"
        missing_j = true_j(running) - state.measured_j
        assert POWER_W * 0.3 - EDGES_J < missing_j < POWER_W * hidden_s([before], good) + EDGES_J
        assert closes(snapshot)
        assert running.said("nvml_restarted", "counter_went_back")[:2] == [
            "nvml_restarted",
            "counter_went_back",
        ]


def test_a_stuck_counter_gives_its_joules_later(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still while power is drawn: said, shown, and all its joules are there when it
    moves again."""
    monkeypatch.setattr("meter.power.watch._STILL_NS", 200_000_000)
    with rig(library, card) as running:
        running.more(A)
        card.fault(0, Fault.STUCK, time.monotonic_ns())
        wait_until(lambda: running.said("counter_stuck") == ["counter_stuck"], "the line")
        assert running.metrics()["joulemeter_gpu_energy_still_seconds", A] >= 0.2
        assert any("stood still" in problem for problem in running.gauges.problems())
        card.clear_faults(0)
        wait_until(lambda: bool(running.said("counter_moves_again")), "the line")
        running.more(A)
        assert running.metrics()["joulemeter_gpu_energy_still_seconds", A] == 0
        snapshot = running.end()
        assert moved_j(running.of(A)) == pytest.approx(true_j(running), abs=EDGES_J)
        assert snapshot.devices[0].measured_j == pytest.approx(true_j(running), abs=EDGES_J)
        assert closes(snapshot)


def test_a_counter_stuck_for_long_is_no_source(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its power is too low to tell: its readings count as failed, so that no step waits for
    it for ever."""
    monkeypatch.setattr("meter.power.watch._STILL_NS", 100_000_000)
    monkeypatch.setattr("meter.power.watch._FOR_GOOD_W", 2 * POWER_W)
    monkeypatch.setattr("meter.power.lane._STUCK_S", 0.3)
    with rig(library, card) as running:
        card.fault(0, Fault.STUCK, time.monotonic_ns())
        failed = running.more(A, good=False)[-1]
        assert failed.error is not None
        assert "stood still" in failed.error
        assert failed.power_w == POWER_W
        card.clear_faults(0)
        running.more(A)
        assert moved_j(running.of(A)) == pytest.approx(true_j(running), abs=EDGES_J)


def test_a_counter_that_is_stuck_for_good_is_replaced_by_its_power(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it stood: no joule is lost, and none is counted twice when it catches up later.
    It is said, and shown by the device's note and by the metric, for as long as it stands still."""
    monkeypatch.setattr("meter.power.watch._STILL_NS", 100_000_000)
    monkeypatch.setattr("meter.power.watch._FOR_GOOD_NS", 400_000_000)
    with rig(library, card) as running:
        running.more(A)
        card.fault(0, Fault.STUCK, time.monotonic_ns())
        wait_until(lambda: running.said("counter_given_up") != [], "the line")
        running.more(A, 50)
        assert running.of(A, good=False) == []
        assert running.metrics()["joulemeter_gpu_energy_still_seconds", A] > 0.4
        assert running.gauges.problems() == ()
        (note,) = (d.note for d in running.sampler.devices if d.id == A)
        assert note == "integrated power, for its counter is stuck"
        assert moved_j(running.of(A)) == pytest.approx(true_j(running), abs=EDGES_J, rel=0.03)
        card.clear_faults(0)  # it is where it would have been: all those joules, once more
        wait_until(lambda: "counter_moves_again" in running.said("counter_moves_again"), "it")
        running.more(A, 50)
        snapshot = running.end()
        (state, other) = snapshot.devices
        assert state.measured_j == pytest.approx(true_j(running), abs=EDGES_J, rel=0.03)
        assert (state.device.note, other.device.note) == (note, None)
        assert (state.resets, state.jumps) == (0, 0)
        assert closes(snapshot)
        lines = [line for line in running.logs if line["event"] == "counter_moves_again"]
        assert lines[0]["note"] == "it is not used any more"


@pytest.mark.parametrize(
    ("by_mj", "event", "metric"),
    [
        (500_000_000, "counter_jumped", "joulemeter_gpu_energy_jumps_total"),
        (-100_000, "counter_went_back", "joulemeter_device_resets_total"),
    ],
)
def test_a_counter_that_jumps_makes_no_joules(
    library: str, card: Card, by_mj: int, event: str, metric: str
) -> None:
    """Forwards beyond what a board can draw, or backwards: the leap is in no account; what is lost
    is what was drawn around it, from the tick before to the reading after."""
    with rig(library, card) as running:
        running.more(A)
        leap_ns = time.monotonic_ns()
        card.fault(0, Fault.JUMP, leap_ns, value=by_mj)
        wait_until(lambda: running.said(event) == [event], "the line")
        running.more(A)
        snapshot = running.end()
        metrics = running.metrics()
        label = A if "jumps" in metric else ""
        assert metrics[metric, label] == 1
        lost_j = true_j(running) - snapshot.devices[0].measured_j
        most_j = POWER_W * hidden_s([leap_ns], running.of(A, good=True))
        assert -EDGES_J < lost_j < most_j + EDGES_J
        assert closes(snapshot)
