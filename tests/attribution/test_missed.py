"""A meter that takes over from one that was killed: what nobody watched is nobody's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter.attribution import Attributor
from meter.model import Account, Reading
from tests.attribution.scenes import ENGINE, GPU, Scene

_FROM_NS, _UNTIL_NS = 40_000_000_000, 47_000_000_000


def taken_over() -> tuple[Scene, Attributor]:
    """A core that is told where the counter stood, and then of all that came 7 s later."""
    scene = Scene(seed=1, seconds=90.0)
    readings = [e for e in scene.events if isinstance(e, Reading)]
    core = Attributor((GPU,), (ENGINE,))
    core.feed(next(e for e in readings if e.t_ns >= _FROM_NS))
    first = next(e for e in readings if e.t_ns >= _UNTIL_NS)
    for event in scene.events:
        if event is first:
            core.feed(replace(event, missed="meter_down"))
        elif (event.t1_ns if hasattr(event, "t1_ns") else event.t_ns) > first.t_ns:
            core.feed(event)
    core.finish()
    return scene, core


def test_what_moved_unwatched_is_unattributed_for_its_reason() -> None:
    """To the microjoule; and the sum holds."""
    scene, core = taken_over()
    readings = [e for e in scene.events if isinstance(e, Reading)]
    before, after = (
        next(e for e in readings if e.t_ns >= t).energy_uj for t in (_FROM_NS, _UNTIL_NS)
    )
    assert before is not None and after is not None
    snapshot = core.snapshot()
    assert snapshot.unattributed["meter_down"] == pytest.approx((after - before) / 1e6, abs=1e-9)
    assert snapshot.total_j(Account.UNATTRIBUTED) == pytest.approx(
        sum(snapshot.unattributed.values())
    )
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    last = readings[-1].energy_uj
    assert last is not None
    assert snapshot.measured_j == pytest.approx((last - before) / 1e6, abs=1e-6)
    assert snapshot.devices[0].counter_uj == last


def test_requests_that_came_after_it_pay_as_ever() -> None:
    """None of it reaches a receipt."""
    scene, core = taken_over()
    receipts = [r for r in core.drain() if r.opened_ns > _UNTIL_NS + 20_000_000_000]
    assert len(receipts) > 50
    errors = [abs(r.energy_j / scene.truth_j[r.id] - 1) for r in receipts]
    assert sum(errors) / len(errors) < 0.02


@pytest.mark.parametrize("off_uj", [-1_000_000, 10**15])
def test_a_counter_that_was_reset_meanwhile_says_nothing(off_uj: int) -> None:
    """Nothing is invented where the two values cannot be of one count."""
    core = Attributor((GPU,), (ENGINE,))
    core.feed(Reading(GPU.id, 0, 5_000_000))
    core.feed(Reading(GPU.id, 10**10, 5_000_000 + off_uj, missed="meter_down"))
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.measured_j == 0 == snapshot.total_j(Account.UNATTRIBUTED)
    assert snapshot.devices[0].resets + snapshot.devices[0].jumps == 1
