"""No part of the meter stands still or ends unseen: /readyz, a metric and the log name it."""

import threading
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from meter.export.publisher import Publisher
from meter.export.state import Health, State
from meter.model import Clock, Reading, Snapshot
from meter.pricing import Tariff
from meter.runtime.gauges import Gauges, Readers
from meter.runtime.threads import Deaths
from meter.runtime.writer import Inbox, Writer
from meter.work.wire import Counters

S = 1_000_000_000


class Scene:
    """Gauges over a listener and a writer whose times and deeds a test sets."""

    def __init__(self):
        self.now_s = 1000.0
        self.listener = SimpleNamespace(
            alive=lambda: self.listening, looked_s=1000.0, errors=0, counters=Counters()
        )
        self.writer = SimpleNamespace(
            alive=lambda: self.writing,
            turned_s=1000.0,
            published_s=1000.0,
            errors=0,
            state=lambda: State(Snapshot(0, self.settled_ns), Tariff("EUR")),
        )
        self.listening = self.writing = True
        self.settled_ns = 998 * S
        self.deaths = SimpleNamespace(counts={})
        self.gauges = Gauges(
            Inbox(), None, self.listener, {}, (), lambda: int(self.now_s * S), deaths=self.deaths
        )
        self.gauges.writer = self.writer

    def go_on(self, to_s, *parts):
        """Time goes on; the listener and writer do too but for what ``parts`` names."""
        self.now_s = to_s
        if "listener" not in parts:
            self.listener.looked_s = to_s
        if "writer" not in parts:
            self.writer.turned_s = to_s
        if not {"writer", "publishing"} & set(parts):
            self.writer.published_s = to_s
        if "settling" not in parts:
            self.settled_ns = int((to_s - 2) * S)
        return self.gauges.problems()


def test_a_meter_that_works_has_no_problem():
    scene = Scene()
    assert scene.go_on(1000.0) == scene.go_on(5000.0) == ()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("listener", "the engine's steps: the listener's thread has been stuck for 20 s"),
        ("writer", "the accounts: the writer's thread has been stuck for 20 s"),
        ("publishing", "the accounts: nothing has been published for 20 s"),
    ],
)
def test_a_thread_that_stands_still_is_named(part, said):
    """And is not any more when it goes on."""
    scene = Scene()
    assert any(problem.startswith(said) for problem in scene.go_on(1020.0, part))
    assert scene.go_on(1021.0) == ()


def test_accounts_that_do_not_settle_are_named():
    """Not while an engine's step or a driver's call may take so long."""
    scene = Scene()
    assert scene.go_on(1060.0, "settling") == ()
    [said] = scene.go_on(1098.0, "settling")
    assert said.startswith("the accounts: nothing has been settled for 100 s, so no receipt")


def test_a_thread_that_has_ended_is_named():
    scene = Scene()
    scene.listening = scene.writing = False
    scene.deaths.counts = {"sampler-0": 1}
    listener, writer, sampler = scene.go_on(1000.0)
    assert listener.startswith("the engine's steps: the listener's thread has ended")
    assert writer.startswith("the accounts: the writer's thread has ended")
    assert sampler.startswith("a thread of the meter (sampler-0) has ended by an error")


def test_what_threads_survive_and_engines_say_is_counted():
    """By name, for the metrics; threads without an error are not there."""
    scene = Scene()
    assert scene.gauges.health().thread_errors == {}
    scene.listener.errors, scene.writer.errors, scene.deaths.counts = 2, 3, {"finder": 1}
    scene.listener.counters = Counters(gone=4, back=5)
    scene.listener.counters.refused["stray"] = 6
    health = scene.gauges.health()
    assert health.thread_errors == {
        "finder": 1,
        "joulemeter-listener": 2,
        "joulemeter-writer": 3,
    }
    assert (health.engines_gone, health.engines_back, health.refused) == (4, 5, {"stray": 6})


def test_a_receipt_is_found_by_the_id_that_the_client_sent():
    """Where that was no clean text it is kept as one."""
    asked = []
    Readers(SimpleNamespace(receipt=asked.append), None).receipt("a\n\ud800")
    assert asked == ["a\\u000a\\ud800"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_an_error_ends_is_logged_and_counted():
    """Whichever it is; and who watched before watches again."""
    before = threading.excepthook
    deaths = Deaths()

    def fail():
        raise ValueError("a defect")

    thread = threading.Thread(target=fail, name="finder")
    with capture_logs() as logs:
        thread.start()
        thread.join()
    deaths.leave()
    assert threading.excepthook == before
    assert deaths.counts == {"finder": 1}
    assert [(line["event"], line["thread"]) for line in logs] == [("thread_ended", "finder")]


# --- the writer


class Core:
    """Fails where a test says; remembers what it was fed."""

    def __init__(self):
        self.fed = []

    def feed(self, event):
        self.fed.append(event)

    def finish(self):
        pass

    def snapshot(self):
        return Snapshot(0, None)

    def drain(self):
        return []

    drain_host = drain


def written(core, inbox=None, publisher=None, **more):
    publisher = publisher or Publisher(Tariff("EUR"), 0)
    return Writer(inbox or Inbox(100), core, publisher, Health, {}, publish_s=0.01, **more)


def reading(t):
    return Reading("GPU-0", t * S // 50, t)


def test_the_writer_goes_on_where_its_loop_breaks(monkeypatch):
    """An error outside of all that is guarded: the queue is taken up where it stood."""
    core, inbox = Core(), Inbox(100)
    writer = written(core, inbox)
    remember, broken = writer._remember_now_and_then, threading.Event()

    def break_once():
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a defect")
        remember()

    monkeypatch.setattr(writer, "_remember_now_and_then", break_once)
    writer.start()
    assert broken.wait(30)
    inbox.push(reading(1))
    assert writer.finish() is not None
    assert core.fed == [reading(1)]
    assert writer.errors == 1
    assert not writer.alive()


def test_the_writer_says_when_it_turned_and_published():
    writer = written(Core())
    assert (writer.turned_s, writer.published_s) == (None, None)
    writer.start()
    writer.finish()
    assert writer.turned_s is not None and writer.published_s is not None


def test_a_source_that_can_wait_leaves_half_of_the_queue():
    """To readings of the counters, which cannot."""
    inbox = Inbox(10)
    for t in range(5):
        inbox.push(reading(t))
    assert inbox.has_room()
    inbox.push(reading(5))
    assert not inbox.has_room()


class Record:
    def __init__(self):
        self.lines = []

    def write(self, event):
        self.lines.append(event)

    def flush(self):
        pass

    def close(self):
        pass


def test_utc_follows_a_step_of_the_clock_and_no_joule_moves(monkeypatch):
    """NTP sets the clock an hour back while the meter runs: times in UTC follow, once it is looked
    at; the record says so; what is fed to the core is the same."""
    monkeypatch.setattr("meter.runtime.writer._CLOCK_EVERY_S", 0.0)
    publisher, record, core = Publisher(Tariff("EUR"), 0), Record(), Core()
    offsets, told = [], threading.Event()

    def set_clock(offset_ns):
        offsets.append(offset_ns)
        if len(offsets) >= 3:
            told.set()

    monkeypatch.setattr(publisher, "set_clock", set_clock)
    clock = SimpleNamespace(utc_ns=2 * 10**18)
    inbox = Inbox(100)
    writer = written(core, inbox, publisher, record=record, utc_ns=lambda: clock.utc_ns)
    clock.utc_ns -= 3600 * S
    inbox.push(reading(1))
    writer.start()
    assert told.wait(30)
    writer.finish()
    clocks = [line for line in record.lines if isinstance(line, Clock)]
    assert [line.utc_ns for line in clocks] == [clock.utc_ns]
    assert offsets[0] == clocks[0].utc_ns - clocks[0].t_ns
    assert core.fed == [reading(1)]
