"""The listener drains its socket, survives what comes, and notices engines that die."""

from __future__ import annotations

import json
import os
import queue
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from meter.model import EngineEvent, Event, RequestOpened, Step
from meter.system import processes
from meter.work import listener as module
from meter.work.listener import Listener, ListenError
from meter.work.peer import Peer
from meter.work.vllm.sender import Sender


class Heard:
    """Events as they come; ``next`` waits, and ten seconds are taken for never."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self._queue.put(event)

    def next(self) -> Event:
        return self._queue.get(timeout=10)

    def rest(self) -> list[Event]:
        found = []
        while not self._queue.empty():
            found.append(self._queue.get())
        return found


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def listener(tmp_path: Path, heard: Heard) -> Iterator[Listener]:
    made = Listener(tmp_path / "s", heard)
    made.start()
    yield made
    made.stop()


def test_events_arrive_in_order(listener: Listener, heard: Heard) -> None:
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0", "model": "m"})
    now_ns = time.monotonic_ns()
    sender.opened(now_ns, "r")
    sender.step(0, now_ns, now_ns + 1, [("r", 4, 0, "p")])
    sender.close()
    kinds = [type(heard.next()) for _ in range(4)]
    assert kinds == [EngineEvent, RequestOpened, Step, EngineEvent]
    assert listener.counters.datagrams >= 2  # and a sign of life now and then
    assert listener.last_ns is not None


def test_stopping_takes_what_has_arrived(tmp_path: Path, heard: Heard) -> None:
    """A shutdown loses nothing that the kernel holds; the socket is gone then."""
    listener = Listener(tmp_path / "s", heard)
    listener.start()
    sender = Sender(str(tmp_path / "s"))
    sender.hello({"engine": "0"})
    now_ns = time.monotonic_ns()
    sender.step(0, now_ns, now_ns + 1, [])
    for seq in range(1, 9):
        sender.step(seq, now_ns + seq, now_ns + seq + 1, [], same=True)
        sender.flush()
    listener.stop()
    listener.stop()
    assert [e.seq for e in heard.rest() if isinstance(e, Step)] == list(range(9))
    assert not (tmp_path / "s").exists()
    sender.close()


def test_rubbish_is_counted_and_survived(listener: Listener, heard: Heard) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for data in (b"\xff\x00", b"[]", b'["jm1","x",0,[["F",0,0,1,[]]]]', b"[" * 5000):
            stranger.sendto(data, str(listener.path))
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0"})
    assert isinstance(heard.next(), EngineEvent)
    assert (listener.counters.bad, listener.counters.stray) == (3, 1)
    sender.close()


def test_a_killed_engine_is_down(listener: Listener, heard: Heard) -> None:
    """It says no good-bye: its process is looked for."""
    code = (
        "import sys, os\nfrom meter.work.vllm.sender import Sender\n"
        f"sender = Sender({str(listener.path)!r})\n"
        "sender.hello({'engine': '0', 'pid': os.getpid()})\nprint('here', flush=True)\n"
        "sys.stdin.read()\nos._exit(9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"here\n"
        ready = heard.next()
        assert isinstance(ready, EngineEvent) and ready.event == "ready"
        listener.look_for_the_dead()
        process.stdin.close()
        process.wait()
    down = heard.next()
    assert isinstance(down, EngineEvent)
    assert (down.engine, down.event, down.epoch) == ("0", "down", 0)


def test_an_engine_in_another_pid_namespace_is_not_down(listener: Listener, heard: Heard) -> None:
    """A process that was never seen cannot be missed."""
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0", "pid": 2**22 + 1})
    heard.next()
    listener.look_for_the_dead()
    assert heard.rest() == []
    sender.close()


def test_a_socket_left_behind_is_replaced(tmp_path: Path, heard: Heard) -> None:
    """A meter that was killed leaves its socket: the next one takes the path over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(tmp_path / "s"))
    listener = Listener(tmp_path / "s", heard, mode=0o620)
    listener.start()
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o620
    listener.stop()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ListenError, match="no socket; choose another path"):
        Listener(tmp_path / "s", heard).start()
    assert (tmp_path / "s").read_text() == "precious"


def test_a_path_that_cannot_be_is_explained(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on .*choose a shorter path"):
        Listener(tmp_path / ("x" * 200), heard).start()


# --- who speaks, as the kernel says


def hello(source: str, **facts: object) -> bytes:
    now_ns = time.monotonic_ns()
    return json.dumps(["jm1", source, 0, [["H", now_ns, "ready", facts]]]).encode()


def test_the_pid_in_a_hello_is_another_processes_in_a_container(
    tmp_path: Path, heard: Heard
) -> None:
    """It may be a process here that ends. Who speaks, and owns devices, is whom the kernel says."""
    asked = []
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listener = Listener(tmp_path / "s", heard, lambda hello: asked.append(hello.pid) or ())
    listener.start()
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0", "pid": other.pid})
    heard.next()
    listener.look_for_the_dead()
    other.communicate(b"\n")
    listener.look_for_the_dead()
    now_ns = time.monotonic_ns()
    sender.step(0, now_ns, now_ns + 1, [])
    sender.flush()
    assert isinstance(heard.next(), Step)
    assert heard.rest() == []
    assert asked == [os.getpid()]
    listener.stop()
    sender.close()


def test_another_process_cannot_end_an_engine(
    listener: Listener, heard: Heard, tmp_path: Path
) -> None:
    """Though it knows its name, and may write to the socket: it is a stranger, and counted."""
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0"})
    heard.next()
    forged = json.dumps(["jm1", sender.source, 9, [["E", time.monotonic_ns(), "down"]]])
    code = (
        "import pathlib, socket, time\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
        "speaking = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        f"speaking.sendto({forged!r}.encode(), {str(listener.path)!r})"
    )
    # Not our child: a process that the engine has forked may speak for it.
    subprocess.run(["setsid", "--fork", sys.executable, "-c", code], check=True)
    (tmp_path / "go").touch()
    until_s = time.monotonic() + 10
    while not listener.counters.stray and time.monotonic() < until_s:
        time.sleep(0.01)
    assert listener.counters.refused == {"stray": 1}
    assert [source.label for source in listener.sources] == ["0"]
    assert heard.rest() == []
    sender.close()


def test_a_user_that_is_neither_ours_nor_root_is_refused(listener: Listener, heard: Heard) -> None:
    """Unless the socket was given to it."""
    pid = os.getpid()
    listener.take(hello("s"), Peer(pid, 54321))
    assert listener.counters.refused == {"user": 1}
    assert heard.rest() == []
    listener.take(hello("s"), Peer(pid, 0))
    assert isinstance(heard.next(), EngineEvent)
    if os.geteuid() == 0:
        os.chown(listener.path, 54321, -1)
        listener.take(hello("t"), Peer(pid, 54321))
        assert isinstance(heard.next(), EngineEvent)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_that_are_sent_along_are_not_taken(tmp_path: Path, heard: Heard) -> None:
    """Else whoever writes to the socket could use up the meter's."""
    listener = Listener(tmp_path / "s", heard)
    listener.start()
    files = open_files()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.connect(str(listener.path))
        for k in range(3):
            socket.send_fds(sending, [hello(f"s{k}")], [0, 0, 0])
            heard.next()
        assert open_files() <= files + 1
    listener.stop()


def test_a_process_of_that_number_that_began_later_is_not_the_engine() -> None:
    """Numbers come again; and who has ended but was not waited for is gone too."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = processes.began(process.pid)
    assert since is not None
    assert processes.lives(process.pid, since) and processes.lives(process.pid, None)
    assert not processes.lives(process.pid, str(int(since) + 1))
    assert process.stdin is not None
    process.stdin.close()
    until_s = time.monotonic() + 10
    while processes.lives(process.pid, since) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not processes.lives(process.pid, since), "nobody has waited for it yet"
    process.wait()
    assert not processes.lives(process.pid, since)


# --- what does not end the thread


def test_a_defect_costs_one_datagram(tmp_path: Path) -> None:
    """Whatever goes wrong with one, the thread goes on, and says so."""
    heard = Heard()

    def push(event: Event) -> None:
        if isinstance(event, RequestOpened):
            raise RuntimeError("a defect")
        heard(event)

    listener = Listener(tmp_path / "s", push)
    listener.start()
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0"})
    heard.next()
    with capture_logs() as logs:
        for k in range(3):
            sender.opened(time.monotonic_ns(), f"r{k}")
            sender.flush()
        now_ns = time.monotonic_ns()
        sender.step(0, now_ns, now_ns + 1, [])
        sender.flush()
        while not isinstance(heard.next(), Step):
            pass
    assert listener.alive()
    assert 1 <= listener.errors <= 3
    assert [line["event"] for line in logs].count("listener_failed") == 1
    listener.stop()
    assert not listener.alive()
    sender.close()


class Endless:
    """A socket that always has one more datagram."""

    def __init__(self) -> None:
        self.read = 0

    def recvmsg_into(
        self, buffers: list[memoryview], size: int
    ) -> tuple[int, list[Any], int, None]:
        self.read += 1
        buffers[0][:2] = b"[]"
        return 2, [], 0, None

    def close(self) -> None:
        pass


def test_a_flood_holds_up_neither_the_look_at_the_living_nor_the_end(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread looked at nothing else while there was one more datagram."""
    monkeypatch.setattr(module, "_LIVENESS_S", 0.0)
    looked = threading.Event()
    listener = Listener(tmp_path / "s", heard)
    monkeypatch.setattr(listener, "look_for_the_dead", looked.set)
    monkeypatch.setattr(listener, "_bind", Endless)
    listener.start()
    assert looked.wait(30)
    stopping = threading.Thread(target=listener.stop)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()


def test_where_events_have_no_room_the_engines_keep_them(tmp_path: Path, heard: Heard) -> None:
    """What cannot be taken is not read: nothing is lost while the meter catches up."""
    room = threading.Event()
    listener = Listener(tmp_path / "s", heard, has_room=room.is_set)
    listener.start()
    sender = Sender(str(listener.path))
    sender.hello({"engine": "0"})
    sender.step(0, *two_times(), [])
    for seq in range(1, 100):
        sender.step(seq, *two_times(), [], same=True)
        sender.flush()
    assert heard.rest() == []
    room.set()
    while not (isinstance(event := heard.next(), Step) and event.seq == 99):
        sender.flush()
    assert sender.lost_steps == 0
    listener.stop()
    sender.close()


def two_times() -> tuple[int, int]:
    now_ns = time.monotonic_ns()
    return now_ns - 1, now_ns
