"""The closed form against brute force, and the axioms of the split."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor, Fit
from meter.attribution.coefficients import Coefficients
from meter.model import (
    Account,
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    Receipt,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

from .oracle import brute_force
from .scenes import COST, ENGINE

CONTINUOUS = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)
KNOWN = {"GPU-0": Fit((COST,), np.zeros((7, 7)), 0.03, 1000, converged=False)}


def run(events: list[Event], device: Device = CONTINUOUS) -> Attributor:
    core = Attributor([device], [ENGINE], KNOWN)
    for event in events:
        core.feed(event)
    core.finish()
    return core


def joules(core: Attributor) -> dict[str, float]:
    return {receipt.id: receipt.energy_j for receipt in core.drain()}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Step], list[Event], list[Reading]]:
    """A random engine: members come and go, chunk, recompute, speculate; readings anywhere."""
    rnd = random.Random(draw(st.integers(0, 10**6)))
    count = draw(st.integers(1, 40))
    now, steps, events = 1_000_000_000, [], []
    context: dict[str, int] = {}
    prompt: dict[str, int] = {}
    gap_free = now
    for seq in range(count):
        if not context or rnd.random() < 0.4:
            request = f"r{len(prompt)}"
            prompt[request], context[request] = rnd.randint(1, 900), 0
            opened = now if seq == 0 or len(context) > 1 else now + rnd.randint(0, 5_000_000)
            events.append(RequestOpened("0", request, opened))
            gap_free = max(gap_free, opened)
        start = max(now, gap_free) + rnd.choice([0, 300_000])
        work = []
        for request, seen in list(context.items()):
            if rnd.random() < 0.1 and len(context) > 1:
                continue
            work.append(_some_work(rnd, request, seen, prompt[request]))
        work = work or [_some_work(rnd, request, seen, prompt[request])]
        end = start + rnd.randint(1_000_000, 60_000_000)
        steps.append(Step("0", 0, seq, start, end, tuple(work)))
        now = end
        for w in work:
            context[w.request] += w.kept if w.kept is not None else w.tokens
            if rnd.random() < 0.08:
                del context[w.request]
                events.append(RequestClosed("0", w.request, now, "stop", 1, 0, 1))
    readings, t, uj = [], 900_000_000, 10**9
    while t < now + 50_000_000:
        readings.append(Reading("GPU-0", t, uj))
        t += rnd.randint(20_000_000, 130_000_000)
        uj += rnd.randint(1_000_000, 60_000_000)
    readings.append(Reading("GPU-0", t, uj))
    return steps, [*events, *steps, *readings], readings


def _some_work(rnd: random.Random, request: str, seen: int, prompt: int) -> Work:
    if seen < prompt:
        return Work(request, rnd.randint(1, prompt - seen), seen, Phase.PREFILL)
    if rnd.random() < 0.05:
        return Work(request, seen, 0, Phase.RECOMPUTE, 0)
    if rnd.random() < 0.1:
        return Work(request, 4, seen, Phase.DECODE, rnd.randint(1, 4))
    return Work(request, 1, seen, Phase.DECODE)


def gap_starts(steps: list[Step], events: list[Event]) -> list[int]:
    """When the gap before each step begins, straight from its definition."""
    starts, last = [], 0
    for step in steps:
        opens = [e.t_ns for e in events if isinstance(e, RequestOpened) and e.t_ns <= step.t0_ns]
        closes = [e.t_ns for e in events if isinstance(e, RequestClosed) and e.t_ns <= step.t0_ns]
        moments = sorted([(t, 0, 1) for t in opens] + [(t, 1, -1) for t in closes])
        held, since = 0, step.t0_ns
        for t, _, change in moments:
            if held == 0 and change == 1:
                since = t
            held += change
        starts.append(min(step.t0_ns, max(last, since)))
        last = step.t1_ns
    return starts


@given(histories())
@settings(max_examples=120, deadline=None)
def test_closed_form_is_brute_force(history: tuple[list[Step], list[Event], list[Reading]]) -> None:
    """Running sums and the loop over everything agree to 1e-9, per request and for idle."""
    steps, events, readings = history
    expected, idle_j = brute_force(steps, gap_starts(steps, events), readings, COST)
    core = run(events)
    got = joules(core)
    open_requests = {r for r in expected if r not in got}
    for request in open_requests:
        receipt = core.receipt(request)
        assert receipt is not None
        got[request] = receipt.energy_j
    for request, energy_j in expected.items():
        assert math.isclose(got[request], energy_j, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(core.snapshot().total_j(Account.IDLE), idle_j, rel_tol=1e-9, abs_tol=1e-9)


@given(histories())
@settings(max_examples=60, deadline=None)
def test_efficiency(history: tuple[list[Step], list[Event], list[Reading]]) -> None:
    """What is handed out is what the counter moved, in the accounts and over the receipts."""
    core = run(history[1])
    s = core.snapshot()
    readings = history[2]
    assert readings[-1].energy_uj is not None
    assert readings[0].energy_uj is not None
    assert math.isclose(s.measured_j, (readings[-1].energy_uj - readings[0].energy_uj) / 1e6)
    assert abs(s.conservation_error_j) <= 1e-9 * s.measured_j
    assert abs(s.receipts_open_j + s.receipts_closed_j - s.attributed_j) <= 1e-9 * s.measured_j
    assert s.pending_j == pytest.approx(0.0, abs=1e-9)


@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_arrival_does_not_matter(
    history: tuple[list[Step], list[Event], list[Reading]], rnd: random.Random
) -> None:
    """Events shuffled within the reordering window give the same receipts, to the bit."""
    events = sorted(history[1], key=lambda e: e.t_ns)
    shaken = sorted(events, key=lambda e: e.t_ns + rnd.randint(0, 1_900_000_000))
    assert joules(run(shaken)) == joules(run(events))


@given(histories())
@settings(max_examples=40, deadline=None)
def test_at_any_moment(history: tuple[list[Step], list[Event], list[Reading]]) -> None:
    """The sum holds after every event, not only at the end."""
    core = Attributor([CONTINUOUS], [ENGINE], KNOWN)
    for event in sorted(history[1], key=lambda e: e.t_ns):
        core.feed(event)
        s = core.snapshot()
        assert abs(s.conservation_error_j) <= 1e-9 * max(1.0, s.measured_j)
        difference = s.receipts_open_j + s.receipts_closed_j - s.attributed_j
        assert abs(difference) <= 1e-9 * max(1.0, s.measured_j)


def two_requests(work: tuple[tuple[Work, ...], ...]) -> list[Event]:
    """Steps of 20 ms at constant power with the given work, both requests open throughout."""
    names = sorted({w.request for step in work for w in step})
    events: list[Event] = [RequestOpened("0", name, 1_000_000_000) for name in names]
    t = 1_000_000_000
    for seq, step in enumerate(work):
        events.append(Step("0", 0, seq, t, t + 20_000_000, step))
        t += 20_000_000
    events += [RequestClosed("0", name, t, "stop", 1, 0, 1) for name in names]
    events += [Reading("GPU-0", 1_000_000_000, 0), Reading("GPU-0", t, 50_000_000)]
    return events


def test_symmetry() -> None:
    """Requests with the same work in every step are charged the same."""
    step = lambda c: (Work("a", 1, c, Phase.DECODE), Work("b", 1, c, Phase.DECODE))  # noqa: E731
    got = joules(run(two_requests(tuple(step(100 + i) for i in range(10)))))
    assert got["a"] == got["b"] > 0


def test_null_player() -> None:
    """A request that is computed in no step is charged nothing."""
    events = two_requests(((Work("a", 5, 0, Phase.PREFILL),),))
    events.append(RequestOpened("0", "idle", 1_000_000_000))
    events.append(RequestClosed("0", "idle", 1_020_000_000, "abort", 9, 0, 0))
    assert joules(run(events))["idle"] == 0.0


@given(st.integers(1, 2000), st.integers(1, 500), st.integers(0, 3000))
def test_monotone_in_own_work(tokens: int, more: int, other: int) -> None:
    """More work of one's own in the same company never costs less."""
    company = Work("b", 1, other, Phase.DECODE)
    less = joules(run(two_requests(((Work("a", tokens, 0, Phase.PREFILL), company),))))
    moreover = joules(run(two_requests(((Work("a", tokens + more, 0, Phase.PREFILL), company),))))
    assert moreover["a"] >= less["a"]


def test_additive_over_intervals() -> None:
    """Cutting an interval in two at constant power changes nobody's joules."""
    events = two_requests(tuple((Work("a", 1, 9 + i, Phase.DECODE),) for i in range(4)))
    cut = [*events, Reading("GPU-0", 1_040_000_000, 25_000_000)]
    assert joules(run(cut))["a"] == pytest.approx(joules(run(events))["a"], rel=1e-12)


def test_swapped_phases_are_noticed() -> None:
    """A mutation that the oracle must catch: prefill told as decode gives other joules."""
    work = ((Work("a", 500, 0, Phase.PREFILL), Work("b", 1, 400, Phase.DECODE)),)
    swapped = ((Work("a", 500, 0, Phase.DECODE), Work("b", 1, 400, Phase.PREFILL)),)
    assert joules(run(two_requests(work)))["a"] != pytest.approx(
        joules(run(two_requests(swapped)))["a"], rel=0.01
    )


def test_two_engines_on_one_card_pay_static_power_once() -> None:
    """Static power flows once however many engines are busy; idle of a shared card is nobody's."""
    theta = Coefficients(100.0, 3.0, 0.0, 0.0, 0.0, 0.0)
    core = Attributor(
        [CONTINUOUS],
        [replace(ENGINE, id="0"), replace(ENGINE, id="1")],
        {"GPU-0": Fit((theta,), np.zeros((7, 7)), 0.03, 1000, converged=False)},
    )
    for engine in ("0", "1"):
        core.feed(RequestOpened(engine, f"r{engine}", 1_000_000_000))
        core.feed(
            Step(
                engine,
                0,
                0,
                1_000_000_000,
                1_020_000_000,
                (Work(f"r{engine}", 1, 5, Phase.DECODE),),
            )
        )
        core.feed(RequestClosed(engine, f"r{engine}", 1_020_000_000, "stop", 1, 0, 1))
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(Reading("GPU-0", 1_040_000_000, 6_000_000))
    core.finish()
    got = joules(core)
    assert got["r0"] == pytest.approx(2.0)
    assert got["r1"] == pytest.approx(2.0)
    idle = [key for key in core.snapshot().accounts if key.account is Account.IDLE]
    assert [key.engine for key in idle] == [""]
    assert core.snapshot().total_j(Account.IDLE) == pytest.approx(2.0)


@pytest.mark.parametrize(("others", "lost_j"), [(False, 3.0), (True, 2.0)])
def test_lost_steps_on_a_shared_card_carry_static_power(others: bool, lost_j: float) -> None:
    """As the steps around them do: all of it alone, half of it beside another engine's step."""
    theta = Coefficients(100.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    fit = Fit((theta,), np.zeros((7, 7)), 0.03, 1000, converged=False, shared=True)
    engines = [replace(ENGINE, id="0"), replace(ENGINE, id="1")]
    core = Attributor([CONTINUOUS], engines, {"GPU-0": fit})

    def step(engine: str, seq: int, start_ms: int) -> None:
        t0_ns = 1_000_000_000 + start_ms * 1_000_000
        work = (Work(f"r{engine}", 1, 5, Phase.DECODE),)
        core.feed(Step(engine, 0, seq, t0_ns, t0_ns + 20_000_000, work))

    for engine in ("0", "1"):
        core.feed(RequestOpened(engine, f"r{engine}", 1_000_000_000))
    step("0", 0, 0)
    step("0", 2, 40)
    if others:
        step("1", 0, 20)
    total_uj = 12_000_000 if others else 11_000_000
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(Reading("GPU-0", 1_080_000_000, total_uj))
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.unattributed["lost_steps"] == pytest.approx(lost_j, rel=1e-6)
    assert snapshot.total_j(Account.IDLE) == pytest.approx(2.0, rel=1e-6)


def test_a_model_of_which_nothing_is_known_but_its_time_pays_for_that() -> None:
    """Beside another engine: its first step has no price at all, and all its figures are finite."""
    known, nothing = (Coefficients(100.0, cost, 0.0, 0.0, cost, 0.0) for cost in (1.0, 0.0))
    fit = Fit((known, nothing), np.zeros((13, 13)), 0.03, 1000, converged=False, shared=True)
    engines = [replace(ENGINE, id="0"), replace(ENGINE, id="1", model="other")]
    core = Attributor([CONTINUOUS], engines, {"GPU-0": fit})
    for engine, phase in (("0", Phase.DECODE), ("1", Phase.PREFILL)):
        core.feed(RequestOpened(engine, f"r{engine}", 1_000_000_000))
        work = (Work(f"r{engine}", 1, 5, phase),)
        core.feed(Step(engine, 0, 0, 1_000_000_000, 1_020_000_000, work))
        core.feed(RequestClosed(engine, f"r{engine}", 1_020_000_000, "stop", 1, 0, 1))
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(Reading("GPU-0", 1_020_000_000, 4_000_000))
    core.finish()
    receipts = {receipt.id: receipt for receipt in core.drain()}
    assert receipts["r1"].energy_j == pytest.approx(1.0)
    assert receipts["r0"].energy_j == pytest.approx(3.0)
    assert all(np.isfinite(receipt.uncertainty_j) for receipt in receipts.values())


def test_several_devices_add_up() -> None:
    """A tensor-parallel request pays its share of every card, whenever each counter ticks."""
    devices = [replace(CONTINUOUS, id=f"GPU-{i}") for i in range(2)]
    core = Attributor(devices, [Engine("0", ("GPU-0", "GPU-1"))])
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, (Work("a", 9, 0, Phase.PREFILL),)))
    core.feed(RequestClosed("0", "a", 1_100_000_000, "stop", 9, 0, 1))
    for i, offset in enumerate((0, 30_000_000)):
        core.feed(Reading(f"GPU-{i}", 1_000_000_000 - offset, 0))
        core.feed(Reading(f"GPU-{i}", 1_050_000_000 - offset, 5_000_000))
        core.feed(Reading(f"GPU-{i}", 1_130_000_000 - offset, 25_000_000))
    core.finish()
    s = core.snapshot()
    receipts: list[Receipt] = core.drain()
    assert s.measured_j == pytest.approx(50.0)
    assert receipts[0].energy_j == pytest.approx(s.attributed_j, rel=1e-12)
    assert abs(s.conservation_error_j) < 1e-9
