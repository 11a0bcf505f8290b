"""A real server under the meter, on a card that follows its work; what holds for all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm_cpu"))

from smoke import free_port, home, serve_command

from meter.demo import card as card_module
from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build
from meter.runtime.witness import NAME as WITNESS

UUID = "GPU-11111111-2222-3333-4444-555555555555"
#: What the card draws before the worker's hook first posts.
BEFORE_W = 110.0
HOOK = Path(__file__).parents[1] / "e2e" / "worker_hook"
START_S, END_S = 600.0, 120.0


class Metered:
    """A real server on one version of vLLM, and the meter on it.

    Its card draws what the engine does: the end-to-end run's hook in vLLM's worker sees to that,
    where there is one worker. ``wrap`` makes the command of it that starts the server; ``environ``
    goes on top of the usual.
    """

    def __init__(
        self,
        version: str,
        folder: Path,
        wrap: Callable[[list[str]], Sequence[str]] = lambda serve: serve,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.card = folder / "card"
        Card.create(self.card, [CardSpec(UUID, "NVIDIA H100 80GB HBM3")]).post(0, BEFORE_W)
        self.library = build(folder)
        self.serve = wrap(serve_command(home(version), self.port))
        self.environ = dict(environ or {})
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
            **self.environ,
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
        children = psutil.Process(self.meter.pid).children()
        (child,) = [child for child in children if child.name() != WITNESS]
        return child

    def await_up(self) -> None:
        def is_up() -> bool:
            assert self.meter.poll() is None, self.log[-4000:]
            return answers(f"{self.url}/health")

        until(is_up, START_S, self)

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
    """Every request has one, with just the tokens that the server counted, stop strings aside."""
    for told, usage in usages.items():
        name = told.removesuffix("-0")  # a completion of one prompt, as its answer calls it
        receipt = until(lambda name=name: metered.receipt(name), 60, metered)
        if usage is None:
            assert receipt["reason"] == "abort"
            continue
        until(lambda name=name: (metered.receipt(name) or {}).get("final"), 60, metered)
        receipt = metered.receipt(name)
        assert receipt["prompt_tokens"] == usage["prompt_tokens"], (receipt, usage)
        more = receipt["completion_tokens"] - usage["completion_tokens"]
        # A stop string ends in the front end; until that tells it, the engine computes on.
        assert more == 0 or (more > 0 and receipt["reason"] == "stop_or_abort"), (receipt, usage)
        assert receipt["energy_j"] > 0
        assert receipt["fidelity"] == "step"
    summary = until(lambda: (found := metered.summary()) and closes(found) and found, 30, metered)
    assert summary["attributed_j"] > 0
    assert all(summary[part] >= 0 for part in ("idle_j", "startup_j", "unattributed_j"))
