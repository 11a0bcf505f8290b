"""Whatever a line holds: an event, or a short reason why not; and a replay of such lines ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meter.model import EngineEvent, Event
from meter.replay import CalibrationMode, Policy, replay, summary
from meter.trace import TraceError, read_trace
from meter.trace.errors import LineError
from meter.trace.parse import Parser
from tests.plain import leaves
from tests.trace.lines import META, clock, closed, line, opened, put, reading, step

pytestmark = pytest.mark.slow

LONGEST = 500
REFUSED = object()

ABSURD: list[Any] = [None, True, False, "", "x", "1", -1, 0, 1, 1.5, 1e300, -1e300, 1e-300, 5e-324]
ABSURD += [2**53, 2**63, 10**18, 10**400, [], {}, [[]], {"a": 1}, "é\x00\u2028", "\ud800"]
ABSURD += ["x" * 5000, [1] * 500]
absurd = st.sampled_from(ABSURD)
texts = st.text(max_size=4)
json_values = st.recursive(
    absurd | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
DEVICE = ("name", "quality", "index", "boundary", "mem_bandwidth", "power_limit_w", "refresh_s")
ENGINE = ("devices", "model", "fidelity", "params", "active_params", "weight_bytes", "experts")
ENGINE += ("kv_bytes_per_token", "layers", "heads", "head_dim", "engine_version", "layout")
FULL: dict[str, Any] = {
    "devices": ["GPU-0"],
    "model": "m",
    "params": 8e9,
    "weight_bytes": 16e9,
    "kv_bytes_per_token": 131072,
    "layers": 32,
    "heads": 32,
    "head_dim": 128,
    "experts": {"total": 8, "active": 2},
}
CARD = {"device": "GPU-0", "name": "H100", "mem_bandwidth": 3.35e12, "power_limit_w": 700}
LINES = [
    reading(1.5, 9, power_w=3.5, latency_s=0.1),
    reading(1.5, 9, missed="meter_down", missed_j=2),
    step(3, 1.6),
    line("step", t0=1.5, t1=1.6, seq=2, same=True, add=[["r", 4, 0, "p"]], drop=["r"]),
    opened("r", 1.2, tenant="a", parent="p", prompt_tokens=5),
    closed("r", 1.9, prompt_tokens=5, cached_tokens=0, completion_tokens=4),
    clock(1.3),
    line("gap", t=1.4, from_=4, to=9),
    line("engine", event="up", t=1.1, info=FULL),
    line("engine", event="down", t=1.8),
    line("device", t=1.05, learned=[{}], **CARD),
]


@st.composite
def odd_lines(draw: st.DrawFn) -> str:
    """A line of some kind, with a field or two changed, added or gone."""
    said = json.loads(draw(st.sampled_from(LINES)))
    facts = said.get("info", said)
    names = ENGINE if "info" in said else (*said, *DEVICE) if said["type"] == "device" else (*said,)
    for _ in range(draw(st.integers(0, 2))):
        facts[draw(st.sampled_from(names))] = draw(json_values)
    return json.dumps(said)


def parsed(text: str | bytes) -> Event | None:
    """The event of a line; ``None`` where it is refused, in few words."""
    try:
        return Parser("0").event(text if isinstance(text, bytes) else text.encode(), 0)
    except LineError as error:
        assert 0 < len(str(error)) < LONGEST
        return None


@settings(max_examples=4000)
@given(odd_lines() | json_values.map(json.dumps))
@example("1e999999999999")
@example('{"type":"reading","t":0.' + "1" * 5000 + ',"device":"GPU-0","energy_j":1}')
@example('{"type":"reading","t":1,"device":"GPU-0","energy_j":0.' + "0" * 5000 + "1}")
@example('{"type":"reading","t":1E-99999999,"device":"GPU-0","energy_j":1}')
@example('{"type":"reading","t":' + "9" * 4200 + ',"device":"GPU-0","energy_j":1}')
@example('{"type":"engine","event":"up","t":1,"info":{"params":1E-999999}}')
def test_whatever_a_line_says(text: str) -> None:
    """An event of finite numbers, or a reason."""
    event = parsed(text)
    for path, leaf in leaves(event):
        if not path.startswith(".learned"):
            assert not isinstance(leaf, float) or math.isfinite(leaf), path


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text('{}[]":,0123456789eE+-.\\ tfn', max_size=60))
def test_whatever_bytes_a_line_has(text: bytes | str) -> None:
    """The same."""
    parsed(text)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"power_limit_w": 1e300}, "power_limit_w 1E+300 is not from 0.1 to 1e+06"),
        ({"mem_bandwidth": 1e300}, "mem_bandwidth 1E+300 is not from 1e+06 to 1e+16"),
        ({"mem_bandwidth": 1e-300}, "mem_bandwidth 1E-300 is not from 1e+06 to 1e+16"),
        ({"refresh_s": 1e300}, "refresh_s 1E+300 is neither 0, nor from 0.0001 to 600"),
        ({"refresh_s": 1e-300}, "refresh_s 1E-300 is neither 0, nor from 0.0001 to 600"),
    ],
)
def test_a_device_that_cannot_be_is_a_bad_line(
    tmp_path: Path, said: dict[str, Any], reason: str
) -> None:
    """It was a traceback in the middle of a replay."""
    found = line("device", t=1, **(CARD | said))
    trace = read_trace(put(tmp_path / "t.jsonl", META, found, reading(1)))
    assert len(trace.events) == 1
    assert trace.bad_lines[0].reason == f"device 'GPU-0': {reason}"


@pytest.mark.parametrize("name", ["params", "weight_bytes", "kv_bytes_per_token", "active_params"])
def test_a_model_that_cannot_be_is_a_bad_line(tmp_path: Path, name: str) -> None:
    """0 is what some say for not known."""
    texts = [
        line("engine", event="up", t=1, info=FULL | {name: value}) for value in (1e300, 1e-300, 0)
    ]
    trace = read_trace(put(tmp_path / "t.jsonl", META, *texts))
    assert [bad.number for bad in trace.bad_lines] == [2, 3]
    assert all(bad.reason.startswith(f"engine '0': {name} 1E") for bad in trace.bad_lines)
    (event,) = trace.events
    assert isinstance(event, EngineEvent)
    assert getattr(event.info, name) is None


#: The ends of what facts may be.
EXTREMES: dict[str, list[Any]] = {
    "power_limit_w": [0, 0.1, 1e6],
    "mem_bandwidth": [0, 1e6, 1e16],
    "refresh_s": [None, 0, 1e-4, 600],
    "quality": ["measured", "estimated"],
    "params": [0, 1, 1e16],
    "active_params": [0, 1, 1e16],
    "weight_bytes": [0, 1, 1e17],
    "kv_bytes_per_token": [0, 1e-3, 1e12],
    "layers": [0, 1, 10**6],
    "heads": [0, 1, 10**6],
    "head_dim": [0, 1, 10**6],
    "experts": [{"total": 1, "active": 1}, {"total": 10**6, "active": 1}],
    "devices": [[], ["GPU-0", "GPU-0"], ["GPU-9"], ["GPU-0", "GPU-9"]],
    "layout": [{"tp": 10**6}, {"dp": 8, "ep": 8}],
}


def facts_of(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Some facts at the ends of their ranges, seldom one that is absurd."""
    ends = st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(EXTREMES[name]) for name in names if name in EXTREMES}
    )
    odd = st.dictionaries(st.sampled_from(names), absurd, min_size=1, max_size=1)
    return ends | ends | ends | odd


def run(count: int) -> Iterator[str]:
    """A little honest work around it."""
    for k in range(count):
        t = 1 + k / 50
        yield reading(round(t, 3), 5 + 10 * (k // 5))
        yield step(100 + k, round(t + 0.015, 3), work=[["w", 1, 7 + k, "d"]])


@pytest.mark.parametrize("policy", [Policy.SHAPLEY, Policy.TOKENS])
@pytest.mark.parametrize("mode", CalibrationMode)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=facts_of(DEVICE), info=facts_of(ENGINE), lines=st.lists(odd_lines(), max_size=8))
def test_whatever_a_trace_says_a_replay_ends(
    tmp_path: Path,
    policy: Policy,
    mode: CalibrationMode,
    facts: dict[str, Any],
    info: dict[str, Any],
    lines: list[str],
) -> None:
    """With figures that are numbers, and a sum that holds."""
    meta = json.loads(META)
    meta["devices"]["GPU-0"] |= CARD | facts
    meta["engines"]["0"] |= FULL | info
    path = put(tmp_path / "t.jsonl", json.dumps(meta), *lines, *run(60))
    try:
        replayed = replay(path, policy, mode)
    except TraceError as error:
        assert len(str(error)) < LONGEST + len(str(path))
        return
    figures = summary(replayed)
    for where, leaf in leaves([figures, replayed.receipts]):
        assert not isinstance(leaf, float) or math.isfinite(leaf), where
    assert abs(figures["conservation_error_j"]) <= 1e-9 * max(1.0, figures["measured_j"])
