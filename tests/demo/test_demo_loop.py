"""The engine's thread on a clock that is played: what it tells, and the truth it keeps."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import pytest
from wires import ListWire, MemoryCard, StepClock

from meter.demo.announce import Announcer
from meter.demo.engine import Engine, EngineRequest, Limits, Token
from meter.demo.loop import EngineLoop, Job
from meter.demo.physics import Physics
from meter.demo.truth import Truth
from meter.model import Phase, Work

LIMITS = Limits(running=8, step_tokens=64, block_tokens=4, blocks=60, context=200)


class Stage:
    """An engine's loop whose every edge is in memory; jobs are played from a script."""

    def __init__(self, wants_full: bool = False) -> None:
        self.wire = ListWire(wants_full=wants_full)
        self.card = MemoryCard()
        self.clock = StepClock()
        self.engine = Engine(LIMITS)
        self.truth = Truth()
        self.passes: list[list[Work]] = []
        self.script: dict[int, list[tuple[str, list[Job]]]] = {}
        self.quiet = threading.Event()
        self.loop = EngineLoop(
            self.engine,
            Physics(seed=3),
            self.card,
            Announcer(self.wire),
            self.truth,
            self.deliver,
            self.clock,
        )
        schedule = self.engine.schedule

        def noted() -> list[Work]:
            self.passes.append(schedule())
            return self.passes[-1]

        self.engine.schedule = noted  # type: ignore[method-assign]

    def deliver(self, tokens: list[Token]) -> None:
        for what, jobs in self.script.pop(len(self.passes), []):
            (self.loop.submit if what == "add" else self.loop.abort)(jobs)
        if self.engine.empty and not self.script:
            self.quiet.set()

    def play(self, first: list[Job]) -> None:
        start_ns = self.clock.now_ns()
        self.card.post(0, 115.0, start_ns)
        self.loop.submit(first)
        self.loop.start()
        assert self.quiet.wait(30), "the engine does not come to an end"
        self.loop.stop()
        assert self.loop.failure is None


def job(id: str, prompt: int = 20, max_tokens: int = 6, parent: str | None = None) -> Job:
    text = random.Random(id).choices(range(100), k=prompt)
    request = EngineRequest(id, text, max_tokens, lambda n: 500 + n, lambda count, token: False)
    return Job(request, parent or id, tenant="acme")


def busy_stage(wants_full: bool = False) -> Stage:
    """Arrivals, preemptions and aborts over some hundred passes."""
    stage = Stage(wants_full)
    rng = random.Random(5)
    jobs = [job(f"r{i}", rng.choice([3, 20, 90]), rng.randint(1, 40)) for i in range(40)]
    for number, one in enumerate(jobs[4:]):
        stage.script.setdefault(1 + 2 * number, []).append(("add", [one]))
        if number % 5 == 0:
            stage.script.setdefault(6 + 2 * number, []).append(("abort", [one]))
    stage.play(jobs[:4])
    return stage


@pytest.mark.parametrize("wants_full", [False, True])
def test_the_steps_told_are_the_steps_scheduled(wants_full: bool) -> None:
    """Rebuilt from the wire, in change form or in full: the same work, row for row."""
    stage = busy_stage(wants_full)
    steps = stage.wire.of("step")
    assert [step[0] for step in steps] == list(range(len(stage.passes)))
    assert any(step[4] for step in steps) is not wants_full
    assert _rebuilt(stage.wire) == [_as_told(work) for work in stage.passes]
    phases = {row.phase for work in stage.passes for row in work}
    assert phases == {Phase.PREFILL, Phase.DECODE, Phase.RECOMPUTE}


def _as_told(work: list[Work]) -> dict[str, tuple[Any, ...]]:
    return {row.request: (row.tokens, row.context, row.phase.value) for row in work}


def _rebuilt(wire: ListWire) -> list[dict[str, tuple[Any, ...]]]:
    """By the rule of ``meter.model.Step``, written once more."""
    steps: list[dict[str, tuple[Any, ...]]] = []
    decoding: dict[str, int] = {}
    for row in wire.told:
        if row[0] == "closed":
            decoding.pop(row[2], None)
        if row[0] != "step":
            continue
        _, _, _, _, told, same, drop = row
        now: dict[str, tuple[Any, ...]] = {}
        if same:
            now = {id: (1, context, "d") for id, context in decoding.items() if id not in drop}
        now |= {id: (tokens, context, phase) for id, tokens, context, phase in told}
        decoding = {id: context + 1 for id, (_, context, phase) in now.items() if phase == "d"}
        steps.append(now)
    return steps


def test_every_joule_that_the_card_drew_is_a_requests_or_idle() -> None:
    """The truth closes: requests' joules + static power while nobody was there = the card's."""
    stage = busy_stage()
    first_open = min(row[0] for row in stage.wire.of("opened"))
    last_close = max(row[0] for row in stage.wire.of("closed"))
    held = sorted((row[0], 1) for row in stage.wire.of("opened"))
    held += [(row[0], -1) for row in stage.wire.of("closed")]
    idle_j, open_now, since = 0.0, 0, first_open
    for t_ns, change in sorted(held):
        idle_j += 115.0 * (t_ns - since) / 1e9 if not open_now else 0.0
        open_now, since = open_now + change, t_ns
    before_j = 115.0 * (first_open - stage.card.posts[0][0]) / 1e9
    total_j = stage.card.energy_j(last_close)
    assert stage.truth.total_j() == pytest.approx(total_j - before_j - idle_j, rel=1e-9)


def test_what_is_told_of_a_request_is_what_it_did() -> None:
    """Opened once, closed once after the last step that names it, with the engine's own counts."""
    stage = busy_stage()
    opened = {row[1]: row[0] for row in stage.wire.of("opened")}
    closed = {row[1]: row for row in stage.wire.of("closed")}
    assert len(opened) == len(stage.wire.of("opened")) == len(closed)
    assert set(opened) == set(closed)
    last_step: dict[str, int] = {}
    for step, work in zip(stage.wire.of("step"), stage.passes, strict=True):
        assert step[1] < step[2]
        last_step |= {row.request: step[2] for row in work}
    for id, (t_ns, _, reason, _, cached, completion) in closed.items():
        assert t_ns >= last_step.get(id, 0) >= 0
        assert t_ns >= opened[id]
        assert reason in {"length", "abort"}
        if reason == "length":
            assert completion is not None
            assert completion > 0
            assert cached is not None
    assert {row[2] for row in stage.wire.of("closed")} == {"length", "abort"}


def test_steps_do_not_overlap_and_nothing_is_sent_late() -> None:
    """A step begins when the one before has ended; every pass flushes the wire."""
    stage = busy_stage()
    times = [(step[1], step[2]) for step in stage.wire.of("step")]
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
    assert stage.wire.flushes >= len(times)


def test_stopping_closes_what_is_open() -> None:
    """Whoever is still there then is closed as aborted; last it says that it is down."""
    stage = Stage()
    started = threading.Event()
    stage.loop._deliver = lambda tokens: started.set()
    stage.card.post(0, 115.0, stage.clock.now_ns())
    stage.loop.submit([job("r", max_tokens=150)])
    stage.loop.start()
    assert started.wait(10)
    stage.loop.stop()
    assert [row[2] for row in stage.wire.of("closed")] in (["abort"], ["length"])
    assert stage.wire.told[-1] == ("down",)
    assert not stage.loop.alive


def test_a_job_given_up_before_it_was_taken_is_never_opened() -> None:
    """Then there is nothing to account for."""
    stage = Stage()
    never, other = job("never"), job("other")
    stage.loop.submit([never, other])
    stage.loop.abort([never])
    stage.play([])
    assert [row[1] for row in stage.wire.of("opened")] == ["other"]


def test_children_count_for_what_the_client_asked() -> None:
    """The truth of an ``n = 2`` request is the sum of both, final with the last."""
    stage = Stage()
    pair = [job("0_c-1", max_tokens=2, parent="c"), job("1_c-1", max_tokens=9, parent="c")]
    stage.play([*pair, job("alone")])
    assert set(stage.truth.finished_j) == {"c", "alone"}
    assert stage.truth.finished_j["c"] > stage.truth.finished_j["alone"]
