"""The end-to-end run: everything real but the card, started, loaded, watched and taken down.

A real vLLM on the CPU, started by ``joulemeter run``; behind the fake NVML, which the sidecar alone
loads, a simulated card that the worker's hook drives (``worker_hook/``); a real Prometheus that
scrapes the sidecar; a seeded load of mixed requests (``load.py``); and a watcher that reads
``/v1/summary`` and ``/metrics`` all the while. All on loopback, on free ports, below one folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from load import Answer, asks, drive, warm_up, waves_of

from meter.demo import card as card_module
from meter.demo.nvml_build import build
from tests.needs import program

HERE = Path(__file__).parent
MODEL = "smollm2"
GPU = "GPU-e2e00000-0000-4000-8000-000000000001"
BEFORE_W = 110.0
"""Static power that the card draws before the hook first posts."""
WARM_UP = 30
REQUESTS = 210
_START_S = 300.0
_SETTLE_S = 30.0
_STOP_S = 60.0


@dataclass
class Run:
    """All that the run left behind."""

    folder: Path
    started_ns: int = 0
    stopped_ns: int = 0
    answers: list[Answer] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    last_summary: dict[str, Any] = field(default_factory=dict)
    last_metrics: str = ""
    prometheus: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    exit_code: int | None = None
    left_behind: list[str] = field(default_factory=list)

    @property
    def trace(self) -> Path:
        return self.folder / "trace.jsonl.gz"

    @property
    def hook_log(self) -> Path:
        return self.folder / "hook.jsonl"

    @property
    def last_words(self) -> str:
        """The end of what the server and the sidecar said."""
        log = self.folder / "server.log"
        return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def run_all(vllm: Path, folder: Path) -> Run:
    """Do the whole run. Some five minutes on two slow cores."""
    run = Run(folder)
    control = folder / "card"
    card = card_module.Card.create(
        control, [card_module.CardSpec(uuid=GPU, name="NVIDIA H100 80GB HBM3")]
    )
    run.started_ns = time.monotonic_ns()
    card.post(0, BEFORE_W, run.started_ns)
    server, meter = _free_port(), _free_port()
    process = _start(vllm, folder, control, server, meter)
    try:
        with _prometheus(folder, meter) as prometheus:
            _await(lambda: _is_up(f"http://127.0.0.1:{server}/health", process), _START_S)
            with _watching(run, meter):
                run.answers = asyncio.run(_load(f"http://127.0.0.1:{server}"))
                done_s = time.monotonic()
                _await(lambda: _settled(meter, done_s), _SETTLE_S)
            _collect(run, meter)
            _ask(run, prometheus)
        family = _family(process.pid)
        process.send_signal(signal.SIGTERM)
        run.exit_code = process.wait(_STOP_S)
        run.left_behind = _still_there(family)
    except BaseException as error:
        error.add_note(run.last_words)
        raise
    finally:
        _end(process)
        run.stopped_ns = time.monotonic_ns()
    return run


def samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one name in a text of metrics, with their labels."""
    from prometheus_client.parser import text_string_to_metric_families

    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name
    ]


async def _load(base_url: str) -> list[Answer]:
    """The warm-up, which teaches the hook's clock this machine, then the measured load."""
    waves = [warm_up(WARM_UP, MODEL, seed=3), *waves_of(asks(REQUESTS, MODEL, seed=5), 26)]
    return await drive(base_url, waves, seed=7)


# --- starting and ending --------------------------------------------------------------------


def _start(
    vllm: Path, folder: Path, control: Path, server: int, meter: int
) -> subprocess.Popen[bytes]:
    library = build(folder)
    config = folder / "joulemeter.yaml"
    config.write_text(
        "power:\n"
        "  source: nvml\n"
        f"  nvml_library: {library}\n"
        "pricing:\n"
        "  currency: EUR\n"
        "  electricity_price_per_kwh: 0.20\n"
        "  pue: 1.2\n"
        "  hardware_price_per_hour: 2.5\n"
        "http:\n"
        f"  port: {meter}\n",
        encoding="utf-8",
    )
    serve = [
        *(str(vllm / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(vllm / "model"), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(server)),
        *("--enforce-eager", "--dtype", "float32", "--max-model-len", "4096"),
        *("--max-num-batched-tokens", "256", "--max-num-seqs", "24"),
        *("--enable-prompt-tokens-details", "--enable-force-include-usage"),
    ]
    meter_command = [
        *(str(Path(sys.executable).with_name("joulemeter")), "run"),
        *("--config", str(config), "--record", str(folder / "trace.jsonl.gz")),
    ]
    environ = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": str(HERE / "worker_hook"),
        "JOULEMETER_FAKE_NVML": str(control),
        "JOULEMETER_CALIBRATION__REMEMBER": "false",
        "E2E_HOOK_LOG": str(folder / "hook.jsonl"),
        "E2E_HOOK_CARD": str(control),
        "E2E_HOOK_CARD_MODULE": str(card_module.__file__),
    }
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            [*meter_command, "--", *serve], env=environ, stdout=log, stderr=subprocess.STDOUT
        )


def _family(pid: int) -> list[psutil.Process]:
    """The process and everything it has started so far."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _still_there(family: list[psutil.Process]) -> list[str]:
    _, alive = psutil.wait_procs(family, timeout=5.0)
    return [f"{process.pid} {process.name()}" for process in alive]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever went wrong, nothing of the server stays behind."""
    if process.poll() is None:
        family = _family(process.pid)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20.0)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(10.0)


@contextmanager
def _prometheus(folder: Path, meter: int) -> Iterator[int]:
    """A real Prometheus that scrapes the sidecar every second; its port."""
    port = _free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: joulemeter\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{meter}']}}]\n",
        encoding="utf-8",
    )
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20.0)


# --- looking on -----------------------------------------------------------------------------


@contextmanager
def _watching(run: Run, meter: int) -> Iterator[None]:
    """Read the accounts about once a second, as long as the block runs."""
    over = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{meter}", timeout=10.0) as client:
            while not over.wait(1.0):
                run.summaries.append(client.get("/v1/summary").json())
                run.metrics.append(client.get("/metrics").text)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _collect(run: Run, meter: int) -> None:
    """The last state of the accounts and everybody's receipt (an empty one where there is none)."""
    with httpx.Client(base_url=f"http://127.0.0.1:{meter}", timeout=10.0) as client:
        for answer in run.answers:
            response = client.get(f"/v1/receipts/{answer.id}")
            run.receipts[answer.id] = response.json() if response.status_code == 200 else {}
        run.last_summary = client.get("/v1/summary").json()
        run.last_metrics = client.get("/metrics").text


QUERIES = {
    "up": "up{job='joulemeter'}",
    "accounts": "sum(joulemeter_energy_joules_total)",
    "hardware": "sum(joulemeter_gpu_energy_joules_total)",
    "kwh": "joulemeter_kwh_per_token",
}


def _ask(run: Run, prometheus: int) -> None:
    """Query Prometheus, all at one instant that it has already scraped."""
    with httpx.Client(base_url=f"http://127.0.0.1:{prometheus}", timeout=10.0) as client:
        now = time.time() - 1.0
        for name, query in QUERIES.items():
            reply = client.get("/api/v1/query", params={"query": query, "time": now}).json()
            run.prometheus[name] = reply["data"]["result"]


def _settled(meter: int, done_s: float) -> bool:
    """Are all receipts final, and the accounts settled beyond ``done_s``?"""
    summary = httpx.get(f"http://127.0.0.1:{meter}/v1/summary").json()
    return summary["receipts_open"] == 0 and time.monotonic() - summary["settled_lag_s"] > done_s


def _is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server ended at its start with exit code {process.returncode}")
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def _await(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for something that another process will bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true within {seconds} s")
        time.sleep(0.25)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
