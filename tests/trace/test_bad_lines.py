"""Bad lines: each named by number and reason, and the rest used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meter.model import Clock, Gap, Reading, RequestClosed, RequestOpened, Step, Work
from meter.trace import BadLine, Trace, TraceError, read_trace
from tests.trace.lines import META, clock, closed, line, opened, put, reading, step

ROW = "is not [id, tokens, context, phase(, kept)]"
COUNTS = "tokens must be at least 1, context and kept at least 0, whole numbers up to 1000000000"
NUL = "the line holds NUL bytes: it was damaged, or never written out"
KINDS = "reading, step, request, engine, gap, clock, device"


def read(tmp_path: Path, *lines: str | bytes, meta: str = META) -> Trace:
    return read_trace(put(tmp_path / "t.jsonl", meta, *lines))


def reasons(trace: Trace) -> list[tuple[int, str]]:
    return [tuple(bad) for bad in trace.bad_lines]  # type: ignore[misc]


def work(*rows: object) -> str:
    return step(0, work=list(rows))


BAD: list[tuple[str | bytes, str]] = [
    # not JSON, or no object
    ("{", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
    (clock(1)[:-9], "not JSON: Unterminated string starting at (column 23)"),
    (clock(1) + clock(1), "not JSON: Extra data (column 34)"),
    ("[1]", "a line must be a JSON object, not [1]"),
    ("null", "a line must be a JSON object, not null"),
    (b'{"type":"clock","t":1,"utc_ns":5,"x":"\xff"}', "the line is not UTF-8: byte 39 is 0xff"),
    (b"\xff\xfe{\x00}\x00", NUL),
    ("\0" * 4096, NUL),
    ('{"type":"clock","t":1,"x":' + "[" * 200_000, "the line is nested too deeply"),
    ('{"type":"clock","t":1,"x":' + "9" * 5000 + "}", "the line holds a number out of all range"),
    ('{"type":"clock","t":1e9999999999999999999999}', "the line holds a number out of all range"),
    # of no known type
    ('{"t":1}', f"type null is none of {KINDS}"),
    ('{"type":"what"}', f"type 'what' is none of {KINDS}"),
    ('{"type":["step"]}', f"type ['step'] is none of {KINDS}"),
    (META, "a second meta line: replay the traces one by one"),
    # times
    (line("clock", utc_ns=5), "t is missing"),
    (clock(None), "t is missing"),  # type: ignore[arg-type]
    (clock("1"), "t '1' is not a number"),  # type: ignore[arg-type]
    (clock(True), "t true is not a number"),
    (clock(float("nan")), "NaN is no JSON number: leave out what is not known"),
    (clock(float("-inf")), "-Infinity is no JSON number: leave out what is not known"),
    (clock(-1.5), "t is below zero (-1.5): times are seconds of CLOCK_MONOTONIC"),
    (clock(1e12), "t 1000000000000.0 is out of range: no clock of 64 bits counts so far in ns"),
    (
        '{"type":"clock","t":1e999999999,"utc_ns":5}',
        "t 1E+999999999 is out of range: no clock of 64 bits counts so far in ns",
    ),
    (line("clock", t=1, utc_ns=1.5), "utc_ns 1.5 is not a whole number"),
    # readings
    (line("reading", t=1, device="GPU-0"), "energy_j is missing"),
    (line("reading", t=1, energy_j=1), "device is missing"),
    (reading(1, "5"), "energy_j '5' is not a number"),  # type: ignore[arg-type]
    (reading(1, True), "energy_j true is not a number"),
    (reading(1, -0.5), "energy_j is below zero (-0.5): counters count up from 0"),
    (
        reading(1, 9223372036855),
        "energy_j 9223372036855 is out of range: no counter of 64 bits counts so far in µJ",
    ),
    (reading(1, power_w="x"), "power_w 'x' is not a number"),
    (
        '{"type":"reading","t":1,"device":"GPU-0","energy_j":1,"power_w":1e400}',
        "power_w 1E+400 is not a finite number",
    ),
    (line("reading", t=1, device="GPU-0", error=7.5), "error 7.5 is not a text"),
    (
        reading(1, device="GPU-9"),
        "device 'GPU-9' is not known (known: 'GPU-0'): name it in meta's devices",
    ),
    # steps
    (step(0, t0=2), "t1 is before t0: 1 < 2"),
    (
        step(0, t0=1, t1=7201),
        "the step takes 7200 s, and none takes more than 3600: are t0 and t1 seconds?",
    ),
    (step(None), "seq is missing"),  # type: ignore[arg-type]
    (step(-1), "seq -1 is not from 0 to 9007199254740992"),
    (step(1.0), "seq 1.0 is not a whole number"),  # type: ignore[arg-type]
    (step(0, epoch=True), "epoch true is not a whole number"),
    (step(0, same=1), "same 1 is neither true nor false"),
    (step(0, work=None), "work is missing: a step lists its work, or has same with add and drop"),
    (step(0, same=True), "work stands in a step with same: its rows belong into add"),
    (step(0, work=7), "work 7 is not a list"),
    (step(0, drop="r"), "drop 'r' is not a list"),
    (step(0, drop=[None]), "drop null is not a text"),
    (work("r"), f"work[0] 'r' {ROW}"),
    (work(["r", 1, 7, "d"], ["s", 1, 7]), f"work[1] ['s', 1, 7] {ROW}"),
    (work(["r", 0, 7, "d"]), f"work[0] ['r', 0, 7, 'd']: {COUNTS}"),
    (work(["r", True, 7, "d"]), f"work[0] ['r', True, 7, 'd']: {COUNTS}"),
    (work(["r", 10**12, 7, "p"]), f"work[0] ['r', 1000000000000, 7, 'p']: {COUNTS}"),
    (work(["r", 1, -1, "d"]), f"work[0] ['r', 1, -1, 'd']: {COUNTS}"),
    (work(["r", 1, 0, "d", -1]), f"work[0] ['r', 1, 0, 'd', -1]: {COUNTS}"),
    (work(["r", 1, 0, "x"]), "work[0] ['r', 1, 0, 'x']: phase must be one of p, d, r, e"),
    (work(["r", 1, 0, []]), "work[0] ['r', 1, 0, []]: phase must be one of p, d, r, e"),
    (work([None, 1, 0, "d"]), "work[0] id null is not a text"),
    (
        work(["r", 1, 0, "d"], ["s", 1, 0, "d"], ["r", 9, 0, "p"]),
        "work has 'r' twice: one row for a request and step",
    ),
    (
        step(0, same=True, work=None, add=[["r", 1, 0, "d"], ["r", 1, 0, "d"]]),
        "add has 'r' twice: one row for a request and step",
    ),
    (
        work(["r", 6 * 10**8, 0, "p"], ["s", 6 * 10**8, 0, "p"]),
        "work has more than 1000000000 tokens: no step computes so many",
    ),
    (
        step(0, engine="7"),
        "engine '7' is not known (known: '0'): name it in meta's engines",
    ),
    # requests
    (line("request", event="open", t=1), "id is missing"),
    (opened(1.5), "id 1.5 is not a text"),  # type: ignore[arg-type]
    (opened("\ud800"), "id '\\ud800' holds half a character (\\ud800 to \\udfff)"),
    (opened("a\nb"), "id 'a\\nb' holds a control character ('\\n')"),
    (closed("r", reason="\x9b31m"), "reason '\\x9b31m' holds a control character ('\\x9b')"),
    (opened("x" * 1025), f"id '{'x' * 58}… is longer than 1024 characters"),
    (opened("r", event="ope"), 'event \'ope\' is neither "open" nor "close"'),
    (opened("r", tenant=[]), "tenant [] is not a text"),
    (opened("r", engine="7"), "engine '7' is not known (known: '0'): name it in meta's engines"),
    (closed("r", engine="7"), "engine '7' is not known (known: '0'): name it in meta's engines"),
    (closed("r", prompt_tokens=-4), "prompt_tokens -4 is not from 0 to 1000000000"),
    (closed("r", completion_tokens=1.0), "completion_tokens 1.0 is not a whole number"),
    # the rest
    (line("engine", event="gone", t=1), "event 'gone' is none of up, ready, down"),
    (line("engine", event="up", t=1, info=[]), "info [] is not an object"),
    (
        line("engine", event="up", t=1, info={"layers": 1.5}),
        "engine '0': layers 1.5 is not a whole number",
    ),
    (line("gap", t=1, from_=9, to=8), "from 9 is after to 8"),
    (line("gap", t=1, to=8), "from is missing"),
    (
        line("gap", t=1, from_=1, to=8, engine="7"),
        "engine '7' is not known (known: '0'): name it in meta's engines",
    ),
    (
        line("device", t=1, device="GPU-1", quality="good"),
        "device 'GPU-1': quality 'good' is none of measured, estimated, simulated",
    ),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_a_bad_line_is_named_and_the_rest_is_used(
    tmp_path: Path, bad: str | bytes, reason: str
) -> None:
    """Number and reason, and the lines around it are read."""
    trace = read(tmp_path, clock(1), bad, clock(1))
    assert reasons(trace) == [(3, reason)]
    assert trace.events == [Clock(10**9, 5)] * 2


def test_a_reason_is_short(tmp_path: Path) -> None:
    """Whatever was found."""
    trace = read(tmp_path, step(0, work=[["r" * 10**6] * 3]), line("x" * 10**6))
    assert all(len(bad.reason) < 160 for bad in trace.bad_lines)


def test_a_line_beyond_all_measure(tmp_path: Path) -> None:
    """It is not kept, and the one after it is read."""
    trace = read(tmp_path, clock(1), "x" * (40 * 1024 * 1024), clock(1), '{"x":"' + "y" * 10**6)
    assert reasons(trace) == [
        (3, "the line is longer than 4194304 bytes"),
        (5, "not JSON: Unterminated string starting at (column 6)"),
    ]
    assert len(trace.events) == 2


# --- lines beside each other


def test_times_may_run_back_by_two_seconds_and_no_more(tmp_path: Path) -> None:
    """Behind the newest line so far, whatever kind it is; what is later is not used."""
    trace = read(tmp_path, clock(100), reading(98), reading(97.999), step(0, t1=97.5), clock(99))
    assert reasons(trace) == [
        (
            4,
            "t 97.999 is 2.001 s behind line 2, and lines may stand 2 s out of order at most: "
            "sort them by time",
        ),
        (
            5,
            "t1 97.5 is 2.5 s behind line 2, and lines may stand 2 s out of order at most: "
            "sort them by time",
        ),
    ]
    assert [event.t_ns for event in trace.events] == [100 * 10**9, 98 * 10**9, 99 * 10**9]


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_one_wrong_time_far_ahead_makes_nothing_late(tmp_path: Path, first: bool) -> None:
    """The line after it speaks against it: it is named, and the rest is used."""
    rest = [clock(100), reading(100.5), step(0, t1=101)]
    lines = [reading(1.7e9), *rest] if first else [rest[0], reading(1.7e9), *rest[1:]]
    trace = read(tmp_path, *lines)
    assert reasons(trace) == [
        (
            2 if first else 3,
            f"t 1700000000 is {1.7e9 - (100 if first else 100.5):.12g} s ahead of the line after "
            "it, and no line before it is near: a wrong clock, or not seconds",
        )
    ]
    assert len(trace.events) == 3


def test_a_step_far_ahead_is_named_by_its_end(tmp_path: Path) -> None:
    """``t1`` is what it is ordered by."""
    trace = read(tmp_path, clock(1), step(0, t1=9000.5), clock(2))
    assert trace.bad_lines[0].reason.startswith("t1 9000.5 is 8998.5 s ahead")


def test_a_long_silence_is_no_error(tmp_path: Path) -> None:
    """Hours without a line: the next two agree; the last one has none after it."""
    lines = [clock(1), clock(10_000), clock(10_001), clock(90_000), clock(900_000)]
    trace = read(tmp_path, *lines)
    assert trace.bad_lines == []
    assert [event.t_ns // 10**9 for event in trace.events] == [1, 10_000, 10_001, 90_000, 900_000]


def test_a_line_ahead_is_also_held_to_the_rest(tmp_path: Path) -> None:
    """The next line speaks for its time, not for what it says."""
    trace = read(tmp_path, step(0, t1=1), step(0, t1=9000), clock(9000.5))
    assert trace.bad_lines[0].number == 3
    assert "came before" in trace.bad_lines[0].reason


def test_a_refused_line_leaves_no_mark(tmp_path: Path) -> None:
    """Neither its time nor its number or id counts."""
    lines = [step(0), opened("r"), step(0, t1=500), opened("r", t=500), clock(1.5)]
    late = [clock(10), step(1, t1=2), step(1, t1=10), opened("s", t=2), opened("s", t=10)]
    trace = read(tmp_path, *lines, *late)
    assert [bad.number for bad in trace.bad_lines] == [4, 5, 8, 10]
    assert len(trace.events) == 6


def test_a_second_open_before_the_close(tmp_path: Path) -> None:
    """An id is one request at a time; closed, it may come again."""
    lines = [opened("r"), opened("r", tenant="b"), opened("s"), closed("r"), opened("r")]
    trace = read(tmp_path, *lines)
    assert reasons(trace) == [
        (
            3,
            "id 'r' is open already on engine '0' (line 2): every request needs its own id until "
            "it closes",
        )
    ]
    assert [type(event) for event in trace.events] == [RequestOpened] * 2 + [RequestClosed] + [
        RequestOpened
    ]


def test_an_open_stays_open_over_the_first_step(tmp_path: Path) -> None:
    """Also where the engine has not been heard of before."""
    trace = read(tmp_path, opened("r"), step(7), opened("r"))
    assert [bad.number for bad in trace.bad_lines] == [4]


@pytest.mark.parametrize(
    "between",
    [
        line("engine", event="down", t=1),
        line("engine", event="ready", t=1),
        step(0, epoch=1),
    ],
)
def test_opens_may_be_told_again(tmp_path: Path, between: str) -> None:
    """A new epoch holds nobody; an engine that a meter reconnects to tells of everybody anew."""
    assert read(tmp_path, opened("r"), step(0), between, opened("r")).bad_lines == []


def test_the_same_id_on_another_engine(tmp_path: Path) -> None:
    """Ids are unique within an engine."""
    meta = json.loads(META)
    meta["engines"]["1"] = {"devices": ["GPU-0"]}
    lines = [opened("r", engine="0"), opened("r", engine="1"), step(0, engine="0")]
    trace = read(tmp_path, *lines, step(0, engine="1"), step(1), meta=json.dumps(meta))
    assert reasons(trace) == [(6, "engine is missing, and meta does not have exactly one")]


def test_closes_of_what_was_never_opened(tmp_path: Path) -> None:
    """A trace may start in mid-stream."""
    assert read(tmp_path, closed("r"), closed("r"), step(70)).bad_lines == []


def test_a_step_told_twice(tmp_path: Path) -> None:
    """The second is bad, whatever it says; the same number in another epoch is not."""
    lines = [step(5), step(6), step(5, work=[]), step(6, t1=1.5), step(5, epoch=1), step(7)]
    trace = read(tmp_path, *lines, step(5, epoch=1))
    because = "a step is told once; a restarted engine counts in a new epoch"
    assert reasons(trace) == [
        (4, f"seq 5 of engine '0', epoch 0, came before: {because}"),
        (5, f"seq 6 of engine '0', epoch 0, came before: {because}"),
        (8, f"seq 5 of engine '0', epoch 1, came before: {because}"),
    ]


def test_late_steps_fill_their_holes_once(tmp_path: Path) -> None:
    """Out of order is allowed; what was lost and found again is no second time."""
    order = [10, 14, 12, 11, 13, 9, 12, 9, 15]
    trace = read(tmp_path, *(step(seq, work=[]) for seq in order))
    assert [bad.number for bad in trace.bad_lines] == [8, 9]
    steps = [event.seq for event in trace.events if isinstance(event, Step)]
    assert steps == [10, 14, 12, 11, 13, 9, 15]


def test_lost_steps_cost_no_memory(tmp_path: Path) -> None:
    """Thousands of holes: the oldest are forgotten, and stay lost."""
    trace = read(tmp_path, *(step(seq) for seq in [*range(0, 20_000, 2), 1, 19_997]))
    assert [bad.number for bad in trace.bad_lines] == [10_002]


def test_a_dummy_step_has_the_number_of_the_one_before(tmp_path: Path) -> None:
    """It is not told twice for that; its work may be left out."""
    lines = [step(0), step(0, kind="dummy", work=None), step(0, kind="dummy", work=[]), step(1)]
    trace = read(tmp_path, *lines)
    assert trace.bad_lines == []
    assert [event.dummy for event in trace.events if isinstance(event, Step)] == [0, 1, 1, 0]


def test_encoder_work_stands_beside_tokens(tmp_path: Path) -> None:
    """A request's image and its prompt may be computed in one step; twice the same may not."""
    pair = [["r", 576, 0, "e"], ["r", 600, 0, "p"]]
    trace = read(tmp_path, step(0, work=pair), step(1, work=[*pair, ["r", 5, 0, "e"]]))
    assert reasons(trace) == [(3, "work has 'r' twice: one row for a request and step")]


def test_what_a_line_announces_is_known(tmp_path: Path) -> None:
    """Engines and devices may come later than meta, even on a line that is too late itself."""
    lines = [
        clock(10),
        line("device", t=1, device="GPU-1", name="x", quality="measured"),
        line("engine", t=10, event="up", engine="7"),
        reading(10, device="GPU-1"),
        step(0, t1=10, engine="7"),
    ]
    trace = read(tmp_path, *lines)
    assert [bad.number for bad in trace.bad_lines] == [3]
    assert isinstance(trace.events[-2], Reading)


def test_who_is_known_is_not_listed_without_end(tmp_path: Path) -> None:
    """A few names are enough."""
    meta = json.loads(META)
    meta["devices"] = {f"GPU-{k}": {} for k in range(10)}
    trace = read(tmp_path, reading(1, device="x"), meta=json.dumps(meta))
    assert trace.bad_lines[0].reason == (
        "device 'x' is not known (known: 'GPU-0', 'GPU-1', 'GPU-2', 'GPU-3' and 6 more): name it "
        "in meta's devices"
    )


# --- what is well


def test_a_gap_without_a_time_is_where_it_stands(tmp_path: Path) -> None:
    """It has the time of the newest line before it."""
    gap = line("gap", engine="0", epoch=0, from_=3, to=5)
    trace = read(tmp_path, step(2, t1=7.5), gap, step(6, t1=8), clock(9000), gap, clock(9000))
    assert trace.bad_lines == []
    assert [event.t_ns for event in trace.events if isinstance(event, Gap)] == [
        7_500_000_000,
        9_000_000_000_000,
    ]


def test_the_change_form_may_leave_out_what_is_empty(tmp_path: Path) -> None:
    """``add`` and ``drop``, or both, missing, null in the careful way, or empty."""
    forms: list[dict[str, object]] = [
        {},
        {"add": []},
        {"drop": []},
        {"add": [], "drop": []},
        {"drop": ["r"]},
        {"add": [["r", 9, 0, "p"]]},
    ]
    lines = [step(seq, same=True, work=None, **form) for seq, form in enumerate(forms)]
    trace = read(tmp_path, *lines, step(6, same=True, work=None)[:-1] + ',"add":null,"drop":null}')
    assert trace.bad_lines == []
    steps = [event for event in trace.events if isinstance(event, Step)]
    assert all(event.same for event in steps)
    assert [event.work for event in steps] == [()] * 5 + [(Work("r", 9, 0, "p"),)] + [()]  # type: ignore[arg-type]
    assert [event.drop for event in steps] == [()] * 4 + [("r",)] + [()] * 2


def test_a_million_tokens_are_few(tmp_path: Path) -> None:
    """A prompt of them is a prompt."""
    trace = read(
        tmp_path,
        opened("r", prompt_tokens=10**6),
        step(0, work=[["r", 10**6, 0, "p"]]),
        closed("r", prompt_tokens=10**6, cached_tokens=0, completion_tokens=1),
    )
    assert trace.bad_lines == []
    assert len(trace.events) == 3


def test_names_may_be_numbers(tmp_path: Path) -> None:
    """People write ``"engine": 0``."""
    lines = [opened(5, engine=0), step(0, engine=0, work=[[5, 1, 0, "d"]], drop=[5])]  # type: ignore[arg-type]
    trace = read(tmp_path, *lines)
    assert trace.bad_lines == []
    assert isinstance(trace.events[1], Step)
    assert trace.events[1].work[0].request == "5"


def test_unknown_fields_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """They count as lines."""
    trace = read(tmp_path, "", clock(1, x={"y": [1]}), "  \t\r", reading(1, y=None), "x")
    assert [bad.number for bad in trace.bad_lines] == [6]
    assert len(trace.events) == 2


# --- meta


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2 is not 1"),
        ({"version": None}, "version null is not 1"),
        ({"devices": ["GPU-0"]}, "devices ['GPU-0'] does not map names to objects"),
        ({"engines": {"0": "m"}}, "engines {'0': 'm'} does not map names to objects"),
        (
            {"devices": {"GPU-0": {"refresh_s": -1}}},
            "device 'GPU-0': refresh_s -1 is neither 0, nor from 0.0001 to 600",
        ),
        (
            {"devices": {"GPU-0": {"quality": "good"}}},
            "device 'GPU-0': quality 'good' is none of measured, estimated, simulated",
        ),
        (
            {"engines": {"0": {"devices": "GPU-0"}}},
            "engine '0': devices 'GPU-0' is not a list",
        ),
        (
            {"engines": {"0": {"fidelity": "best"}}},
            "engine '0': fidelity 'best' is none of step, stream, counter",
        ),
        (
            {"engines": {"0": {"experts": 8}}},
            "engine '0': experts 8 is not an object",
        ),
        (
            {"engines": {"0": {"experts": {"total": 8, "active": 9}}}},
            "engine '0': experts {'total': 8, 'active': 9} is not "
            '{"total": N, "active": K} with K from 1 to N',
        ),
        (
            {"engines": {"0": {"experts": {"total": 8}}}},
            "engine '0': experts {'total': 8} is not "
            '{"total": N, "active": K} with K from 1 to N',
        ),
        (
            {"engines": {"0": {"experts": {"total": 8, "active": 0}}}},
            "engine '0': experts.active 0 is not from 1 to 1000000",
        ),
        (
            {"engines": {"0": {"layout": {"tp": True}}}},
            "engine '0': layout.tp true is not a whole number",
        ),
        ({"engines": {"0": {"layout": []}}}, "engine '0': layout [] is not an object"),
    ],
)
def test_a_bad_meta_line_is_the_end(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    """Nothing after it can be understood; the field is named."""
    path = put(tmp_path / "t.jsonl", json.dumps(json.loads(META) | change), clock(1))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}: line 1 (meta): {reason}"


def test_meta_should_be_first_and_may_be_later(tmp_path: Path) -> None:
    """What stands before it is named, and the rest is used."""
    trace = read_trace(put(tmp_path / "t.jsonl", "", clock(1), "x", META, clock(2)))
    assert reasons(trace) == [
        (2, "it stands before the meta line: it has type 'clock'"),
        (3, "it stands before the meta line: not JSON: Expecting value (column 1)"),
    ]
    assert trace.events == [Clock(2 * 10**9, 5)]


def test_meta_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors leave one."""
    assert read(tmp_path, clock(1), meta="\ufeff" + META).bad_lines == []


def test_a_trace_without_any_device_is_of_no_use(tmp_path: Path) -> None:
    """There are no joules in it: zeros would be an invention."""
    path = put(tmp_path / "t.jsonl", '{"type":"meta","version":1}', reading(1), clock(1))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == (
        f"{path}: line 1 (meta) names no devices, nor does a device line: without readings there "
        "are no joules"
    )


def test_a_trace_whose_device_comes_later(tmp_path: Path) -> None:
    """Sources find devices at run time."""
    found = line("device", t=1, device="GPU-0", name="x", quality="measured")
    trace = read(tmp_path, found, reading(1), meta='{"type":"meta","version":1}')
    assert trace.bad_lines == []
    assert len(trace.events) == 2


def test_a_trace_without_engines_has_no_work(tmp_path: Path) -> None:
    """Its readings are used; whatever names an engine is bad."""
    meta = json.dumps({k: v for k, v in json.loads(META).items() if k != "engines"})
    trace = read(tmp_path, reading(1), step(0), step(0, engine="0"), reading(2), meta=meta)
    assert trace.engines == ()
    assert reasons(trace) == [
        (3, "engine is missing, and meta does not have exactly one"),
        (4, "engine '0' is not known (known: none): name it in meta's engines"),
    ]
    assert len(trace.events) == 2


def test_an_engine_on_a_device_that_nobody_reads(tmp_path: Path) -> None:
    """Its work cannot get any joules: meta's line says so."""
    meta = json.loads(META)
    meta["engines"]["0"]["devices"].append("GPU-1")
    trace = read(tmp_path, reading(1), "x", meta=json.dumps(meta))
    assert trace.bad_lines[0] == BadLine(
        1, "engine '0': its device 'GPU-1' is not known: name it in devices"
    )
    assert trace.bad_lines[1].number == 3
