"""A counter that says nothing for a while: what its joules are charged to when they arrive."""

from __future__ import annotations

import pytest

from meter.attribution import Attributor
from meter.model import Reading
from tests.attribution.scenes import ENGINE, GPU, Scene

_FROM_S, _NS = 40, 1_000_000_000


@pytest.mark.parametrize("silent_s", [5, 30])
def test_a_call_that_hangs_costs_no_request_its_joules(silent_s: int) -> None:
    """The joules of 30 s arrive in one interval, and go to who was served then: receipts are as
    true as ever, nothing is unattributed, nothing is counted as idle that was not."""
    scene = Scene(seed=1, seconds=90.0)
    core = Attributor((GPU,), (ENGINE,))
    for event in scene.events:
        hung = isinstance(event, Reading) and _FROM_S < event.t_ns / _NS < _FROM_S + silent_s
        if not hung:
            core.feed(event)
    core.finish()
    snapshot = core.snapshot()
    receipts = [r for r in core.drain() if _FROM_S - 3 < r.opened_ns / _NS < _FROM_S + silent_s]
    assert len(receipts) > 30
    ours, truth = sum(r.energy_j for r in receipts), sum(scene.truth_j[r.id] for r in receipts)
    assert ours == pytest.approx(truth, rel=0.01)
    if silent_s == 30:
        errors = [abs(r.energy_j / scene.truth_j[r.id] - 1) for r in receipts]
        assert sum(errors) / len(errors) < 0.02
    assert snapshot.unattributed == {} or sum(snapshot.unattributed.values()) == 0
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
