"""One device's thread: its grid of polls, what it does not believe, whose the device is."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import structlog.testing

from meter.attribution import Attributor
from meter.model import (
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.power.lane import Lane
from tests.power.test_sampler import Script

START_NS, PERIOD_NS = 1_000_000, 20_000_000  # 50 Hz


def play(
    monkeypatch: pytest.MonkeyPatch, polls: int, seed: int = 0, read_ns: int = 0, wake_ns: int = 0
) -> tuple[list[int], list[Reading], Lane]:
    """A lane on a clock that only waiting and reading move: when each poll after the first
    began, and what was pushed. ``read_ns``: how long a read takes; ``wake_ns``: how late the thread
    is woken."""
    now = {"ns": START_NS}
    monkeypatch.setattr("meter.power.lane.time.monotonic_ns", lambda: now["ns"])
    begun: list[int] = []
    pushed: list[Event] = []

    class Slow(Script):
        def read(self, device: str | None = None) -> Sequence[Reading]:
            now["ns"] += read_ns
            return super().read(device)

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if not begun:  # the offset of the first poll
                begun.append(now["ns"])
                return False
            now["ns"] += round((timeout or 0.0) * 1e9) + wake_ns
            begun.append(now["ns"])
            if len(begun) == polls + 1:
                self.set()
            return self.is_set()

    device = Device("d", "device", Quality.SIMULATED)
    source = Slow(Reading("d", 1, 5))
    lane = Lane(source, device, pushed.append, PERIOD_NS, Clock(), seed=seed)
    lane.poll()
    return begun[1:], [event for event in pushed if isinstance(event, Reading)], lane


def test_the_jitter_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls stand around an absolute grid, by the seed: they do not drift, and a run can be
    repeated."""
    one, readings, lane = play(monkeypatch, 200, seed=1, wake_ns=300_000)
    assert one == play(monkeypatch, 200, seed=1, wake_ns=300_000)[0]
    assert one != play(monkeypatch, 200, seed=2, wake_ns=300_000)[0]
    off = [at - 300_000 - START_NS - (i + 1) * PERIOD_NS for i, at in enumerate(one)]
    assert max(map(abs, off)) <= 0.08 * PERIOD_NS + 1
    assert max(off) - min(off) > 0.1 * PERIOD_NS
    assert [r.late_s for r in readings[1:]] == pytest.approx([300e-6] * 200)
    assert lane.state.missed == 0


def test_missed_deadlines_are_not_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that takes four and a half periods: the next poll waits for the grid's next deadline,
    on time, and the four that passed are counted."""
    begun, readings, lane = play(monkeypatch, 10, read_ns=PERIOD_NS * 9 // 2)
    grid = [(at - START_NS) / PERIOD_NS for at in begun]
    assert grid == pytest.approx([5 * (i + 1) for i in range(10)], abs=0.081)
    assert [r.late_s for r in readings] == pytest.approx([0.0] * 11)
    assert lane.state.missed == 4 * 10


S = 1_000_000_000
DEVICE = Device("d", "device", Quality.SIMULATED)
CARD = Device("d", "card", Quality.MEASURED, power_limit_w=700.0)


def through_a_lane(answers: Sequence[Reading]) -> list[Reading]:
    """The readings that a lane pushes of what its source says."""
    readings = [event for event in pushed_of(answers) if isinstance(event, Reading)]
    return readings[: len(answers)]  # one more at the end, when it is stopped


def pushed_of(answers: Sequence[Reading], device: Device = DEVICE) -> list[Event]:
    """All that a lane pushes of what its source says."""
    pushed: list[Event] = []
    stopping = threading.Event()

    class Ending(Script):
        def read(self, device: str | None = None) -> Sequence[Reading]:
            if len(self.answers) == 1:
                stopping.set()
            return super().read(device)

    source = Ending(*answers)
    Lane(source, device, pushed.append, 1, stopping).poll()
    return pushed


@pytest.mark.parametrize(("silent_s", "missed_j"), [(30, 0.0), (44, 0.0), (46, 3.0), (3600, 3.0)])
def test_after_a_long_silence_the_joules_are_nobodys(silent_s: int, missed_j: float) -> None:
    """Steps do not wait for ever: what comes later than they waited is unattributed, and says why;
    what comes in time is theirs. Nothing is lost."""
    readings = through_a_lane(
        [
            Reading("d", S, 1_000_000),
            Reading("d", 2 * S, None, error="GPU is lost"),
            Reading("d", (1 + silent_s) * S, 4_000_000),
            Reading("d", (2 + silent_s) * S, 6_000_000),
        ]
    )
    core = Attributor([Device("d", "device", Quality.SIMULATED)])
    for reading in readings:
        core.feed(reading)
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.measured_j == pytest.approx(5.0)
    assert snapshot.unattributed.get("counter_silent", 0.0) == pytest.approx(missed_j)


def test_a_slow_call_is_believed_where_all_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one is not: when in it the counter was read is not known."""
    slow = [Reading("d", (10 + 2 * i) * S, i, latency_s=1.5) for i in range(3)]
    fast = Reading("d", 20 * S, 9, latency_s=0.001)
    readings = through_a_lane([Reading("d", S, 0, latency_s=0.001), *slow, fast, fast])
    assert [r.energy_uj for r in readings][:5] == [0, None, 1, 2, 9]
    assert "moment is not known" in (readings[1].error or "")


class Stuck:
    """A card at 400 W, read four times a second for 90 s; its counter stands still from 10 s on and
    leaps at ``until_s`` to where it would be."""

    def __init__(self, until_s: float, blind_s: tuple[float, float] = (0, 0)) -> None:
        self.readings = []
        for quarter in range(4 * 90 + 1):
            t_s = quarter / 4
            shown_s = 10 if 10 < t_s < until_s else t_s
            power_w = None if blind_s[0] < t_s < blind_s[1] else 400.0
            t_ns = S + quarter * S // 4
            self.readings.append(Reading("d", t_ns, round(4e8 * shown_s), power_w))

    def metered(self) -> Attributor:
        """A core that was fed with what a lane makes of it, and with one request all the while."""
        core = Attributor([CARD], [Engine("0", ("d",))])
        events = pushed_of(self.readings, CARD)[:-1]  # the last one comes twice
        steps = [
            Step(
                "0",
                0,
                k,
                S + k * S // 10,
                S + (k + 1) * S // 10,
                (Work("a", 1, k + 1, Phase.DECODE),),
            )
            for k in range(900)
        ]
        opened = RequestOpened("0", "a", S)
        closed = RequestClosed("0", "a", 91 * S, "stop", 1, 0, 900)
        for event in sorted((*events, *steps, opened, closed), key=lambda event: event.t_ns):
            core.feed(event)
        core.finish()
        return core


@pytest.mark.parametrize("until_s", [39, 60, 1000])
def test_a_request_has_its_joules_while_the_counter_is_stuck(until_s: float) -> None:
    """All of them, each once, whether it catches up in time, later or never; what was made of
    power is estimated, what the counter said before is measured."""
    core = Stuck(until_s).metered()
    snapshot = core.snapshot()
    (receipt,) = core.drain()
    given_up = until_s > 40
    assert snapshot.measured_j == pytest.approx(36_000, rel=1e-6)
    assert receipt.energy_j == pytest.approx(36_000, rel=1e-6)
    assert receipt.quality is (Quality.ESTIMATED if given_up else Quality.MEASURED)
    by_quality = {key.quality: j for key, j in snapshot.accounts.items() if j}
    measured_j = 4_000 if given_up else 36_000
    assert by_quality[Quality.MEASURED] == pytest.approx(measured_j, rel=0.02)
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    assert (snapshot.devices[0].resets, snapshot.devices[0].jumps) == (0, 0)


def test_what_is_drawn_while_its_power_cannot_be_read_is_not_made_up() -> None:
    """Nor taken from the counter that was given up."""
    snapshot = Stuck(1000, blind_s=(60, 70)).metered().snapshot()
    assert snapshot.measured_j == pytest.approx(36_000 - 400 * 10, abs=400)
    assert snapshot.devices[0].resets == 1
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)


def test_a_counter_that_leaps_all_the_time_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anything that repeats is a metric; the log has one line of each kind."""
    now = {"ns": 100 * S}
    monkeypatch.setattr("meter.power.lane.time.monotonic_ns", lambda: now["ns"])
    readings = [Reading("d", (1 + i) * S, 10**15 * (i % 2)) for i in range(20)]
    with structlog.testing.capture_logs() as logs:
        through_a_lane(readings)
    assert [line["event"] for line in logs] == ["counter_jumped", "counter_went_back"]
