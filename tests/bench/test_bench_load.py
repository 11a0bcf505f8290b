"""The load of the benchmarks is what it says; their arithmetic of truth is right."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from bench_load import CHUNK, PROMPTS, Fleet, Load
from bench_precision import hold
from bench_replay import write_trace

from meter.model import Event, Phase, Reading, RequestClosed, RequestOpened, Step, Work
from meter.replay import CalibrationMode, replay
from meter.trace import read_trace

SMALL = Load(running=48, turnover_per_s=6.0)
SECONDS = 20.0


def events_of(load: Load, engines: int = 1, blocks: int = 80) -> list[Event]:
    fleet = Fleet(load, engines)
    return [event for _ in range(blocks) for event in fleet.block(SECONDS / blocks)]


def complete(events: list[Event]) -> list[dict[str, Work]]:
    """Every step's work in full, followed by the rule of the change form and nothing else."""
    steps: list[dict[str, Work]] = []
    closed: set[str] = set()
    for event in events:
        if isinstance(event, RequestClosed):
            closed.add(event.request)
        if not isinstance(event, Step):
            continue
        work: dict[str, Work] = {}
        if event.same:
            for w in steps[-1].values():
                if w.phase is Phase.DECODE and w.request not in closed | set(event.drop):
                    work[w.request] = Work(w.request, 1, w.context + w.tokens, Phase.DECODE)
        work |= {w.request: w for w in event.work}
        steps.append(work)
    return steps


def test_so_many_run() -> None:
    """Every step computes the stated number of requests, closed ones never."""
    events = events_of(SMALL)
    closed: set[str] = set()
    works = iter(complete(events))
    for event in events:
        if isinstance(event, Step):
            work = next(works)
            assert len(work) == SMALL.running
            assert not closed & set(work)
        elif isinstance(event, RequestClosed):
            closed.add(event.request)


def test_both_forms_tell_the_same() -> None:
    """The change form, followed, is the full form; only its first step lists everybody."""
    changes, full = events_of(SMALL), events_of(replace(SMALL, change_form=False))
    assert complete(changes) == complete(full)
    steps = [e for e in changes if isinstance(e, Step)]
    assert [s.same for s in steps] == [False] + [True] * (len(steps) - 1)
    assert max(len(s.work) for s in steps[1:]) < 8
    assert [e for e in changes if not isinstance(e, Step)] == [
        e for e in full if not isinstance(e, Step)
    ]


def test_turnover() -> None:
    """Requests end and are replaced at the stated pace; who comes brings a chunk or two."""
    events = events_of(SMALL)
    ends = sum(isinstance(e, RequestClosed) for e in events)
    opens = sum(isinstance(e, RequestOpened) for e in events) - SMALL.running
    assert ends == pytest.approx(SECONDS * SMALL.turnover_per_s, abs=2)
    assert abs(opens - ends) <= 2
    chunks = Counter(
        w.request for e in events if isinstance(e, Step) for w in e.work if w.phase is Phase.PREFILL
    )
    assert max(PROMPTS) <= 2 * CHUNK
    assert {chunks[w] for w in chunks} == {1, 2}


def test_prompts_are_computed_once() -> None:
    """The chunks of a request add up to its prompt, and it decodes on from there."""
    events = events_of(SMALL)
    prompt = {e.request: e.prompt_tokens or 0 for e in events if isinstance(e, RequestOpened)}
    computed: dict[str, int] = {}
    for work in complete(events):
        for w in work.values():
            if w.request in computed:
                assert w.context == computed[w.request]
            computed[w.request] = w.context + w.tokens
    for e in events:
        if isinstance(e, RequestClosed):
            assert e.prompt_tokens == prompt[e.request]
            assert e.completion_tokens == computed[e.request] - prompt[e.request] + 1


def test_time() -> None:
    """Events come in order of time; steps take what they should, polls and ticks too."""
    events = events_of(SMALL, engines=2)
    assert all(a.t_ns <= b.t_ns for a, b in pairwise(events))
    steps = [e for e in events if isinstance(e, Step) and e.engine == "1"]
    assert len(steps) == pytest.approx(SECONDS / SMALL.step_s, rel=0.1)
    assert all(0 < b.t0_ns - a.t1_ns < 1_000_000 for a, b in pairwise(steps))
    readings = [e for e in events if isinstance(e, Reading) and e.device == "GPU-1"]
    assert len(readings) == pytest.approx(SECONDS / SMALL.poll_s, abs=2)
    moves = sum(a.energy_uj != b.energy_uj for a, b in pairwise(readings))
    assert moves == pytest.approx(SECONDS / SMALL.refresh_s, abs=2)


def test_the_counter_shows_what_was_drawn() -> None:
    """The last reading is what the card drew, less at most a tick."""
    fleet = Fleet(SMALL)
    readings = [e.energy_uj for e in fleet.block(SECONDS) if isinstance(e, Reading)]
    assert readings[0] is not None
    assert readings[-1] is not None
    drawn_j, shown_j = fleet.engines[0].energy_j, (readings[-1] - readings[0]) / 1e6
    power_w = drawn_j / SECONDS
    assert 100 < power_w < 1000
    assert drawn_j - 0.2 * power_w < shown_j <= drawn_j


def test_the_core_loses_nothing_of_it() -> None:
    """Fed to the core, every step is known, every joule in an account, every request billed."""
    fleet = Fleet(SMALL, engines=2)
    core = fleet.core()
    receipts = []
    for _ in range(80):
        for event in fleet.block(SECONDS / 80):
            core.feed(event)
        receipts += core.drain()
    core.finish()
    receipts += core.drain()
    s = core.snapshot()
    assert (s.lost_steps, s.late_events) == (0, 0)
    assert math.isclose(s.measured_j, sum(d.measured_j for d in s.devices))
    assert abs(s.conservation_error_j) <= 1e-9 * s.measured_j
    assert s.attributed_j > 0.97 * s.measured_j
    assert len(receipts) == pytest.approx(2 * SECONDS * SMALL.turnover_per_s, abs=4)
    assert all(r.energy_j > 0 for r in receipts)
    assert all(SMALL.running <= n <= SMALL.running + 2 for n in s.running.values())


@pytest.mark.parametrize("change_form", [True, False])
def test_the_trace_of_it_can_be_replayed(change_form: bool, tmp_path: Path) -> None:
    """A recorded trace has no bad line, is as big as asked for, and conserves."""
    path = tmp_path / "trace.jsonl"
    write_trace(path, Load(running=16, turnover_per_s=1.0, change_form=change_form), 0.3)
    assert 0.3e6 <= path.stat().st_size < 0.45e6
    assert read_trace(path).bad_lines == []
    replayed = replay(path, calibration=CalibrationMode.ONLINE)
    assert replayed.snapshot.lost_steps == 0
    assert abs(replayed.snapshot.conservation_error_j) <= 1e-9 * replayed.snapshot.measured_j


def test_the_month_in_short() -> None:
    """Two hours of the month: the core and the closed form agree to 1e-9."""
    assert max(hold(7200)) < 1e-9
