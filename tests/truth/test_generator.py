"""The truth generator itself: its sums, its counter, its telling, and each scenario's promise."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from meter.model import Phase, Reading, RequestClosed, Step
from meter.trace import read_trace
from tests.truth.case import Case
from tests.truth.scenarios import SCENARIOS, build
from tests.truth.targets import KINDS

pytestmark = pytest.mark.slow

_SECONDS = 18.0
_PLAIN = [name for name in SCENARIOS if not name.endswith("-facts")]


@cache
def case(name: str, seconds: float = _SECONDS) -> Case:
    return build(name, seconds=seconds)


def length_of(name: str) -> float:
    """Long enough for the scenario to show what it is about."""
    return {"startup": 40.0, "idle": 40.0, "preempted": 50.0}.get(name, _SECONDS)


def steps(case: Case) -> list[Step]:
    return [event for event in case.events if isinstance(event, Step)]


def readings(case: Case, device: str = "GPU-0") -> list[Reading]:
    found = [e for e in case.events if isinstance(e, Reading) and e.device == device]
    return sorted(found, key=lambda r: r.t_ns)


@pytest.mark.parametrize("name", _PLAIN)
def test_every_joule_is_in_one_account(name: str) -> None:
    """Requests, idle, start-up and strangers sum up to what the counters moved."""
    truth = case(name, length_of(name)).truth
    accounts_j = truth.requests_j + truth.idle_j + truth.startup_j + truth.stranger_j
    assert accounts_j == pytest.approx(truth.moved_j, rel=1e-9)
    assert truth.idle_j > 0
    assert all(charge.energy_j >= 0 for charge in truth.requests.values())
    assert SCENARIOS[name].targets in KINDS


@pytest.mark.parametrize("name", [name for name in _PLAIN if name not in ("reset", "jump")])
def test_the_counter_telescopes(name: str) -> None:
    """Changes between readings are never negative and sum up to what the truth says was seen."""
    found = case(name, length_of(name))
    for device, truth in found.truth.devices.items():
        uj = np.array([r.energy_uj for r in readings(found, device) if r.energy_uj is not None])
        assert (np.diff(uj) >= 0).all()
        assert (uj[-1] - uj[0]) / 1e6 == pytest.approx(truth.moved_j, rel=1e-12)
        assert truth.moved_j <= truth.integral_j


@pytest.mark.parametrize(
    "name",
    ["moderate-h100-2", "speculative", "dp2-experts", "startup", "failed", "pp2", "handover"],
)
def test_a_case_survives_its_file(name: str, tmp_path: Path) -> None:
    """What is written as a trace is read back as it was, without a bad line."""
    wanted = case(name, length_of(name))
    trace = read_trace(wanted.write(tmp_path))
    assert trace.bad_lines == []
    assert trace.events == wanted.events
    assert trace.devices == wanted.devices
    assert trace.engines == wanted.engines


def test_the_same_seed_gives_the_same_case() -> None:
    """A case is its declaration and nothing else."""
    again = build("moderate-light-1", seconds=_SECONDS)
    assert again.events == case("moderate-light-1").events
    assert build("moderate-light-1", seconds=_SECONDS, seed=99).events != again.events


@pytest.mark.parametrize("name", ["moderate-h100-1", "preempted", "overrun", "aborted", "chunked"])
def test_change_form_says_what_full_form_says(name: str) -> None:
    """Unfolded as ``model.Step`` says, the change form gives each step's rows as they were."""
    found = case(name)
    assert any(step.same for step in steps(found))
    rows, ends = found.settled.passes.rows, np.cumsum(found.settled.passes.members)
    for unfolded, end, members in zip(
        _unfolded(found), ends, found.settled.passes.members, strict=True
    ):
        wanted = Tally(
            (f"r{who}", tokens, context)
            for who, tokens, context, _, _ in rows[end - members : end].tolist()
        )
        assert unfolded == wanted


def _unfolded(case: Case) -> Iterator[Tally[tuple[str, int, int]]]:
    """A naive reader of the change form."""
    contexts: dict[str, int] = {}
    closed: set[str] = set()
    for event in case.events:
        if isinstance(event, RequestClosed):
            closed.add(event.request)
        if not isinstance(event, Step):
            continue
        kept = contexts if event.same else {}
        now = {r: (1, c + 1) for r, c in kept.items() if r not in closed.union(event.drop)}
        now |= {w.request: (w.tokens, w.context) for w in event.work}
        plain = {w.request: w.phase is Phase.DECODE and w.tokens == 1 for w in event.work}
        contexts = {r: context for r, (_, context) in now.items() if plain.get(r, True)}
        yield Tally((r, tokens, context) for r, (tokens, context) in now.items())


# --- each scenario is what its name says


def _phases(case: Case) -> set[Phase]:
    return {work.phase for step in steps(case) for work in step.work}


def _batches(case: Case) -> np.ndarray:
    return case.settled.passes.members


def _gaps(case: Case) -> np.ndarray:
    passes = case.settled.passes
    return passes.start_s[1:] - passes.end_s[:-1]


def _idle_share(case: Case) -> float:
    return case.truth.idle_j / case.truth.moved_j


def _reasons(case: Case) -> set[str | None]:
    return {event.reason for event in case.events if isinstance(event, RequestClosed)}


def _powers(case: Case) -> np.ndarray:
    power = case.settled.drawn[0].power
    return power.rates[:-1][np.diff(power.times) > 1e-9]


def _idle_powers(case: Case) -> np.ndarray:
    powers = _powers(case)
    return powers[powers < 140.0]


def _out_of_order(case: Case) -> bool:
    times = [e.t_ns for e in case.events if isinstance(e, Reading) and e.device == "GPU-1"]
    return times != sorted(times)


def _named_after_its_end(case: Case) -> bool:
    closed = {e.request: e.t_ns for e in case.events if isinstance(e, RequestClosed)}
    return any(
        closed.get(work.request, step.t1_ns) < step.t1_ns
        for step in steps(case)
        for work in step.work
    )


def _beside_each_other(case: Case) -> bool:
    """Steps of two engines at the same time."""
    told = sorted(steps(case), key=lambda step: step.t0_ns)
    return any(a.t1_ns > b.t0_ns for a, b in pairwise(told))


def _closed_by(case: Case, engine: str) -> int:
    return sum(isinstance(e, RequestClosed) and e.engine == engine for e in case.events)


def _most_context(case: Case) -> int:
    return max(work.context for step in steps(case) for work in step.work)


PROMISES: dict[str, Callable[[Case], object]] = {
    "idle": lambda c: _idle_share(c) > 0.3,
    "saturated": lambda c: _batches(c).max() == 128,
    "steady": lambda c: _idle_share(c) < 0.12,
    "chunked": lambda c: max(w.tokens for s in steps(c) for w in s.work) <= 256,
    "cached": lambda c: sum(e.cached_tokens or 0 for e in c.events if isinstance(e, RequestClosed)),
    "speculative": lambda c: any(w.kept for s in steps(c) for w in s.work),
    "preempted": lambda c: any(charge.recompute_j > 0 for charge in c.truth.requests.values()),
    "aborted": lambda c: "abort" in _reasons(c),
    "overrun": _named_after_its_end,
    "gaps": lambda c: np.median(_gaps(c)) > 0.0005,
    "full-form": lambda c: not any(step.same for step in steps(c)),
    "embeddings": lambda c: _phases(c) == {Phase.PREFILL},
    "noiseless": lambda c: (c.settled.noise == 1.0).all(),
    "thermal": lambda c: 0.02 * 115 < np.ptp(_idle_powers(c)) < 0.15 * 115,
    "capped": lambda c: 429.0 < _powers(c).max() < 430.001,
    "capped-light": lambda c: 57.9 < _powers(c).max() < 58.001,
    "refresh-10ms": lambda c: _changes(c) > 0.35 * len(readings(c)),
    "coarse": lambda c: all((r.energy_uj or 0) % 5_000_000 == 0 for r in _moved(c)),
    "failed": lambda c: any(r.energy_uj is None for r in readings(c)),
    "alias": lambda c: np.median(np.diff([r.t_ns for r in readings(c)])) == 20_000_000,
    "tp8": lambda c: len(c.devices) == 8 and len({tuple(t) for t in c.ticks}) == 8,
    "pp2": lambda c: len(c.devices) == 2 and (_gaps(c) >= -1e-12).all(),
    "pp4": lambda c: len(c.devices) == 4 and (_gaps(c) >= -1e-12).all(),
    "dp2-experts": lambda c: any(step.dummy for step in steps(c)) and _beside_each_other(c),
    "handover": lambda c: _closed_by(c, "0") > 0 and _closed_by(c, "1") > 0,
    "shared": lambda c: len(c.devices) == 1 and len(c.engines) == 2 and _beside_each_other(c),
    "mig": lambda c: c.engines[0].devices == c.engines[1].devices == ("GPU-0",),
    "two-node-late": _out_of_order,
    "lost-steps": lambda c: c.truth.lost_j > 0,
    "lost-changes": lambda c: c.truth.lost_j > 0,
    "startup": lambda c: c.truth.startup_j == pytest.approx(20 * 150, rel=1e-9),
}


def _changes(case: Case) -> int:
    return len({reading.energy_uj for reading in readings(case)})


def _moved(case: Case) -> list[Reading]:
    """Readings, counted from the first one."""
    first = readings(case)[0].energy_uj or 0
    return [Reading(r.device, r.t_ns, (r.energy_uj or 0) - first) for r in readings(case)]


@pytest.mark.parametrize("name", PROMISES)
def test_a_scenario_keeps_its_promise(name: str) -> None:
    """What the name says can be seen in what was played."""
    assert PROMISES[name](case(name, length_of(name)))


def test_long_contexts_are_long() -> None:
    """Some request reads more than 60 000 tokens of context."""
    assert _most_context(case("long", 60.0)) > 60_000


@pytest.mark.parametrize("name", ["stranger-1", "stranger-2"])
def test_a_stranger_is_there_for_a_quarter_of_the_time(name: str) -> None:
    """Abrupt bursts of 150 to 250 W."""
    found = case(name, 100.0)
    assert 0.15 * 150 * 100 < found.truth.stranger_j < 0.35 * 250 * 100


def test_late_readings_change_the_order_and_nothing_else() -> None:
    """The two-node runs are the same but for the order in which lines arrive."""
    now, late = case("two-node"), case("two-node-late")
    assert now.truth == late.truth
    assert sorted(map(repr, now.events)) == sorted(map(repr, late.events))


def test_a_broken_counter_breaks_where_it_should() -> None:
    """One falls, the other leaps; nothing else changes."""
    reset = np.diff([r.energy_uj or 0 for r in readings(case("reset", 90.0))])
    jump = np.diff([r.energy_uj or 0 for r in readings(case("jump", 90.0))])
    assert (reset < 0).sum() == 1
    assert (jump > 400e9).sum() == 1
