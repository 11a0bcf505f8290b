"""Whatever is written to the meter's socket, an honest engine beside it is metered as ever."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from meter.attribution import Boundaries
from meter.export.prometheus import make_registry
from meter.export.publisher import Publisher
from meter.export.state import Health, State
from meter.export.summary import summary_json
from meter.model import Device, Engine, Quality, Reading, Receipt
from meter.pricing import Tariff
from meter.runtime.writer import Inbox, Writer
from meter.work.peer import Peer
from meter.work.wire import Decoder

MS = 1_000_000
START = 5_000_000 * MS
STEPS, STEP_MS = 100, 20
HONEST, EVIL = Peer(2**22 + 1, 0), Peer(2**22 + 2, 0)
GPU = Device("GPU-0", "H100", Quality.SIMULATED, refresh_s=0.02)

#: Values that a number, a text, a list or a fact of the wire may be in bad hands.
ODD = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 2**31, 2**53, 2**63, 10**18, 10**400),
        *(0.5, math.nan, math.inf, -math.inf, [], {}, [[]], {"a": []}),
        *("", "0", "s", "r0", "p", "d", "\ud800", "a\n\x1b[31m", "x" * 5000),
    ]
)
TIME = st.integers(-10 * 1000, 10 * 1000).map(lambda ms: START + ms * MS) | st.sampled_from(
    [0, START + 10**18, START - 10**16, 2**62]
)
NUMBER = st.integers(0, 50) | TIME | ODD
NAME = st.sampled_from(["s", "e1", "e2", "evil"]) | st.text(max_size=3) | ODD
VALUE = st.recursive(ODD | NUMBER | NAME, lambda inner: st.lists(inner, max_size=4), max_leaves=6)
ROW = st.tuples(NAME, NUMBER, NUMBER, st.sampled_from("pdre") | ODD) | st.lists(VALUE, max_size=6)
ROWS = st.lists(ROW, max_size=3) | VALUE
FACTS = st.dictionaries(
    st.sampled_from(
        [
            *("engine", "model", "engine_version", "dtype", "cuda_visible_devices", "pid"),
            *("params", "active_params", "weight_bytes", "kv_bytes_per_token", "layers", "heads"),
            *("head_dim", "tp", "pp", "dp", "ep", "experts_total", "experts_active"),
            *("next_seq", "missed_steps", "open_requests", "other"),
        ]
    ),
    VALUE,
    max_size=8,
)
RECORD = st.one_of(
    st.tuples(st.just("H"), TIME | ODD, st.sampled_from(["up", "ready"]) | ODD, FACTS),
    st.tuples(st.just("O"), TIME | ODD, NAME, NAME, NUMBER, NAME, NAME),
    st.tuples(st.just("F"), NUMBER, TIME | ODD, TIME | ODD, ROWS),
    st.tuples(st.just("S"), NUMBER, TIME | ODD, TIME | ODD, ROWS, st.lists(NAME) | ODD),
    st.tuples(st.just("P"), NUMBER, ROWS),
    st.tuples(st.just("D"), NUMBER, TIME | ODD, TIME | ODD),
    st.tuples(st.just("C"), TIME | ODD, NAME, NAME, NUMBER, NUMBER, NUMBER),
    st.tuples(st.just("E"), TIME | ODD, st.just("down") | ODD),
    VALUE,
)


def packed(source: object, number: object, records: object) -> bytes:
    return json.dumps(["jm1", source, number, records]).encode()


HELLO = packed("evil", 0, [["H", START, "ready", {"engine": "evil", "model": "evil"}]])
DATAGRAM = st.one_of(
    st.binary(max_size=80),
    st.builds(packed, NAME, NUMBER, st.lists(RECORD, max_size=5)),
    st.builds(packed, st.just("evil"), st.integers(0, 9), st.lists(RECORD, max_size=5)),
    st.builds(packed, VALUE, VALUE, VALUE),
    st.just(HELLO),
)


@dataclass
class Played:
    state: State
    receipts: dict[str, Receipt] = field(default_factory=dict)


def play(hostile: list[tuple[int, bytes]]) -> Played:
    """An honest engine's two seconds on a GPU, hostile datagrams before steps of it; the meter
    from the datagrams to the pages, but for its threads."""
    clock = START

    def now_ns() -> int:
        return clock

    def devices_of(hello: Any) -> tuple[str, ...]:
        return ("GPU-0",) if hello.pid == HONEST.pid else ()

    decoder = Decoder(devices_of, lambda source: source.peer == HONEST, START, now_ns)
    publisher = Publisher(Tariff("EUR"), START)
    inbox = Inbox(10**6)
    writer = Writer(inbox, Boundaries([GPU], [Engine("0", ("GPU-0",))]), publisher, Health, {})

    def say(number: int, *records: object) -> None:
        for event in decoder.decode(packed("s", number, list(records)), HONEST):
            inbox.push(event)

    say(0, ["H", clock, "ready", {"engine": "0", "model": "m", "layers": 8}])
    energy_uj = 0
    for k in range(STEPS):
        for place, data in hostile:
            if place == k:
                for event in decoder.decode(data, EVIL):
                    inbox.push(event)
        begun, clock = clock, clock + STEP_MS * MS
        request, place = divmod(k, 10)
        name = f"r{request}"
        if place == 0:
            say(3 * k + 1, ["O", begun, name, f"chat-{name}", 50, None, "acme"])
        row = [name, 50, 0, "p"] if place == 0 else [name, 1, 49 + place, "d"]
        energy_uj += (6_000_000 if place == 0 else 2_000_000) + 1000 * request
        say(3 * k + 2, ["F", k, begun, clock, [row]])
        if place == 9:
            say(3 * k + 3, ["C", clock, name, "stop", 50, 0, 10])
        inbox.push(Reading("GPU-0", clock, energy_uj, power_w=100.0))
    for k in range(1, 250):
        clock += STEP_MS * MS
        inbox.push(Reading("GPU-0", clock, energy_uj + k * 1_000_000, power_w=50.0))
    writer.start()
    state = writer.finish(60)
    assert state is not None and not writer.alive()
    assert writer.errors == 0
    found = publisher.recent(10**6)
    return Played(state, {r.receipt.id: r.receipt for r in found if r.receipt.engine == "0"})


ALONE = play([])
assert len(ALONE.receipts) == STEPS // 10
assert all(receipt.energy_j > 10 for receipt in ALONE.receipts.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, STEPS - 1), DATAGRAM), max_size=12))
@example([(0, HELLO), (3, packed("evil", 1, [["C", START + 10**18, "x", None, 1, 1, 1]]))])
@example([(5, packed("s", 10**6, [["E", START, "down"]])), (6, packed("s", 10**400, []))])
@example(
    [(0, HELLO), (1, packed("evil", 1, [["F", 0, START, START + MS, [["x", 10**9, 10**9, "p"]]]]))]
)
@example([(0, packed("evil", 0, [["H", START, "up", {}], ["O", 0, "s", "s", 0, "s", "s"]]))])
@example([(0, packed("", 0, [["E", 0, "down"], ["H", 0, "up", {}]]))])
def test_an_honest_engine_is_metered_as_if_it_were_alone(hostile: list[tuple[int, bytes]]) -> None:
    """Its receipts are the same, the sum holds, and every page can be had."""
    played = play(hostile)
    assert played.receipts.keys() == ALONE.receipts.keys()
    for id, receipt in ALONE.receipts.items():
        other = played.receipts[id]
        assert math.isclose(other.energy_j, receipt.energy_j, rel_tol=1e-6), id
        assert (other.tenant, other.reason, other.missed) == ("acme", "stop", None)
    snapshot = played.state.snapshot
    assert abs(snapshot.conservation_error_j) < 1e-9 * snapshot.measured_j
    text = generate_latest(make_registry(lambda: played.state, lambda: START)).decode()
    assert "joulemeter_energy_joules_total" in text and "NaN" not in text
    json.dumps(summary_json(played.state, START), allow_nan=False).encode()
