"""The command itself: what it chooses, and how it ends when things go wrong."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from meter.demo import demo
from meter.demo.demo import Demo, choose, main
from meter.demo.process import _TETHERED, EndedError, answers, free_port, get_json
from meter.demo.stage import Stage
from meter.demo.traffic import H100


def test_without_a_gpu_everything_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded engine, and a truth to be held against."""
    monkeypatch.setattr(demo, "has_gpu", lambda: False)
    stage = choose(tmp_path, vllm=False)
    assert "simulated" in stage.title
    assert stage.truth is not None


def test_with_gpu_and_vllm_those_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small real model, another if the environment names one; nobody knows the truth."""
    monkeypatch.setattr(demo, "has_gpu", lambda: True)
    monkeypatch.setattr(demo, "vllm_command", lambda: ("vllm", "serve"))
    monkeypatch.setenv("JOULEMETER_DEMO_MODEL", "me/mine")
    stage = choose(tmp_path, vllm=False)
    assert stage.command[:3] == ("vllm", "serve", "me/mine")
    assert stage.options == ("--source", "nvml")
    assert stage.truth is None


def test_with_a_gpu_but_no_vllm_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated all the same, and never silently."""
    monkeypatch.setattr(demo, "has_gpu", lambda: True)
    monkeypatch.setattr(demo, "vllm_command", lambda: None)
    stage = choose(tmp_path, vllm=False)
    assert "simulated" in stage.title
    assert any("vLLM" in note for note in stage.notes)


def test_an_engine_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    """No hanging, no empty table: what the engine said is the message."""
    words = "import sys; sys.exit('no such model')"
    stage = Stage("a broken one", (sys.executable, "-c", words), "http://127.0.0.1:9", "m", H100)
    console = Console(file=io.StringIO(), width=100)
    with pytest.raises(EndedError, match="no such model"):
        Demo(stage, tmp_path, console, threading.Event()).run(5.0, 0)
    assert isinstance(console.file, io.StringIO)
    address = re.search(r"page and metrics: http://127.0.0.1:(\d+)", console.file.getvalue())
    assert address is not None and int(address[1]) > 0, "0 takes a free port, and names it"


def test_without_vllm_the_command_fails_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one line on stderr."""
    monkeypatch.setenv("JOULEMETER_CACHE", str(tmp_path))
    assert main(seconds=1.0, vllm=True) == 1
    assert "setup.sh" in capsys.readouterr().err


def test_a_trace_that_cannot_be_kept_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line on stderr."""
    assert main(seconds=1.0, record=tmp_path / "nowhere" / "trace.jsonl") == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "nowhere" in said.err


def test_the_first_interrupt_ends_in_order_and_the_second_at_once() -> None:
    """Afterwards signals mean what they meant before."""
    before = signal.getsignal(signal.SIGINT)
    with demo._Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wait(5)
        with pytest.raises(KeyboardInterrupt):
            _interrupt_and_wait()
    assert signal.getsignal(signal.SIGINT) is before


def _interrupt_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def test_a_time_below_a_second_is_refused() -> None:
    """Nothing could be seen of it."""
    command = [sys.executable, "-m", "meter.cli", "demo", "--seconds", "-5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--seconds" in done.stderr


def test_a_taken_port_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    """What answers there is another meter, whose figures would be shown as the demo's."""
    stage = Stage("any", (sys.executable, "-c", ""), "http://127.0.0.1:9", "m", H100)
    console = Console(file=io.StringIO(), width=100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for wrong in (port, 70_000, -1):
            with pytest.raises(EndedError, match=f"port {wrong} cannot be had: .*--port"):
                Demo(stage, tmp_path, console, threading.Event()).run(1.0, wrong)


def test_a_taken_port_is_not_chosen() -> None:
    """Then any free one is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port


def test_nobody_there_is_no_answer() -> None:
    """Not an exception: the demo asks while things start."""
    url = f"http://127.0.0.1:{free_port()}/health"
    assert not answers(url)
    assert get_json(url) is None


def test_nothing_stays_behind_when_the_demo_is_killed() -> None:
    """What it started ends with it, even where it could not say good-bye."""
    sleeper = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
    starts = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    command = [sys.executable, "-c", starts, _TETHERED, *sleeper]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        words = {parent.stdout.readline().strip() for _ in range(2)}
        (pid,) = words - {"up"}
        child = psutil.Process(int(pid))
        parent.kill()
    child.wait(10)
