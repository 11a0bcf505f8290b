"""vLLM's own scheduler, tapped by the real plugin: the meter sees just what was scheduled.

The scheduler runs in the vLLM environment with a fake executor (``sim/``); its datagrams go over a
real socket to the real listener. One process runs all scenarios: vLLM takes long to import.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from work_reference import expand, lives

from meter.model import EngineEvent, Event, Phase, RequestClosed, RequestOpened, Step
from meter.work.beside import directory
from meter.work.listener import Listener
from tests import needs

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

SIM = Path(__file__).parent / "sim"
FEW_BLOCKS = 60

SCENARIOS: dict[str, dict[str, Any]] = {
    "synchronous": {"seed": 1},
    "preempting": {"seed": 2, "blocks": FEW_BLOCKS},
    "resetting": {"seed": 3, "resets": True},
    "asynchronous": {"seed": 4, "asynchronous": True},
    "asynchronous preempting": {
        "seed": 5,
        "asynchronous": True,
        "blocks": FEW_BLOCKS,
        "resets": True,
    },
    "deaf": {"seed": 6, "asynchronous": True},
    "speculating": {"seed": 7, "speculate": 3, "blocks": FEW_BLOCKS * 2},
    "asynchronous speculating": {
        "seed": 8,
        "asynchronous": True,
        "speculate": 3,
        "blocks": FEW_BLOCKS * 2,
        "resets": True,
    },
}


@dataclass(frozen=True)
class Run:
    """One scenario: what the meter heard, and what the scheduler said."""

    events: list[Event]
    truth: dict[str, Any]

    def all(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Ears:
    """Takes the listener's events; during the scenario ``deaf`` it blocks until its middle."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.hear = threading.Event()

    def __call__(self, event: Event) -> None:
        epochs = list(SCENARIOS).index("deaf")
        if isinstance(event, EngineEvent) and event.event == "ready" and event.epoch == epochs:
            self.hear.wait()
        self.events.append(event)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    home = needs.vllm()
    work = tmp_path_factory.mktemp("sim")
    scenarios = {name: {"model": str(home / "model"), **o} for name, o in SCENARIOS.items()}
    ears = Ears()
    listener = Listener(work / "meter.sock", ears)
    listener.start()
    env = {
        **os.environ,
        "PYTHONPATH": str(directory(work / "beside")),
        "JOULEMETER_SOCKET": str(listener.path),
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(home / "venv/bin/python"), str(SIM / "scenario.py"), json.dumps(scenarios)]
    with (
        (work / "log").open("w") as log,
        subprocess.Popen(
            [*command, str(work / "truth")], env=env, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "half deaf":
                ears.hear.set()
    ears.hear.set()
    assert process.wait() == 0, (work / "log").read_text()[-4000:]
    listener.stop()
    assert listener.counters.bad == listener.counters.lost == listener.counters.stray == 0
    assert "has removed itself" not in (work / "log").read_text()
    truths = json.loads((work / "truth").read_text())
    found = lives(ears.events)
    assert len(found) == len(SCENARIOS)
    return {name: Run(events, truths[name]) for name, events in zip(truths, found, strict=True)}


@pytest.fixture(params=SCENARIOS)
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    found = runs[request.param]
    assert found.truth["tapped"], "the plugin has removed itself"
    return found


def test_every_step_is_the_schedulers_own(run: Run) -> None:
    """Rebuilt from the wire, each step has the scheduler's participants, tokens and contexts."""
    rebuilt = [
        {name: [work.tokens, work.context] for name, work in step.items()}
        for step in expand(run.events)
    ]
    assert len(rebuilt) > 300
    assert rebuilt == run.truth["steps"]


def test_sequence_has_no_gap_and_time_no_overlap(run: Run) -> None:
    """Steps are numbered from 0; each begins after the one before it has ended."""
    steps = run.all(Step)
    assert [step.seq for step in steps] == list(range(len(steps)))
    assert all(step.t0_ns < step.t1_ns for step in steps)
    assert all(a.t1_ns <= b.t0_ns for a, b in itertools.pairwise(steps))


def test_every_request_opens_once_and_closes_once(run: Run) -> None:
    """Whatever becomes of it: finished, aborted while waiting, while running, between results."""
    opened, closed = run.all(RequestOpened), run.all(RequestClosed)
    names = sorted(run.truth["requests"])
    assert sorted(event.request for event in opened) == names
    assert sorted(event.request for event in closed) == names
    for event in opened:
        truth = run.truth["requests"][event.request]
        assert (event.parent, event.prompt_tokens) == (truth["parent"], truth["prompt"])


def test_closing_counts_are_the_engines(run: Run) -> None:
    """Prompt, first prefix hit, completion and reason, as the engine's own objects have them."""
    reasons = {"FINISHED_STOPPED": "stop", "FINISHED_LENGTH_CAPPED": "length"}
    for event in run.all(RequestClosed):
        truth = run.truth["requests"][event.request]
        counts = (event.prompt_tokens, event.cached_tokens, event.completion_tokens)
        assert counts == (truth["prompt"], truth["cached"], truth["completion"])
        aborted = "stop_or_abort" if truth["stop"] else "abort"
        assert event.reason == reasons.get(truth["status"], aborted)


def test_no_step_names_a_closed_request(run: Run) -> None:
    """A request's end is told after the last step that computed it."""
    closed: set[str] = set()
    steps = iter(expand(run.events))
    for event in run.events:
        if isinstance(event, RequestClosed):
            closed.add(event.request)
        elif isinstance(event, Step):
            assert not closed & next(steps).keys()


def test_prefill_adds_up_to_the_prompt(run: Run) -> None:
    """What was computed for the first time, and what was cached, make the prompt: nothing twice.

    (A speculating engine may pad the prompt's last token with drafts: these are beyond it.)
    """
    prefilled = Counter[str]()
    for step in expand(run.events):
        for work in step.values():
            if work.phase is Phase.PREFILL:
                beyond = run.truth["requests"][work.request]["prompt"] - work.context
                prefilled[work.request] += min(work.tokens, beyond)
    for name, truth in run.truth["requests"].items():
        if truth["preemptions"] == 0 and truth["completion"] > 0:
            assert prefilled[name] + truth["cached"] == truth["prompt"], name


def test_recompute_is_what_preemption_threw_away(run: Run) -> None:
    """Only preempted requests compute again."""
    again = {
        work.request
        for step in expand(run.events)
        for work in step.values()
        if work.phase is Phase.RECOMPUTE
    }
    preempted = {n for n, truth in run.truth["requests"].items() if truth["preemptions"] > 0}
    assert again <= preempted
    assert bool(again) == bool(preempted)


def test_scenarios_do_what_they_are_named_after(runs: dict[str, Run]) -> None:
    """Preemption, cache hits, speculation, aborts and two samples a request all happen."""
    for name, run in runs.items():
        requests = run.truth["requests"].values()
        assert any(r["cached"] for r in requests), name
        assert any(r["status"] == "FINISHED_ABORTED" for r in requests), name
        assert len({r["parent"] for r in requests}) < len(requests), name
        preempts = any(word in name for word in ("preempting", "resetting"))
        assert not preempts or sum(r["preemptions"] for r in requests) > 5, name
        drafted = [w for step in run.all(Step) for w in step.work if w.kept is not None]
        assert bool(drafted) == ("speculating" in name), name
        assert all(0 <= work.kept <= work.tokens for work in drafted), name


def test_steady_decoding_is_told_in_change_form(runs: dict[str, Run]) -> None:
    """Without speculation a full form comes only at the start (ahead of its result: two)."""
    for name in ("synchronous", "asynchronous", "preempting", "asynchronous preempting"):
        full = [step.seq for step in runs[name].all(Step) if not step.same]
        assert full == ([0, 1] if name.startswith("asynchronous") else [0])


def test_a_deaf_listener_loses_nothing(runs: dict[str, Run]) -> None:
    """150 steps wait for a listener whose queue holds ten: they arrive merged, all of them."""
    steps = runs["deaf"].all(Step)
    assert [step.seq for step in steps] == list(range(len(steps)))
