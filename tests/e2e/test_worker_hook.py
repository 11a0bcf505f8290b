"""The hook that drives the card, without vLLM: what it posts, what it logs, what it learns."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from truth import read_log

_HOOK = str(Path(__file__).parent / "worker_hook")
_CARD = """
POSTS = []
class Card:
    @classmethod
    def attach(cls, path):
        return cls()
    def post(self, device, power_w, t_ns=None):
        POSTS.append((device, power_w, t_ns))
"""


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_HOOK)


@dataclass
class Worker:
    """A worker of a pretended vLLM, with the hook registered in it."""

    wrapper: Any
    hooks: list[Any]
    log: Path

    def step(self, scheduled: Any) -> None:
        self.wrapper.execute_model(scheduled)
        self.wrapper.worker.sample_tokens(None)

    def close(self) -> None:
        for hook in self.hooks:
            hook.close()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    module = ModuleType("vllm.v1.worker.worker_base")

    class WorkerWrapperBase:
        def __init__(self) -> None:
            self.worker = SimpleNamespace(sample_tokens=lambda grammar: "tokens")

        def execute_model(self, scheduled: Any) -> None:
            return None

    module.WorkerWrapperBase = WorkerWrapperBase  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.worker_base", module)
    monkeypatch.setitem(sys.modules, "joulemeter_e2e_card", None)  # so that it goes afterwards
    (tmp_path / "fake_card.py").write_text(_CARD)
    log = tmp_path / "hook.jsonl"
    monkeypatch.setenv("E2E_HOOK_LOG", str(log))
    monkeypatch.setenv("E2E_HOOK_CARD", "control")
    monkeypatch.setenv("E2E_HOOK_CARD_MODULE", str(tmp_path / "fake_card.py"))
    from joulemeter_e2e_hook import hook, register

    made: list[Any] = []
    make = hook.Hook.from_environment

    def keep() -> Any:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(hook.Hook, "from_environment", keep)
    register()
    register()
    pretended = Worker(WorkerWrapperBase(), made, log)
    yield pretended
    pretended.close()


def _scheduled(new: dict[str, tuple[int, int]], cached: dict[str, int], **tokens: int) -> Any:
    """A ``SchedulerOutput``: new requests (prompt, computed), cached ones (computed), tokens."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=r, prompt_token_ids=[0] * prompt, num_computed_tokens=done)
            for r, (prompt, done) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=list(cached.values())
        ),
        num_scheduled_tokens=tokens,
    )


def test_power_runs_from_the_steps_start_to_its_end(worker: Worker) -> None:
    """Static plus joules over expected seconds at the start, static again at the real end."""
    worker.step(_scheduled({"a": (10, 0)}, {}, a=10))
    (_, power_w, t0_ns), (_, after_w, t1_ns) = sys.modules["joulemeter_e2e_card"].POSTS
    assert power_w > 150 > after_w > 100
    assert t1_ns > t0_ns
    assert len(worker.hooks) == 1


def test_the_log_tells_who_did_what(worker: Worker) -> None:
    """Chunks, their contexts, the cached prefix, and where prefill ends."""
    worker.step(_scheduled({"a": (10, 4)}, {}, a=3))
    worker.step(_scheduled({"b": (1, 0)}, {"a": 7}, a=3, b=1))
    worker.step(_scheduled({}, {"a": 10, "b": 1}, a=1, b=1))
    worker.step(_scheduled({}, {}))
    worker.close()
    steps = [[part[:4] for part in step.parts] for step in read_log(worker.log)]
    assert steps == [
        [("a", 3, 4, 1)],
        [("a", 3, 7, 1), ("b", 1, 0, 1)],
        [("a", 1, 10, 0), ("b", 1, 1, 0)],
    ]
    rows = [json.loads(line) for line in worker.log.read_text().splitlines()]
    for row in rows:
        seconds = row["fixed_s"] + sum(part[5] for part in row["work"])
        joules = row["fixed_j"] + sum(part[4] for part in row["work"])
        assert row["power_w"] == pytest.approx(row["static_w"] + joules / seconds)


def test_the_clock_learns_a_machine() -> None:
    """From a wrong prior to a few percent within a hundred steps, stalls notwithstanding."""
    from joulemeter_e2e_hook.clock import Clock
    from joulemeter_e2e_hook.cost import Part

    rng = random.Random(4)
    clock = Clock()
    off = []
    for number in range(200):
        parts = [Part(f"d{i}", 1, rng.randint(20, 800), False) for i in range(rng.randint(0, 8))]
        if not parts or rng.random() < 0.3:
            parts.append(Part("p", rng.randint(5, 256), rng.choice((0, 256)), True))
        right_s = 0.01 + sum(
            0.0006 * part.tokens + 3e-8 * part.pairs if part.prefill else 0.001 for part in parts
        )
        expected_s = clock.expect(parts).total_s
        if number >= 100:
            off.append(abs(expected_s / right_s - 1))
        stall = 3.0 if rng.random() < 0.02 else 1.0
        clock.learn(parts, expected_s, right_s * stall * rng.gauss(1.0, 0.02))
    assert sum(off) / len(off) < 0.05
    assert min(clock.coefficients) > 0
