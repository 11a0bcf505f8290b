"""``joulemeter attach`` to what is no server, or not yet: it says so, and waits only where that may
help."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from processes import poll

from meter.demo.card import Card
from meter.runtime.find import Server
from meter.runtime.prospect import LOADED_WITHIN_S, Seen, judge

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("metrics_server.py")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
PYTHON = Seen(7, "python3", "python3 -m vllm.entrypoints.openai.api_server", 5.0)
SLEEP = Seen(7, "sleep", "sleep 600", 5.0)
PLAIN = Server(7, {})


@pytest.fixture
def process():
    """Starts processes without joulemeter; ends them."""
    started = []

    def begin(*command):
        made = subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, text=True)
        started.append(made)
        return made

    yield begin
    for made in started:
        made.kill()
        made.wait()
        made.stdout.close()


def said(run, text):
    """The one line that holds this text."""
    (line,) = [line for line in run.lines if text in line]
    return line


def test_what_can_never_serve_is_refused(metered, process):
    """Code 2, in words, with what to do."""
    sleeping = process("sleep", "600")
    run = metered(sleeping.pid, command="attach")
    assert run.end()[0] == 2
    line = said(run, f"process {sleeping.pid} (sleep 600) has no engine")
    assert "listens on nothing" in line and "joulemeter run -- CMD" in line


def test_a_worker_is_told_whose_it_is(metered, process):
    """The process that started it serves: that is the one to attach to."""
    start = "import subprocess, sys; sys.argv = ['', '0']; print(subprocess.Popen(['sleep', '600'])"
    serve = f"{start}.pid, flush=True); exec(open({str(SERVER)!r}).read())"
    server = process(sys.executable, "-c", serve)
    worker, port = int(server.stdout.readline()), int(server.stdout.readline())
    try:
        run = metered(worker, command="attach")
        assert run.end()[0] == 2
        line = said(run, f"is a part of process {server.pid}")
        assert f"http://127.0.0.1:{port}: attach to that one" in line
    finally:
        os.kill(worker, 9)


SHELL = ["sh", "-c", f'read go; "{sys.executable}" "{SERVER}" 0; :']
RUNS = f"import subprocess, sys; input(); subprocess.run([sys.executable, {str(SERVER)!r}, '0'])"


@pytest.mark.parametrize("launcher", [SHELL, [sys.executable, "-c", RUNS]], ids=["sh", "python"])
def test_a_launcher_is_waited_for_and_metered_by_what_it_starts(metered, card, launcher):
    """It says that it waits; the server that comes below it is found."""
    Card.attach(card).post(0, 200.0)
    made = subprocess.Popen(
        launcher, env=CLEAN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        run = metered(made.pid, command="attach")
        url = run.started()
        while not any("has no engine" in line for line in run.lines):
            assert run.process.poll() is None, run.lines
            poll(url, lambda summary: True)
        assert "still be starting" in said(run, f"process {made.pid} ")
        made.stdin.write("\n")
        made.stdin.flush()
        poll(url, lambda s: s["attributed_j"] > 10)
        said(run, "counters alone")
    finally:
        for process in [*psutil.Process(made.pid).children(recursive=True), made]:
            process.kill()
        made.communicate()
    assert run.end()[0] == 0


def test_another_users_process_is_named_as_such():
    """Code 2 and whose it is; not an endless wait for an engine that cannot be seen."""
    script = (
        "import os, pwd\n"
        "from meter.runtime.find import FindError, find\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: find('1')\n"
        "except FindError as error: print(error)\n"
    )
    line = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert re.search(r"process 1 belongs to \S+ and may not be looked into", line)
    assert "the server's URL" in line


@pytest.mark.parametrize(
    ("server", "members", "ports", "words", "hopeless"),
    [
        (PLAIN, [SLEEP], [], "nor does it run Python", True),
        (PLAIN, [PYTHON], [], "still be starting", False),
        (PLAIN, [SLEEP, PYTHON._replace(pid=8)], [], "still be starting", False),
        (PLAIN, [SLEEP._replace(name="bash")], [], "still be starting", False),
        (PLAIN, [PYTHON._replace(age_s=LOADED_WITHIN_S + 1)], [], "after 30 minutes", True),
        (PLAIN, [SLEEP], [5432], "listens on port 5432, but no engine answers", False),
        (Server(7, {}, socket=Path("/run/s")), [SLEEP], [], "no engine of it speaks", False),
    ],
)
def test_waiting_ends_where_it_is_of_no_use(server, members, ports, words, hopeless):
    """A shell may still start it; an old process that listens on nothing is none."""
    found = judge(server, members, ports, None)
    assert words in found.line
    assert found.hopeless is hopeless


def test_a_young_child_of_an_old_launcher_may_be_starting():
    """A supervisor restarts a server that has died."""
    old = PYTHON._replace(age_s=1e6)
    assert not judge(PLAIN, [old, PYTHON._replace(pid=8)], [], None).hopeless
