"""The recording rules: written from code, accepted by promtool, right on known series."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.__main__ import RULES
from grafana.rules import WINDOWS, rules
from tests.grafana.promql import BOARDS, selectors
from tests.grafana.sample import exported_labels
from tests.needs import program

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PEERS = {
    "vllm:generation_tokens_total",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
    "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_SM_CLOCK_HERTZ",
}


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    """Run it; what it complains of fails the test."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_edits_the_rules() -> None:
    """Writing them anew changes nothing."""
    assert RULES.read_text(encoding="utf-8") == rules(), "run: make dashboards"


def test_promtool_accepts_the_rules() -> None:
    """Syntax, and no rule twice with the same labels."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_rules_give_known_figures() -> None:
    """A fleet at constant rates: several hosts, idle, a negative price, vLLM's own counter."""
    promtool("test", "rules", HERE / "joulemeter.rules.test.yml")


def test_dcgm_counts_once_under_either_name() -> None:
    """Old name alone, new alone, both side by side, neither; one that is replaced by the other."""
    promtool("test", "rules", HERE / "joulemeter.dcgm.rules.test.yml")


@pytest.mark.parametrize("window", WINDOWS)
def test_every_window_has_every_figure(window: str) -> None:
    """Per model and for the fleet, per output and per total token, energy and cost."""
    found = {
        (rule["record"], rule["labels"]["token_type"])
        for rule in _rules()
        if rule["record"].endswith(f":ratio_rate{window}") and "labels" in rule
    }
    assert found == {
        (f"{level}:joulemeter_{what}:ratio_rate{window}", token_type)
        for level in ("model", "fleet")
        for what in ("kwh_per_token", "cost_per_million_tokens")
        for token_type in ("output", "total")
    }


def test_rules_read_only_what_exists() -> None:
    """Every metric is the meter's, vLLM's, DCGM's, or recorded by an earlier rule."""
    known = set(exported_labels()) | PEERS | {"joulemeter_cost_credits_total"}
    for rule in _rules():
        names = {selector.name for selector in selectors(rule["expr"])}
        assert names <= known, rule["record"]
        known.add(rule["record"])


def test_energy_rules_hold_no_pue() -> None:
    """Energy per token is what the hardware took; the facility's share is another metric."""
    assert not any("facility" in rule["expr"] for rule in _rules())


def test_dcgms_own_names_stand_in_one_place() -> None:
    """Boards and alerts know what the rules record alone: the next renaming is mended there."""
    known = re.compile(r"DCGM_FI_DEV_(?!\.)\w+")
    assert set(known.findall(RULES.read_text(encoding="utf-8"))) == PEERS - {
        "vllm:generation_tokens_total"
    }
    alerts = RULES.with_name("joulemeter.alerts.yml").read_text(encoding="utf-8")
    assert not known.findall(alerts)
    for board in BOARDS:
        assert not known.findall(board.read_text(encoding="utf-8")), board.name
