"""Starts ``joulemeter run`` around an engine, and reads what the meter publishes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from meter.demo.stage import Stage
from meter.export import DEFAULT_PORT, PORTS_TRIED

PRICES = """\
# What the demo assumes; what you pay goes into a file like this.
pricing:
  currency: USD
  electricity_price_per_kwh: 0.12
  pue: 1.2
  hardware_price_per_hour: {hardware_price_per_hour}
"""
# Runs the rest of its arguments as a process that gets SIGTERM when the demo is gone, however it
# went (PR_SET_PDEATHSIG is 1): nothing stays behind.
_TETHERED = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_STOP_S = 20.0
_TAIL_LINES = 40


class EndedError(Exception):
    """The engine ended before its time; the message holds its last words."""


def free_port(preferred: int = 0) -> int:
    """A port that is free now: the preferred one where it can be had."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):  # taken, not for us, or no port at all
                continue
            return int(probe.getsockname()[1])
    raise OSError("no port is free on 127.0.0.1")


def page_port() -> int:
    """As the meter itself would choose, so that ``joulemeter top`` finds it."""
    for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED):
        if free_port(port) == port:
            return port
    return free_port()


@dataclass(frozen=True, slots=True)
class Metered:
    """A running ``joulemeter run``; ``trace`` is what it records, ``log`` what both say."""

    process: subprocess.Popen[bytes]
    url: str
    trace: Path
    log: Path

    @classmethod
    def start(cls, stage: Stage, folder: Path, port: int, trace: Path | None = None) -> Metered:
        """In a session of its own: Ctrl-C is for the demo, which then ends it in order."""
        config, log = folder / "demo.yaml", folder / "log.txt"
        trace = trace or folder / "trace.jsonl.gz"
        prices = PRICES.format(hardware_price_per_hour=stage.hardware_price_per_hour)
        config.write_text(prices, encoding="utf-8")
        run = (sys.executable, "-m", "meter.cli", "run", "--config", str(config))
        options = ("--port", str(port), "--record", str(trace), *stage.options)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
        # Each demo shows how it learns, and leaves nothing behind.
        environ["JOULEMETER_CALIBRATION__REMEMBER"] = "false"
        if stage.truth is not None:
            environ.pop("CUDA_VISIBLE_DEVICES", None)  # names no simulated card
        with log.open("wb") as out:
            words = (*run, *options, "--", *stage.command)
            process = tethered(words, {**environ, **stage.environment}, out.fileno())
        return cls(process, f"http://127.0.0.1:{port}", trace, log)

    def check(self) -> None:
        """Raise ``EndedError`` where it has ended."""
        code = self.process.poll()
        if code is not None:
            raise EndedError(f"the engine ended with code {code}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what the engine and the meter said."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def summary(self) -> dict[str, Any] | None:
        """``/v1/summary``; ``None`` while there is none."""
        found = get_json(f"{self.url}/v1/summary")
        return found if isinstance(found, dict) else None

    def receipts(self, limit: int) -> list[dict[str, Any]]:
        """The newest final receipts, newest first."""
        found = get_json(f"{self.url}/v1/receipts?limit={limit}")
        return found["receipts"] if isinstance(found, dict) else []

    def stop(self) -> None:
        """End engine and meter in order; by force where that takes too long."""
        end(self.process)


def tethered(words: Sequence[str], environ: Mapping[str, str], out: int) -> subprocess.Popen[bytes]:
    """A command in a session of its own that ends when this process does; ``out``: where all that
    it says goes."""
    return subprocess.Popen(
        [sys.executable, "-c", _TETHERED, *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes], seconds: float = _STOP_S) -> None:
    """End what was ``tethered`` in order, and whatever it has started; by force where that takes
    longer than ``seconds``. A server's workers may outlive it, and hold a card's memory."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if not wait_until(lambda: not _group(process.pid), max(0.0, deadline - time.monotonic())):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _group(leader: int) -> list[int]:
    """Who still runs in a process group."""
    found = []
    for one in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(one.pid) == leader and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found


def wait_until(true: Callable[[], bool], seconds: float, pause_s: float = 0.1) -> bool:
    """Wait until something is true; false where that takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
    return True


def answers(url: str) -> bool:
    """Whether ``url`` answers with 200."""
    status, _ = _get(url)
    return status == 200


def get_json(url: str) -> Any:
    """The JSON at ``url``; ``None`` where nobody answers with 200."""
    status, body = _get(url)
    return json.loads(body) if status == 200 else None


def _get(url: str) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers. No proxy: it is this machine."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=3.0)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
