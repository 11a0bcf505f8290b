"""Any way to start a real vLLM, and any layout of it that a CPU can run.

    make test-vllm        (it sets the environment up; pytest alone does not collect this file)

Each is metered by ``joulemeter run -- CMD…`` with nothing else changed: the same token counts as in
the server's own ``usage``, sums that hold, the exit code, and nothing left at the end.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from served import END_S, HOOK, Metered, check_receipts, closes, until
from smoke import home, load
from sources import rust_front_end

from meter.runtime.witness import NAME as WITNESS

pytestmark = pytest.mark.timeout(1800)

VERSION = "0.32.0"
VENV = home(VERSION) / "venv"
#: The CPU build is a distribution of another name: its own ``vllm`` command asks for this one, and
#: its platform for "cpu" in the version.
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
#: An offline job as torchrun starts it, on each rank: it decodes, tells what it counted, and waits.
OFFLINE = """
import json, os, sys, time
from vllm import LLM, SamplingParams
model, told, enough = sys.argv[1:]
llm = LLM(
    model, distributed_executor_backend="external_launcher", enforce_eager=True, dtype="float32",
    max_model_len=1024, max_num_seqs=8,
)
prompts = ["Once upon a time", "The capital of France is", "One, two, three"]
outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24))
counts = {o.request_id: (len(o.prompt_token_ids), len(o.outputs[0].token_ids)) for o in outputs}
with open(told + ".part", "w") as file:
    json.dump(counts, file)
os.rename(told + ".part", told)
while not os.path.exists(enough):
    time.sleep(0.1)
"""


@contextmanager
def metered(made: Metered) -> Iterator[Metered]:
    try:
        yield made
    finally:
        made.kill_all()
        made.meter.wait(30)


def family_of(made: Metered) -> list[psutil.Process]:
    below = psutil.Process(made.meter.pid).children(recursive=True)
    made.family = [process for process in below if process.name() != WITNESS]
    return made.family


def end(made: Metered, number: signal.Signals = signal.SIGTERM) -> int:
    """A signal to the meter; its exit code, once none of the server's processes is left."""
    family = family_of(made)
    made.meter.send_signal(number)
    code = made.meter.wait(END_S)
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
    return code


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_shell_script(tmp_path: Path) -> None:
    """The server is the script's child. SIGTERM ends the script, which leaves the server: that is
    ended too, and the code is the script's."""
    path = script(tmp_path / "serve.sh", "echo starting", '"$@"')
    with metered(Metered(VERSION, tmp_path, lambda serve: [str(path), *serve])) as made:
        made.await_up()
        check_receipts(made, load(made.url))
        assert end(made) == 128 + signal.SIGTERM


def test_an_entry_point_that_is_pid_1_of_its_container(tmp_path: Path) -> None:
    """``exec "$@"`` in a PID namespace of its own: the pids that the engine tells mean nothing
    out here. SIGTERM reaches the server, whose code is ours."""
    path = script(tmp_path / "entrypoint.sh", "set -e", "export IN_A_CONTAINER=1", 'exec "$@"')
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        inside = []  # not root: then at least the entry point itself
    with metered(Metered(VERSION, tmp_path, lambda serve: [*inside, str(path), *serve])) as made:
        made.await_up()
        check_receipts(made, load(made.url))
        main = family_of(made)[-1 if not inside else 1]
        main.send_signal(signal.SIGTERM)
        assert made.meter.wait(END_S) == 0
        _, left = psutil.wait_procs(made.family, timeout=5)
        assert left == []


def test_torchrun(tmp_path: Path) -> None:
    """An offline job on one rank, its engine inside the job's own process: every request's counts,
    and torchrun's code."""
    job, told, enough = (tmp_path / name for name in ("job.py", "told.json", "enough"))
    job.write_text(OFFLINE, encoding="utf-8")
    command = [
        *(str(VENV / "bin/torchrun"), "--standalone", "--nproc-per-node=1", str(job)),
        *(str(home(VERSION) / "model"), str(told), str(enough)),
    ]
    with metered(Metered(VERSION, tmp_path, lambda serve: command)) as made:
        until(told.exists, 300, made)
        for name, (prompt, completion) in json.loads(told.read_text()).items():
            until(lambda name=name: (made.receipt(name) or {}).get("final"), 60, made)
            receipt = made.receipt(name)
            assert receipt is not None
            assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == (prompt, completion)
            assert receipt["energy_j"] > 0
        until(lambda: closes(made.summary()), 30, made)
        family = family_of(made)
        enough.touch()
        assert made.meter.wait(END_S) == 0
        _, left = psutil.wait_procs(family, timeout=5)
        assert left == []


def vllm_serve(folder: Path, *layout: str) -> tuple[Callable[[list[str]], list[str]], Path]:
    """What makes ``vllm serve`` with this layout of a server's command, and what it must import."""
    shim = folder / "shim"
    named = shim / f"vllm-{VERSION}+cpu.dist-info" / "METADATA"
    named.parent.mkdir(parents=True)
    named.write_text(METADATA, encoding="utf-8")

    def command(serve: list[str]) -> list[str]:
        return [str(VENV / "bin/vllm"), "serve", *serve[serve.index("--model") :], *layout]

    return command, shim


def test_two_ranks_behind_two_api_servers(tmp_path: Path) -> None:
    """``vllm serve --data-parallel-size 2 --api-server-count 2``: both ranks are seen, under vLLM's
    own labels, whoever took the request; each request has one receipt."""
    layout = ("--data-parallel-size", "2", "--api-server-count", "2")
    command, shim = vllm_serve(tmp_path, *layout)
    # Two workers cannot both say what the one card draws: it draws the same all the while.
    environ = {"PYTHONPATH": str(shim), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with metered(Metered(VERSION, tmp_path, command, environ)) as made:
        made.await_up()
        usages = load(made.url)
        check_receipts(made, usages)
        engines = {(made.receipt(name) or {})["engine"] for name in usages}
        assert engines == {"0", "1"}
        assert end(made) == 0


def test_the_rust_front_end(tmp_path: Path) -> None:
    """No Python takes the requests, and the engine is the same. Its program is not in the CPU
    build: vLLM would say that `the vllm-rs binary was not found`; it is the GPU build's."""
    command, shim = vllm_serve(tmp_path)
    environ = {
        "PYTHONPATH": f"{shim}:{HOOK}",
        "VLLM_USE_RUST_FRONTEND": "1",
        "VLLM_RUST_FRONTEND_PATH": str(rust_front_end(VERSION)),
    }
    with metered(Metered(VERSION, tmp_path, command, environ)) as made:
        made.await_up()
        assert "vllm-rs" in {process.name() for process in family_of(made)}
        check_receipts(made, load(made.url, pairs=False))  # it knows no n > 1
        assert end(made) == 0
