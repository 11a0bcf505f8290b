"""Valid numbers that cannot be true: the core takes them without an error, and the sum holds."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor
from meter.attribution.coefficients import GENERIC, roofline_prior
from meter.attribution.fit import non_negative
from meter.attribution.plausible import plausible_device, plausible_engine
from meter.model import (
    Device,
    Engine,
    Event,
    Experts,
    Gap,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

from .installations import LAYOUTS, MS, Installation, S
from .test_every_joule import assert_holds

GPU = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)
ENGINE = Engine("0", ("GPU-0",), "m")
ODD = [0.0, -1.0, 5e-324, 1e-300, 1e-9, 1e15, 1e300, 1.7e308]
COUNTS = [0, 1, 10**9, 10**18]


def odd_device(device: Device, rnd: random.Random) -> Device:
    return replace(
        device,
        power_limit_w=rnd.choice([None, 700.0, *ODD]),
        mem_bandwidth=rnd.choice([None, 3e12, *ODD]),
        refresh_s=rnd.choice([None, 0.1, *ODD]),
    )


def odd_engine(engine: Engine, rnd: random.Random) -> Engine:
    return replace(
        engine,
        params=rnd.choice([None, 8e9, *ODD]),
        active_params=rnd.choice([None, *ODD]),
        weight_bytes=rnd.choice([16e9, *ODD]),
        kv_bytes_per_token=rnd.choice([1e5, *ODD]),
        layers=rnd.choice(COUNTS),
        heads=rnd.choice(COUNTS),
        head_dim=rnd.choice(COUNTS),
        experts=rnd.choice([None, Experts(8, 2), Experts(0, 0), Experts(2, 9), Experts(10**6, 1)]),
    )


def odd_event(event: Event, rnd: random.Random) -> Event:
    """One in a few is changed to something that a line could say."""
    match event:
        case Reading() if event.energy_uj is not None:
            more_uj = rnd.choice([0, 1, 10**9, 10**21])
            return replace(event, energy_uj=event.energy_uj + more_uj, power_w=rnd.choice(ODD))
        case Step():
            t1 = event.t1_ns
            work = [
                w._replace(
                    tokens=rnd.choice([0, 10**9, 10**12]),
                    context=rnd.choice([0, 10**9, 10**15]),
                    kept=rnd.choice([None, 0, 10**9]),
                )
                for w in event.work
            ]
            return replace(
                event,
                t0_ns=rnd.choice([event.t0_ns, t1, t1 + 5, t1 - 1, max(0, t1 - 3600 * S)]),
                seq=rnd.choice([event.seq, event.seq + 1000, 2**53]),
                work=rnd.choice([event.work, event.work * 2, tuple(work)]),
            )
        case Gap():
            return replace(event, first_seq=rnd.choice([event.last_seq + 9, 2**53]))
        case RequestOpened() | RequestClosed():
            return replace(event, t_ns=max(0, event.t_ns + rnd.choice([-(10**12), 10**12])))
        case _:
            return event


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example("tp2 dp2 ep", 920462, True, True, True)  # prices of work that nobody does
@example("dp2ep", 11159, True, False, True)  # steps of a nanosecond
@example("dp2ep", 996360, False, False, True)  # a counter with one tick
@settings(max_examples=40, deadline=None)
def test_no_value_breaks_the_core_or_the_sum(
    layout: str, seed: int, shared: bool, faulty: bool, hindsight: bool
) -> None:
    """Limits of 1e300 W, leaps of 1e15 J, steps of no length or of an hour, loads of tokens."""
    there = Installation(layout, seed, 2.0, shared=shared, faulty=faulty, late=True)
    rnd = random.Random(seed)
    events = [odd_event(e, rnd) if rnd.random() < 0.05 else e for e in there.events]
    core = Attributor(
        [odd_device(device, rnd) for device in there.devices],
        [odd_engine(engine, rnd) for engine in there.engines],
        hindsight=hindsight,
        window_ns=20 * MS,
    )
    for i, event in enumerate(events):
        core.feed(event)
        if i % 50 == 0:
            assert_holds(core.snapshot())
    core.finish()
    assert_holds(core.snapshot())
    assert all(np.isfinite(receipt.energy_j) for receipt in core.drain())


def test_facts_that_cannot_be_are_unknown() -> None:
    """And then a prior rests on none of them; what can be is left as it is."""
    assert plausible_device(GPU) is GPU
    assert plausible_engine(ENGINE) is ENGINE
    known = replace(GPU, power_limit_w=700.0, mem_bandwidth=3e12)
    model = replace(
        ENGINE,
        params=8e9,
        weight_bytes=16e9,
        kv_bytes_per_token=1e5,
        layers=32,
        heads=32,
        head_dim=128,
    )
    assert roofline_prior(model, known).informed
    for value in ODD:
        odd = plausible_device(replace(known, power_limit_w=value))
        assert odd.power_limit_w is None
        assert roofline_prior(model, odd) == GENERIC
        assert plausible_device(replace(known, refresh_s=value)).refresh_s in (None, 0.0)
    assert plausible_engine(replace(model, experts=Experts(2, 9))).experts is None
    assert plausible_engine(replace(model, heads=10**18)).heads is None


def test_a_limit_that_cannot_be_lets_no_leap_through() -> None:
    """Three times a limit of 1e300 W would be no limit."""
    core = Attributor([replace(GPU, power_limit_w=1e300)], [ENGINE])
    for i, energy_uj in enumerate((0, 4_000_000, 10**21, 10**21 + 4_000_000)):
        core.feed(Reading("GPU-0", S + i * 20 * MS, energy_uj))
    core.finish()
    s = core.snapshot()
    assert (s.measured_j, s.devices[0].jumps) == (8.0, 1)


def test_a_gap_that_ends_before_it_begins_is_none() -> None:
    """It would take lost steps back."""
    core = Attributor([GPU], [ENGINE], window_ns=0)
    core.feed(Gap("0", S, 0, 9, 3))
    core.finish()
    assert core.snapshot().lost_steps == 0


def test_who_is_named_twice_in_a_step_pays_twice_and_no_more() -> None:
    """The accounts and the receipts agree on it, in that step and after it."""
    core = Attributor([GPU], [ENGINE], window_ns=20 * MS)
    events: list[Event] = [Reading("GPU-0", S + i * 20 * MS, i * 4_000_000) for i in range(101)]
    events.append(RequestOpened("0", "r", S))
    for i in range(20):
        start = S + i * 100 * MS
        work = (Work("r", 1, 9 + i, Phase.DECODE),)
        events.append(Step("0", 0, i, start, start + 100 * MS, work * (2 if i == 5 else 1)))
    for event in sorted(events, key=lambda e: e.t_ns):
        core.feed(event)
        assert_holds(core.snapshot())
    core.finish()
    assert_holds(core.snapshot())


@pytest.mark.parametrize("size", [2, 7])
def test_work_that_is_always_done_together_has_a_fit(size: int) -> None:
    """Columns that are alike to the last digit leave many solutions: one of them is taken."""
    theta = non_negative(np.ones((size, size)), np.ones(size))
    assert np.isfinite(theta).all()
    assert theta.sum() == pytest.approx(1.0)
