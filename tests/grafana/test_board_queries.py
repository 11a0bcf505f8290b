"""Every query of every board against a real Prometheus that holds what the meter exports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter.pricing import Tariff
from tests.grafana import sample
from tests.grafana.promql import BOARDS, Target, filled, matched, selectors, targets, variables
from tests.grafana.sample import A, B
from tests.grafana.server import Prometheus, finite, serving

each_target = pytest.mark.parametrize("target", targets(), ids=str)

# Over both hosts, from the sample's rates; 3.6 MJ are a kWh. Batch sizes come and go, and the rates
# stay, so a token takes the same in every batch.
EUR_PER_S = (14.40 + 1.301 * 1.25 * 0.30) / 3600
FIGURES = {
    "Meter": [0.02],
    "Quality": [0.0],
    "Power now": [1301.0],
    "Idle share": [300 / 1301],
    "kWh per million output tokens": [1300 / 1500 / 3.6, 1000 / 1500 / 3.6],
    "J per output token": [1300 / 1500, 1000 / 1500],
    "J per total token": [1300 / 5000, 1000 / 5000],
    "Cost per hour": [EUR_PER_S * 3600],
    "Cost per million output tokens": [EUR_PER_S / 1500 * 1e6],
    "Requests / s": [4.0],
    "Output tok/s": [1500.0],
    "Conservation error": [0.0],
    "Unattributed share": [1 / 1301],
    # Requests of 50 and of 500 J, interpolated in their buckets; 100 output tokens each.
    "J per request": [100.0, 460 + (1000 - 460) * 0.98],
    "J per output token, by request": [1.0, 4.6 + (10 - 4.6) * 0.98],
    "Energy": [1301 * 600 / 3.6e6],
    "Time at the power limit": [1.0],
    "A stranger's share": [0.25 / 1301],
    "Meter against DCGM": [1 / (1 - sample.DCGM_SHORT) - 1],
    "Receipts against accounts": [0.0],
    "Messages lost": [0.0],
    # Bars, in the order of the answer.
    "Power now by device": [500.5, 500.5, 300.0],
    "J per output token by model": [0.8, 0.4],
    "J per output token by batch size": [0.8, 0.4] * 4,
    "Time at the limit by card": [1.0, 0.0, 0.0],
    "Idle share by engine": [100 / 300, 200 / 1001],
    # Tables, row by row within each column.
    "Models": [
        *(1000.0, 300.0),
        *(1000.0, 500.0),
        *(2.0, 2.0),
        *(400.0, 100.0),
        *(0.8, 0.4),
        *((7.20 + w * 1.25 * 0.30) / 3.6 / tokens for w, tokens in ((1.001, 1.0), (0.3, 0.5))),
    ],
    "Static power": [115.0] * 3 + [1.0] * 3,
    "Coefficients": [115.0] * 3 + [1 / 115] * 3 + [0.0] * 3,
}
# Questions about the meter itself have an answer without traffic too.
ALWAYS = {
    "Meter",
    "Quality",
    "Power now",
    "Idle share",
    "Conservation error",
    "Unattributed share",
    "Energy",
    "Time at the power limit",
    "A stranger's share",
    "Messages lost",
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> Iterator[Prometheus]:
    """Seventy minutes of traffic on two hosts."""
    with serving(tmp_path_factory.mktemp("busy"), sample.openmetrics((A, B))) as server:
        yield server


@pytest.fixture(scope="module")
def idle(tmp_path_factory) -> Iterator[Prometheus]:
    """Seventy minutes of a meter that reads its GPU, without one request and without a price."""
    history = sample.openmetrics((sample.QUIET,), Tariff("EUR"), peers=False)
    with serving(tmp_path_factory.mktemp("idle"), history) as server:
        yield server


def stats() -> list[Target]:
    return [target for target in targets() if target.panel_type == "stat"]


def figures() -> list[Target]:
    """Every query whose answer is shown as numbers: single figures, bars, tables."""
    shown = [t for t in targets() if t.instant and not t.expr.startswith("joulemeter_")]
    return [t for t in shown if t.panel_type in {"stat", "bargauge", "table"}]


@each_target
def test_query_answers(busy: Prometheus, target: Target) -> None:
    """With traffic every query has series, with finite values at every step of the last minutes."""
    expr = filled(target.expr)
    if target.instant:
        values = [value for _, value in busy.instant(expr, sample.END_S)]
    else:
        answer = busy.range(expr, sample.END_S - 300, sample.END_S, 15)
        assert all(len(points) == 21 for _, points in answer)
        values = [value for _, points in answer for _, value in points]
    assert values
    assert all(map(finite, values)), values


@pytest.mark.parametrize("panel", FIGURES)
def test_figure_is_right(busy: Prometheus, panel: str) -> None:
    """The figures at the top are those that the known rates give."""
    found = [target for target in figures() if target.panel == panel]
    asked = [target for target in found if target.board == found[0].board]
    answers = [busy.instant(filled(target.expr), sample.END_S) for target in asked]
    values = [value for answer in answers for _, value in answer]
    assert values == pytest.approx(FIGURES[panel], rel=1e-6, abs=1e-9)


def test_every_figure_is_checked() -> None:
    """No number stands on a board without its known value here."""
    assert {target.panel for target in figures()} == set(FIGURES)


def test_choosing_a_model_leaves_the_others_out(busy: Prometheus) -> None:
    """With one model chosen, energy and tokens are that model's alone."""
    (target,) = [t for t in stats() if t.panel == "J per total token" and "idle" not in t.expr]
    expr = filled(target.expr, {"$model_name": "qwen"})
    ((_, value),) = busy.instant(expr, sample.END_S)
    assert value == pytest.approx(200 / 1000)


@pytest.mark.parametrize("target", stats(), ids=str)
def test_no_traffic_is_not_a_blind_meter(
    busy: Prometheus, idle: Prometheus, target: Target
) -> None:
    """A meter without traffic answers NaN (shown as such) or a number; no meter answers nothing."""
    ((_, value),) = idle.instant(filled(target.expr), sample.END_S)
    if target.panel in ALWAYS:
        assert finite(value)
    else:
        assert value == 0.0 or not finite(value)
    day_before = sample.START_S - 86_400
    assert busy.instant(filled(target.expr), day_before) == []


def test_variables_have_values(busy: Prometheus) -> None:
    """Each variable offers what the sample holds."""
    expected = {
        "job": {"joulemeter"},
        "model_name": {A.host.model, B.host.model},
        "instance": {A.host.instance, B.host.instance},
        "gpu": {"0", "1"},
    }
    span = (sample.START_S, sample.END_S)
    for path in BOARDS:
        for name, (selector, label) in variables(path).items():
            assert busy.label_values(selector, label, *span) == expected[name]


def test_boards_read_only_what_the_meter_exports() -> None:
    """Every metric name and every label matched on is the collector's own, vLLM's, or recorded."""
    exported = sample.exported_labels() | {
        "vllm:num_requests_running": {"model_name", "engine"},
        **{f"gpu:dcgm_energy_joules:rate{window}": set() for window in ("5m", "1h")},
        "gpu:dcgm_sm_clock_hertz:max": set(),
    }
    # Negative prices are rare; the family is absent without them.
    exported["joulemeter_cost_credits_total"] = exported["joulemeter_cost_total"]
    for target in targets():
        for selector in selectors(filled(target.expr)):
            assert selector.name in exported, target
            assert set(matched(selector)) <= exported[selector.name] | {"job", "instance"}, target
