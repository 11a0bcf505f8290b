"""A started ``joulemeter``, and how to ask it. For the tests of this room."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from meter.runtime.witness import NAME as WITNESS

ENGINE = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
UUID = "GPU-11111111-2222-3333-4444-555555555555"


class Run:
    """A started ``joulemeter``; its stderr is read all the while."""

    def __init__(self, *words, environ=(), command="run"):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meter.cli", command, *map(str, words)],
            env={**clean, **dict(environ)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self.url = None
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"^joulemeter: .*(http://\S+)", line)
            if found:
                self.url = found.group(1)
                self._started.set()
        self._started.set()

    def started(self):
        """Wait for the first line; the address."""
        assert self._started.wait(60), self.lines
        assert self.url, self.lines
        return self.url

    def end(self):
        """Wait for the end; exit code and stdout."""
        out = self.process.stdout.read()
        code = self.process.wait(60)
        self._reader.join(60)
        self.process.stdout.close()
        self.process.stderr.close()
        return code, out


def poll(url, wanted, path="/v1/summary"):
    """Ask until the answer is as wanted; each answer is a new state, so nothing is waited for."""
    pause = threading.Event()
    for _ in range(600):
        answer = httpx.get(url + path, trust_env=False)
        if answer.status_code == 200 and wanted(answer.json()):
            return answer.json()
        pause.wait(0.05)
    raise AssertionError(f"never came: {answer.text}")


def family_of(pid):
    """All that the command of this meter has started, and itself; without the meter's own."""
    below = psutil.Process(pid).children(recursive=True)
    return [process for process in below if process.name() != WITNESS]


def the_command(pid):
    """What this meter has started."""
    (command,) = [p for p in psutil.Process(pid).children() if p.name() != WITNESS]
    return command


def closes(summary):
    """measured = all accounts + pending."""
    parts = ("attributed_j", "idle_j", "startup_j", "unattributed_j", "pending_j")
    return sum(summary[part] for part in parts) == pytest.approx(summary["measured_j"], rel=1e-9)
