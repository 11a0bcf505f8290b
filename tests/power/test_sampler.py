"""The sampling thread: start-up failures reach the caller, and no failing source stops it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import structlog
import structlog.testing

from meter.model import Device, DeviceFound, Event, Quality, Reading
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

    def read(self, device: str | None = None) -> Sequence[Reading]:
        self.threads.add(threading.current_thread().name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def close(self) -> None:
        self.closed.set()


def iter_now(events: queue.Queue[Event]) -> list[Event]:
    return [events.get_nowait() for _ in range(events.qsize())]


def wait_until(condition: Callable[[], bool]) -> None:
    """At most 10 s."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def take(events: queue.Queue[Event], count: int) -> list[Event]:
    return [events.get(timeout=10) for _ in range(count)]


def test_a_device_is_read_from_a_thread_of_its_own() -> None:
    """The sampler's thread opens and closes; readings come from the device's."""
    events: queue.Queue[Event] = queue.Queue()
    source = Script(Reading("d", 1, 5))
    sampler = Sampler([source], events.put, rate_hz=1000)
    assert [d.id for d in sampler.start()] == ["d"]
    assert all(isinstance(e, Reading) and e.energy_uj == 5 for e in take(events, 20))
    sampler.stop()
    assert source.closed.is_set()
    assert source.threads == {"sampler", "sampler-0"}
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

    def read(self, device: str | None = None) -> Sequence[Reading]:
        self.hang("read")
        return super().read(device)


def test_a_read_that_hangs_does_not_hang_the_caller() -> None:
    """Stopping comes back while a read hangs; the driver is not shut down under its feet: the
    source is closed when the read has come back."""
    source = Hanging("read")
    sampler = Sampler([source], lambda event: None, rate_hz=1000)
    sampler.start()
    assert source.hangs.wait(10)
    sampler.stop(within_s=0.01)
    assert not source.closed.is_set()
    source.free.set()
    assert source.closed.wait(10)


def test_a_driver_that_hangs_at_the_start_comes_later() -> None:
    """Its caller goes on without it, and is told; when the driver answers its devices come as
    events, each before its readings."""
    events: queue.Queue[Event] = queue.Queue()
    source = Hanging("open")
    sampler = Sampler([source], events.put, rate_hz=1000)
    with structlog.testing.capture_logs() as logs:
        assert sampler.start(within_s=0.01) == ()
    assert [line["event"] for line in logs] == ["driver_does_not_answer"]
    assert sampler.opening
    source.free.set()
    found, reading = take(events, 2)
    assert isinstance(found, DeviceFound)
    assert isinstance(reading, Reading)
    assert (found.device.id, reading.energy_uj) == ("d", 1)
    assert not sampler.opening
    sampler.stop()


class Host(Script):
    """The host's CPU."""

    def open(self) -> Sequence[Device]:
        return [Device("cpu", "CPU", Quality.ESTIMATED, "cpu", "host")]


def test_the_host_comes_with_the_devices() -> None:
    """It is none of them; where the driver hung it too comes as an event, before its readings."""
    events: queue.Queue[Event] = queue.Queue()
    source = Hanging("open")
    sampler = Sampler([source], events.put, rate_hz=1000, beside=Host(Reading("cpu", 1, 7)))
    sampler.start(within_s=0.01)
    assert sampler.beside is None
    source.free.set()
    seen = take(events, 20)
    while not any(isinstance(e, Reading) and e.device == "cpu" for e in seen):
        seen += take(events, 1)
    sampler.stop()
    assert [e.device.id for e in seen[:2] if isinstance(e, DeviceFound)] == ["d", "cpu"]
    assert {e.device for e in seen if isinstance(e, Reading)} == {"d", "cpu"}
    assert [device.id for device in sampler.devices] == ["d"]
    assert sampler.beside is not None
    assert sampler.beside.id == "cpu"


def test_a_driver_that_fails_late_is_said() -> None:
    """What came out after the start is in the log, and there to be asked for."""
    source = Hanging("open")
    source.fails = NoDeviceError("no GPU after all")
    with structlog.testing.capture_logs() as logs:
        sampler = Sampler([source], lambda event: None)
        sampler.start(within_s=0.01)
        source.free.set()
        sampler.stop(within_s=10)
    assert [line["event"] for line in logs] == ["driver_does_not_answer", "no_energy"]
    assert "no GPU after all" in str(sampler.failure)
    assert not sampler.opening


def test_a_start_that_stopped_meanwhile_gives_no_readings() -> None:
    """Stopped while the driver hangs: nothing comes after it, and the driver is let go."""
    events: queue.Queue[Event] = queue.Queue()
    source = Hanging("open")
    sampler = Sampler([source], events.put)
    sampler.start(within_s=0.01)
    sampler.stop(within_s=0.01)
    source.free.set()
    assert source.closed.wait(10)
    assert all(isinstance(event, DeviceFound) for event in iter_now(events))


LATER = Device("later", "device", Quality.SIMULATED, "1")


class Later(Script):
    """One device, and one more that is there when it is let free; each look may fail or hang."""

    def __init__(self, *looks: Exception | None, hangs: bool = False) -> None:
        super().__init__(Reading("d", 1, 1))
        self.looks, self.hangs = list(looks), hangs
        self.looked, self.free = threading.Event(), threading.Event()
        self.left_out: Sequence[str] = ("the other one",)
        self.never: Sequence[str] = ()

    def described(self, device: str) -> Device:
        return LATER if device == LATER.id else super().open()[0]

    def find(self, ids: Sequence[str]) -> Sequence[Device]:
        return [LATER] if LATER.id in ids else []

    def look_again(self) -> Sequence[Device]:
        self.looked.set()
        if self.hangs:
            self.free.wait(30)
        failure = self.looks.pop(0) if self.looks else None
        if failure is not None:
            raise failure
        if not self.free.is_set():
            return []
        self.left_out = ()
        return [LATER]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        return [Reading(device or "", time.monotonic_ns(), 1)]


def test_what_was_left_out_comes_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that fails is followed by others; the device comes as an event, before its readings;
    then nobody looks any more."""
    monkeypatch.setattr("meter.power.sampler._LOOK_AGAIN_S", 0.001)
    events: queue.Queue[Event] = queue.Queue()
    source = Later(OSError("driver"), NoDeviceError("not yet"))
    sampler = Sampler([source], events.put, rate_hz=1000)
    assert [device.id for device in sampler.start()] == ["d"]
    assert sampler.left_out == ("the other one",)
    source.free.set()
    wait_until(lambda: len(sampler.devices) == 2)
    seen = take(events, 50)
    found = next(i for i, event in enumerate(seen) if isinstance(event, DeviceFound))
    readings = [i for i, e in enumerate(seen) if isinstance(e, Reading) and e.device == "later"]
    assert found < min(readings)
    assert sampler.left_out == ()
    assert not any(thread.name == "finder" for thread in threading.enumerate())
    sampler.stop()
    assert source.closed.is_set()


def test_a_look_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are read, stopping comes back, and the driver is let go when the look is back."""
    monkeypatch.setattr("meter.power.sampler._LOOK_AGAIN_S", 0.001)
    events: queue.Queue[Event] = queue.Queue()
    source = Later(hangs=True)
    sampler = Sampler([source], events.put, rate_hz=1000)
    sampler.start()
    assert source.looked.wait(10)
    take(events, 20)
    sampler.stop(within_s=0.01)
    assert not source.closed.is_set()
    source.free.set()
    assert source.closed.wait(10)


class Two(Script):
    """Two devices; the first one hangs when it is told to."""

    def __init__(self) -> None:
        super().__init__(Reading("d", 1, 1))
        self.free, self.hangs = threading.Event(), threading.Event()

    def open(self) -> Sequence[Device]:
        return [Device(id, id, Quality.SIMULATED, index=i) for i, id in enumerate("ab")]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        if device == "a":
            self.hangs.set()
            self.free.wait(30)
        return [Reading(device or "", time.monotonic_ns(), 1)]


def test_a_device_that_hangs_holds_up_no_other() -> None:
    """The other one is read all the while; the one that hangs is said to be silent, once, and to
    be back."""
    events: queue.Queue[Event] = queue.Queue()
    source = Two()
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr("meter.power.sampler.SILENT_S", 0.3)
        sampler = Sampler([source], events.put, rate_hz=100)
        sampler.start()
        assert source.hangs.wait(10)
        wait_until(lambda: any(line["event"] == "device_silent" for line in logs))
        others = take(events, 20)
        assert {e.device for e in others if isinstance(e, Reading)} == {"b"}
        source.free.set()
        wait_until(lambda: any(line["event"] == "device_back" for line in logs))
        sampler.stop()
    said = [(line["event"], line["device"]) for line in logs]
    assert said == [("device_silent", "a"), ("device_back", "a")]


def test_one_failing_source_does_not_silence_the_other() -> None:
    """Errors are counted by source; the others are read at every poll."""
    events: queue.Queue[Event] = queue.Queue()
    broken, fine = Script(OSError("broken")), Script(Reading("d", 1, 5))
    broken.name = "broken"
    sampler = Sampler([broken, fine], events.put, rate_hz=1000)
    sampler.start()
    take(events, 10)
    wait_until(lambda: sampler.counters.errors.get("broken", 0) >= 10)
    sampler.stop()
    assert set(sampler.counters.errors) == {"broken"}
    assert sampler.counters.samples >= 10


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
