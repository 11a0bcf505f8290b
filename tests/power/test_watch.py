"""What is said of a counter: stuck, back, jumped, not what its power says; and what is not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meter.model import Device, Quality, Reading
from meter.power.watch import Watch

S = 1_000_000_000
CARD = Device("d", "card", Quality.MEASURED, power_limit_w=700.0)


class Played:
    """A card polled at 50 Hz for some seconds, whose counter shows ``factor`` of what it draws."""

    def __init__(self, seed: int = 0, factor: float = 1.0) -> None:
        self.watch = Watch(CARD)
        self.said: list[str] = []
        self.t_ns, self.energy_uj, self.factor = S, 10**9, factor
        self._random = random.Random(seed)

    def run(self, seconds: float, power_w: float = 400.0, shows: bool = True) -> None:
        """``shows``: whether the counter moves."""
        for _ in range(round(seconds * 50)):
            self.t_ns += S // 50
            if shows:
                noise = self._random.gauss(1, 0.02)
                self.energy_uj += round(power_w * self.factor * noise * 1e6 / 50)
            self.see(self.energy_uj, power_w)

    def see(self, energy_uj: int, power_w: float | None = 400.0) -> None:
        reading = Reading("d", self.t_ns, energy_uj, power_w)
        self.said += [oddity.event for oddity in self.watch.see(reading)]


def test_a_good_counter_is_not_spoken_of() -> None:
    """Its gap is known after half a minute and small."""
    played = Played()
    played.run(20)
    assert played.watch.gap is None
    played.run(20)
    assert played.said == []
    assert played.watch.gap == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("factor", "gap"), [(0.8, -0.2), (1.3, 0.3)])
def test_a_gap_is_said_once(factor: float, gap: float) -> None:
    """And again when it is gone."""
    played = Played(factor=factor)
    played.run(70)
    assert played.said == ["counter_and_power_disagree"]
    assert played.watch.gap == pytest.approx(gap, abs=0.01)
    played.factor = 1.0
    played.run(65)
    assert played.said == ["counter_and_power_disagree", "counter_and_power_agree"]


def test_a_stuck_counter_is_told_from_one_that_has_nothing_to_show() -> None:
    """Still for 5 s at 400 W is stuck; still at (almost) no power is not."""
    played = Played()
    played.run(2)
    played.run(0.1, power_w=0.001)
    played.run(60, power_w=0.001, shows=False)
    assert played.said == []
    played.run(4, shows=False)
    assert played.said == []
    played.run(3, shows=False)
    assert played.said == ["counter_stuck"]
    assert played.watch.still_s > 5
    played.run(1)
    assert played.said == ["counter_stuck", "counter_moves_again"]
    assert played.watch.still_s == 0


@pytest.mark.parametrize(
    ("seconds", "power_w", "for_good"),
    [(29, 400.0, False), (31, 400.0, True), (31, 12.0, True), (600, 8.0, False)],
)
def test_it_is_stuck_for_good_after_half_a_minute_of_power(
    seconds: float, power_w: float, for_good: bool
) -> None:
    """Of clearly more than a sensor's error; not any more when it moves."""
    played = Played()
    played.run(2)
    drawn_j = seconds * power_w
    played.run(seconds, power_w, shows=False)
    assert played.watch.stuck_for_good is for_good
    if for_good:
        assert played.watch.unseen_uj / 1e6 == pytest.approx(drawn_j, rel=0.02, abs=10)
    played.run(0.1)
    assert not played.watch.stuck_for_good
    assert played.watch.unseen_uj == 0


@pytest.mark.parametrize(
    ("by_uj", "event"), [(-1, "counter_went_back"), (10**12, "counter_jumped")]
)
def test_a_leap_is_said_and_makes_no_gap(by_uj: int, event: str) -> None:
    """The comparison begins anew behind it."""
    played = Played()
    played.run(25)
    played.energy_uj += by_uj
    played.t_ns += 1
    played.see(played.energy_uj)
    assert played.said == [event]
    played.run(35)
    assert played.said == [event]
    assert played.watch.gap == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("by_j", "leaps"), [(1000, True), (700, True), (300, False)])
def test_power_contradicts_a_leap_where_no_limit_is_told(by_j: int, leaps: bool) -> None:
    """At 400 W no board moves a thousand joules in a fifth of a second."""
    played = Played()
    played.watch = Watch(replace(CARD, power_limit_w=None))
    played.run(5)
    played.energy_uj += by_j * 10**6
    played.run(5)
    assert played.said == (["counter_jumped"] if leaps else [])


def test_without_power_or_over_a_gap_nothing_is_contradicted() -> None:
    """What was not read may have been anything below what no board draws."""
    played = Played()
    played.watch = Watch(replace(CARD, power_limit_w=None))
    played.run(5)
    played.t_ns += 3 * S
    played.energy_uj += 30_000 * 10**6  # 10 kW for 3 s
    played.run(1)
    assert played.said == []
    for _ in range(20):
        played.t_ns += S // 50
        played.energy_uj += 8_000_000
        played.see(played.energy_uj, None)
    played.energy_uj += 2000 * 10**6
    played.t_ns += S // 50
    played.see(played.energy_uj, None)
    assert played.said == []


def test_power_excuses_more_than_a_limit_that_cannot_be_true() -> None:
    """A board that draws 400 W under a limit of 5 W has a wrong limit, not a bad counter."""
    played = Played()
    played.watch = Watch(replace(CARD, power_limit_w=5.0))
    played.run(5)
    assert played.said == []


def test_without_power_there_is_no_gap() -> None:
    """Unknown, not zero; nor is a failed reading anything to compare."""
    played = Played()
    for _ in range(50 * 40):
        played.t_ns += S // 50
        played.energy_uj += 8_000_000
        played.see(played.energy_uj, None)
    assert played.watch.see(Reading("d", played.t_ns + 1, None, error="no")) == []
    assert played.said == []
    assert played.watch.gap is None


@pytest.mark.parametrize(
    "device",
    [replace(CARD, quality=Quality.ESTIMATED), replace(CARD, id="cpu", boundary="host")],
)
def test_a_counter_made_of_its_power_is_not_compared(device: Device) -> None:
    """Nor a power made of its counter: that they agree would say nothing."""
    played = Played(factor=0.5)
    played.watch = Watch(device)
    played.run(70)
    assert played.watch.gap is None
    assert played.said == []
    played.run(40, shows=False)
    assert not played.watch.stuck_for_good


def test_what_was_not_seen_is_not_compared() -> None:
    """After an outage the integral lacks what the counter has: no gap is made of that."""
    played = Played()
    played.run(20)
    played.t_ns += 40 * S
    played.energy_uj += 40 * 400 * 10**6
    played.run(20)
    assert played.watch.gap is None
    played.run(20)
    assert played.said == []
    assert played.watch.gap == pytest.approx(0, abs=0.01)
