"""The sender never waits, loses nothing it need not lose, and says what it lost."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from work_reference import expand

from meter.model import EngineEvent, Event, Gap, RequestClosed, RequestOpened, Step
from meter.work.vllm.sender import FULL_NS, RETRY_NS, Sender
from meter.work.wire import Decoder


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Ear:
    """A listener that reads only when it is told to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.decoder = Decoder()
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """Everything that waits now."""
        new: list[Event] = []
        while True:
            try:
                new.extend(self.decoder.decode(self._socket.recv(1 << 20)))
            except BlockingIOError:
                break
        assert self.decoder.counters.bad == self.decoder.counters.lost == 0
        self.events.extend(new)
        return new

    def wait(self) -> None:
        """Until there is something to read; ten seconds are taken for never."""
        ready, _, _ = select.select([self._socket], [], [], 10)
        assert ready, "nothing came"

    def close(self) -> None:
        self._socket.close()
        self._path.unlink()


class Engine:
    """One request that decodes for ever: 0 is its prefill, each next step one token."""

    def __init__(self, sender: Sender, clock: Clock | None = None) -> None:
        self.sender = sender
        self.clock = clock
        self.seq = 0
        sender.opened(0, "r", parent="R")

    def step(self, after_ns: int = 0) -> None:
        """One step, ``after_ns`` later."""
        if self.clock is not None:
            self.clock.now_ns += after_ns
        context, times = self.seq, (10 * self.seq, 10 * self.seq + 5)
        full = self.sender.wants_full or self.seq < 2
        work = [("r", 1, context, "d" if self.seq else "p")] if full else []
        self.sender.step(self.seq, *times, work, same=not full)
        self.sender.flush()
        self.seq += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sender(tmp_path: Path, clock: Clock) -> Iterator[Sender]:
    made = Sender(str(tmp_path / "s"), clock, buffer_bytes=20_000, flush_s=None)
    yield made
    made.close()


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    made = Ear(tmp_path / "s")
    yield made
    made.close()


def contexts(events: list[Event]) -> list[int]:
    return [step["r"].context for step in expand(events)]


def test_a_full_queue_merges_and_loses_nothing(sender: Sender, clock: Clock, ear: Ear) -> None:
    """100 steps against a queue of ten datagrams: all arrive, in fewer datagrams."""
    sender.hello({"engine": "0"})
    engine = Engine(sender, clock)
    for _ in range(100):
        engine.step()
    first = ear.read()
    engine.step()
    assert ear.read() == [], "a full queue is not tried again at once"
    engine.step(FULL_NS)
    assert contexts([*first, *ear.read()]) == list(range(102))
    assert sender.lost_steps == 0
    assert ear.decoder.counters.datagrams < 20


def test_an_idle_engine_does_not_keep_its_last_words(tmp_path: Path, ear: Ear) -> None:
    """What a full queue has left behind is sent without the engine, as soon as there is room."""
    sender = Sender(str(tmp_path / "s"), flush_s=0.001)
    try:
        sender.hello({"engine": "0"})
        engine = Engine(sender)
        for _ in range(30):
            engine.step()
        assert sender.pending
        while len(ear.events) < 32:
            ear.wait()
            ear.read()
        assert contexts(ear.events) == list(range(30))
    finally:
        sender.close()


def test_without_a_listener_nothing_is_kept(sender: Sender, clock: Clock) -> None:
    """Steps are dropped at once, and a connection is tried now and then."""
    sender.hello({"engine": "0"})
    engine = Engine(sender)
    for _ in range(1000):
        clock.now_ns += 1_000_000
        engine.step()
    assert sender.lost_steps == 1000
    assert not sender.connected
    assert not sender.wants_full, "full steps would be built for nobody"


def test_a_late_listener_is_told_everything_open(
    sender: Sender, clock: Clock, tmp_path: Path
) -> None:
    """It hears who speaks, every open request, then a full step."""
    sender.hello({"engine": "0", "model": "m"})
    engine = Engine(sender)
    sender.opened(0, "gone")
    sender.closed(1, "gone", "stop", 1, 0, 1)
    for _ in range(5):
        engine.step()
    ear = Ear(tmp_path / "s")
    try:
        engine.step()
        assert ear.read() == [], "the next try is half a second after the last"
        clock.now_ns += RETRY_NS
        engine.step()
        engine.step()
        heard = ear.read()
        hello, gap, opened, step = heard
        assert isinstance(hello, EngineEvent) and hello.event == "ready"
        assert isinstance(opened, RequestOpened)
        assert (opened.request, opened.parent) == ("r", "R")
        assert isinstance(gap, Gap)
        assert (gap.first_seq, gap.last_seq) == (0, 6), "what nobody heard is known"
        assert isinstance(step, Step) and not step.same
        assert contexts(heard) == [engine.seq - 1]
    finally:
        ear.close()


def test_a_listener_that_restarts_is_joined_again(
    sender: Sender, clock: Clock, tmp_path: Path
) -> None:
    """After its end steps are lost; the new one follows from a full step on."""
    first = Ear(tmp_path / "s")
    sender.hello({"engine": "0"})
    engine = Engine(sender)
    for _ in range(5):
        engine.step()
    assert contexts(first.read()) == [0, 1, 2, 3, 4]
    first.close()
    for _ in range(5):
        engine.step()
    assert not sender.connected
    second = Ear(tmp_path / "s")
    try:
        clock.now_ns += RETRY_NS
        for _ in range(5):
            engine.step()
        heard = second.read()
        # The step that finds the connection was built before it was there.
        assert contexts(heard) == [11, 12, 13, 14]
        assert [e.request for e in heard if isinstance(e, RequestOpened)] == ["r"]
        assert sender.lost_steps == 6
    finally:
        second.close()


def test_an_overflow_gives_up_steps_and_keeps_ends(sender: Sender, clock: Clock, ear: Ear) -> None:
    """A listener deaf for long gets a gap, then a full step; opens and closes all arrive."""
    sender.hello({"engine": "0"})
    engine = Engine(sender, clock)
    for number in range(2000):
        if number % 100 == 0:
            sender.opened(number, f"s{number}")
            sender.closed(number, f"s{number}", "stop", 1, 0, 1)
        engine.step()
    assert sender.lost_steps > 0
    assert not sender.wants_full, "full steps would be built for nobody"
    for _ in range(4):
        ear.read()
        engine.step(FULL_NS)
    ear.read()
    closed = [event.request for event in ear.events if isinstance(event, RequestClosed)]
    assert closed == [f"s{number}" for number in range(0, 2000, 100)]
    steps = [event for event in ear.events if isinstance(event, Step)]
    [gap] = [event for event in ear.events if isinstance(event, Gap)]
    assert gap.last_seq - gap.first_seq + 1 == sender.lost_steps
    assert len(steps) + sender.lost_steps == engine.seq
    assert contexts(ear.events) == [step.seq for step in steps]


def test_when_even_ends_are_too_many_all_starts_afresh(
    sender: Sender, ear: Ear, clock: Clock
) -> None:
    """The buffer is bounded whatever the engine does; open requests are told again."""
    sender.hello({"engine": "0"})
    engine = Engine(sender)
    for number in range(5000):
        sender.opened(number, f"s{number}")
        sender.closed(number, f"s{number}", "stop", 1, 0, 1)
        if number % 10 == 0:
            sender.flush()
    assert not sender.connected
    ear.read()
    clock.now_ns += RETRY_NS
    for _ in range(4):
        engine.step()
    heard = ear.read()
    assert [e.request for e in heard if isinstance(e, RequestOpened)] == ["r"]
    assert contexts(heard) == [1, 2, 3]


def test_many_open_requests_are_announced_in_pieces(
    sender: Sender, clock: Clock, tmp_path: Path
) -> None:
    """20000 open requests do not fit ten datagrams: they come as the listener reads."""
    sender.hello({"engine": "0"})
    for number in range(20_000):
        sender.opened(number, f"chatcmpl-{number:032x}", f"chatcmpl-{number}")
    ear = Ear(tmp_path / "s")
    try:
        clock.now_ns += RETRY_NS
        engine = Engine(sender, clock)
        for _ in range(20):
            engine.step(FULL_NS)
            ear.read()
        opened = [event.request for event in ear.events if isinstance(event, RequestOpened)]
        assert len(opened) == len(set(opened)) == 20_001
        assert contexts(ear.events) == list(range(1, 20))
    finally:
        ear.close()


def test_closing_says_down(sender: Sender, ear: Ear) -> None:
    sender.hello({"engine": "0"})
    sender.close()
    heard = ear.read()
    assert [e.event for e in heard if isinstance(e, EngineEvent)] == ["ready", "down"]
    sender.opened(1, "r")
    sender.step(0, 1, 2, [])
    sender.flush()
    assert ear.read() == []


def test_up_then_ready_is_one_life(sender: Sender, ear: Ear) -> None:
    """An engine that loads says hello twice; facts may come late."""
    sender.hello({"engine": "0"}, "up")
    sender.hello({"engine": "0", "model": "m"}, "ready")
    events = [event for event in ear.read() if isinstance(event, EngineEvent)]
    assert [(e.event, e.epoch) for e in events] == [("up", 0), ("ready", 0)]
    assert events[1].info is not None and events[1].info.model == "m"


def test_the_next_meter_hears_of_an_idle_engine(tmp_path: Path) -> None:
    """It falls idle, its meter is killed, another one starts: it hears who is there, and that
    nothing runs, without the engine doing anything."""
    first = Ear(tmp_path / "s")
    sender = Sender(str(tmp_path / "s"))
    try:
        sender.hello({"engine": "0", "model": "m"})
        engine = Engine(sender)
        for _ in range(3):
            engine.step()
        sender.closed(1, "r", "stop", 1, 0, 3)
        sender.flush()
        first.wait()
        first.close()
        second = Ear(tmp_path / "s")
        try:
            second.wait()
            [hello] = second.read()
            assert isinstance(hello, EngineEvent) and hello.event == "ready"
            assert second.decoder.sources[0].hello.open_requests == 0
        finally:
            second.close()
    finally:
        sender.close()


def test_every_ten_seconds_a_step_is_told_in_full(sender: Sender, clock: Clock, ear: Ear) -> None:
    """Whoever lost a step that did arrive follows again after so long at the most."""
    sender.hello({"engine": "0"})
    sender.opened(0, "r", parent="R")
    full = []
    for seq in range(300):
        t0_ns = seq * 100_000_000
        same = not sender.wants_full
        sender.step(seq, t0_ns, t0_ns + 1, [] if same else [("r", 1, seq, "d")], same=same)
        sender.flush()
        ear.read()
        if not same:
            full.append(seq)
    assert full == [0, 102, 204]
