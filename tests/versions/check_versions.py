"""Real vLLMs under ``joulemeter run``, whose meter is killed in mid-run and followed by another.

    make test-vllm        (it sets the environments up; pytest alone does not collect this file)

For each version: requests of every kind, their receipts against the server's own ``usage``; then
``kill -9`` of the meter while requests run, ``joulemeter attach`` to the server, and the same
again.
Needs a C compiler for the simulated card.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm_cpu"))

from smoke import chat, free_port, home, load, says, serve_command

from meter.demo import card as card_module
from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build

VERSIONS = os.environ.get("VLLM_VERSIONS", "0.20.0 0.26.0 0.32.0").split()
UUID = "GPU-11111111-2222-3333-4444-555555555555"
#: What the card draws before the worker's hook first posts.
BEFORE_W = 110.0
HOOK = Path(__file__).parents[1] / "e2e" / "worker_hook"
START_S, END_S = 300.0, 120.0


class Metered:
    """A real server on one version of vLLM, and the meter on it.

    Its card draws what the engine does: the end-to-end run's hook in vLLM's worker sees to that. (A
    counter that runs on whatever is computed tells nothing of delay and smear, and what is learned
    of them from it is made up: then steps look like strangers.)
    """

    def __init__(self, version: str, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.card = folder / "card"
        Card.create(self.card, [CardSpec(UUID, "NVIDIA H100 80GB HBM3")]).post(0, BEFORE_W)
        self.library = build(folder)
        self.serve = serve_command(home(version), self.port)
        self.meter, self.meter_url = self.start("run", "--", *self.serve)
        self.family: list[psutil.Process] = []

    def start(self, *words: object) -> tuple[subprocess.Popen[bytes], str]:
        """A meter on a port of its own; its log is ``server.log``."""
        port = free_port()
        options = ("--port", port, "--nvml-library", self.library)
        command = [sys.executable, "-m", "meter.cli", words[0], *options, *words[1:]]
        environ = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "PYTHONPATH": str(HOOK),
            "JOULEMETER_FAKE_NVML": str(self.card),
            "E2E_HOOK_LOG": str(self.folder / "hook.jsonl"),
            "E2E_HOOK_CARD": str(self.card),
            "E2E_HOOK_CARD_MODULE": str(card_module.__file__),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        # A shell starts what it puts into the background with SIGINT ignored, which is inherited;
        # vLLM ends by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(list(map(str, command)), env=environ, stdout=log, stderr=log)
        return process, f"http://127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")

    def server(self) -> psutil.Process:
        """vLLM's main process, while the meter that started it lives."""
        (child,) = psutil.Process(self.meter.pid).children()
        return child

    def await_up(self) -> None:
        until(lambda: answers(f"{self.url}/health"), START_S, self)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.meter_url}/v1/summary", timeout=30).json()
        return found

    def receipt(self, name: str) -> dict[str, Any] | None:
        answer = httpx.get(f"{self.meter_url}/v1/receipts/{name}", timeout=30)
        return answer.json() if answer.status_code == 200 else None

    def kill_all(self) -> None:
        """Whatever went wrong, nothing of the server stays."""
        left = [*self.family]
        with contextlib.suppress(psutil.NoSuchProcess):
            left += [*psutil.Process(self.meter.pid).children(recursive=True)]
        self.meter.kill()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], Any], seconds: float, metered: Metered) -> Any:
    """Wait for what another process will bring about."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, metered.log[-4000:]
        time.sleep(0.25)
    return found


def closes(summary: dict[str, Any]) -> bool:
    parts = ("attributed_j", "idle_j", "startup_j", "unattributed_j", "pending_j")
    total: float = sum(summary[part] for part in parts)
    return total == pytest.approx(summary["measured_j"], rel=1e-9)


def check_receipts(metered: Metered, usages: dict[str, dict[str, Any] | None]) -> None:
    """Every request has one, with just the tokens that the server counted."""
    for name, usage in usages.items():
        receipt = until(lambda name=name: metered.receipt(name), 60, metered)
        if usage is None:
            assert receipt["reason"] == "abort"
            continue
        until(lambda name=name: (metered.receipt(name) or {}).get("final"), 60, metered)
        receipt = metered.receipt(name)
        counted = (receipt["prompt_tokens"], receipt["completion_tokens"])
        assert counted == (usage["prompt_tokens"], usage["completion_tokens"]), (name, usage)
        assert receipt["energy_j"] > 0
        assert receipt["fidelity"] == "step"
    summary = until(lambda: (found := metered.summary()) and closes(found) and found, 30, metered)
    assert summary["attributed_j"] > 0


@pytest.fixture(params=VERSIONS)
def metered(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Metered]:
    made = Metered(request.param, tmp_path)
    try:
        yield made
    finally:
        made.kill_all()
        made.meter.wait(30)


def test_tokens_and_sums_hold_through_a_kill_of_the_meter(metered: Metered) -> None:
    """The engine serves on; the next meter says what was missed and nothing else; every receipt
    has the server's own counts, before, across and after; at the end nothing is left."""
    metered.await_up()
    usages = load(metered.url)
    check_receipts(metered, usages)
    assert metered.summary()["unattributed_by_reason"] == {}

    server = metered.server()
    metered.family = [server, *server.children(recursive=True)]
    across: dict[str, dict[str, Any] | None] = {}

    def long_request(number: int) -> None:
        said = says(f"Tell a long story, number {number}.")
        name, usage = chat(metered.url, messages=said, max_tokens=400, ignore_eos=True)
        across[name] = usage

    threads = [threading.Thread(target=long_request, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: metered.summary()["requests_running"] >= 6, 60, metered)
    os.kill(metered.meter.pid, signal.SIGKILL)
    metered.meter.wait(30)
    assert server.is_running()
    metered.meter, metered.meter_url = metered.start("attach", server.pid)
    until(lambda: answers(f"{metered.meter_url}/readyz"), 60, metered)
    for thread in threads:
        thread.join()
    assert len(across) == 6, "the server noticed nothing"
    assert all(usage and usage["completion_tokens"] == 400 for usage in across.values())
    usages = load(metered.url)
    check_receipts(metered, {**across, **usages})
    reasons = metered.summary()["unattributed_by_reason"]
    assert reasons["meter_down"] > 0
    assert set(reasons) <= {"meter_down", "lost_steps"}, reasons
    print("unattributed", reasons, "of", metered.summary()["measured_j"])
    assert re.search(r"joulemeter meters this engine", metered.log)
    assert "untested_version" not in metered.log

    server.send_signal(signal.SIGTERM)
    assert metered.meter.wait(END_S) == 0, "the server has ended, and so has its meter"
    _, left = psutil.wait_procs(metered.family, timeout=30)
    assert left == []


def test_ended_while_it_starts_it_leaves_nothing(metered: Metered) -> None:
    """SIGTERM while it loads: the code is the server's, and none of its processes is left. vLLM
    0.32 may not heed it then, with a meter or without: then its main process is killed, as a
    supervisor would, and its workers are ended by us."""
    server = until(lambda: (psutil.Process(metered.meter.pid).children() or [None])[0], 60, metered)
    until(lambda: server.children(recursive=True), START_S, metered)
    metered.family = [server, *server.children(recursive=True)]
    metered.meter.send_signal(signal.SIGTERM)
    try:
        assert metered.meter.wait(30) != 0
    except subprocess.TimeoutExpired:
        metered.family = [server, *server.children(recursive=True)]
        server.kill()
        assert metered.meter.wait(END_S) == 128 + signal.SIGKILL
    _, left = psutil.wait_procs(metered.family, timeout=5)
    assert left == []
