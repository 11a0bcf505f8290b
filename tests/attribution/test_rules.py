"""The rules of others, on any trace: what they charge is in the accounts; nothing is invented."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution.rules import Rule, charges, split
from meter.model import (
    Account,
    Clock,
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.replay import CalibrationMode, Policy, Replayed, replay_trace, summary
from meter.trace import Trace

from .installations import LAYOUTS, MS, Installation, S

GPU = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)
ENGINE = Engine("0", ("GPU-0",), "m")
OTHERS = [Policy.TOKENS, Policy.TIME, Policy.INFLIGHT]
READINGS: list[Event] = [Reading("GPU-0", S + i * 20 * MS, i * 4_000_000) for i in range(101)]
DUMMY = Step("0", 0, 0, S, 2 * S, (), dummy=True)
OPEN, CLOSED = RequestOpened("0", "r", S), RequestClosed("0", "r", 2 * S, "stop")
PREFILL = Step("0", 0, 0, S, S + 500 * MS, (Work("r", 9, 0, Phase.PREFILL),))
DECODE = Step("0", 0, 1, S + 500 * MS, 2 * S, (Work("r", 1, 9, Phase.DECODE),))

#: Traces in which something that a rule may rest on is not there.
ODD: dict[str, list[Event]] = {
    "nothing": [],
    "no reading": [OPEN, PREFILL, DECODE, CLOSED],
    "one reading": [READINGS[0]],
    "one failed reading": [Reading("GPU-0", S, None, error="timeout")],
    "idle": READINGS,
    "only a clock": [Clock(S, 1)],
    "only dummies": [DUMMY, *READINGS],
    "requests without steps": [OPEN, *READINGS, CLOSED],
    "steps without requests": [PREFILL, DECODE, *READINGS],
    "a request without its end": [OPEN, PREFILL, DECODE, *READINGS],
    "an end without its request": [CLOSED, *READINGS],
    "no output": [OPEN, PREFILL, CLOSED, *READINGS],
    "two engines with one id": [
        OPEN,
        PREFILL,
        DECODE,
        CLOSED,
        RequestOpened("1", "r", S),
        Step("1", 0, 0, S, 2 * S, (Work("r", 1, 9, Phase.DECODE),)),
        RequestClosed("1", "r", 2 * S, "stop"),
        *READINGS,
    ],
}


def assert_agrees(replayed: Replayed) -> None:
    """Measured is the sum of the accounts, and those of requests are what receipts charge."""
    said, s = summary(replayed), replayed.snapshot
    small = 1e-9 * max(1.0, s.measured_j)
    terms = ("attributed", "idle", "startup", "unattributed", "pending")
    assert said["measured_j"] == pytest.approx(sum(said[f"{t}_j"] for t in terms), abs=small)
    assert said["conservation_error_j"] == pytest.approx(0.0, abs=small)
    assert min(said[f"{t}_j"] for t in terms) >= -small
    assert s.receipts_open_j + s.receipts_closed_j == pytest.approx(s.attributed_j, abs=small)
    assert sum(r.energy_j for r in replayed.receipts) == pytest.approx(
        s.receipts_closed_j, abs=small
    )
    if not s.receipts_open_j:
        for phase in ("prefill", "decode", "recompute"):
            by_receipt_j = sum(getattr(r, f"{phase}_j") for r in replayed.receipts)
            assert said[f"{phase}_j"] == pytest.approx(by_receipt_j, abs=small)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("what", list(ODD))
def test_any_trace_has_a_sum_under_any_rule(policy: Policy, what: str) -> None:
    """Without requests, steps or readings too: no rule fails, and the sum holds."""
    events = sorted(ODD[what], key=lambda e: e.t_ns)
    trace = Trace((GPU,), (ENGINE,), tuple(events), ())
    for mode in CalibrationMode:
        assert_agrees(replay_trace(trace, policy, mode))


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(OTHERS),
)
@settings(max_examples=30, deadline=None)
def test_no_rule_charges_more_than_was_measured(
    layout: str, seed: int, shared: bool, late: bool, faulty: bool, policy: Policy
) -> None:
    """Ranks and stages at the same time, resets, unwatched time: each joule is charged once."""
    there = Installation(layout, seed, 2.0, shared=shared, late=late, faulty=faulty)
    trace = Trace(tuple(there.devices), tuple(there.engines), tuple(there.events), ())
    replayed = replay_trace(trace, policy)
    assert_agrees(replayed)
    assert replayed.snapshot.measured_j == replay_trace(trace).snapshot.measured_j


@pytest.mark.parametrize("policy", OTHERS)
def test_a_rules_figures_are_its_own(policy: Policy) -> None:
    """No doubt (that is Shapley's), the phases of the rule, and the accounts of its receipts."""
    events = sorted([OPEN, PREFILL, DECODE, CLOSED, *READINGS], key=lambda e: e.t_ns)
    replayed = replay_trace(Trace((GPU,), (ENGINE,), tuple(events), ()), policy)
    (receipt,) = replayed.receipts
    prefill_j = {Policy.TOKENS: 0.5 * 400.0, Policy.TIME: 100.0, Policy.INFLIGHT: 100.0}[policy]
    whole_j = 400.0 if policy is Policy.TOKENS else 200.0
    assert receipt.uncertainty_j is None
    assert receipt.prefill_j == pytest.approx(prefill_j)
    assert receipt.energy_j == pytest.approx(whole_j)
    said = summary(replayed)
    assert said["policy"] == policy
    assert said["prefill_j"] == pytest.approx(prefill_j)
    assert said["idle_j"] == pytest.approx(400.0 - whole_j)
    assert replayed.snapshot.total_j(Account.UNATTRIBUTED) == 0.0


def test_steps_of_two_engines_on_two_devices_are_charged_their_own() -> None:
    """``time``: a step pays for its engine's device, not for the one next to it."""
    cards = [GPU, Device("GPU-1", "card", Quality.SIMULATED, refresh_s=0.0)]
    engines = [ENGINE, Engine("1", ("GPU-1",), "m")]
    events: list[Event] = [*READINGS]
    events += [Reading("GPU-1", S + i * 20 * MS, i * 1_000_000) for i in range(101)]
    for engine in engines:
        work = (Work(f"r{engine.id}", 1, 9, Phase.DECODE),)
        events.append(Step(engine.id, 0, 0, S, 2 * S, work))
    found = charges(sorted(events, key=lambda e: e.t_ns), Rule.TIME, cards, engines)
    assert found["r0"].decode_j == pytest.approx(200.0)
    assert found["r1"].decode_j == pytest.approx(50.0)


@pytest.mark.parametrize("rule", list(Rule))
def test_split_is_the_sum_of_the_phases(rule: Rule) -> None:
    """And who is still in flight at the end pays for the time until then."""
    events = sorted([OPEN, PREFILL, DECODE, *READINGS], key=lambda e: e.t_ns)
    charged = charges(events, rule)
    assert split(events, rule) == {"r": charged["r"].energy_j}
    assert charged["r"].energy_j == pytest.approx(200.0 if rule is Rule.TIME else 400.0)
