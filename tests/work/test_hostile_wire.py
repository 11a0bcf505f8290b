"""What comes over the wire is not trusted: a bad record costs itself, and nobody speaks for others.

The clock and the senders are the test's own; a live listener is in ``test_listener``.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from meter.model import EngineEvent, Event, Gap, RequestClosed, RequestOpened, Step
from meter.trace.fields import TOKENS_MAX, as_text
from meter.work import wire
from meter.work.hello import read_hello
from meter.work.peer import Peer
from meter.work.wire import Decoder

S = 1_000_000_000
NOW = 1_000_000 * S
ME = Peer(os.getpid(), os.getuid())
#: Of another PID namespace: not visible here.
HIDDEN = Peer(None, os.getuid())


def packet(*records: object, source: str = "s", number: object = 0) -> bytes:
    return json.dumps(["jm1", source, number, records]).encode()


def hello(t_ns: int = NOW, event: str = "ready", **facts: object) -> list[object]:
    return ["H", t_ns, event, {"engine": "0", **facts}]


def step(seq: int, *rows: object, t1_ns: int = NOW, form: str = "F") -> list[object]:
    return [form, seq, t1_ns - 10**7, t1_ns, list(rows), *([[]] if form == "S" else [])]


class Scene:
    """A decoder whose clock a test sets, and one engine that was met."""

    def __init__(self, alive: bool = True, peer: Peer | None = ME) -> None:
        self.now_ns = NOW
        self.decoder = Decoder(is_alive=lambda source: alive, now_ns=lambda: self.now_ns)
        self.say(hello(), peer=peer)

    def say(self, *records: object, peer: Peer | None = ME, **more: Any) -> list[Event]:
        return self.decoder.decode(packet(*records, **more), peer)

    @property
    def refused(self) -> dict[str, int]:
        return dict(self.decoder.counters.refused)

    @property
    def labels(self) -> list[str]:
        return [source.label for source in self.decoder.sources]


# --- numbers, texts and times


@pytest.mark.parametrize("pid", [2**40, 2**31, -1, 0.5, True, "7", 10**400])
def test_a_pid_that_none_can_be_is_not_known(pid: object) -> None:
    """It reached ``os.kill`` and ended the thread."""
    found = read_hello("s", {"engine": "7", "pid": pid})
    assert (found.engine, found.pid) == ("7", None)


@pytest.mark.parametrize("name", ["params", "active_params", "weight_bytes", "kv_bytes_per_token"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5, 10**400, 1e300, True, []])
def test_a_fact_that_cannot_be_is_not_known(name: str, value: object) -> None:
    """A first guess of what a step costs comes of it: NaN would be in every account."""
    assert getattr(read_hello("s", {name: value}), name) is None


def test_ranks_and_steps_that_cannot_be_are_not_known() -> None:
    huge = dict.fromkeys(("tp", "experts_total", "experts_active", "layers", "heads"), 10**400)
    found = read_hello("s", {**huge, "next_seq": -50, "missed_steps": 2**54, "open_requests": -1})
    info = found.info("0", ())
    assert (info.layout, info.experts, info.layers) == (None, None, None)
    assert (found.next_seq, found.missed_steps, found.open_requests) == (None, None, None)
    assert read_hello("s", {"tp": 10**9}).info("0", ()).layout is None


@pytest.mark.parametrize(
    "record",
    [
        step(0, ["a", 1, 0, "d"], t1_ns=NOW + S),
        step(0, ["a", 1, 0, "d"], t1_ns=NOW + 10**18),
        step(0, ["a", 1, 0, "d"], t1_ns=NOW - 7200 * S),
        step(0, ["a", 1, 0, "d"], t1_ns=-(10**18)),
        step(0, ["a", 1, 0, "d"], t1_ns=10**400),
        ["F", 0, 0, NOW, [["a", 1, 0, "d"]]],
        ["F", 0, NOW, NOW - S, [["a", 1, 0, "d"]]],
        ["F", 0, math.nan, NOW, []],
        ["F", 2**60, NOW - S, NOW, []],
        step(0, ["a", 10**18, 0, "p"]),
        step(0, ["a", 1, 10**18, "d"]),
        step(0, ["a", 0, 5, "d"]),
        step(0, ["a", 1, 5, "d", 2**40]),
        step(0, ["a", 1, 5, "d"], ["a", 1, 5, "d"]),
        step(0, *([f"r{k}", TOKENS_MAX // 2, TOKENS_MAX, "p"] for k in range(3))),
        ["D", 0, NOW, NOW + S],
        ["D", -1, NOW - S, NOW],
        ["O", NOW + S, "a", None, None, None, None],
        ["O", NOW, "a", None, 2**60, None, None],
        ["C", NOW, "a", None, None, None, 2**60],
        ["C", "now", "a", None, None, None, None],
        ["P", 2**60, []],
        ["E", None, "down"],
    ],
    ids=lambda record: repr(record)[:60],
)
def test_what_a_trace_would_not_hold_is_one_bad_record(record: object) -> None:
    """A time ahead of now, of long ago, a number out of all range: the others are heard."""
    scene = Scene()
    events = scene.say(record, step(1, ["b", 1, 0, "d"]))
    assert [type(event) for event in events] == [Step]
    assert scene.refused == {"record": 1}


@pytest.mark.parametrize("ahead_ns", [S, 10**18, 2**62])
def test_an_end_ahead_of_now_is_bad_and_an_end(ahead_ns: int) -> None:
    """It is told but once: a request that never ended would hold up its devices' accounts."""
    scene = Scene()
    scene.say(["O", NOW, "a", None, None, None, None])
    [closed] = scene.say(["C", NOW + ahead_ns, "a", "stop", 1, 1, 1])
    assert closed == RequestClosed("0", "a", NOW, "stop", 1, 1, 1)
    [down] = scene.say(["E", NOW + ahead_ns, "down"])
    assert down == EngineEvent("0", NOW, "down")
    assert scene.refused == {"record": 2}


def test_what_waited_for_a_stopped_meter_is_heard() -> None:
    """Requests' beginnings and ends of hours ago count as an hour old: nobody tells them again."""
    scene = Scene()
    scene.now_ns = NOW + 5 * 3600 * S
    opened, closed = scene.say(
        ["O", NOW, "a", None, None, None, None], ["C", NOW + S, "a", None, None, None, None]
    )
    assert opened.t_ns == closed.t_ns == NOW + 4 * 3600 * S
    assert scene.refused == {}


ODD = ["\ud800", "a\ud800b", "\x00", "a\n\r\x1b[31m", "\x9b31m", "\u2028", "x" * 60_000, ""]


@pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text)[:20])
def test_odd_texts_are_made_clean(text: str) -> None:
    """Clients choose ids: refusing one would refuse the step of all others. No text that cannot be
    written, or that writes over a terminal, comes through."""
    scene = Scene()
    facts = {"engine": text, "model": text, "engine_version": text, "dtype": text}
    events = scene.say(
        ["H", NOW, "ready", facts],
        ["O", NOW, text, text, 3, text, text],
        step(0, [text, 3, 0, "p"]),
        step(1, form="S"),
        ["C", NOW, text, text, 3, 0, 1],
        source=f"t{text}",
    )
    assert [type(e) for e in events] == [EngineEvent, RequestOpened, Step, Step, RequestClosed]
    hi, opened, one, _, closed = events
    assert isinstance(hi, EngineEvent) and hi.info is not None
    assert isinstance(opened, RequestOpened) and isinstance(closed, RequestClosed)
    assert isinstance(one, Step)
    told = [hi.engine, hi.info.model, hi.info.engine_version, opened.parent, opened.model]
    told += [opened.tenant, closed.reason, opened.request]
    for name in told:
        assert name is not None
        assert as_text(name, "name") == name
    assert opened.request == closed.request == one.work[0].request
    assert scene.refused == {}


def test_devices_that_are_no_list_are_not_known() -> None:
    """A list that was cut would name another device."""
    assert read_hello("s", {"cuda_visible_devices": "," * 20_000}).cuda_visible_devices is None
    assert read_hello("s", {"cuda_visible_devices": "0\n"}).cuda_visible_devices is None
    many = ",".join(f"MIG-GPU-{k:032}/7/0" for k in range(56))
    assert read_hello("s", {"cuda_visible_devices": many}).cuda_visible_devices == many


@pytest.mark.parametrize("number", [True, -1, 10**400, 2**60, 1.5, None, "1"])
def test_a_datagrams_number_cannot_blow_up_the_count_of_lost_ones(number: object) -> None:
    """``float`` of a number of 400 digits made ``/metrics`` answer 500 for good."""
    scene = Scene()
    assert scene.say(step(0), number=number) == []
    assert scene.refused == {"unreadable": 1}
    assert scene.decoder.counters.lost == 0


def test_a_step_is_heard_once() -> None:
    """Also in a recorded trace a number comes once."""
    scene = Scene()
    assert len(scene.say(step(4), step(4), step(3), step(5))) == 2
    assert scene.refused == {"record": 2}


def test_a_step_whose_rows_were_refused_is_lost() -> None:
    """Without some of its rows it would charge the others for theirs; a gap says so."""
    scene = Scene()
    scene.say(step(0, ["a", 1, 0, "d"]))
    bad, rest = ["P", 1, [["b", 0, 0, "d"]]], ["P", 1, [["c", 1, 0, "d"]]]
    assert scene.say(bad, rest, step(1, ["a", 1, 1, "d"])) == []
    assert scene.say(step(2, ["a", 1, 2, "d"]))[0] == Gap("0", NOW, 0, 1, 1)


def test_nothing_of_an_engine_comes_before_it_is_met() -> None:
    """In order of time: the core takes an engine that nobody has announced for every device's."""
    scene = Scene()
    scene.now_ns = NOW + 10 * S
    opened, closed = ["O", 0, "a", None, None, None, None], ["C", 0, "a", None, None, None, None]
    events = scene.say(opened, closed, step(0, t1_ns=NOW - S), ["D", 0, NOW - S, NOW - S])
    assert [event.t_ns for event in events] == [NOW, NOW]
    assert scene.refused == {"record": 2}
    events = scene.say(hello(NOW + S, next_seq=5), opened, source="t", peer=HIDDEN)
    assert [event.t_ns for event in events] == [NOW + S, NOW + S]


def test_a_request_is_opened_once_in_a_hello() -> None:
    """After another hello everybody is told once more."""
    scene = Scene()
    opened = ["O", NOW, "a", "p", 1, None, None]
    assert len(scene.say(opened, opened)) == 1
    assert len(scene.say(hello(), opened, opened)) == 2
    assert scene.refused == {"record": 2}


# --- who speaks


@pytest.fixture
def child() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def test_nobody_ends_another_engine() -> None:
    """Its source's name is no secret; the kernel says that another process wrote this."""
    scene = Scene()
    forged = [["E", NOW, "down"], step(10**9, ["ghost", 1, 0, "d"]), ["C", NOW, "a", None, 1, 1, 1]]
    for peer in (Peer(1, ME.uid), HIDDEN, None):
        for record in forged:
            assert scene.say(record, number=10**6, peer=peer) == []
    assert scene.labels == ["0"]
    assert scene.refused == {"stray": 9}
    assert len(scene.say(step(0))) == 1, "its own words are heard, and no datagram is missed"
    assert scene.decoder.counters.lost == 0


def test_a_second_process_of_the_same_name_is_another_engine() -> None:
    """Where it says hello itself."""
    scene = Scene()
    [met] = scene.say(hello(), peer=Peer(1, 0))
    assert met.engine == "0-2"  # type: ignore[union-attr]
    assert [source.label for source in scene.decoder.sources] == ["0", "0-2"]


def test_a_forked_process_goes_on_for_its_parent(child: int) -> None:
    """An engine may fork after its hello; who speaks then is looked at from then on."""
    scene = Scene()
    assert scene.say(step(0), peer=Peer(child, ME.uid + 1)) == [], "but not another user's"
    [event] = scene.say(step(0), peer=Peer(child, ME.uid))
    assert isinstance(event, Step)
    [source] = scene.decoder.sources
    assert (source.pid, source.label) == (child, "0")
    [event] = scene.say(step(1), peer=ME)
    assert isinstance(event, Step)
    assert scene.refused == {"stray": 1}


@pytest.mark.parametrize(
    ("peer", "known"),
    [(ME, ME.pid), (HIDDEN, None), (None, 77)],
    ids=["seen", "hidden", "not told"],
)
def test_the_pid_is_the_kernels(peer: Peer | None, known: int | None) -> None:
    """What an engine says counts only where the kernel says nothing: in a container it is another
    number's process here."""
    asked = []
    decoder = Decoder(devices_of=lambda hello: asked.append(hello.pid) or ("GPU-1",))
    decoder.decode(packet(hello(pid=77)), peer)
    assert asked == [known]


def test_gone_is_undone_by_the_next_word() -> None:
    """As a new life that holds the same requests; what it has told of itself still counts."""
    scene = Scene(peer=HIDDEN)
    opened = ["O", NOW, "a", "p", 7, "lora", "acme"]
    closing = ["O", NOW, "b", "q", 7, None, None]
    scene.say(opened, closing, ["C", NOW, "b", "stop", 7, 0, 1], step(0), peer=HIDDEN)
    [source] = scene.decoder.sources
    down = scene.decoder.gone(source, NOW + S)
    assert (down.engine, down.event, down.epoch) == ("0", "down", 0)
    assert scene.decoder.sources == ()
    scene.now_ns = NOW + 2 * S
    back, again, one = scene.say(step(1, t1_ns=NOW + S), peer=HIDDEN)
    assert isinstance(back, EngineEvent) and back.info is not None
    assert (back.engine, back.event, back.epoch, back.t_ns) == ("0", "ready", 1, NOW + 2 * S)
    assert again == RequestOpened("0", "a", NOW + 2 * S, "lora", "acme", "p", 7, "lost_steps")
    assert one == Step("0", 1, 1, NOW + S - 10**7, NOW + S, ())
    counters = scene.decoder.counters
    assert (counters.gone, counters.back, counters.stray) == (1, 1, 0)


def test_who_has_started_an_engine_does_not_speak_for_it() -> None:
    """Nor does any other process above it: a shell, a launcher, the meter's own starter."""
    scene = Scene()
    assert scene.say(["E", NOW, "down"], peer=Peer(os.getppid(), ME.uid)) == []
    assert scene.labels == ["0"]


def test_nobody_else_of_another_user_speaks_for_one_that_is_hidden() -> None:
    """Of the processes of one user in other namespaces the kernel tells no more."""
    scene = Scene(peer=HIDDEN)
    assert scene.say(["E", NOW, "down"], peer=Peer(None, ME.uid + 1)) == []
    assert len(scene.say(step(0), peer=HIDDEN)) == 1


def test_who_lost_its_label_is_back_under_another() -> None:
    """Two that cannot be seen and call themselves 0: neither ends the other for good."""
    scene = Scene(alive=False, peer=HIDDEN)
    events = scene.say(hello(), source="t", peer=HIDDEN)
    assert [(e.engine, e.event) for e in events if isinstance(e, EngineEvent)] == [
        ("0", "down"),
        ("0", "ready"),
    ]
    back, one = scene.say(step(0), peer=HIDDEN)
    assert (back.engine, one.engine) == ("0-2", "0-2")  # type: ignore[union-attr]
    [one] = scene.say(step(0), source="t", peer=HIDDEN)
    assert one.engine == "0"  # type: ignore[union-attr]


def test_an_engines_own_end_is_its_end() -> None:
    """What follows in the same datagram is refused, and the next one is a stranger's."""
    scene = Scene()
    scene.say(["O", NOW, "a", None, None, None, None])
    [down] = scene.say(["E", NOW, "down"], ["C", NOW, "a", None, None, None, None], step(0))
    assert isinstance(down, EngineEvent)
    assert scene.say(step(1)) == []
    assert scene.refused == {"record": 2, "stray": 1}


# --- bounds


def names(count: int) -> list[str]:
    return [f"s{k}" for k in range(count)]


def test_so_many_engines_are_heard_at_once() -> None:
    """The first ones are; who comes later is refused, counted, and heard when there is room."""
    scene = Scene()
    for name in names(2000):
        scene.say(hello(engine=name), source=name, peer=Peer(None, 0))
    assert len(scene.decoder.sources) == wire.SOURCES_MAX
    assert scene.refused["engines"] == 2000 - (wire.SOURCES_MAX - 1)
    assert len(scene.say(step(0))) == 1
    scene.now_ns += 20 * S
    scene.say(step(1))
    [*gone, met] = scene.say(hello(NOW + 20 * S, engine="new"), source="new", peer=HIDDEN)
    assert met.engine == "new"  # type: ignore[union-attr]
    assert len(gone) == wire.SOURCES_MAX - 1, "who has been silent makes room"
    assert scene.labels == ["0", "new"]


def test_a_process_is_so_many_engines() -> None:
    """However often it says hello under one label."""
    scene = Scene()
    for name in names(500):
        scene.say(hello(engine="x"), source=name)
    assert len(scene.decoder.sources) == wire.OF_PROCESS_MAX
    [met] = scene.say(hello(engine="x"), source="honest", peer=HIDDEN)
    assert met.engine == f"x-{wire.OF_PROCESS_MAX}"  # type: ignore[union-attr]


def test_labels_are_bounded_for_the_life_of_a_meter() -> None:
    """Each is a name in the accounts for good; one that was given before may come again."""
    scene = Scene()
    for name in names(1000):
        scene.say(hello(engine=name), ["E", NOW, "down"], source=name)
    assert len(scene.decoder._epochs) == wire.LABELS_MAX
    assert scene.refused["engines"] == 1000 - (wire.LABELS_MAX - 1)
    scene.say(["E", NOW, "down"])
    [met] = scene.say(hello(), source="t")
    assert (met.engine, met.epoch) == ("0", 1)  # type: ignore[union-attr]


def test_open_requests_are_bounded_and_every_engine_has_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever opens without end is refused; another engine still opens its own."""
    monkeypatch.setattr(wire, "OPEN_MAX", 640)
    scene = Scene()
    opened = [["O", NOW, name, None, None, None, None] for name in names(1000)]
    assert len(scene.say(*opened)) == 640
    assert len(scene.say(step(0, *([f"t{k}", 1, 0, "d"] for k in range(5))))) == 0
    assert scene.refused == {"record": 361, "requests": 361}
    scene.say(hello(), source="t", peer=HIDDEN)
    assert len(scene.say(*opened[:20], source="t", peer=HIDDEN)) == 10
    ends = [["C", NOW, name, None, None, None, None] for name in names(640)]
    assert len(scene.say(*ends)) == 640
    assert len(scene.say(*opened[640:])) == 360
    assert scene.decoder._open == 370


def test_a_closed_request_that_a_step_still_names_is_not_open() -> None:
    """With asynchronous scheduling it may be computed once more: it would never close."""
    scene = Scene()
    scene.say(["O", NOW, "a", None, None, None, None], step(0, ["a", 1, 0, "d"]))
    scene.say(["C", NOW, "a", None, None, None, None], step(1, ["a", 1, 1, "d"]))
    assert scene.decoder._open == 0


def test_rows_of_a_step_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More work of a step that never comes is not kept without end."""
    monkeypatch.setattr(wire, "ROWS_MAX", 100)
    scene = Scene()
    for _ in range(10):
        scene.say(["P", 7, [[f"r{k}", 1, 5, "d"] for k in range(15)]])
    [source] = scene.decoder.sources
    assert source.parts is None
    assert scene.refused == {"record": 4}
    assert scene.say(step(7)) == []


def test_names_in_the_accounts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models, tenants and reasons: later ones are called other, and their joules are kept."""
    for name in ("MODELS_MAX", "TENANTS_MAX", "REASONS_MAX"):
        monkeypatch.setattr(wire, name, 3)
    scene = Scene()
    events = [
        event
        for k in range(5)
        for event in scene.say(
            ["O", NOW, f"r{k}", None, None, f"m{k}", f"t{k}"],
            ["C", NOW, f"r{k}", f"why{k}", None, None, None],
        )
    ]
    opened = [e for e in events if isinstance(e, RequestOpened)]
    assert [e.model for e in opened] == ["m0", "m1", "m2", "other", "other"]
    assert [e.tenant for e in opened] == ["t0", "t1", "t2", "other", "other"]
    reasons = [e.reason for e in events if isinstance(e, RequestClosed)]
    assert reasons == ["why0", "why1", "why2", "other", "other"]
    assert scene.refused == {"names": 6}


def test_an_engine_starts_once_in_a_life() -> None:
    """Up and ready in turn would be start-ups without end."""
    scene = Scene()
    events = [e for _ in range(3) for e in scene.say(hello(event="up"), hello())]
    assert {e.event for e in events if isinstance(e, EngineEvent)} == {"ready"}


def test_an_opening_after_a_step_that_named_it_is_taken() -> None:
    """Whose opening comes late is told of all the same, and only once."""
    scene = Scene()
    scene.say(["S", 0, NOW - 2, NOW - 1, [["a", 4, 0, "p"]], None])
    [opened] = scene.say(["O", NOW, "a", "p", 7, "m", "acme"])
    assert isinstance(opened, RequestOpened)
    assert opened.tenant == "acme"
    assert scene.say(["O", NOW, "a", "p", 7, "m", "acme"]) == []
    assert scene.decoder.counters.bad == 1
