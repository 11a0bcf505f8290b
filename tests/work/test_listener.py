"""The listener drains its socket, survives what comes, and notices engines that die."""

from __future__ import annotations

import queue
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter.model import EngineEvent, Event, RequestOpened, Step
from meter.work.listener import Listener, ListenError
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
