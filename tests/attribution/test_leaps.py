"""A counter that leaps makes no joules, also where its board tells no power limit."""

from __future__ import annotations

import pytest

from meter.attribution.intervals import Counter
from meter.model import Device, Quality, Reading

S = 1_000_000_000
POLL_NS = S // 50
POWER_W = 400.0


def moved_j(
    leap_j: float,
    limit_w: float | None = None,
    power_w: float | None = POWER_W,
    pause_ns: int = 0,
    boundary: str = "gpu",
) -> tuple[float, int]:
    """Joules and leaps of a counter that ticks every 100 ms for 10 s, and leaps in the middle."""
    device = Device("d", "card", Quality.MEASURED, boundary=boundary, power_limit_w=limit_w)
    counter = Counter(device)
    extra_uj, t_ns = 0, S
    for poll in range(500):
        t_ns += POLL_NS + (pause_ns if poll == 250 else 0)
        if poll == 250:
            extra_uj = round(leap_j * 1e6)
        ticks = poll // 5
        counter.add(Reading("d", t_ns, 10**9 + ticks * 40_000_000 + extra_uj, power_w))
    return counter.moved_uj / 1e6, counter.jumps


TRUE_J = 99 * 40.0


@pytest.mark.parametrize("leap_j", [700, 1000, 3500])
def test_power_read_at_the_same_moment_contradicts_a_leap(leap_j: float) -> None:
    """With no limit told, a leap of a thousand joules was taken for true: nobody drew it."""
    moved, jumps = moved_j(leap_j)
    assert jumps == 1
    assert moved == pytest.approx(TRUE_J, abs=2 * 40)


def test_what_may_have_been_drawn_between_two_polls_is_no_leap() -> None:
    """Power is sampled: a burst that it missed is believed."""
    assert moved_j(300) == (pytest.approx(TRUE_J + 300), 0)


@pytest.mark.parametrize(
    "more",
    [{"power_w": None}, {"pause_ns": 3 * S}, {"boundary": "host"}, {"limit_w": 2000.0}],
    ids=str,
)
def test_without_that_evidence_nothing_is_contradicted(more: dict[str, float]) -> None:
    """Power that is not read, a time without readings, a host's CPU (whose power is made of its
    counter): as before; a limit that is told says how much may be."""
    assert moved_j(1000, **more) == (pytest.approx(TRUE_J + 1000), 0)  # type: ignore[arg-type]


def test_a_limit_that_power_contradicts_makes_no_leaps() -> None:
    """A board that draws 400 W under a limit of 5 W has a wrong limit: its joules are counted."""
    assert moved_j(0, limit_w=5.0) == (pytest.approx(TRUE_J), 0)
