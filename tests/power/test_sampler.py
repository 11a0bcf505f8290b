"""The sampling thread: start-up failures reach the caller, and no failing source stops it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import pytest

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


def test_a_source_that_hangs_does_not_hang_the_caller() -> None:
    """Stopping returns while a read hangs; the thread is a daemon."""
    free = threading.Event()

    class Hanging(Script):
        def read(self) -> Sequence[Reading]:
            free.wait(30)
            return []

    sampler = Sampler([Hanging(Reading("d", 1, 1))], lambda event: None, rate_hz=1000)
    sampler.start()
    stopper = threading.Thread(target=sampler.stop)
    stopper.start()
    free.set()
    stopper.join(timeout=10)
    assert not stopper.is_alive()
