"""The alerts: accepted by promtool, right on known series, each with its section in the runbook."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.__main__ import RULES, RUNBOOK_PAGE
from grafana.runbook import RUNBOOK, page
from tests.deploy.test_rules import promtool
from tests.grafana.promql import selectors
from tests.grafana.sample import exported_labels
from tests.grafana.server import serving

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ALERTS = RULES.with_name("joulemeter.alerts.yml")
CASES = sorted(HERE.glob("*alerts.test.yml"))
# Without a name: whatever of dcgm-exporter's is there.
PEERS = {"up", "vllm:generation_tokens_total", None, ""}


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in _yaml(path)["groups"] for rule in group["rules"]]


each_alert = pytest.mark.parametrize("rule", _rules(ALERTS), ids=lambda rule: rule["alert"])


def test_promtool_accepts_the_alerts() -> None:
    """Syntax and templates, and no alert twice."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


def test_alerts_fire_when_they_must_and_only_then() -> None:
    """Each on a fault, and not on what looks alike; joined with vLLM and DCGM where needed."""
    promtool("test", "rules", *CASES)


@each_alert
def test_every_alert_has_both_cases(rule: dict[str, Any]) -> None:
    """One in which it fires, and one in which it is quiet."""
    cases = [
        bool(case.get("exp_alerts"))
        for path in CASES
        for test in _yaml(path)["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == rule["alert"]
    ]
    assert set(cases) == {True, False}


@each_alert
def test_an_alert_says_what_is_wrong_and_where_help_is(rule: dict[str, Any]) -> None:
    """A severity, a summary, a description, and its own section of the runbook."""
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["alert"].startswith("Joulemeter")
    assert rule["for"]
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    address, anchor = notes["runbook_url"].split("#")
    assert address == f"{{{{ $externalURL }}}}/consoles/{RUNBOOK_PAGE.name}"
    assert anchor == rule["alert"].lower()


def test_nobody_edits_the_runbooks_page() -> None:
    """Writing it anew changes nothing."""
    assert RUNBOOK_PAGE.read_text(encoding="utf-8") == page(), "run: make dashboards"


def test_prometheus_serves_the_runbook(tmp_path: Path) -> None:
    """Where an alert's address leads: a page with a section for each, and all of the text."""
    flag = f"--web.console.templates={RUNBOOK_PAGE.parent}"
    with serving(tmp_path, flags=[flag]) as server:
        told = server.text(f"/consoles/{RUNBOOK_PAGE.name}")
    for rule in _rules(ALERTS):
        assert f'<h2 id="{rule["alert"].lower()}">{rule["alert"]}</h2>' in told
    words = re.sub(r"<head>.*</head>|<style>.*</style>|<[^>]+>", "", told, flags=re.DOTALL)
    source = re.sub(r"\]\([^)]+\)", "", RUNBOOK.read_text(encoding="utf-8"))
    source = re.sub(r"^\d+\. ", "", source, flags=re.MULTILINE)
    assert _letters(unescape(words)).removeprefix("Joulemeterrunbook") == _letters(source)


def _letters(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def test_the_runbook_has_a_section_for_each_alert() -> None:
    """No more and no fewer, in the order of the file; each says what it means and what to do."""
    text = RUNBOOK.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [s.splitlines()[0] for s in sections] == [rule["alert"] for rule in _rules(ALERTS)]
    for section in sections:
        assert "**Means.**" in section
        assert re.search(r"^1\. ", section, re.MULTILINE)


@each_alert
def test_alerts_read_only_what_exists(rule: dict[str, Any]) -> None:
    """Every metric is exported, recorded or a peer's; every label matched on is there."""
    exported = exported_labels()
    recorded = {one["record"] for one in _rules(RULES)}
    for selector in selectors(rule["expr"]):
        assert selector.name in exported.keys() | recorded | PEERS
        if selector.name in exported:
            assert {m.name for m in selector.matchers.matchers} <= exported[selector.name]


def test_the_runbook_names_only_metrics_that_exist() -> None:
    """Whoever is woken by an alert must find what it tells them to look at."""
    text = RUNBOOK.read_text(encoding="utf-8")
    assert set(re.findall(r"joulemeter_\w+", text)) <= set(exported_labels())
