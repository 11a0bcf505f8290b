"""The one writer: order, bounds, answers, and what it survives."""

import threading
from dataclasses import replace

import pytest

from meter.attribution import Boundaries
from meter.export.publisher import Publisher
from meter.export.state import Health
from meter.model import (
    Device,
    DeviceFound,
    Engine,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Snapshot,
    Step,
    Work,
)
from meter.pricing import Tariff
from meter.runtime.writer import Inbox, Writer

NS = 1_000_000_000
GPU = Device("GPU-0", "H100", Quality.SIMULATED, refresh_s=0.1)


class FakeCore:
    """Remembers what it was fed; can be made to fail or to wait."""

    def __init__(self):
        self.fed = []
        self.finished = False
        self.fail_on = None
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def feed(self, event):
        self.waiting.set()
        assert self.gate.wait(30)
        if event == self.fail_on:
            raise RuntimeError("a bug")
        self.fed.append(event)

    def finish(self):
        self.finished = True

    def snapshot(self):
        return Snapshot(t_ns=0, settled_ns=None, late_events=len(self.fed))

    def receipt(self, id):
        return None

    def drain(self):
        return []

    def drain_host(self):
        return []

    def host_receipt(self, id):
        return None


class FakeRecord:
    """Remembers what it was given; fails after a while like a full disk."""

    def __init__(self, room=100):
        self.lines = []
        self.room = room
        self.closed = False

    def write(self, event):
        if len(self.lines) == self.room:
            raise OSError("no space left on device")
        self.lines.append(event)

    def flush(self):
        pass

    def close(self):
        self.closed = True


def reading(t):
    return Reading("GPU-0", t * NS // 5, t * 1_000_000)


def make(core, record=None, size=1000, publish_s=0.01):
    inbox = Inbox(size)
    writer = Writer(inbox, core, Publisher(Tariff("EUR"), 0), Health, {}, record, publish_s)
    return inbox, writer


def test_events_reach_the_core_in_the_order_of_arrival():
    """From one queue, by one thread, and the end settles everything."""
    core = FakeCore()
    inbox, writer = make(core)
    events = [reading(t) for t in range(100)]
    for event in events:
        inbox.push(event)
    writer.start()
    state = writer.finish()
    assert core.fed == events
    assert core.finished
    assert state.snapshot.late_events == 100
    assert not writer.alive()


def test_what_does_not_fit_is_dropped_and_counted():
    """A source never waits."""
    inbox, writer = make(FakeCore(), size=3)
    for t in range(5):
        inbox.push(reading(t))
    assert inbox.dropped == 2
    with pytest.raises(TimeoutError, match="full"):
        writer.receipt("r")


def test_a_question_is_answered_between_two_events():
    """By the thread that owns the core."""
    threads = []

    class Core(FakeCore):
        def receipt(self, id):
            threads.append(threading.current_thread().name)

    _, writer = make(Core())
    writer.start()
    assert writer.receipt("r") is None
    assert writer.recent(5) == []
    assert set(threads) == {"joulemeter-writer"}
    writer.finish()


def test_a_question_to_a_busy_writer_times_out():
    """And is dropped, not answered into nothing."""
    core = FakeCore()
    core.gate.clear()
    inbox, writer = make(core)
    inbox.push(reading(1))
    writer.start()
    assert core.waiting.wait(30)
    with pytest.raises(TimeoutError):
        writer.receipt("r", deadline_s=0.01)
    core.gate.set()
    assert writer.finish() is not None


def test_a_failing_question_fails_for_the_one_who_asked(monkeypatch):
    """The writer goes on."""

    class Core(FakeCore):
        def receipt(self, id):
            raise ValueError("odd id")

    _, writer = make(Core())
    writer.start()
    with pytest.raises(ValueError, match="odd id"):
        writer.receipt("r")
    assert writer.recent(1) == []
    writer.finish()


def test_a_bug_in_the_core_does_not_end_the_metering(capsys):
    """It is said a few times, and the next event is taken."""
    core = FakeCore()
    core.fail_on = reading(1)
    inbox, writer = make(core)
    for t in (0, 1, 2):
        inbox.push(reading(t))
    writer.start()
    writer.finish()
    assert core.fed == [reading(0), reading(2)]


def test_every_event_is_recorded_before_it_is_fed():
    """What the core saw, a replay sees."""
    core, record = FakeCore(), FakeRecord()
    core.fail_on = reading(1)
    inbox, writer = make(core, record)
    for t in (0, 1, 2):
        inbox.push(reading(t))
    writer.start()
    writer.finish()
    assert record.lines == [reading(0), reading(1), reading(2)]
    assert record.closed


def test_a_full_disk_ends_the_record_and_not_the_metering():
    """Recording goes off; the core is fed on."""
    core, record = FakeCore(), FakeRecord(room=1)
    inbox, writer = make(core, record)
    for t in range(4):
        inbox.push(reading(t))
    writer.start()
    writer.finish()
    assert len(record.lines) == 1
    assert len(core.fed) == 4


def remembering(remember, every_s, record=None):
    """A writer over a core that learned something, and its core."""
    core = FakeCore()
    publisher = Publisher(Tariff("EUR"), 0)
    options = {"remember": remember, "remember_every_s": every_s, "publish_s": 0.01}
    return core, Writer(Inbox(), core, publisher, Health, {}, record, **options)


def test_what_was_learned_is_put_away_at_the_end():
    """Once, when everything is settled and the trace is whole."""
    record, seen = FakeRecord(), []
    core, writer = remembering(lambda: seen.append((core.finished, record.closed)), 3600, record)
    writer.start()
    writer.finish()
    assert seen == [(True, True)]


def test_what_was_learned_is_put_away_now_and_then():
    """While it runs, by the writer's thread, so that a killed meter forgets little."""
    often = threading.Event()
    threads = []

    def remember():
        threads.append(threading.current_thread().name)
        if len(threads) == 3:
            often.set()

    _, writer = remembering(remember, 0.02)
    writer.start()
    assert often.wait(30)
    writer.finish()
    assert set(threads) == {"joulemeter-writer"}


def test_a_memory_that_fails_does_not_end_the_metering():
    """Whatever it raises."""
    failed = threading.Event()

    def remember():
        failed.set()
        raise RuntimeError("a bug")

    core, writer = remembering(remember, 0.0)
    writer.start()
    assert failed.wait(30)
    writer._inbox.push(reading(1))
    assert writer.finish() is not None
    assert core.fed == [reading(1)]
    assert core.finished


def test_of_a_device_that_comes_late_it_is_said_what_is_known():
    """Before the core has it, and in the record too."""
    core, record = FakeCore(), FakeRecord()
    inbox, publisher = Inbox(), Publisher(Tariff("EUR"), start_ns=0)
    found = DeviceFound(1, GPU)
    writer = Writer(
        inbox,
        core,
        publisher,
        Health,
        {},
        record,
        recall=lambda event: replace(event, learned=({"device": event.device.id},)),
    )
    changed = DeviceFound(3, replace(GPU, quality=Quality.ESTIMATED))  # it was there before
    for event in (found, reading(2), changed):
        inbox.push(event)
    writer.start()
    writer.finish()
    with_facts = DeviceFound(1, GPU, None, ({"device": "GPU-0"},))
    assert core.fed == record.lines == [with_facts, reading(2), changed]


def test_the_host_is_fed_and_neither_recorded_nor_heard():
    """A record is of the GPUs; that they are silent is not hidden by the host."""
    core, record, heard = FakeCore(), FakeRecord(), {}
    inbox, publisher = Inbox(), Publisher(Tariff("EUR"), start_ns=0)
    writer = Writer(
        inbox,
        core,
        publisher,
        Health,
        heard,
        record,
        recall=lambda event: replace(event, learned=({},)),
        beside="cpu",
    )
    host = [DeviceFound(1, replace(GPU, id="cpu")), Reading("cpu", 2, 5), Reading("cpu", NS, 6)]
    for event in (*host, reading(9)):
        inbox.push(event)
    writer.start()
    writer.finish()
    assert core.fed == [*host, reading(9)]
    assert record.lines == [reading(9)]
    assert heard == {"power": reading(9).t_ns}


def test_a_late_reading_of_the_host_holds_nothing_back():
    """It comes ten times a second at most: a pause there is no stall. (A reading that is held back
    comes after what was pushed later.)"""
    core, inbox = FakeCore(), Inbox()
    writer = Writer(inbox, core, Publisher(Tariff("EUR"), 0), Health, {}, beside="cpu")
    step = Step("0", 0, 0, NS, NS + 1, ())
    events = [Reading("cpu", 0, 5), Reading("cpu", NS, 6), reading(5), step]
    for event in events:
        inbox.push(event)
    writer.start()
    writer.finish()
    assert core.fed == events


def test_what_a_request_took_of_the_host_is_asked_for_with_it():
    """While it runs, and after its end."""
    inbox, cpu = Inbox(), replace(GPU, id="cpu", boundary="host", refresh_s=0.0)
    engine = Engine("0", ("GPU-0",), model="m")
    core = Boundaries((GPU,), (engine,), beside="cpu", host=cpu)
    writer = Writer(
        inbox, core, Publisher(Tariff("EUR"), 0), Health, {}, publish_s=0.01, beside="cpu"
    )
    for event in decoding():
        inbox.push(event)
        if isinstance(event, Reading):
            inbox.push(replace(event, device="cpu", energy_uj=event.energy_uj // 10))
    writer.start()
    so_far = writer.receipt("r1")
    assert so_far.host is not None
    assert not so_far.host.final
    state = writer.finish()
    assert state.snapshot.measured_j == pytest.approx(10 * state.snapshot.host.measured_j)
    (last,) = writer._publisher.recent(1)
    assert last.host.final
    assert state.snapshot.host.measured_j == pytest.approx(60)
    assert last.host.energy_j == pytest.approx(state.snapshot.host.attributed_j)
    assert last.receipt.energy_j == pytest.approx(state.snapshot.attributed_j)


def test_a_state_is_published_without_any_event():
    """An idle meter still answers."""
    _, writer = make(FakeCore())
    published = threading.Event()
    writer._health = lambda: published.set() or Health()
    writer.start()
    assert published.wait(30)
    writer.finish()
    assert writer.state() is not None


def test_sources_are_heard():
    """When readings and the engine last said something; failed readings do not count."""
    inbox, writer = make(FakeCore())
    inbox.push(reading(1))
    inbox.push(Reading("GPU-0", 5 * NS, None, error="lost"))
    inbox.push(RequestOpened("0", "r", 3 * NS))
    writer.start()
    writer.finish()
    assert writer._heard == {"power": NS // 5, "engine": 3 * NS}


def decoding(steps=150, step_ns=20_000_000):
    """One request that decodes at 100 W above 100 W, read ten times a second; longer than events
    are held to be sorted."""
    yield RequestOpened("0", "e1", 0, model="m", parent="r1", prompt_tokens=10)
    for k in range(steps):
        t0, t1 = k * step_ns, (k + 1) * step_ns
        if t0 % 100_000_000 == 0:
            yield Reading("GPU-0", t0, t0 * 200 // 1000)
        work = Work("e1", 10, 0, Phase.PREFILL) if k == 0 else Work("e1", 1, 9 + k, Phase.DECODE)
        yield Step("0", 0, k, t0, t1, (work,))
    end = steps * step_ns
    yield RequestClosed("0", "e1", end, "stop", 10, 0, steps)
    yield Reading("GPU-0", end, end * 200 // 1000)


def test_with_the_real_core_every_joule_arrives():
    """A final receipt can be asked for by the client's id until the end and after it."""
    inbox = Inbox()
    core = Boundaries((GPU,), (Engine("0", ("GPU-0",), model="m"),))
    writer = Writer(inbox, core, Publisher(Tariff("EUR"), 0), Health, {}, publish_s=0.01)
    for event in decoding():
        inbox.push(event)
    for k in range(11, 15):  # what came 2 s before is in order then
        inbox.push(Reading("GPU-0", k * NS // 5, 400_000_000))
    writer.start()
    so_far = writer.receipt("r1")
    assert so_far.receipt.id == "r1"
    state = writer.finish()
    snapshot = state.snapshot
    assert snapshot.measured_j == pytest.approx(600.0)
    assert snapshot.pending_j == 0
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-9)
    assert snapshot.receipts_closed_j == pytest.approx(snapshot.attributed_j)
    histogram = state.request_energy["m", "0"]
    assert histogram.sum == pytest.approx(snapshot.attributed_j)


def test_a_question_to_an_ended_writer_is_refused_at_once():
    """Nobody waits out a deadline for an answer that cannot come."""
    _, writer = make(FakeCore())
    writer.start()
    writer.finish()
    with pytest.raises(TimeoutError, match="ended"):
        writer.receipt("r", deadline_s=3600.0)


def test_after_a_stall_readings_wait_for_what_the_engines_kept():
    """The listener's thread may wake later than the sampler's; other events pass at once."""
    core = FakeCore()
    inbox, writer = make(core)
    writer.start()
    before, first, second = reading(1), reading(20), reading(21)
    opened = RequestOpened("0", "r", 2 * NS)
    for event in (before, first, opened, second):
        inbox.push(event)
    writer.finish()
    assert core.fed == [before, opened, first, second]
