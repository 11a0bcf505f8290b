"""Integrated power in a counter's place: the energy it gives, and what the core makes of it."""

from __future__ import annotations

import pytest

from meter.attribution.intervals import Counter, Interval
from meter.model import Device, Quality, Reading
from meter.power.instead import Instead, estimated

S = 1_000_000_000
CARD = Device("d", "card", Quality.MEASURED, power_limit_w=700.0, note="a vGPU")


def test_it_goes_on_from_what_was_drawn() -> None:
    """Whatever the counter says, and though it cannot be read."""
    instead = Instead(1_000_000, 500_000)
    first = instead.reading(Reading("d", S, 1_000_000, 100.0))
    second = instead.reading(Reading("d", S + S // 2, None, 100.0, error="the field failed"))
    third = instead.reading(Reading("d", 2 * S, 10**15, 100.0))
    assert [r.energy_uj for r in (first, second, third)] == [1_500_000, 51_500_000, 101_500_000]
    assert second.error is None


@pytest.mark.parametrize("error", [None, "the call failed"])
def test_without_power_there_is_no_energy(error: str | None) -> None:
    """And it is said why."""
    reading = Instead(0, 0).reading(Reading("d", S, 5, None, error=error))
    assert reading.energy_uj is None
    assert reading.error == (error or "no power to integrate")


def test_what_is_not_known_is_left_out() -> None:
    """After more than a second without power the energy falls back, like that of a counter that was
    reset."""
    instead = Instead(1_000_000, 0)
    energies = [
        instead.reading(Reading("d", t_ns, 0, 100.0)).energy_uj
        for t_ns in (S, S + S // 2, 4 * S, 4 * S + S // 2)
    ]
    assert energies == [1_000_000, 51_000_000, 1_000_000, 51_000_000]


def test_the_device_says_what_it_is() -> None:
    """Estimated, unless it was worse; what was said of it before stays."""
    device = estimated(CARD)
    assert device.quality is Quality.ESTIMATED
    assert device.note == "integrated power, for its counter is stuck; a vGPU"


def test_the_core_times_it_by_its_readings() -> None:
    """A counter of 100 ms ticks becomes one that moves at every poll: its intervals are some 100 ms
    then, as of a device that was read so from the start. All energy is in one."""
    ticking = [(k, k // 5 * 20) for k in range(500)]  # joules at 50 Hz, 200 W
    moving = [(500 + k, 2000 + 4 * k) for k in range(1, 100)]
    counter = Counter(CARD)
    intervals: list[Interval] = []

    def read(rows: list[tuple[int, int]]) -> None:
        for k, joules in rows:
            intervals.extend(counter.add(Reading("d", S + k * S // 50, joules * 10**6)) or [])

    read(ticking)
    assert counter.refresh_s == pytest.approx(0.1)
    before = len(intervals)
    intervals += counter.become(estimated(CARD))
    assert sum(i.energy_uj for i in intervals) == 1_980_000_000
    assert counter.become(estimated(CARD)) == []
    read(moving)
    assert counter.refresh_s == 0.0
    later = intervals[before:]
    assert all(0.05 < (i.end_ns - i.start_ns) / 1e9 < 0.15 for i in later)
    watts = [i.energy_uj * 1e3 / (i.end_ns - i.start_ns) for i in later]
    assert watts[0] == pytest.approx(200, rel=0.1), "from the last tick, as it was timed"
    assert watts[1:] == pytest.approx([200] * (len(watts) - 1))
    intervals += counter.flush()
    assert sum(i.energy_uj for i in intervals) == counter.moved_uj == 2_396_000_000


def test_what_the_counter_had_moved_before_is_timed_by_its_ticks() -> None:
    """Also where those were still held back."""
    counter = Counter(CARD)
    for k in range(100):
        assert not counter.add(Reading("d", S + k * S // 50, k // 5 * 20_000_000))
    closed = counter.become(estimated(CARD))
    assert [i.energy_uj for i in closed] == [20_000_000] * 19
