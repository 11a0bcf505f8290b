"""What the demo says at its end: sums and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meter.demo.closing import (
    WARM_UP,
    Comparison,
    Errors,
    add_up,
    charge_by_rules,
    compare,
    comparison_rows,
    errors,
    sum_line,
)
from meter.model import (
    Device,
    Engine,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.trace import TraceError, TraceWriter

NS = 10**9


def summary(**changed: float) -> dict[str, Any]:
    parts = {"attributed": 70.0, "idle": 20.0, "startup": 5.0, "unattributed": 4.0, "pending": 1.0}
    return {"measured_j": 100.0, **{f"{name}_j": value for name, value in parts.items()}, **changed}


def test_the_accounts_are_added_up_anew() -> None:
    """The residual is what the five accounts leave of what was measured."""
    assert add_up(summary()).residual_j == pytest.approx(0.0, abs=1e-12)
    assert add_up(summary(idle_j=18.5)).residual_j == pytest.approx(1.5)


def test_the_line_has_every_figure_and_its_quality() -> None:
    """Whoever doubts it can take a pencil."""
    line = sum_line(add_up(summary()), "simulated")
    assert line.startswith("measured 100.0 J (simulated) = 70.0 attributed + 20.0 idle")
    for name in ("startup", "unattributed", "pending"):
        assert name in line
    assert line.endswith("residual 0.0e+00 J")


def test_errors_are_relative_and_the_99th_percentile_is_a_value() -> None:
    """By hand over a hundred requests: one off by half, the rest by a hundredth."""
    true_j = {str(i): 10.0 for i in range(100)}
    estimates = {str(i): 10.1 for i in range(100)} | {"3": 15.0, "4": 14.0}
    found = errors(estimates, true_j)
    assert found is not None
    assert found.mean == pytest.approx((98 * 0.01 + 0.5 + 0.4) / 100)
    assert found.p99 == pytest.approx(0.4)
    assert found.requests == 100


def test_a_request_that_a_rule_forgets_is_wholly_wrong() -> None:
    """Nothing charged for something taken is an error of 100 %; nothing for nothing is none."""
    assert errors({}, {"a": 5.0}) == Errors(1.0, 1.0, 1)
    assert errors({}, {"a": 0.0}) is None


def test_against_the_truth_the_receipts_are_one_of_the_ways() -> None:
    """Only who has both a receipt and a truth counts; the warm-up is told apart by opening."""
    order = [f"r{i}" for i in range(WARM_UP + 2)]
    true_j = dict.fromkeys([*order, "never metered"], 2.0)
    receipts_j = dict.fromkeys(order, 2.0) | {"r0": 3.0, "unknown": 9.0}
    comparison = compare(receipts_j, {"time": dict.fromkeys(order, 1.0)}, order, true_j)
    assert comparison.against == "truth"
    assert comparison.by_rule["joulemeter"].mean == pytest.approx(0.5 / len(order))
    assert comparison.by_rule["joulemeter"].requests == len(order)
    assert comparison.warm["joulemeter"] == Errors(0.0, 0.0, 2)
    assert comparison.by_rule["time"].mean == pytest.approx(0.5)


def test_without_a_truth_the_rules_are_held_against_the_receipts() -> None:
    """Then the meter is not one of those that are judged."""
    comparison = compare({"a": 4.0}, {"time": {"a": 6.0}}, ["a"], None)
    assert comparison.against == "receipts"
    assert comparison.by_rule == {"time": Errors(0.5, 0.5, 1)}
    assert comparison.warm == {}


def test_rows_are_in_percent() -> None:
    """Two digits where it matters, none where it does not; a dash where there is nothing yet."""
    comparison = Comparison(
        "truth", {"time": Errors(0.0123, 0.456, 9), "tokens": Errors(1.5, 3.0, 9)}, {}
    )
    assert list(comparison_rows(comparison)) == [
        ("time", "1.2 %", "46 %", "–", "–"),
        ("tokens", "150 %", "300 %", "–", "–"),
    ]


def test_rules_charge_what_the_client_asked_for(tmp_path: Path) -> None:
    """Children of one request are summed under the id that its client knows, in opening order."""
    trace = tmp_path / "trace.jsonl"
    writer = TraceWriter(
        trace, (Device("GPU-0", "card", Quality.SIMULATED),), (Engine("0", ("GPU-0",)),)
    )
    writer.write(Reading("GPU-0", NS, 0))
    for child, parent in (("0_c-x", "c"), ("1_c-x", "c"), ("d-x", "d")):
        writer.write(RequestOpened("0", child, NS, parent=parent))
    rows = tuple(Work(id, 1, 5, Phase.DECODE) for id in ("0_c-x", "1_c-x", "d-x"))
    writer.write(Step("0", 0, 0, NS, 2 * NS, rows))
    writer.write(Reading("GPU-0", 2 * NS, 300_000_000))
    for child in ("0_c-x", "1_c-x", "d-x"):
        writer.write(RequestClosed("0", child, 2 * NS, "stop"))
    writer.close()
    rules, order = charge_by_rules(trace)
    assert order == ["c", "d"]
    assert set(rules) == {"tokens", "time", "inflight"}
    assert rules["time"] == pytest.approx({"c": 200.0, "d": 100.0})


def test_without_a_record_there_is_no_comparison(tmp_path: Path) -> None:
    """The error says so, and the demo goes on."""
    with pytest.raises((TraceError, OSError)):
        charge_by_rules(tmp_path / "none.jsonl")
