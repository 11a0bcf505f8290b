"""Recorded traces of ``tests/data``: played through the fake NVML, and the core over each."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from meter.demo.card import Card, CardSpec
from meter.model import Quality, Reading
from meter.power.nvml import NvmlSource
from meter.replay import CalibrationMode, Policy, replay
from meter.trace import read_trace
from tests.grafana.promql import ROOT
from tests.power.played import changes, play

DATA = ROOT / "tests" / "data"
TRACES = sorted(DATA.glob("*.jsonl.zst"))
PLAYED_S = 2.0


@pytest.fixture(params=TRACES, ids=lambda path: path.name.removesuffix(".jsonl.zst"))
def trace(request):
    return request.param


def readings_of(path: Path) -> list[Reading]:
    """Those of its first device."""
    read = read_trace(path)
    first = read.devices[0].id
    return [e for e in read.events if isinstance(e, Reading) and e.device == first]


def test_each_trace_has_its_facts(trace):
    """Date, command, versions, and that it is this file."""
    facts = json.loads(Path(str(trace).replace(".jsonl.zst", ".meta.json")).read_text())
    assert facts["sha256"] == hashlib.sha256(trace.read_bytes()).hexdigest()
    assert facts["date"] and facts["command"] and facts["versions"]["joulemeter"]
    qualities = {device.quality for device in read_trace(trace).devices}
    assert facts["simulated"] == (qualities == {Quality.SIMULATED})


def test_the_card_draws_what_was_recorded(trace, tmp_path):
    """At every change of the counter, to what a rounding of milliwatts may leave."""
    card = Card.create(tmp_path / "card", [CardSpec()])
    moves = changes(readings_of(trace))
    start_ns = 1_000_000_000
    end_ns = play(card, 0, readings_of(trace), start_ns)
    for t_ns, energy_uj in moves[:: max(1, len(moves) // 50)]:
        drawn_j = card.energy_j(0, t_ns - moves[0][0] + start_ns)
        assert drawn_j == pytest.approx((energy_uj - moves[0][1]) / 1e6, abs=0.02)
    assert end_ns - start_ns == moves[-1][0] - moves[0][0]


def test_it_is_read_back_through_nvml(trace, library, card):
    """Its busiest two seconds, in real time, by the meter's own source: the same joules."""
    readings = readings_of(trace)
    moves = changes(readings)
    ends = [next((b for b in moves if b[0] - a[0] >= PLAYED_S * 1e9), None) for a in moves]
    busiest = max(
        (pair for pair in zip(moves, ends, strict=True) if pair[1] is not None),
        key=lambda pair: pair[1][1] - pair[0][1],
    )
    (low_ns, low_uj), (high_ns, high_uj) = busiest
    chosen = [r for r in readings if low_ns <= r.t_ns <= high_ns]
    source = NvmlSource(library)
    source.open()
    try:
        before = source.read()[0]
        assert before.energy_uj is not None
        end_ns = play(card, 0, chosen, time.monotonic_ns() + 50_000_000)
        while time.monotonic_ns() < end_ns + 250_000_000:
            time.sleep(0.02)
        after = source.read()[0]
    finally:
        source.close()
    assert (after.energy_uj - before.energy_uj) / 1e6 == pytest.approx(
        (high_uj - low_uj) / 1e6, abs=0.05
    )


def test_the_core_holds_its_sum_over_it(trace):
    """Every joule in one account, and requests among them."""
    found = replay(trace, Policy.SHAPLEY, CalibrationMode.WHOLE)
    assert abs(found.snapshot.conservation_error_j) < 1e-9 * found.snapshot.measured_j
    assert found.snapshot.attributed_j > 0
    assert not found.bad_lines
