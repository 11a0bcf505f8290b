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
from meter.runtime import find as find_room
from meter.runtime import prospect as prospect_room
from meter.runtime.find import Server
from meter.runtime.prospect import LOADED_WITHIN_S, Seen, Tried, judge, prospect
from meter.work.scrape import NoCountersError, RefusedError, ScrapeError

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("metrics_server.py")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
PYTHON = Seen(7, "python3", "python3 -m vllm.entrypoints.openai.api_server", 5.0)
SLEEP = Seen(7, "sleep", "sleep 600", 5.0)
PLAIN = Server(7, {})
PLUGGED = Server(7, {}, socket=Path("/run/s"))


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


def test_a_server_of_something_else_is_refused(metered, process):
    """It answers, and has no engine's counters: code 2, and what was asked."""
    serve = "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.BaseHTTPRequestHandler)"
    other = process(
        sys.executable, "-c", f"{serve}; print(s.server_port, flush=1); s.serve_forever()"
    )
    port = int(other.stdout.readline())
    run = metered(other.pid, command="attach")
    assert run.end()[0] == 2
    line = said(run, f"process {other.pid} ")
    assert f"http://127.0.0.1:{port}/metrics" in line and "Give the pid or the URL" in line


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


HERE = [("127.0.0.1", 5432)]
MANY = [PYTHON, PYTHON._replace(pid=8)]
OLD = [PYTHON._replace(age_s=LOADED_WITHIN_S + 1)]
SILENT = [ScrapeError("http://127.0.0.1:5432/metrics: timed out")]
OTHER = [NoCountersError("http://127.0.0.1:5432/metrics: HTTP Error 404: Not Found")]
KEY = [RefusedError("http://127.0.0.1:5432/metrics: HTTP Error 401: it wants a key")]


@pytest.mark.parametrize(
    ("server", "members", "where", "tried", "words", "hopeless"),
    [
        (PLAIN, [SLEEP], [], Tried(9), "nor does it run Python", True),
        (PLAIN, [PYTHON], [], Tried(9), "still be starting", False),
        (PLAIN, [SLEEP, PYTHON._replace(pid=8)], [], Tried(9), "still be starting", False),
        (PLAIN, [SLEEP._replace(name="bash")], [], Tried(9), "still be starting", False),
        (PLAIN, OLD, [], Tried(9), "after 30 minutes", True),
        (PLAIN, [SLEEP], HERE, Tried(9), "listens on 127.0.0.1 port 5432, but no engine", False),
        (PLAIN, [PYTHON], HERE, Tried(9, SILENT), "metrics: timed out", False),
        (PLAIN, [PYTHON], HERE, Tried(LOADED_WITHIN_S + 1, SILENT), "timed out", True),
        (PLAIN, OLD, HERE, Tried(9, SILENT), "30 minutes at most", False),
        (PLAIN, OLD, HERE, Tried(61, SILENT), "Give the pid or the URL", True),
        (PLAIN, [PYTHON], HERE, Tried(9, OTHER), "Not Found", True),
        (PLAIN, MANY, HERE, Tried(9, OTHER), "still be starting", False),
        (PLAIN, MANY, HERE, Tried(9, KEY), "it wants a key", True),
        (PLUGGED, [SLEEP], [], Tried(9), "no engine of it speaks", False),
        (PLUGGED, OLD, HERE, Tried(1e6, OTHER), "still be starting", False),
    ],
)
def test_waiting_ends_where_it_is_of_no_use(server, members, where, tried, words, hopeless):
    """A shell may still start it; an old process that listens on nothing is none; who answers and
    has no counters is none; who wants a key will go on to want it."""
    found = judge(server, members, where, None, tried)
    assert words in found.line
    assert found.hopeless is hopeless


URL = Server(None, {}, "http://far:8000")


@pytest.mark.parametrize(
    ("tried", "hopeless"),
    [
        (Tried(9, SILENT), False),
        (Tried(LOADED_WITHIN_S + 1, SILENT), True),
        (Tried(9, OTHER), False),
        (Tried(61, OTHER), True),
        (Tried(0, KEY), True),
    ],
)
def test_a_url_is_not_waited_for_without_end(tried, hopeless):
    """Its process is not to be seen; what was tried is said."""
    found = prospect(URL, tried)
    assert str(tried.reasons[0]) in found.line
    assert found.hopeless is hopeless


def test_a_container_of_its_own_network_is_named(monkeypatch):
    """Its addresses are not ours: nobody is asked there, and the way in is said."""
    here = os.getpid()
    monkeypatch.setattr(find_room, "network_of", lambda pid: 1 if pid == here else 2)
    monkeypatch.setattr(prospect_room, "network_of", lambda pid: 1 if pid == here else 2)
    monkeypatch.setattr(prospect_room, "listening", lambda pids: {("0.0.0.0", 8000)})
    parent = os.getppid()
    assert Server(parent, {}).urls() == ()
    found = prospect(Server(parent, {}), Tried(9))
    assert "another network namespace" in found.line
    assert "0.0.0.0 port 8000" in found.line and f"nsenter -t {parent} -n" in found.line
    assert found.hopeless


def test_a_young_child_of_an_old_launcher_may_be_starting():
    """A supervisor restarts a server that has died."""
    old = PYTHON._replace(age_s=1e6)
    assert not judge(PLAIN, [old, PYTHON._replace(pid=8)], [], None, Tried(9)).hopeless
