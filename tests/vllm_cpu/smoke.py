"""A real vLLM with the plugin put beside it: do its own counts reach the meter?

    python tests/vllm_cpu/smoke.py [--verbose]

Starts vLLM's OpenAI server (CPU, SmolLM2) with the plugin on its PYTHONPATH, sends one request of
each kind, listens, and compares what the plugin told with the server's own ``usage``. Prints one
line a request; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from meter.demo.stage import cache
from meter.model import EngineEvent, Event, RequestClosed, RequestOpened, Step
from meter.work.beside import directory
from meter.work.listener import Listener

START_S = 300.0
LONG = "Count the stars over the harbour, slowly, and tell the story of each of them. " * 12


def home(version: str = "0.32.0") -> Path:
    """Where tests/vllm_cpu/setup.sh puts vLLM."""
    return cache() / f"vllm-cpu-{version}"


def serve_command(home: Path, port: int) -> list[str]:
    """Starts vLLM's OpenAI server on the small model."""
    return [
        *(str(home / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(home / "model"), "--served-model-name", "smollm2"),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"),
        *("--max-num-batched-tokens", "256", "--max-num-seqs", "24"),
        *("--enable-prompt-tokens-details", "--host", "127.0.0.1", "--port", str(port)),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(work: Path, listening: Path, port: int) -> Iterator[str]:
    """vLLM's server; ends all of its processes."""
    env = dict(
        os.environ,
        PYTHONPATH=str(directory(work / "beside")),
        JOULEMETER_SOCKET=str(listening),
        HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
    )
    command = serve_command(home(), port)
    with (work / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process, work / "vllm.log")
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"vLLM ended at start:\n{log.read_text()[-4000:]}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"vLLM did not start in {START_S:.0f} s:\n{log.read_text()[-4000:]}")


def chat(url: str, **body: object) -> tuple[str, dict[str, object]]:
    body = {"model": "smollm2", "temperature": 0, **body}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
    return answer["id"], answer["usage"]


def streamed(url: str, **body: object) -> tuple[str, dict[str, object]]:
    body = {"model": "smollm2", "stream": True, "stream_options": {"include_usage": True}, **body}
    name, usage = "", {}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                name, usage = chunk["id"], chunk.get("usage") or usage
    return name, usage


def aborted(url: str) -> str:
    """Hang up after the third chunk."""
    body = {
        "model": "smollm2",
        "stream": True,
        "max_tokens": 400,
        "ignore_eos": True,
        "messages": says(LONG + " Begin."),
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        name = json.loads(next(lines)[6:])["id"]
        next(lines), next(lines)
    return str(name)


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def load(url: str, pairs: bool = True) -> dict[str, dict[str, object] | None]:
    """One request of each kind (with ``n = 2`` too): id -> usage (``None``: aborted)."""
    seen: dict[str, dict[str, object] | None] = {}

    def note(answer: tuple[str, dict[str, object]]) -> None:
        seen[answer[0]] = answer[1]

    note(chat(url, messages=says("What is the capital of France?"), max_tokens=20))
    note(streamed(url, messages=says(LONG), max_tokens=30))
    note(chat(url, messages=says(LONG), max_tokens=12))
    note(chat(url, messages=says("One word, please."), max_tokens=1))
    if pairs:
        note(chat(url, messages=says("Say anything."), max_tokens=24, n=2, temperature=1.0))
    note(chat(url, messages=says("Count: one, two, three"), max_tokens=60, stop=["e", "a"]))
    seen[aborted(url)] = None
    body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 16}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()
    seen[f"{answer['id']}-0"] = answer["usage"]
    threads = [
        threading.Thread(
            target=lambda i=i: note(
                chat(url, messages=says(f"{LONG} Number {i}."), max_tokens=10 + 7 * i)
            )
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = httpx.post(f"{url}/v1/chat/completions", json={"model": "smollm2", "messages": 3})
    if refused.status_code < 400:
        raise SystemExit("a malformed request was not refused")
    return seen


def compare(events: list[Event], seen: dict[str, dict[str, object] | None]) -> list[str]:
    """What differs between the plugin's account and the server's, one line each."""
    parents = {e.request: e.parent for e in events if isinstance(e, RequestOpened)}
    closed: dict[str, list[RequestClosed]] = {}
    for event in events:
        if isinstance(event, RequestClosed):
            closed.setdefault(str(parents.get(event.request)), []).append(event)
    faults = [f"{name}: no client knows it" for name in closed if name not in seen]
    for name, usage in seen.items():
        ends = closed.get(name, [])
        if not ends:
            faults.append(f"{name}: the plugin did not tell its end")
            continue
        ours = (ends[0].prompt_tokens, sum(e.completion_tokens or 0 for e in ends))
        print(name, [e.reason for e in ends], ours, [e.cached_tokens for e in ends], usage)
        if usage is None:
            if ends[0].reason != "abort":
                faults.append(f"{name}: aborted, told as {ends[0].reason}")
            continue
        if ours != (usage["prompt_tokens"], usage["completion_tokens"]):
            faults.append(f"{name}: {ours} tokens here, usage {usage}")
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        if (cached or 0) not in [e.cached_tokens for e in ends]:
            faults.append(f"{name}: cached {[e.cached_tokens for e in ends]}, usage {usage}")
    return faults


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--verbose", action="store_true", help="print every event")
    verbose = arguments.parse_args().verbose
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        listener = Listener(work / "meter.sock", events.append)
        listener.start()
        port = free_port()
        with server(work, work / "meter.sock", port) as url:
            seen = load(url)
            time.sleep(1)
        log = (work / "vllm.log").read_text()
        listener.stop()
    print(
        *(
            line
            for line in log.splitlines()
            if "vllm.joulemeter" in line or "joulemeter meters" in line
        ),
        sep="\n",
    )
    if verbose:
        print(*events, sep="\n")
    print(*(event for event in events if isinstance(event, EngineEvent)), sep="\n")
    steps = [event for event in events if isinstance(event, Step)]
    print(len(steps), "steps,", sum(s.same for s in steps), "in change form;", listener.counters)
    faults = compare(events, seen)
    print(*faults, sep="\n")
    return 1 if faults or not steps else 0


if __name__ == "__main__":
    sys.exit(main())
