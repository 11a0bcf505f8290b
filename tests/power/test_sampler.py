"""The sampling thread: start-up failures reach the caller, and no failing source stops it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import pytest
import structlog
import structlog.testing

from meter.model import Device, Event, Quality, Reading
from meter.power.errors import NoDeviceError, PowerError
from meter.power.sampler import Sampler


class Script:
    """A source whose answers are scripted; remembers the thread it was opened in."""

    name = "script"

    def __init__(self, *answers: Reading | Exception, fails: Exception | None = None) -> None:
        self.answers = list(answers)
        self.fails = fails
        self.threads: set[str] = set()
        self.closed = threading.Event()

    def open(self) -> Sequence[Device]:
        self.threads.add(threading.current_thread().name)
        if self.fails is not None:
            raise self.fails
        return [Device("d", "device", Quality.SIMULATED)]

    def read(self) -> Sequence[Reading]:
        self.threads.add(threading.current_thread().name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def close(self) -> None:
        self.closed.set()


def take(events: queue.Queue[Event], count: int) -> list[Event]:
    return [events.get(timeout=10) for _ in range(count)]


def test_readings_are_pushed_from_one_thread() -> None:
    """Handles live in the sampler's thread: it opens, reads and closes."""
    events: queue.Queue[Event] = queue.Queue()
    source = Script(Reading("d", 1, 5))
    sampler = Sampler([source], events.put, rate_hz=1000)
    assert [d.id for d in sampler.start()] == ["d"]
    assert all(isinstance(e, Reading) and e.energy_uj == 5 for e in take(events, 20))
    sampler.stop()
    assert source.closed.is_set()
    assert source.threads == {"sampler"}
    assert sampler.counters.samples >= 20


@pytest.mark.parametrize(
    ("failure", "says"), [(NoDeviceError("no GPU here"), "no GPU here"), (OSError("x"), "broke")]
)
def test_a_start_that_fails_is_the_callers(failure: Exception, says: str) -> None:
    """Whatever a source raises when it opens, the caller gets a PowerError that says it."""
    sampler = Sampler([Script(fails=failure)], lambda event: None)
    with pytest.raises(PowerError, match=says):
        sampler.start()


def test_a_failing_read_is_counted_and_survived() -> None:
    """A read that raises costs that poll; the next ones go on."""
    events: queue.Queue[Event] = queue.Queue()
    good, bad = Reading("d", 1, 5), Reading("d", 2, None, error="no")
    source = Script(OSError("driver"), bad, OSError("driver"), good)
    sampler = Sampler([source], events.put, rate_hz=1000)
    sampler.start()
    first, second = take(events, 2)
    sampler.stop()
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert (first.error, second.energy_uj) == ("no", 5)
    assert sampler.counters.errors == {"script": 3}


class Hanging(Script):
    """Blocks in ``open`` or ``read`` until it is let free."""

    def __init__(self, where: str) -> None:
        super().__init__(Reading("d", 1, 1))
        self.where = where
        self.free, self.hangs = threading.Event(), threading.Event()

    def hang(self, where: str) -> None:
        if where == self.where:
            self.hangs.set()
            self.free.wait(30)

    def open(self) -> Sequence[Device]:
        self.hang("open")
        return super().open()

    def read(self) -> Sequence[Reading]:
        self.hang("read")
        return super().read()


def test_a_read_that_hangs_does_not_hang_the_caller() -> None:
    """Stopping comes back while a read hangs; the thread ends when the driver lets it."""
    source = Hanging("read")
    sampler = Sampler([source], lambda event: None, rate_hz=1000)
    sampler.start()
    assert source.hangs.wait(10)
    sampler.stop(within_s=0.01)
    assert not source.closed.is_set()
    source.free.set()
    assert source.closed.wait(10)


def test_an_open_that_hangs_is_the_callers_error() -> None:
    """A driver that does not answer is told at the start, and gives no readings later."""
    events: queue.Queue[Event] = queue.Queue()
    source = Hanging("open")
    sampler = Sampler([source], events.put)
    with pytest.raises(PowerError, match="did not open within"):
        sampler.start(within_s=0.01)
    source.free.set()
    assert source.closed.wait(10)
    assert events.empty()


def test_one_failing_source_does_not_silence_the_other() -> None:
    """Errors are counted by source; the others are read at every poll."""
    events: queue.Queue[Event] = queue.Queue()
    broken, fine = Script(OSError("broken")), Script(Reading("d", 1, 5))
    broken.name = "broken"
    sampler = Sampler([broken, fine], events.put, rate_hz=1000)
    sampler.start()
    take(events, 10)
    sampler.stop()
    counters = sampler.counters
    assert set(counters.errors) == {"broken"}
    assert counters.errors["broken"] == counters.samples >= 10


def test_a_source_that_fails_on_is_logged_once_a_minute() -> None:
    """A thousand failures are one line: named, with their reason; the counter has them all."""
    events: queue.Queue[Event] = queue.Queue()
    with structlog.testing.capture_logs() as logs:
        sampler = Sampler([Script(Reading("d", 1, None, error="no"))], events.put, rate_hz=1000)
        sampler.start()
        take(events, 20)
        sampler.stop()
    assert [(line["event"], line["source"], line["reason"]) for line in logs] == [
        ("no_reading", "script", "no")
    ]
    assert sampler.counters.errors["script"] == sampler.counters.samples >= 20


def test_a_push_that_raises_does_not_end_the_thread() -> None:
    """Whoever takes the readings may break: polling goes on, and the loss is counted."""
    events: queue.Queue[Event] = queue.Queue()
    broken = iter([True, True])

    def push(event: Event) -> None:
        if next(broken, False):
            raise RuntimeError("full")
        events.put(event)

    sampler = Sampler([Script(Reading("d", 1, 5))], push, rate_hz=1000)
    sampler.start()
    take(events, 3)
    sampler.stop()
    assert sampler.counters.errors == {"script": 2}


START_NS, PERIOD_NS = 1_000_000, 20_000_000  # 50 Hz


def play(
    monkeypatch: pytest.MonkeyPatch, polls: int, seed: int = 0, read_ns: int = 0, wake_ns: int = 0
) -> tuple[list[int], list[Reading], Sampler]:
    """The sampler on a clock that only waiting and reading move: when each poll after the first
    began, and what was pushed. ``read_ns``: how long a read takes; ``wake_ns``: how late the thread
    is woken."""
    now = {"ns": START_NS}
    monkeypatch.setattr("meter.power.sampler.time.monotonic_ns", lambda: now["ns"])
    begun: list[int] = []
    pushed: list[Event] = []

    class Slow(Script):
        def read(self) -> Sequence[Reading]:
            now["ns"] += read_ns
            return super().read()

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now["ns"] += round((timeout or 0.0) * 1e9) + wake_ns
            begun.append(now["ns"])
            if len(begun) == polls:
                self.set()
            return self.is_set()

    sampler = Sampler([Slow(Reading("d", 1, 5))], pushed.append, 50.0, seed)
    sampler._stopping = Clock()
    sampler._poll()
    return begun, [event for event in pushed if isinstance(event, Reading)], sampler


def test_the_jitter_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls stand around an absolute grid, by the seed: they do not drift, and a run can be
    repeated."""
    one, readings, sampler = play(monkeypatch, 200, seed=1, wake_ns=300_000)
    assert one == play(monkeypatch, 200, seed=1, wake_ns=300_000)[0]
    assert one != play(monkeypatch, 200, seed=2, wake_ns=300_000)[0]
    off = [at - 300_000 - START_NS - (i + 1) * PERIOD_NS for i, at in enumerate(one)]
    assert max(map(abs, off)) <= 0.08 * PERIOD_NS + 1
    assert max(off) - min(off) > 0.1 * PERIOD_NS
    assert [r.late_s for r in readings[1:]] == pytest.approx([300e-6] * 200)
    assert sampler.counters.missed == 0


def test_missed_deadlines_are_not_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that takes four and a half periods: the next poll waits for the grid's next deadline,
    on time, and the four that passed are counted."""
    begun, readings, sampler = play(monkeypatch, 10, read_ns=PERIOD_NS * 9 // 2)
    grid = [(at - START_NS) / PERIOD_NS for at in begun]
    assert grid == pytest.approx([5 * (i + 1) for i in range(10)], abs=0.081)
    assert [r.late_s for r in readings] == pytest.approx([0.0] * 11)
    assert sampler.counters.missed == 4 * 10
