"""A meter that takes over from one that was killed: what nobody watched is nobody's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter.attribution import Attributor
from meter.model import Account, Reading, RequestOpened
from tests.attribution.scenes import ENGINE, GPU, Scene

_UNTIL_NS = 47_000_000_000


MISSED_UJ = 1_234_567_891


def taken_over() -> tuple[Scene, Attributor]:
    """A core whose meter began in mid-run, and knows what moved since somebody watched last."""
    scene = Scene(seed=1, seconds=90.0)
    core = Attributor((GPU,), (ENGINE,))
    first = True
    for event in scene.events:
        if (event.t1_ns if hasattr(event, "t1_ns") else event.t_ns) < _UNTIL_NS:
            continue
        if isinstance(event, Reading) and first:
            core.feed(replace(event, missed="meter_down", missed_uj=MISSED_UJ))
            first = False
        else:
            core.feed(event)
    core.finish()
    return scene, core


def test_what_moved_unwatched_is_unattributed_for_its_reason() -> None:
    """To the microjoule; and the sum holds."""
    scene, core = taken_over()
    snapshot = core.snapshot()
    assert snapshot.unattributed["meter_down"] == MISSED_UJ / 1e6
    assert snapshot.total_j(Account.UNATTRIBUTED) == pytest.approx(
        sum(snapshot.unattributed.values())
    )
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    readings = [e for e in scene.events if isinstance(e, Reading) and e.t_ns >= _UNTIL_NS]
    first, last = readings[0].energy_uj, readings[-1].energy_uj
    assert first is not None and last is not None
    assert snapshot.measured_j == pytest.approx((last - first + MISSED_UJ) / 1e6, abs=1e-6)
    assert snapshot.devices[0].counter_uj == last


def test_requests_that_came_after_it_pay_as_ever() -> None:
    """None of it reaches a receipt."""
    scene, core = taken_over()
    receipts = [r for r in core.drain() if r.opened_ns > _UNTIL_NS + 20_000_000_000]
    assert len(receipts) > 50
    errors = [abs(r.energy_j / scene.truth_j[r.id] - 1) for r in receipts]
    assert sum(errors) / len(errors) < 0.02


def test_only_a_first_reading_can_say_it() -> None:
    """Later on the counter itself has told what moved."""
    core = Attributor((GPU,), (ENGINE,))
    core.feed(Reading(GPU.id, 0, 5_000_000))
    core.feed(Reading(GPU.id, 10**9, 5_000_000, missed="meter_down", missed_uj=7))
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.measured_j == 0 == snapshot.total_j(Account.UNATTRIBUTED)


def test_what_an_engine_draws_while_it_hangs_is_idle_in_the_end() -> None:
    """A request is open and no step comes: nothing waits for it longer than half a minute."""
    core = Attributor((GPU,), (ENGINE,))
    core.feed(RequestOpened(ENGINE.id, "r", 0))
    for tick in range(600):
        core.feed(Reading(GPU.id, tick * 100_000_000, tick * 10_000_000))
    snapshot = core.snapshot()
    assert snapshot.total_j(Account.IDLE) > 0.9 * snapshot.measured_j - 300
    assert snapshot.total_j(Account.IDLE) > 2000
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
