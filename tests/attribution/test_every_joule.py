"""Every joule that is booked has an account, at any moment, whatever an installation is like.

``measured = attributed + idle + startup + unattributed + pending``, and what requests were charged
is what the accounts of requests hold.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor, Boundaries
from meter.model import (
    Account,
    Device,
    Engine,
    Event,
    Layout,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Snapshot,
    Step,
    Work,
)

from .installations import LAYOUTS, MS, Installation, S

GPU = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)


def assert_holds(s: Snapshot) -> None:
    """Summed here, not by the snapshot's own property."""
    small = 1e-9 * max(1.0, s.measured_j)
    accounts_j = s.attributed_j + s.total_j(Account.IDLE) + s.total_j(Account.STARTUP)
    accounts_j += s.total_j(Account.UNATTRIBUTED)
    assert s.measured_j == pytest.approx(accounts_j + s.pending_j, abs=small)
    assert s.receipts_open_j + s.receipts_closed_j == pytest.approx(s.attributed_j, abs=small)
    assert sum(s.unattributed.values()) == pytest.approx(
        s.total_j(Account.UNATTRIBUTED), abs=small
    )
    assert all(joules >= -small for joules in s.accounts.values())
    assert all(device.pending_j >= -small for device in s.devices)


def play(events: list[Event], core: Attributor | Boundaries, every: int = 1) -> Snapshot:
    """Feed them, look at the sum as they come, and give the end's."""
    for i, event in enumerate(events):
        core.feed(event)
        if i % every == 0:
            assert_holds(core.snapshot())
    assert_holds(core.snapshot())
    core.finish()
    snapshot = core.snapshot()
    assert_holds(snapshot)
    return snapshot


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_sum_holds_at_any_moment(
    layout: str, seed: int, shared: bool, late: bool, faulty: bool, only_dummies: bool
) -> None:
    """Every layout, alone and shared, with dummies, late devices and faults: nothing is missing."""
    there = Installation(
        layout, seed, shared=shared, late=late, faulty=faulty, only_dummies=only_dummies
    )
    core = Attributor(there.devices, there.engines, window_ns=20 * MS)
    s = play(there.events, core, every=5)
    assert s.pending_j == pytest.approx(0.0, abs=1e-9 * max(1.0, s.measured_j))
