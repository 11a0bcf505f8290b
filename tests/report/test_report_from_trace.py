"""A report from a trace: the live receipts and accounts, when, and what they cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest

from meter.model import Clock, Reading
from meter.pricing import Tariff
from meter.replay import CalibrationMode, Policy, replay
from meter.report import make
from meter.report.figures import ACCOUNTS
from meter.trace import TraceWriter
from tests.attribution.scenes import ENGINE, GPU, Scene

TARIFF = Tariff("EUR", Decimal("0.30"), Decimal("1.25"), Decimal("3.60"))
UTC_NS = 1_764_072_000_000_000_000  # 2025-11-25 12:00:00


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Ten seconds of an engine with tenants."""
    path = tmp_path_factory.mktemp("report") / "trace.jsonl"
    scene = Scene(seconds=10.0, tenants=("acme", "globex"))
    writer = TraceWriter(path, (GPU,), (ENGINE,), UTC_NS)
    writer.write(Clock(scene.events[0].t_ns, UTC_NS))
    for event in scene.events:
        writer.write(event)
    writer.close()
    return path


@pytest.fixture(scope="module")
def report(trace):
    return make.from_trace(trace, TARIFF)


def test_it_has_the_live_receipts(trace, report):
    """Those of an online replay, to the last digit."""
    live = replay(trace, Policy.SHAPLEY, CalibrationMode.ONLINE)
    assert [ask.energy_j for ask in report.asks] == [r.energy_j for r in live.receipts]
    assert report.measured_j == live.snapshot.measured_j
    assert report.fidelity == "step"
    assert report.quality == "simulated"


def test_everything_sums_to_what_was_measured(report):
    """Accounts; models and what is beside them; costs by component and by who pays."""
    whole = sum(report.accounts_j.values()) + report.pending_j
    assert whole == pytest.approx(report.measured_j, abs=1e-6)
    assert abs(report.residual_j) < 1e-6
    assert sum(line.energy_j for line in report.models) == pytest.approx(report.attributed_j)
    paid = sum(line.cost for line in report.models) + sum(report.others_cost.values())
    assert paid == pytest.approx(report.cost)
    tenants_j = sum(line.energy_j for line in report.tenants)
    assert tenants_j == pytest.approx(sum(ask.energy_j for ask in report.asks))
    assert {line.name for line in report.tenants} == {"acme", "globex"}


def test_the_timeline_holds_the_same_joules(report):
    """Power times time, over all bins that were measured, is the accounts' energy."""
    bins = report.timeline
    assert bins[0].start_s == 0
    assert bins[-1].end_s == pytest.approx(report.seconds)
    assert all(a.end_s == b.start_s for a, b in pairwise(bins))
    for i, name in enumerate(ACCOUNTS):
        drawn_j = sum(b.watts[i] * (b.end_s - b.start_s) for b in bins if b.watts)
        # The first look and the end are not on a bin's edge.
        assert drawn_j == pytest.approx(report.accounts_j[name], rel=0.15, abs=60.0), name


def test_when_is_utc(report):
    """By the trace's own anchor."""
    start = datetime.fromtimestamp(report.start_utc_s, UTC)
    assert (start.year, start.hour, start.minute) == (2025, 12, 0)


def test_without_prices_cost_is_unknown(trace):
    """Everywhere, and not zero."""
    plain = make.from_trace(trace, Tariff("EUR"))
    assert plain.cost is None
    assert all(line.cost is None for line in (*plain.models, *plain.tenants))
    assert all(ask.cost is None for ask in plain.asks)
    assert plain.prices == {}


def test_what_is_left_out_is_said(trace, tmp_path):
    """A bad line, and lost steps."""
    lines = trace.read_text().splitlines()
    steps = [i for i, line in enumerate(lines) if '"step"' in line]
    lines[steps[40]] = "{broken"
    damaged = tmp_path / "trace.jsonl"
    damaged.write_text("\n".join(lines) + "\n")
    said = make.from_trace(damaged, TARIFF)
    assert any("1 bad line" in hole for hole in said.holes)
    assert any("lost: 1 step" in hole for hole in said.holes)
    assert said.unattributed_by_reason["lost_steps"] > 0


def test_nothing_usable_is_an_error(tmp_path):
    """With the reason."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(make.ReportError):
        make.from_trace(empty, TARIFF)
    with pytest.raises(make.ReportError):
        make.from_trace(tmp_path / "nothing.jsonl", TARIFF)


def test_json_has_all_figures(report):
    """Named as in the report."""
    told = json.loads(make.to_json(report))
    assert told["measured_j"] == report.measured_j
    assert told["attributed_j"] == report.attributed_j
    assert told["models"][0]["name"] == "m"
    assert len(told["timeline"]) == len(report.timeline)
    assert told["meters"][0]["coefficients"][0][0] == "static_w"


def test_a_mean_is_over_the_time_that_was_read(tmp_path):
    """A trace that begins before its first reading: a server that loads a model."""
    scene = Scene(seconds=4.0)
    path = tmp_path / "late.jsonl"
    writer = TraceWriter(path, (GPU,), (ENGINE,))
    writer.write(Clock(1, UTC_NS))
    for event in scene.events:
        writer.write(event)
    writer.close()
    report = make.from_trace(path, TARIFF)
    assert report.seconds == pytest.approx(4.0, abs=0.3)
    assert report.metered_s == pytest.approx(3.0, abs=0.3)
    assert report.mean_power_w == pytest.approx(report.measured_j / report.metered_s)
    assert 100 < report.mean_power_w < 1000


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_of_no_time_has_no_mean(tmp_path, count):
    """One event, or a reading alone: a page all the same."""
    path = tmp_path / "short.jsonl"
    writer = TraceWriter(path, (GPU,), (ENGINE,))
    writer.write(Clock(10**9, UTC_NS))
    for reading in range(count):
        writer.write(Reading(GPU.id, 10**9, 5 + reading))
    writer.close()
    report = make.from_trace(path, TARIFF)
    assert (report.measured_j, report.metered_s, report.mean_power_w) == (0.0, 0.0, None)
    make.write(report, tmp_path / "page.html")
    assert "energy measured" in (tmp_path / "page.html").read_text()
