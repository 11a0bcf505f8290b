"""Every query of every panel, variable, rule and alert on a week of history in a real Prometheus.

The week holds days and nights and one incident of most kinds that there is an alert for. What fails
here is an answer that is empty, or absurd: not a number, below zero, off by a unit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from grafana.__main__ import RULES
from tests.grafana import fleet, week
from tests.grafana.plausible import implausible
from tests.grafana.promql import BOARDS, Target, filled, targets, variables
from tests.grafana.server import Prometheus, serving

pytestmark = pytest.mark.slow

ALERTS = RULES.with_name("joulemeter.alerts.yml")
# What Grafana fills in when the last seven days, or the last hour, are shown.
A_WEEK = {"$__range": "7d", "$__rate_interval": "15m"}
AN_HOUR = {"$__range": "1h", "$__rate_interval": "1m"}
# A graph's `$__range` is how far back it compares; before the week there was nothing.
EARLIER = {"$__range": "6d"}

each_target = pytest.mark.parametrize("target", targets(), ids=str)


@dataclass(frozen=True, slots=True)
class Week:
    server: Prometheus
    start_s: int

    @property
    def end_s(self) -> int:
        return self.start_s + week.WEEK_S

    def values(self, target: Target, shown: dict[str, str], step_s: int) -> list[float]:
        """All figures of a query's answer; of a graph's over the last day or hour shown."""
        expr = filled(target.expr, shown)
        if target.instant:
            return [value for _, value in self.server.instant(expr, self.end_s)]
        expr = filled(target.expr, shown | EARLIER)
        answer = self.server.range(expr, self.end_s - 24 * step_s, self.end_s, step_s)
        # Not every model runs all the time, but at every moment somebody does.
        assert len({t for _, points in answer for t, _ in points}) == 25
        return [value for _, points in answer for _, value in points]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Week]:
    """A week that ends now, as the server evaluates its rules at its own time."""
    directory = tmp_path_factory.mktemp("week")
    names = []
    for path in (RULES, ALERTS):
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        # At once, and not in five minutes.
        text = yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in groups]})
        (directory / path.name).write_text(text, encoding="utf-8")
        names.append(path.name)
    start_s = int(time.time()) - week.WEEK_S
    history = [(one.host, one.moments(start_s)) for one in week.FLEET]
    config = yaml.safe_dump({"rule_files": names})
    text = fleet.openmetrics(history, week.TARIFF)
    with serving(directory, text, config) as server:
        yield Week(server, start_s)


@each_target
def test_a_panel_shows_a_week(lived: Week, target: Target) -> None:
    """Something, and nothing absurd."""
    values = lived.values(target, A_WEEK, week.HOUR_S)
    assert values
    assert not implausible(target, values)


@each_target
def test_a_panel_shows_the_last_hour(lived: Week, target: Target) -> None:
    """With the short intervals that Grafana takes then."""
    values = lived.values(target, AN_HOUR, 120)
    # An hour has not every batch size in it; the week has.
    assert values or target.panel == "J per output token by batch size"
    assert not implausible(target, values)


def test_variables_offer_what_was_there(lived: Week) -> None:
    """Every variable of every board."""
    for path in BOARDS:
        for selector, label in variables(path).values():
            assert lived.server.label_values(selector, label, lived.start_s, lived.end_s)


def test_a_weeks_figures_are_the_weeks_sums(lived: Week) -> None:
    """Joules over tokens on the board, against what went into the history."""
    moments = [list(one.moments(lived.start_s))[-1] for one in week.FLEET]
    total_j = sum(m.settled_j for m in moments)
    tokens = sum(m.tokens["output"] for m in moments)
    idle_j = sum(m.accounts[week.Account.IDLE] for m in moments)
    lost_j = sum(m.accounts[week.Account.UNATTRIBUTED] for m in moments)
    shown = {
        (t.panel, t.legend): lived.values(t, A_WEEK, week.HOUR_S)
        for t in targets()
        if t.panel in {"J per output token", "kWh per million output tokens", "Energy"}
        and t.panel_type == "stat"
    }
    per_token_j = (total_j - lost_j) / tokens
    expected = {
        ("J per output token", "with idle"): per_token_j,
        ("J per output token", "without idle"): per_token_j - idle_j / tokens,
        ("kWh per million output tokens", "with idle"): per_token_j / 3.6,
        ("kWh per million output tokens", "without idle"): (per_token_j - idle_j / tokens) / 3.6,
        ("Energy", "__auto"): total_j / 3.6e6,
    }
    assert {key: values[0] for key, values in shown.items()} == pytest.approx(expected, rel=2e-3)


@pytest.fixture(scope="module")
def ruled(lived: Week) -> Week:
    """The week, once the server has evaluated every rule and what stands on it."""
    deadline = time.monotonic() + 60
    while any(r["health"] == "unknown" or r.get("alerts") for r in lived.server.rules()):
        # In the very first round an alert may come before what it reads was recorded.
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return lived


def test_rules_and_alerts_can_be_evaluated(ruled: Week) -> None:
    """No rule fails on real series, and on a healthy day no alert is even pending."""
    rules = ruled.server.rules()
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert [alert for rule in rules for alert in rule.get("alerts", [])] == []


def test_recorded_figures_are_plausible(ruled: Week) -> None:
    """Every recording rule has an answer; a token's joules are what a board says over the hour."""
    names = {rule["name"] for rule in ruled.server.rules() if rule["type"] == "recording"}
    answers = {name: ruled.server.instant(name, time.time()) for name in names}
    assert all(answers.values()), [name for name, answer in answers.items() if not answer]
    for name, answer in answers.items():
        for labels, value in answer:
            assert 0.0 <= value < (5e9 if "hertz" in name else 1e6), (name, labels)
            if "kwh_per_token" in name:
                assert 1e-3 <= value * 3.6e6 <= 1e3, (name, labels)
    for labels, value in answers["model:joulemeter_tokens_per_vllm_generation_tokens:ratio_rate1d"]:
        assert value == pytest.approx(1.0, rel=1e-3), labels


@pytest.mark.parametrize(("alert", "host"), week.INCIDENTS)
def test_an_incident_is_seen(lived: Week, alert: str, host: str) -> None:
    """Where it happened, while it lasted; not the day after, when all was well again."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    (expr,) = [r["expr"] for g in groups for r in g["rules"] if r["alert"] == alert]
    start_s, end_s = week.INCIDENTS[alert, host]

    def seen(at_s: float) -> set[str]:
        answer = lived.server.instant(expr, lived.start_s + at_s)
        return {row.get("instance") or f"{row['gpu_uuid'][4]}:29401" for row, _ in answer}

    assert seen(end_s - week.COARSE_S) == {f"{host}:29401"}
    assert seen(start_s - 3600) == set()
    assert seen(end_s + week.DAY_S // 2) == set()
