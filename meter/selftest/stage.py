"""Where the load is played: on a server that is started for it, on one that runs already, or on the
demo's simulated card."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meter.demo import process, stage
from meter.selftest.findings import Findings, SelftestError, find
from meter.selftest.load import Load, LoadError, Size
from meter.trace import TraceError, read_trace

_SETTLE_S = 20.0
#: A large model is loaded, compiled and captured.
_START_S = 1800.0
_STDERR = 2
_EVERY_ADDRESS = ("0.0.0.0", "::", "[::]")
_FLUSHED_S = 3.0
#: What the demo's engine holds at once (``meter.demo.engine.Limits``).
_DEMO_SIZE = Size(company=32, held=9000)


def of_trace(path: Path) -> Findings:
    """What a recorded trace shows. Raises ``SelftestError``."""
    try:
        return find(read_trace(path), path.name)
    except TraceError as error:
        raise SelftestError(str(error)) from error


def of_demo(seconds: float, size: Size | None = None) -> Findings:
    """The embedded engine on a simulated card. Raises ``SelftestError``."""
    with tempfile.TemporaryDirectory(prefix="joulemeter-selftest-") as name:
        folder = Path(name)
        made = stage.simulated(folder, process.free_port(8000))
        metered = process.Metered.start(made, folder, process.free_port())
        try:
            up = f"{made.base_url}/health"
            if not process.wait_until(lambda: process.answers(up), made.start_s):
                raise SelftestError(f"the engine does not serve:\n{metered.last_words()}")
            _play(made.base_url, made.model, seconds, size or _DEMO_SIZE)
            _settle(metered.url)
        finally:
            metered.stop()
        return of_trace(metered.trace)


def of_command(
    command: Sequence[str],
    url: str | None,
    model: str | None,
    seconds: float,
    trace: Path | None,
    size: Size | None = None,
) -> Findings:
    """A server that is started by ``command``, metered, and ended. Raises ``SelftestError``.

    ``url``: where it will serve, if its ``--port`` does not say; ``trace``: where to keep the
    record. What server and meter say goes to stderr.
    """
    url = (url or _url(command)).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="joulemeter-selftest-") as name:
        kept = trace or Path(name) / "trace.jsonl.gz"
        port = process.free_port(process.PAGE_PORT)
        options = ("--port", str(port), "--record", str(kept))
        words = (sys.executable, "-m", "meter.cli", "run", *options, "--", *command)
        server = process.tethered(words, os.environ, _STDERR)
        try:
            _wait_for(url, server)
            _play_on(url, f"http://127.0.0.1:{port}", model, seconds, size)
        finally:
            process.end(server)
        return of_trace(kept)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server lists its models. Raises ``SelftestError``."""
    print(f"waiting until {url} serves …", file=sys.stderr)
    models = f"{url}/v1/models"

    def decided() -> bool:
        return server.poll() is not None or process.answers(models)

    if not process.wait_until(decided, _START_S, pause_s=0.5):
        raise SelftestError(
            f"nothing answers at {models} after {_START_S:.0f} s: name the server's --url"
        )
    if server.poll() is not None:
        raise SelftestError(f"the server ended with code {server.returncode} before it served")


def _url(command: Sequence[str]) -> str:
    """Where a command like ``vllm serve MODEL --port 8001`` will serve."""
    said = {"--host": "127.0.0.1", "--port": "8000"}
    for word, following in zip(command, (*command[1:], ""), strict=True):
        name, _, value = word.partition("=")
        if name in said and (value or following):
            said[name] = value or following
    host = said["--host"] if said["--host"] not in _EVERY_ADDRESS else "127.0.0.1"
    return f"http://{host}:{said['--port']}"


def of_server(
    url: str,
    meter: str,
    model: str | None,
    seconds: float,
    trace: Path,
    size: Size | None = None,
) -> Findings:
    """A server that runs under a meter that records to ``trace``. Raises ``SelftestError``."""
    url, meter = url.rstrip("/"), meter.rstrip("/")
    if not isinstance(process.get_json(f"{meter}/v1/summary"), dict):
        raise SelftestError(
            f"no meter answers at {meter}: start the server with "
            f"`joulemeter run --record {trace} -- …`"
        )
    if not trace.exists():
        raise SelftestError(
            f"{trace} is not there: start the server with `joulemeter run --record {trace} -- …`"
        )
    _play_on(url, meter, model, seconds, size)
    time.sleep(_FLUSHED_S)
    return of_trace(trace)


def _play_on(url: str, meter: str, model: str | None, seconds: float, size: Size | None) -> None:
    served = process.get_json(f"{url}/v1/models")
    if not isinstance(served, dict) or not served.get("data"):
        raise SelftestError(f"no server with the OpenAI API answers at {url}")
    first = served["data"][0]
    _play(url, model or first["id"], seconds, size or _size(first))
    _settle(meter)


def _size(served: dict[str, Any]) -> Size:
    """Smaller prompts for a model with a short context."""
    longest = served.get("max_model_len")
    return Size(words=min(1.0, longest / 4096)) if isinstance(longest, int) else Size()


def _play(url: str, model: str, seconds: float, size: Size) -> None:
    print(f"playing the designed load for about {seconds:.0f} s …", file=sys.stderr)
    load = Load(url, model, size)
    try:
        asyncio.run(load.play(seconds))
    except LoadError as error:
        raise SelftestError(f"the load broke off: {error}") from error


def _settle(meter: str) -> None:
    """Wait until every receipt is final."""

    def settled() -> bool:
        summary = process.get_json(f"{meter}/v1/summary")
        return isinstance(summary, dict) and not summary["receipts_open"]

    process.wait_until(settled, _SETTLE_S, pause_s=0.5)
