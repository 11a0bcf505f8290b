"""The issue's targets, held by some scenarios of each kind (``python -m tests.truth``: all)."""

from __future__ import annotations

from functools import cache

import pytest

from tests.truth import report, targets

pytestmark = pytest.mark.slow

run = cache(report.run)
MODERATE = ("moderate-h100-1", "moderate-light-3", "moderate-moe-1")
HELD = (*MODERATE, "shared-slow", "shared-mixed", "stranger-2", "lost-steps")


@pytest.mark.parametrize("name", HELD)
def test_targets_are_met(name: str) -> None:
    """Errors by request, phase, idle and tenant, and conservation, whole and online."""
    assert not run(name).missed


def test_doubts_cover_the_errors() -> None:
    """Of all receipts 68 % lie within one doubt and 95 % within two, short and long ones alike."""
    rows = [run(name) for name in MODERATE]
    parts = targets.coverage([row.whole for row in rows], [row.online for row in rows])
    assert not [target for target in parts if not target.met]


def test_a_card_that_is_mostly_idle_is_understood_too() -> None:
    """A request now and then, as when somebody tries the meter: the counter's lag is found."""
    row = run("idle")
    assert row.whole.requests.mean < 0.01
    assert row.online.requests.mean < 0.01
