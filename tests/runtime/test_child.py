"""The engine as a child: its exit code is ours, its signals arrive once."""

import ast
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import structlog
from processes import the_command

from meter.runtime.child import Child
from meter.runtime.witness import NAME as WITNESS

# Runs a command as ``meter.runtime`` does, and says on stdout when it waits.
SUPERVISOR = """
import sys
from meter.runtime.child import Child, CommandError
from meter.runtime.signals import ENDING, block_signals
from meter.runtime.family import end_the_rest
from meter.runtime.witness import Witness
import os
mask = block_signals()
witness = Witness.start()
assert witness is not None
try:
    code = Child.start(sys.argv[1:], os.environ, mask, witness).wait()
    end_the_rest(ENDING, float(os.environ.get("GRACE_S", 30)), witness.pid)
except CommandError as error:
    print(error, file=sys.stderr)
    code = error.code
sys.exit(code)
"""

# Says when it is ready, then counts the signals it gets until it is told to end. The main thread
# waits in short turns: a signal just before a blocking read would be noted after that read only.
COUNTER = """
import signal, sys, threading
got = []
def note(number, frame):
    got.append(signal.Signals(number).name)
    print(" ".join(got), flush=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, note)
reader = threading.Thread(target=sys.stdin.read)
reader.start()
print("ready", flush=True)
while reader.is_alive():
    reader.join(0.02)
sys.exit(len(got))
"""


def supervise(*command, **options):
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("code", [0, 1, 77])
def test_the_exit_code_is_the_commands(code):
    """Whatever it is."""
    done = supervise(sys.executable, "-c", f"raise SystemExit({code})")
    done.communicate(timeout=30)
    assert done.returncode == code


def test_a_command_killed_by_a_signal_gives_128_and_its_number():
    """As a shell would say it."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = supervise(sys.executable, "-c", kill)
    done.communicate(timeout=30)
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_sent_to_us_reaches_the_command_once(number):
    """And we go on waiting for it."""
    process = supervise(sys.executable, "-c", COUNTER)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_second_signal_is_forwarded_too():
    """A server that ends slowly can be told again."""
    process = supervise(sys.executable, "-c", COUNTER)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM SIGTERM\n"
    process.communicate(timeout=30)
    assert process.returncode == 2


# Says when it is ready, then how often each signal came, until it is told to end.
LOUD = """
import collections, signal, sys, threading
got = collections.Counter()
def note(number, frame):
    got[signal.Signals(number).name] += 1
for name in sys.argv[1:]:
    signal.signal(signal.Signals[name], note)
reader = threading.Thread(target=sys.stdin.read)
reader.start()
print("ready", flush=True)
while reader.is_alive():
    reader.join(0.01)
print(dict(got), flush=True)
"""
TOLD = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGPWR, signal.SIGCONT, signal.SIGWINCH),
)


@pytest.fixture
def loud():
    """A supervised server in a group of its own that counts these signals."""
    started = []

    def begin(*numbers, command=()):
        names = [number.name for number in numbers]
        words = [*command, sys.executable, "-c", LOUD, *names]
        process = supervise(*words, process_group=0)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def counted(process, within_s=0.4):
    """What it got, once all that was sent has had the time to be passed on."""
    time.sleep(within_s)
    out, _ = process.communicate(timeout=30)
    return ast.literal_eval(out)


def test_a_signal_to_the_whole_group_is_not_passed_on(loud):
    """``kill -- -GROUP``: the server has it already."""
    process = loud(*TOLD)
    for number in TOLD:
        os.killpg(process.pid, number)
    assert counted(process) == dict.fromkeys((number.name for number in TOLD), 1)


def test_a_signal_to_us_alone_is_passed_on(loud):
    """``docker stop``, ``kill PID``."""
    process = loud(*TOLD)
    for number in TOLD:
        process.send_signal(number)
    assert counted(process, 1.5) == dict.fromkeys((number.name for number in TOLD), 1)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_signal_to_each_process_of_the_service_is_not_passed_on(loud, backwards):
    """As systemd tells a control group: one after the other, in any order."""
    process = loud(signal.SIGTERM)
    pids = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]
    assert len(pids) == 3
    for pid in reversed(pids) if backwards else pids:
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.005)
    assert counted(process) == {"SIGTERM": 1}


def test_told_alone_and_then_with_the_group_the_server_is_told_once(loud):
    """So does ``timeout``: its own child first, then the group that it made."""
    process = loud(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    assert counted(process) == {"SIGTERM": 1}


def test_a_group_and_then_us_alone_are_two(loud):
    """Whoever asks again is heard."""
    process = loud(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    assert counted(process) == {"SIGTERM": 2}


def test_without_the_witness_every_signal_is_passed_on(loud):
    """It was killed: rather twice than never."""
    process = loud(signal.SIGTERM)
    (witness,) = [p for p in psutil.Process(process.pid).children() if p.name() == WITNESS]
    witness.kill()
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    assert counted(process) == {"SIGTERM": 2}


def test_a_server_that_left_our_group_is_told_what_the_group_is(loud):
    """It has not got it."""
    process = loud(signal.SIGTERM, command=["setsid"])
    os.killpg(process.pid, signal.SIGTERM)
    assert counted(process) == {"SIGTERM": 1}


def test_the_witness_is_found_by_no_name_of_ours_or_the_servers(loud):
    """``pkill joulemeter`` means us, ``pkill vllm`` the server: it must not answer for either."""
    process = loud(signal.SIGTERM)
    (witness,) = [p for p in psutil.Process(process.pid).children() if p.name() == WITNESS]
    assert [word for word in witness.cmdline() if word] == [WITNESS]
    assert witness.num_fds() == 2, "none of the server's files"


def test_the_witness_ends_with_us():
    """Even where we are killed."""
    process = supervise(sys.executable, "-c", COUNTER)
    assert process.stdout.readline() == "ready\n"
    family = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    gone, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    assert len(gone) == 2


def test_a_stop_reaches_the_server_and_stops_us_too(loud):
    """``kill -TSTP``, which a shell waits for; both go on together."""
    process = loud(signal.SIGCONT)
    meter = psutil.Process(process.pid)
    server = the_command(process.pid)
    process.send_signal(signal.SIGTSTP)
    for stopped in (server, meter):
        until(lambda one=stopped: one.status() == psutil.STATUS_STOPPED)
    process.send_signal(signal.SIGCONT)
    until(lambda: server.status() != psutil.STATUS_STOPPED)
    assert counted(process) == {"SIGCONT": 1}


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never came")


def test_a_signal_before_the_server_is_there_reaches_it(tmp_path):
    """Ctrl-C while a driver is slow to answer: the server that is started then ends by it."""
    script = SUPERVISOR.replace("try:", "os.kill(0, 2)\ntry:", 1)
    words = [sys.executable, "-c", script, "sleep", "60"]
    done = subprocess.run(words, check=False, start_new_session=True, timeout=30)
    assert done.returncode == 128 + signal.SIGINT


def test_a_server_of_another_user_is_named_where_it_cannot_be_told(monkeypatch):
    """A meter that is not root, and a command that became root (sudo): nothing of us fails."""

    def forbidden(pid, number):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    with structlog.testing.capture_logs() as logs:
        Child(4194304)._send(signal.SIGTERM)
    (line,) = logs
    assert (line["event"], line["remedy"][-7:]) == ("signal_not_passed_on", "4194304")


def test_ctrl_c_in_a_terminal_reaches_the_command_once():
    """The terminal sends it to both; we must not send it again."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SUPERVISOR, sys.executable, "-c", COUNTER])
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        seen = read_until(file, b"ready")
        file.write(b"\x03")
        seen = read_until(file, b"SIGINT")
        file.write(b"\x04")
        seen += read_until(file, b"\x00")
        _, status = os.waitpid(pid, 0)
    assert seen.count(b"SIGINT") == 1
    assert os.waitstatus_to_exitcode(status) == 1


def read_until(file, text):
    """What the terminal shows up to and with this text, or up to its end."""
    seen = b""
    while text not in seen:
        try:
            part = file.read(1024)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    return seen


def test_a_command_that_is_not_there_gives_127(tmp_path):
    """As a shell would."""
    process = supervise(str(tmp_path / "nothing"))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 127
    assert "command not found" in error


def test_a_file_that_cannot_be_run_gives_126(tmp_path):
    """As a shell would."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    process = supervise(str(plain))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 126
    assert "not executable" in error


def test_stdio_is_the_commands_own():
    """stdin, stdout and stderr pass through."""
    echo = "import sys; sys.stderr.write('err'); sys.stdout.write(sys.stdin.read())"
    process = supervise(sys.executable, "-c", echo)
    out, err = process.communicate("hello", timeout=30)
    assert (out, err) == ("hello", "err")


def test_the_command_starts_with_the_usual_signals():
    """None blocked, and a closed pipe ends it, whatever we do with ours."""
    process = supervise("/bin/sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status")
    out, _ = process.communicate(timeout=30)
    blocked, ignored = (int(line.split()[1], 16) for line in out.splitlines())
    assert blocked == 0
    assert not ignored & 1 << (signal.SIGPIPE - 1)


# Starts a worker that outlives it, tells its pid, and ends with 3. The worker ends by SIGTERM, or,
# where told to, does not.
LEAVES_A_WORKER = """
import os, subprocess, sys
worker = (
    "import signal, sys, time\\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0) if sys.argv[1] == 'ends' else None)\\n"
    "print('up', flush=True)\\n"
    "while True: time.sleep(0.05)\\n"
)
process = subprocess.Popen(
    [sys.executable, "-c", worker, sys.argv[1]],
    stdout=subprocess.PIPE,
    start_new_session="detached" in sys.argv,
)
process.stdout.readline()
print(process.pid, flush=True)
os._exit(3)
"""


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("how", [("ends",), ("ends", "detached"), ("stays",)])
def test_nothing_of_the_command_is_left(how):
    """Its workers get SIGTERM, and who does not end by that is killed; the code stays its own."""
    environ = {**os.environ, "GRACE_S": "0.5" if how[0] == "stays" else "30"}
    process = supervise(sys.executable, "-c", LEAVES_A_WORKER, *how, env=environ)
    pid = int(process.stdout.readline())
    out, error = process.communicate(timeout=60)
    assert process.returncode == 3
    assert not is_alive(pid)
    assert "left_behind" in out + error


def test_a_second_signal_cuts_the_grace_short():
    """Nobody waits for a worker that will not end."""
    environ = {**os.environ, "GRACE_S": "600"}
    process = supervise(sys.executable, "-c", LEAVES_A_WORKER, "stays", env=environ)
    pid = int(process.stdout.readline())
    for _ in range(300):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(0.2)
            break
        except subprocess.TimeoutExpired:
            continue
    process.communicate(timeout=60)
    assert not is_alive(pid)
    assert process.returncode == 3


def test_killed_it_leaves_the_command_serving():
    """kill -9 of us: the command goes on with its stdio, and gets no signal."""
    process = supervise(sys.executable, "-c", COUNTER)
    assert process.stdout.readline() == "ready\n"
    child = the_command(process.pid)
    process.kill()
    process.wait(30)
    child.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "SIGHUP\n"
    process.stdin.close()
    assert process.stdout.read() == ""
    psutil.wait_procs([child], timeout=30)
    assert not is_alive(child.pid)
    process.stdout.close()
    process.stderr.close()


def test_stopped_and_continued_it_sends_the_command_nothing():
    """A stop longer than a turn of waiting once came out as a signal to forward."""
    process = supervise(sys.executable, "-c", COUNTER)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.communicate(timeout=30)
    assert process.returncode == 1
