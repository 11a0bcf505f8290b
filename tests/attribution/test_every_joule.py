"""Every joule that is booked has an account, at any moment, whatever an installation is like.

``measured = attributed + idle + startup + unattributed + pending``, and what requests were charged
is what the accounts of requests hold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor, Fit
from meter.attribution.batch import Batch
from meter.attribution.books import NO_PAYER, Books
from meter.attribution.fit import Window
from meter.attribution.passes import STEP_J, PassTable
from meter.attribution.settled import Settled
from meter.model import (
    Account,
    Device,
    Engine,
    EngineEvent,
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
from .scenes import COST

GPU = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)


def assert_holds(s: Snapshot) -> None:
    """Summed here, not by the snapshot's own property."""
    small = 1e-9 * max(1.0, s.measured_j)
    accounts_j = s.attributed_j + s.total_j(Account.IDLE) + s.total_j(Account.STARTUP)
    accounts_j += s.total_j(Account.UNATTRIBUTED)
    assert s.measured_j == pytest.approx(accounts_j + s.pending_j, abs=small)
    assert s.receipts_open_j + s.receipts_closed_j == pytest.approx(s.attributed_j, abs=small)
    assert sum(s.unattributed.values()) == pytest.approx(s.total_j(Account.UNATTRIBUTED), abs=small)
    assert all(joules >= -small for joules in s.accounts.values())
    assert all(device.pending_j >= -small for device in s.devices)
    assert all(joules >= -small for device in s.devices for joules in device.drawn_j.values())


def play(events: list[Event], core: Attributor, every: int = 1) -> Snapshot:
    """Feed them, look at the sum as they come, and give the end's."""
    for i, event in enumerate(events):
        core.feed(event)
        if i % every == 0:
            assert_holds(core.snapshot())
    assert_holds(core.snapshot())
    core.finish()
    snapshot = core.snapshot()
    assert_holds(snapshot)
    for account in Account:  # what a chart is told by device agrees with the accounts
        drawn_j = sum(device.drawn_j[account] for device in snapshot.devices)
        small = 1e-9 * max(1.0, snapshot.measured_j)
        assert drawn_j == pytest.approx(snapshot.total_j(account), abs=small)
    return snapshot


@st.composite
def installations(draw: st.DrawFn) -> Installation:
    """Any layout, alone or sharing a device, with what goes wrong in the field."""
    there = Installation(
        draw(st.sampled_from(sorted(LAYOUTS))),
        draw(st.integers(0, 10**6)),
        shared=draw(st.booleans()),
        late=draw(st.booleans()),
        faulty=draw(st.booleans()),
        only_dummies=draw(st.booleans()),
    )
    if draw(st.booleans()):
        there.disturb()
    return there


@given(installations())
@settings(max_examples=60, deadline=None)
def test_the_sum_holds_at_any_moment(there: Installation) -> None:
    """Every layout, alone and shared, with dummies, late devices and faults: nothing is missing."""
    core = Attributor(there.devices, there.engines, window_ns=20 * MS)
    s = play(there.events, core, every=5)
    assert s.pending_j == pytest.approx(0.0, abs=1e-9 * max(1.0, s.measured_j))
    assert NO_PAYER not in s.unattributed


@given(installations(), st.sampled_from([-0.05, 0.0, 0.1]), st.sampled_from([0.0, 0.1]))
@settings(max_examples=40, deadline=None)
def test_the_sum_holds_through_a_counters_window_and_beside_strangers(
    there: Installation, delay_s: float, width_s: float
) -> None:
    """The same where the counter is late and smeared, and what is too much is a stranger's."""
    fit = Fit(
        (COST,) * 2,
        np.eye(13) * 1e-12,
        0.03,
        1000,
        converged=True,
        window=Window(delay_s, width_s),
        shared=there.shared,
        taught=(1000,) * 13,
    )
    fits = {f"GPU-{i}": fit for i in range(4)}
    s = play(there.events, Attributor(there.devices, there.engines, fits, window_ns=20 * MS), 20)
    assert NO_PAYER not in s.unattributed


@given(installations())
@settings(max_examples=15, deadline=None)
def test_the_sum_holds_in_hindsight(there: Installation) -> None:
    """A replay over the whole trace settles everything at its end, and misses nothing."""
    s = play(there.events, Attributor(there.devices, there.engines, hindsight=True), 200)
    assert s.pending_j == pytest.approx(0.0, abs=1e-9 * max(1.0, s.measured_j))
    assert NO_PAYER not in s.unattributed


def steps_of_a_lone_rank(dummies: bool, layout: Layout) -> tuple[Engine, list[Event]]:
    """A second of requests, a second without (dummy passes, or nothing), a second of requests."""
    engine = Engine("0", ("GPU-0",), "m", layout=layout)
    events: list[Event] = [Reading("GPU-0", S + i * 20 * MS, i * 4_000_000) for i in range(151)]
    for i in range(60):
        start, end = S + i * 50 * MS + MS, S + i * 50 * MS + 46 * MS
        request = f"r{i // 20}"
        if 20 <= i < 40:
            if dummies:
                events.append(Step("0", 0, i - 1, start, end, (), dummy=True))
            continue
        if i % 20 == 0:
            events.append(RequestOpened("0", request, start))
        work = Work(request, 1, i, Phase.DECODE)
        events.append(Step("0", 0, i, start, end, (work,)))
        if i % 20 == 19:
            events.append(RequestClosed("0", request, end, "stop"))
    return engine, sorted(events, key=lambda e: e.t_ns)


@pytest.mark.parametrize("finished", [False, True])
def test_dummy_passes_of_a_rank_alone_at_its_meter_are_unattributed(finished: bool) -> None:
    """Nobody at this meter ran beside them: their joules are ``dummy_steps``, live and at the end.

    They are those of the time that the dummies took: 200 W for 20 passes of 45 ms.
    """
    engine, events = steps_of_a_lone_rank(dummies=True, layout=Layout(dp=2, ep=2))
    core = Attributor([GPU], [engine], window_ns=20 * MS)
    for event in events:
        core.feed(event)
        assert_holds(core.snapshot())
    if finished:
        core.finish()
    s = core.snapshot()
    assert_holds(s)
    assert s.unattributed["dummy_steps"] == pytest.approx(200.0 * 20 * 0.045, rel=0.05)


def test_what_dummies_give_to_another_rank_is_pending_until_that_settles() -> None:
    """The joules of one rank's device, booked on a long pass of another, are never out of sight."""
    cards = [Device(f"GPU-{i}", "card", Quality.SIMULATED, refresh_s=0.0) for i in range(2)]
    ranks = [Engine(str(i), (f"GPU-{i}",), "m") for i in range(2)]
    events: list[Event] = [RequestOpened("1", "r", S)]
    for card in cards:
        events += [Reading(card.id, S + i * 20 * MS, i * 4_000_000) for i in range(151)]
    for i in range(50):
        start = S + i * 50 * MS
        events.append(Step("0", 0, 0, start, start + 40 * MS, (), dummy=True))
    for i in range(19):
        start = S + i * 130 * MS
        work = Work("r", 1, 9 + i, Phase.DECODE)
        events.append(Step("1", 0, i, start, start + 130 * MS, (work,)))
    core = Attributor(cards, ranks, window_ns=20 * MS)
    s = play(sorted(events, key=lambda e: e.t_ns), core)
    assert s.attributed_j == pytest.approx(2.47 * 200.0 + 50 * 0.04 * 200.0, rel=0.05)


def test_a_rank_that_changes_device_keeps_the_joules_of_its_dummies() -> None:
    """What the old device booked on them is not forgotten with it."""
    cards = [Device(f"GPU-{i}", "card", Quality.SIMULATED, refresh_s=0.0) for i in range(2)]
    engine = Engine("0", ("GPU-0",), "m")
    events: list[Event] = [
        Reading(card.id, S + i * 20 * MS, i * 4_000_000) for card in cards for i in range(200)
    ]
    for i in range(40):
        start = S + i * 50 * MS
        events.append(Step("0", 0, 0, start, start + 50 * MS, (), dummy=True))
    changed = replace(engine, devices=("GPU-1",))
    events.append(EngineEvent("0", S + 910 * MS, "info", info=changed))
    s = play(sorted(events, key=lambda e: e.t_ns), Attributor(cards, [engine], window_ns=20 * MS))
    assert s.unattributed["dummy_steps"] > 0


def test_work_after_a_requests_end_is_on_its_receipt() -> None:
    """A step that names a request after steps that did not, when its end is not settled yet: the
    end comes later, and the receipt holds all of its joules."""
    events: list[Event] = [Reading("GPU-0", S + i * 20 * MS, i * 4_000_000) for i in range(151)]
    events += [RequestOpened("0", "a", S), RequestOpened("0", "b", S)]
    for i in range(100):
        start = S + i * 20 * MS
        names = "ab" if i < 2 or 4 <= i < 60 else "b"
        work = tuple(Work(name, 1, 9 + i, Phase.DECODE) for name in names)
        events.append(Step("0", 0, i, start, start + 20 * MS, work))
    events += [
        RequestClosed("0", "a", S + 40 * MS, "stop"),
        RequestClosed("0", "b", S + 2000 * MS, "stop"),
    ]
    core = Attributor([GPU], [Engine("0", ("GPU-0",), "m")], window_ns=20 * MS)
    s = play(sorted(events, key=lambda e: e.t_ns), core)
    receipts = {receipt.id: receipt for receipt in core.drain()}
    assert s.receipts_open == 0
    assert s.receipts_open_j == pytest.approx(0.0, abs=1e-9)
    assert receipts["a"].energy_j == pytest.approx(58 * 2.0, rel=0.03)
    assert receipts["b"].energy_j == pytest.approx(58 * 2.0 + 42 * 4.0, rel=0.03)


def test_what_no_phase_pays_of_settled_passes_is_unattributed() -> None:
    """Whatever devices have booked on passes is in some account once those are settled."""
    table, books = PassTable(), Books()
    table.append(Batch().dummy(Step("0", 0, 0, S, 2 * S, (), dummy=True)))
    table.gather()
    table.booked[0, STEP_J] = 5.0
    table.on_device("GPU-0")[0] += 5.0
    block = Settled(table, 1, np.zeros(1))
    books.add_block("0", "m", Quality.MEASURED, block, table.first_j(1))
    assert sum(books.accounts.values()) == 5.0
    assert books.unattributed == {NO_PAYER: 5.0}
