"""Short loads swept against the tick: a counter that looks away for a part of it is found out."""

from __future__ import annotations

import numpy as np
import pytest

from meter.model import (
    Device,
    Engine,
    Fidelity,
    Phase,
    Quality,
    Reading,
    Receipt,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.selftest.findings import find
from meter.selftest.foresight import Company
from meter.selftest.promises import Verdict, promises
from meter.trace import Trace

MS = 1_000_000
IDLE_W, BUSY_W = 100.0, 500.0
TICK, POLL, STEP = 100, 20, 10


def swept(seen_ms):
    """Loads of six steps every 525 ms, on a counter that looks at so much of each tick's end."""
    starts = [1000 + 525 * i for i in range(120)]
    end = starts[-1] + 2000
    watts = np.full(end, IDLE_W)
    events = []
    for number, start in enumerate(starts):
        watts[start : start + 6 * STEP] = BUSY_W
        id = f"r{number}"
        events.append(RequestOpened("0", id, start * MS))
        for k in range(6):
            t0 = start + k * STEP
            work = (Work(id, 1, 10 + k, Phase.DECODE),)
            events.append(Step("0", 0, 6 * number + k, t0 * MS, (t0 + STEP) * MS, work))
        events.append(RequestClosed("0", id, (start + 6 * STEP) * MS, "length", 10, 0, 6))
    ticks = watts[: end // TICK * TICK].reshape(-1, TICK)[:, TICK - seen_ms :].mean(axis=1)
    counted_uj = np.rint(np.concatenate(([0], np.cumsum(ticks * TICK * 1000)))).astype(int)
    events += [
        Reading("g", t * MS + 1, int(counted_uj[t // TICK]), IDLE_W)
        for t in range(0, end - TICK, POLL)
    ]
    events.sort(key=lambda event: event.t_ns)
    device, engine = Device("g", "card", Quality.SIMULATED), Engine("0", ("g",))
    return find(Trace((device,), (engine,), events), "swept")


@pytest.mark.parametrize(("seen_ms", "verdict"), [(100, Verdict.PASS), (25, Verdict.FAIL)])
def test_a_counter_that_looks_away_is_found_out(seen_ms, verdict):
    """Whole ticks show each load alike; quarters of them show it as they happen to meet it."""
    found = swept(seen_ms)
    assert len(found.devices[0].sweep.ratios) == 4
    judged = {one.id: one for one in promises(found)}
    assert judged["full_duty"].verdict is verdict
    # The power field shows none of these loads, as it may: only what is steady is compared.
    assert found.devices[0].counter.power_ratio == pytest.approx(1.0, abs=0.02)
    assert judged["conservation"].verdict is Verdict.PASS


def receipt(id, energy_j, opened=0, closed=1, output=10):
    return Receipt(
        id, "0", "m", None, opened, closed, "length", 20, 0, output, 0.0, energy_j, 0.0, 0.1,
        Fidelity.STEP, Quality.SIMULATED, True, (id,),
    )  # fmt: skip


def test_company_is_counted_over_time():
    """The most at once in a stretch; spells in which somebody was there; touching is no company."""
    company = Company(
        [receipt("a", 1, 10, 20), receipt("b", 1, 15, 30), receipt("c", 1, 30, 40),
         receipt("d", 1, 60, 70)]
    )  # fmt: skip
    low, high = np.array([0, 10, 12, 20, 25, 45, 50]), np.array([9, 14, 18, 24, 39, 50, 80])
    assert company.most(low, high).tolist() == [0, 1, 2, 1, 1, 0, 1]
    assert [(a, b) for a, b in company.spells() if b > a][-1] == (60, 70)
