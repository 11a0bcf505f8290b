"""What the sender says is what the decoder hears, and nothing on the wire can break it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.model import (
    EngineEvent,
    Event,
    Experts,
    Gap,
    Layout,
    Phase,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace.fields import STEP_NS_MAX, TOKENS_MAX
from meter.work.hello import Hello, read_hello
from meter.work.vllm.sender import Sender
from meter.work.wire import Decoder

NS = st.integers(0, 2**62)
COUNT = st.integers(0, TOKENS_MAX)
MAYBE = st.none() | COUNT
ID = st.text(min_size=1, max_size=30).filter(lambda s: s.isprintable())
WORK = st.builds(Work, ID, st.integers(1, 10**8), COUNT, st.sampled_from(Phase), MAYBE)
ROWS = st.lists(WORK, max_size=5, unique_by=lambda work: work.request).map(tuple)

OPENED = st.builds(
    RequestOpened,
    engine=st.just("0"),
    request=ID,
    t_ns=NS,
    model=st.none() | ID,
    tenant=st.none() | ID,
    parent=st.none() | ID,
    prompt_tokens=MAYBE,
)
CLOSED = st.builds(
    RequestClosed,
    engine=st.just("0"),
    request=ID,
    t_ns=NS,
    reason=st.none() | ID,
    prompt_tokens=MAYBE,
    cached_tokens=MAYBE,
    completion_tokens=MAYBE,
)


def steps(same: bool) -> st.SearchStrategy[Step]:
    """A step in either form; its number is its place among the others."""
    return st.builds(
        lambda t_ns, length_ns, rows, drop: Step(
            "0", 0, 0, t_ns, t_ns + length_ns, rows, same, tuple(drop) if same else ()
        ),
        NS,
        st.integers(0, STEP_NS_MAX),
        ROWS,
        st.lists(ID, max_size=5),
    )


def numbered(said: list[Event]) -> list[Event]:
    """Each step with the number of its place, each request opened once."""
    opened: set[str] = set()
    events: list[Event] = []
    for event in said:
        if isinstance(event, RequestOpened):
            if event.request in opened:
                continue
            opened.add(event.request)
        elif isinstance(event, RequestClosed):
            opened.discard(event.request)
        place = len(events)
        events.append(replace(event, seq=place) if isinstance(event, Step) else event)
    return events


SAID = st.lists(OPENED | CLOSED | steps(False) | steps(True), max_size=12).map(numbered)


class Wire:
    """A sender whose datagrams a test reads itself."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "s")
        self.receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.bind(path)
        self.receiver.setblocking(False)
        self.sender = Sender(path, clock=lambda: 0)
        self.sender.hello({"engine": "0"})

    def datagrams(self) -> list[bytes]:
        self.sender.flush()
        found = []
        while True:
            try:
                found.append(self.receiver.recv(1 << 20))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


def say(sender: Sender, event: Event) -> None:
    match event:
        case RequestOpened():
            sender.opened(
                event.t_ns,
                event.request,
                event.parent,
                event.prompt_tokens,
                event.model,
                event.tenant,
            )
        case RequestClosed():
            counts = (event.prompt_tokens, event.cached_tokens, event.completion_tokens)
            sender.closed(event.t_ns, event.request, event.reason, *counts)
        case Step(same=True):
            sender.step(event.seq, event.t0_ns, event.t1_ns, event.work, True, event.drop)
        case Step():
            sender.step(event.seq, event.t0_ns, event.t1_ns, event.work)


def hear(data: list[bytes], decoder: Decoder | None = None) -> list[Event]:
    decoder = decoder or Decoder()
    events = [event for datagram in data for event in decoder.decode(datagram)]
    assert decoder.counters.bad == 0
    return events


@given(SAID)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, said: list[Event]) -> None:
    """Every event arrives as it was said, in order; a change without a base is not sent."""
    wire = Wire(tmp_path_factory.mktemp("wire"))
    try:
        for event in said:
            say(wire.sender, event)
        heard = [e for e in hear(wire.datagrams())[1:] if not isinstance(e, Gap)]
    finally:
        wire.close()
    based, expected = False, []
    for event in said:
        based = based or (isinstance(event, Step) and not event.same)
        if based or not isinstance(event, Step):
            expected.append(event)
    assert heard == expected


@pytest.mark.parametrize("same", [False, True])
def test_a_large_batch_is_told_in_parts(wire: Wire, same: bool) -> None:
    """5000 requests in one step do not fit a datagram, and arrive as one step."""
    rows = tuple(Work(f"chatcmpl-{i:032x}", 1, i, Phase.DECODE) for i in range(5000))
    if same:
        wire.sender.step(0, 1, 2, rows[:1])
    seq = 1 if same else 0
    wire.sender.step(seq, 3, 4, rows, same)
    data = wire.datagrams()
    assert max(map(len, data)) < 200_000
    step = hear(data)[-1]
    assert isinstance(step, Step)
    assert (step.seq, step.same, sorted(step.work)) == (seq, same, sorted(rows))


def test_parts_of_a_lost_step_are_forgotten() -> None:
    """More work is of one step, and never of the next."""
    decoder = Decoder()
    hello = ["H", 1, "ready", {"engine": "0"}]
    parts = [["P", 4, [["a", 1, 2, "d"]]], ["F", 5, 1, 2, [["b", 1, 2, "d"]]]]
    events = hear([packet(0, [hello, *parts])], decoder)
    assert events[-1] == Step("0", 0, 5, 1, 2, (Work("b", 1, 2, Phase.DECODE),))


def packet(number: int, records: list[object], source: str = "s") -> bytes:
    return json.dumps(["jm1", source, number, records]).encode()


def test_hello_tells_the_engine_and_asks_for_its_devices() -> None:
    """Facts of the right type become the engine's; others count as unknown."""
    asked: list[Hello] = []

    def devices_of(hello: Hello) -> tuple[str, ...]:
        asked.append(hello)
        return ("GPU-1",)

    facts = {"engine": "3", "model": "m", "params": 8e9, "layers": "32", "heads": True, "pid": 7}
    [event] = hear([packet(0, [["H", 5, "up", facts]])], Decoder(devices_of))
    assert isinstance(event, EngineEvent) and event.info is not None
    assert (event.engine, event.t_ns, event.event, event.epoch) == ("3", 5, "up", 0)
    info = event.info
    assert (info.id, info.devices, info.model, info.params) == ("3", ("GPU-1",), "m", 8e9)
    assert (info.layers, info.heads) == (None, None)
    assert asked[0].pid == 7


@pytest.mark.parametrize(
    ("said", "experts", "layout"),
    [
        ({"experts_total": 8, "experts_active": 2}, Experts(8, 2), None),
        ({"experts_total": 2, "experts_active": 8}, None, None),
        ({"experts_total": 8}, None, None),
        ({"tp": 2, "pp": 1, "dp": 4, "ep": 8}, None, Layout(2, 1, 4, 8)),
        ({"tp": 2}, None, Layout(2, 1, 1, 1)),
        ({"tp": 0}, None, None),
        ({"experts_total": "8", "experts_active": True, "tp": None}, None, None),
    ],
)
def test_experts_and_layout_reach_the_core(
    said: dict[str, object], experts: Experts | None, layout: Layout | None
) -> None:
    """Where they make sense; else they are not known."""
    info = read_hello("s", said).info("0", ())
    assert (info.experts, info.layout) == (experts, layout)


def test_devices_that_cannot_be_found_do_not_silence_the_engine() -> None:
    """The listener's thread survives whatever looks the devices up."""

    def devices_of(hello: Hello) -> tuple[str, ...]:
        raise OSError("no driver")

    decoder = Decoder(devices_of)
    [event] = decoder.decode(packet(0, [["H", 5, "ready", {}]]))
    assert isinstance(event, EngineEvent) and event.info is not None
    assert event.info.devices == ()
    assert decoder.counters.bad == 1


def test_a_jump_in_seq_is_a_gap() -> None:
    """The gap stands before the step that shows it, and at no later time."""
    hello = ["H", 1, "ready", {"engine": "0"}]
    steps = [["F", 3, 10, 20, []], ["F", 7, 90, 99, []]]
    decoder = Decoder()
    events = hear([packet(0, [hello, *steps])], decoder)[1:]
    assert events == [
        Step("0", 0, 3, 10, 20, ()),
        Gap("0", 99, 0, 4, 6),
        Step("0", 0, 7, 90, 99, ()),
    ]
    assert decoder.counters.lost_steps == 3


def test_a_new_life_is_a_new_epoch_and_ends_the_old_one() -> None:
    """A restarted engine says hello under its old label: what the dead one held is over, and
    nobody who was never met can go on in its place."""
    decoder = Decoder()
    hear([packet(0, [["H", 1, "ready", {"engine": "0"}]])], decoder)
    events = hear([packet(0, [["H", 9, "up", {"engine": "0"}]], source="t")], decoder)
    assert [(e.event, e.epoch, e.t_ns) for e in events if isinstance(e, EngineEvent)] == [
        ("down", 0, 9),
        ("up", 1, 9),
    ]
    assert decoder.decode(packet(1, [["F", 0, 1, 2, []]], source="u")) == []
    assert decoder.counters.stray == 1


def test_two_engines_of_one_label_are_told_apart_while_both_live() -> None:
    """Two servers under one meter both call themselves 0; a dead one's label is free again."""
    alive = {"a", "b"}
    decoder = Decoder(is_alive=lambda source: source.name in alive)

    def hello(source: str, t: int) -> list[tuple[str, str, int]]:
        data = json.dumps(["jm1", source, 0, [["H", t, "ready", {"engine": "0"}]]]).encode()
        events = [e for e in decoder.decode(data) if isinstance(e, EngineEvent)]
        return [(e.engine, e.event, e.epoch) for e in events]

    assert hello("a", 1) == [("0", "ready", 0)]
    assert hello("b", 2) == [("0-2", "ready", 0)]
    alive.remove("a")
    assert hello("c", 3) == [("0", "down", 0), ("0", "ready", 1)]


def joining(**more: int) -> bytes:
    facts = {"engine": "0", "next_seq": 10, "missed_steps": 4, "open_requests": 1, **more}
    return packet(0, [["H", 100, "ready", facts], ["F", 10, 101, 102, []]])


def test_an_engine_met_in_mid_life_tells_what_was_missed() -> None:
    """Its life before is no gap, but the steps that nobody heard since the meter listens are."""
    decoder = Decoder(since_ns=50)
    _, gap, _ = decoder.decode(joining())
    assert gap == Gap("0", 50, 0, 6, 9)
    assert decoder.counters.lost_steps == 4
    kinds = [type(e) for e in Decoder(since_ns=50).decode(joining(missed_steps=0))]
    assert kinds == [EngineEvent, Step]
    kinds = [type(e) for e in Decoder(since_ns=50).decode(joining(open_requests=0))]
    assert kinds == [EngineEvent, Step], "it rests: nothing is missing now"


def test_a_request_that_began_unheard_says_so() -> None:
    """It counts as opened when the meter came; one that came later is whole."""
    hello = ["H", 100, "ready", {"engine": "0", "next_seq": 9, "missed_steps": 0}]
    records = [["O", t, f"r{t}", None, 3, None, None] for t in (40, 60)]
    _, old, new = Decoder(since_ns=50).decode(packet(0, [hello, *records]))
    assert old == RequestOpened("0", "r40", 50, prompt_tokens=3, missed="meter_down")
    assert new == RequestOpened("0", "r60", 60, prompt_tokens=3)


def test_a_first_step_later_than_was_said_is_a_gap_since_the_meter_listens() -> None:
    """The step in flight when the engine joined was told to nobody."""
    hello = ["H", 100, "ready", {"engine": "0", "next_seq": 9, "missed_steps": 0}]
    events = Decoder(since_ns=50).decode(packet(0, [hello, ["F", 10, 101, 102, []]]))
    assert events[1] == Gap("0", 50, 0, 9, 9)


def test_data_parallel_ranks_live_side_by_side() -> None:
    """Each rank is a source of its own."""
    decoder = Decoder()
    for rank in "01":
        hear([packet(0, [["H", 1, "ready", {"engine": rank}]], source=rank)], decoder)
    [one] = hear([packet(1, [["F", 0, 1, 2, []]], source="1")], decoder)
    [two] = hear([packet(1, [["F", 0, 1, 2, []]], source="0")], decoder)
    assert (one.engine, one.epoch, two.engine, two.epoch) == ("1", 0, "0", 0)  # type: ignore[union-attr]


def test_missing_datagrams_are_counted() -> None:
    decoder = Decoder()
    decoder.decode(packet(0, [["H", 1, "ready", {}]]))
    decoder.decode(packet(4, []))
    assert decoder.counters.lost == 3


def test_a_dummy_step_is_no_gap() -> None:
    """A pass with nobody in it repeats the last number."""
    hello = ["H", 1, "ready", {"engine": "0"}]
    records = [hello, ["F", 0, 1, 2, []], ["D", 0, 3, 4], ["F", 1, 5, 6, []]]
    events = hear([packet(0, records)])
    assert [(e.seq, e.dummy) for e in events if isinstance(e, Step)] == [
        (0, False),
        (0, True),
        (1, False),
    ]
    assert not any(isinstance(event, Gap) for event in events)


BAD_RECORDS: list[object] = [
    None,
    [],
    ["Z"],
    ["S", 1, 2],
    ["S", -1, 2, 3, [], []],
    ["F", 1, 2, 3, [["a", 1, 2, "x"]]],
    ["F", 1, 2, 3, [["a", -1, 2, "d"]]],
    ["F", 1, 2, 3, [["a", 1, 2, "d", 3, 4]]],
    ["F", 1, 2, 3, [[1, 1, 2, "d"]]],
    ["F", 1.5, 2, 3, []],
    ["F", True, 2, 3, []],
    ["F", 1, 2, 3, 4],
    ["O", 1, 7, None, None, None, None],
    ["C", "t", "a", None, 1, 1, 1],
    ["C", 1, "a", None, -1, 1, 1],
    ["H", 1, "sideways", {}],
    ["P", 1, 2],
    ["E", 1, "up"],
]


@pytest.mark.parametrize("record", BAD_RECORDS, ids=str)
def test_a_bad_record_is_counted_and_the_others_are_heard(record: object) -> None:
    good = ["F", 9, 1, 2, []]
    decoder = Decoder()
    events = decoder.decode(packet(0, [["H", 1, "ready", {"engine": "0"}], record, good]))
    assert events[-1] == Step("0", 0, 9, 1, 2, ())
    assert len(events) == 2
    assert decoder.counters.bad == 1


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps(["jm1", "s", 0, value]).encode()
    )
)
def test_no_datagram_raises(data: bytes) -> None:
    """Whatever arrives is counted."""
    decoder = Decoder()
    decoder.decode(packet(0, [["H", 1, "ready", {}]]))
    decoder.decode(data)
    assert decoder.counters.datagrams == 2


def test_deep_nesting_is_only_bad() -> None:
    decoder = Decoder()
    assert decoder.decode(b"[" * 100_000) == []
    assert decoder.counters.bad == 1
