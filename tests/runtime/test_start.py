"""Whatever the meter finds where it is started, the server is started, and its code is ours."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from meter.runtime.logs import say
from meter.runtime.meter import Meter
from meter.runtime.run import _in_time

pytestmark = pytest.mark.slow

#: Served without a word: what it was given is often closed or full.
SERVE = 'echo served > "$MARK"; exit 5'
#: Runs the rest of its arguments with a shell's redirections, a limit, or another place.
METER = f"exec \"{sys.executable}\" -m meter.cli run --source cpu --port 0 -- sh -c '{SERVE}'"


@pytest.fixture
def begin(tmp_path):
    """Starts it by a line of shell; gives its code, what was served, and what was said."""

    def call(line, environ=(), before=None, timeout_s=60, **options):
        mark = tmp_path / "mark"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
        environ = {**clean, "MARK": str(mark), "XDG_STATE_HOME": str(tmp_path / "state")} | dict(
            environ
        )
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        done = subprocess.run(
            ["sh", "-c", line],
            check=False,
            env={name: value for name, value in environ.items() if value is not None},
            preexec_fn=before,
            timeout=timeout_s,
            **options,
        )
        served = mark.read_text() if mark.exists() else None
        return done.returncode, served, (done.stderr or b"").decode()

    return call


@pytest.mark.parametrize(
    "closed",
    ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"],
)
def test_with_standard_files_closed(begin, closed):
    """Any of the three; what the server gets is as closed as it was."""
    assert begin(f"{METER} {closed}")[:2] == (5, "served\n")


def test_a_closed_file_is_closed_for_the_server_too(begin, tmp_path):
    """And no file of ours has its number."""
    look = f"ls /proc/self/fd > {tmp_path}/fds"
    line = METER.replace(SERVE, look) + " <&- >&- 2>&-"
    assert begin(line)[0] == 0
    # ls itself has the folder that it reads (0), and its list (1), by the shell.
    assert set((tmp_path / "fds").read_text().split()) == {"0", "1"}


@pytest.mark.parametrize("full", [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_with_a_full_disk_behind_its_output(begin, full):
    """Nothing can be said; the code is the server's, not Python's 120."""
    assert begin(f"{METER} {full}")[:2] == (5, "served\n")


def test_with_nobody_who_reads_what_it_says(begin):
    """A log's pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert begin(METER, stderr=writer)[:2] == (5, "served\n")
    finally:
        os.close(writer)


def no_files_of_more_than(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_with_a_full_disk_everywhere(begin, tmp_path):
    """No file can grow, the plugin's and the trace's neither (RLIMIT_FSIZE stands for it)."""
    line = METER.replace("--port 0", f"--port 0 --record {tmp_path}/trace.jsonl")
    line = line.replace(f"{SERVE}", "exit 5")
    code, _, said = begin(line, before=no_files_of_more_than(0))
    assert code == 5, said
    assert "part_left_out" in said, said


@pytest.mark.parametrize("files", [7, 8, 10, 16, 24, 40])
def test_with_few_files(begin, files):
    """From none to spare, to enough for a part of the meter."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    code, _, said = begin(METER.replace(SERVE, "exit 5"), before=limit)
    assert code == 5, said


@pytest.mark.parametrize(
    "environ",
    [
        {"HOME": None, "XDG_STATE_HOME": None},
        {"HOME": "/nonexistent", "XDG_STATE_HOME": None},
        {"HOME": "/proc", "XDG_STATE_HOME": "/proc/none"},
        {"TMPDIR": "/nonexistent"},
        {"TMPDIR": "/proc"},
        {"PATH": "/bin:/usr/bin", "LANG": None, "LC_ALL": "C", "TERM": None},
        {"JOULEMETER_CONFIG": "/nonexistent.yaml"},
        {"JOULEMETER_CONFIG": "/"},
        {"JOULEMETER_NO_SUCH_KEY": "1"},
        {"JOULEMETER_HTTP__HOST": ""},
        {"JOULEMETER_POWER": "{"},
    ],
    ids=str,
)
def test_with_an_odd_environment(begin, environ):
    """No home, no place for files, settings that cannot be used."""
    code, served, said = begin(METER, environ)
    assert (code, served) == (5, "served\n"), said
    for name in environ:
        if name.startswith("JOULEMETER_"):
            assert "left out: the server is started all the same" in said


def test_of_the_environment_only_what_is_wrong_is_left_out(begin, tmp_path):
    """The rest of it holds."""
    environ = {
        "JOULEMETER_NO_SUCH_KEY": "1",
        "JOULEMETER_HTTP__PORT": "0",
        "JOULEMETER_HTTP__HOST": "127.0.0.7",
    }
    code, _, said = begin(METER.replace("--port 0", ""), environ)
    assert code == 5
    assert "http://127.0.0.7:" in said


def test_in_a_folder_that_is_gone(begin, tmp_path):
    """Its working directory was deleted."""
    line = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {METER}"
    assert begin(line)[:2] == (5, "served\n")


def test_with_signals_blocked_and_ignored():
    """Real-time ones too, which Python has no names for; the server has them as we had."""

    def odd():
        signal.pthread_sigmask(signal.SIG_BLOCK, {40, 50, signal.SIGUSR1})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = [sys.executable, "-m", "meter.cli", "run", "--source", "cpu", "--port", "0", "--"]
    look = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    out = subprocess.check_output(words + look, preexec_fn=odd, stderr=subprocess.PIPE, text=True)
    blocked, ignored = (int(line.split()[1], 16) for line in out.splitlines())
    assert blocked == sum(1 << (number - 1) for number in (40, 50, signal.SIGUSR1))
    assert ignored & 1 << (signal.SIGHUP - 1)


NO_ROOM = """
import errno, os, threading
def full(*_, **__): raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
def no_thread(*_): raise RuntimeError("can't start new thread")
os.fork = full
"""


def test_with_no_room_for_threads(begin, tmp_path):
    """A limit on processes counts threads too: the server runs without the meter."""
    (tmp_path / "sitecustomize.py").write_text(NO_ROOM + "threading.Thread.start = no_thread\n")
    code, served, said = begin(METER, {"PYTHONPATH": str(tmp_path)})
    assert (code, served) == (5, "served\n"), said
    assert "the engine runs all the same" in said


def test_with_no_room_for_one_more_process(begin, tmp_path):
    """The command takes our place: its process is ours, with the signals as they were."""
    (tmp_path / "sitecustomize.py").write_text(NO_ROOM + "os.posix_spawn = full\n")
    look = 'grep -E "^Sig(Blk|Ign)" /proc/self/status > "$MARK"; echo $$ $PPID; exit 5'
    line = METER.replace(SERVE, look).removeprefix("exec ") + "; code=$?; echo $$; exit $code"
    with (tmp_path / "out").open("w+") as out:
        code, served, said = begin(line, {"PYTHONPATH": str(tmp_path)}, stdout=out)
        out.seek(0)
        (_, parent), (shell,) = map(str.split, out)
    assert code == 5, said
    assert "takes our place" in said
    assert parent == shell
    blocked, ignored = (int(line.split()[1], 16) for line in served.splitlines())
    assert blocked == 0
    assert not ignored & 1 << (signal.SIGPIPE - 1)


@pytest.mark.parametrize("broken", ["numpy", "psutil", "structlog", "uvicorn", "msgspec"])
def test_where_what_it_is_made_of_is_broken(begin, tmp_path, broken):
    """A package that cannot be imported: the command runs without the meter."""
    (tmp_path / f"{broken}.py").write_text("raise RuntimeError('broken')\n")
    code, served, said = begin(METER, {"PYTHONPATH": str(tmp_path)})
    assert (code, served) == (5, "served\n"), said
    assert "the command runs without" in said


@pytest.mark.parametrize("broken", ["typer", "pydantic", "yaml"])
def test_where_not_even_the_command_line_can_be_had(begin, tmp_path, broken):
    """What the meter's own options are read with is broken: the words behind ``--`` are enough."""
    (tmp_path / f"{broken}.py").write_text("raise RuntimeError('broken')\n")
    code, served, said = begin(METER, {"PYTHONPATH": str(tmp_path)})
    assert (code, served) == (5, "served\n"), said
    assert "the command runs without" in said
    recorded = METER.replace("run --source", f"record {tmp_path}/t.jsonl --source")
    assert begin(recorded, {"PYTHONPATH": str(tmp_path)})[:2] == (5, "served\n")


@pytest.mark.parametrize("megabytes", [50, 80, 100, 150, 200])
def test_with_little_memory(begin, megabytes):
    """From what Python itself needs on; OpenBLAS ends a process where it gets none. The reason is
    one line."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6,) * 2)

    code, served, said = begin(METER, before=limit)
    assert (code, served) == (5, "served\n"), said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 3, said


def test_where_an_import_ends_the_process(begin, tmp_path):
    """With a limit on memory it is tried in a child first, whose words nobody needs."""
    (tmp_path / "numpy.py").write_text("import os; os.write(2, b'no memory'); os._exit(1)\n")

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 30,) * 2)

    code, served, said = begin(METER, {"PYTHONPATH": str(tmp_path)}, before=limit)
    assert (code, served) == (5, "served\n"), said
    assert "ulimit -v" in said
    assert "no memory" not in said


PROBED = """
import os, signal, time
from meter.runtime import probe
assert not probe.can(lambda: time.sleep(60), within_s=0.05)
assert not probe.can(lambda: os.kill(os.getpid(), signal.SIGKILL))
assert not probe.can(lambda: 1 / 0)
assert probe.can(lambda: print("said", flush=True))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody is left")
"""


def test_an_import_that_hangs_is_given_up():
    """Its child is ended, and none is left; nor is anything said."""
    done = subprocess.run([sys.executable, "-c", PROBED], check=False, capture_output=True)
    assert (done.stdout, done.stderr) == (b"nobody is left\n", b"")


def test_where_building_the_meter_hangs(begin, tmp_path):
    """A resolver, or a network's folder: the server is started after a while."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\n"
        "import meter.runtime.run as room, meter.runtime.meter as m\n"
        "room._READY_WITHIN_S = 0.2\n"
        "room.build = lambda *_: threading.Event().wait()\n"
    )
    code, served, said = begin(METER, {"PYTHONPATH": str(tmp_path)})
    assert (code, served) == (5, "served\n"), said
    assert "not ready within" in said


def test_a_meter_that_comes_too_late_is_closed(monkeypatch):
    """It would go on beside a server that does not know it."""
    closed, go_on = threading.Event(), threading.Event()

    class Late(Meter):
        def __init__(self):
            pass

        def close(self):
            closed.set()

    def build():
        go_on.wait(10)
        return Late()

    with pytest.raises(TimeoutError):
        _in_time(build, 0.01)
    go_on.set()
    assert closed.wait(10)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("closed")])
def test_a_log_that_cannot_be_written_stops_nobody(error, monkeypatch):
    """Full, closed or broken."""

    class Broken:
        def write(self, _):
            raise error

        flush = lambda self: self.write("")  # noqa: E731

    monkeypatch.setattr(sys, "stderr", Broken())
    say("joulemeter: a line")
