"""A counter that says nothing for a while: what its joules are charged to when they arrive."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter.attribution import Attributor
from meter.model import Account, Reading
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


def test_what_comes_after_a_long_silence_is_nobodys() -> None:
    """The steps could not wait: its reading says so. All of it is in one account, none on a
    receipt, and the requests that come later pay as ever; a counter that was reset meanwhile tells
    nothing."""
    scene = Scene(seed=1, seconds=150.0)
    until_s = _FROM_S + 60
    for reset in (False, True):
        core = Attributor((GPU,), (ENGINE,))
        before = after = None
        for event in scene.events:
            if not isinstance(event, Reading):
                core.feed(event)
            elif event.t_ns / _NS < _FROM_S:
                before = event
                core.feed(event)
            elif event.t_ns / _NS > until_s:
                less_uj = 10**12 if reset else 0
                told = replace(event, energy_uj=(event.energy_uj or 0) - less_uj)
                if after is None:
                    after = told
                    told = replace(told, missed="counter_silent")
                core.feed(told)
        core.finish()
        assert before is not None and after is not None
        snapshot = core.snapshot()
        silent_j = ((after.energy_uj or 0) - (before.energy_uj or 0)) / 1e6
        silent_j = 0.0 if reset else silent_j
        assert snapshot.unattributed.get("counter_silent", 0.0) == pytest.approx(silent_j)
        assert snapshot.total_j(Account.UNATTRIBUTED) == pytest.approx(silent_j)
        assert snapshot.devices[0].resets == int(reset)
        assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
        later = [r for r in core.drain() if r.opened_ns / _NS > until_s + 3]
        errors = [abs(r.energy_j / scene.truth_j[r.id] - 1) for r in later]
        assert len(errors) > 50
        assert sum(errors) / len(errors) < 0.02
