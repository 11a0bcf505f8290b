"""Every query of every board on a live run: the whole meter on the simulated card.

The demo's own command is what is metered; Prometheus scrapes it each second, exemplars included.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml
from rich.console import Console

from meter.demo.demo import Demo
from meter.demo.process import free_port
from meter.demo.stage import simulated
from tests.grafana.plausible import implausible
from tests.grafana.promql import BOARDS, Target, filled, selectors, targets, variables
from tests.grafana.server import Prometheus, serving

pytestmark = pytest.mark.slow

RUN_S = 11.0
SHOWN = {"$__range": "10s", "$__rate_interval": "4s"}
# What a quarter of a minute need not have: the counter's lag is learned from a varied load, it is
# compared with power over half a minute, on a card of one's own there is nothing that nobody took,
# not every machine shows what its CPU takes, and beside DCGM a meter is shown after five minutes.
MAY_BE_EMPTY = {
    "Lag and smear",
    "Unattributed by reason",
    "Counter over power",
    "The host's CPU",
    "Meter and DCGM",
}

each_target = pytest.mark.parametrize("target", targets(), ids=str)


@dataclass(frozen=True, slots=True)
class Run:
    server: Prometheus
    demo: Demo
    start_s: float
    end_s: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Some seconds of the demo, and the Prometheus that watched it."""
    page = free_port()
    job = {
        "job_name": "joulemeter",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{page}"]}],
    }
    folder = tmp_path_factory.mktemp("demo")
    config = yaml.safe_dump({"scrape_configs": [job]})
    with serving(tmp_path_factory.mktemp("run"), config=config) as server:
        console = Console(file=io.StringIO(), width=120)
        demo = Demo(simulated(folder, free_port()), folder, console, threading.Event())
        begun_s = time.time()
        demo.run(RUN_S, page)
        ((_, points),) = server.range("joulemeter_build_info", begun_s, time.time(), 1)
        # Not its last breath: when it stops, traffic has ended.
        yield Run(server, demo, points[-1][0] - 10, points[-1][0] - 2)


def of_peers(target: Target) -> bool:
    """Whether it asks for what only vLLM or dcgm-exporter has."""
    names = {selector.name for selector in selectors(filled(target.expr))}
    return any(name.startswith(("vllm:", "gpu:dcgm_")) for name in names)


@each_target
def test_a_panel_shows_the_run(run: Run, target: Target) -> None:
    """Something, and nothing absurd; without vLLM and DCGM, what needs them has no figure."""
    expr = filled(target.expr, SHOWN)
    if target.instant:
        values = [value for _, value in run.server.instant(expr, run.end_s)]
    else:
        answer = run.server.range(expr, run.start_s, run.end_s, 1)
        values = [value for _, points in answer for _, value in points]
    if of_peers(target):
        assert not any(map(math.isfinite, values))
        return
    assert values or target.panel in MAY_BE_EMPTY
    assert not implausible(target, values, brief=True)


def test_variables_offer_the_run(run: Run) -> None:
    """Its job, its instance, its model, its card."""
    for path in BOARDS:
        for selector, label in variables(path).values():
            assert run.server.label_values(selector, label, run.start_s, run.end_s)


def test_quality_is_simulated(run: Run) -> None:
    """Nobody takes a simulated card's joules for measured ones."""
    (target,) = [t for t in targets() if t.panel == "Quality" and "overview" in t.board]
    ((_, value),) = run.server.instant(filled(target.expr), run.end_s)
    assert value == 2.0


def test_exemplars_lead_to_receipts(run: Run) -> None:
    """A dot in a distribution names a request whose receipt the meter gave out."""
    for target in targets():
        if target.panel_type != "heatmap":
            continue
        found = run.server.exemplars(filled(target.expr, SHOWN), run.start_s - 20, run.end_s)
        named = {labels["request_id"] for labels in found}
        assert named
        assert named & run.demo.receipts.keys()
