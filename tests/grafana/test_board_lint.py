"""The boards' JSON keeps the rules of grafana/dashboard-linter (restated here) and the house's own.

Where a rule is broken on purpose, ``grafana/.lint`` says so to those who run the real linter.
"""

from __future__ import annotations

import re
from typing import Any

import promql_parser
import pytest

from grafana.__main__ import write_boards
from tests.grafana.promql import (
    BOARDS,
    ROOT,
    Target,
    filled,
    load,
    matched,
    nodes,
    panels,
    selectors,
    targets,
    variables,
)
from tests.pictures import BYTES_MAX

UNITS = {
    "watt", "joule", "kwatth", "s", "none", "short", "sishort", "percentunit", "hertz", "reqps",
    "cps",
}  # fmt: skip
OWN_UNIT = re.compile(r"(suffix|count):\S+")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Metrics that carry the name of a model; others belong to a device or to the meter.
OF_MODELS = re.compile(r"joulemeter_(energy|tokens|requests|request_|output_token|cost)")
OVER_TIME = {"rate", "irate", "increase"}
# Sums that are set against the hardware's must hold every model's energy.
OF_ALL_MODELS = {"Conservation error", "Measured against accounts", "Receipts against accounts"}

each_board = pytest.mark.parametrize(
    "board", [load(p) for p in BOARDS], ids=[p.stem for p in BOARDS]
)
each_target = pytest.mark.parametrize("target", targets(), ids=str)


def _panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}: {panel['title']}")
        for path in BOARDS
        for panel in panels(load(path))
    ]


each_panel = pytest.mark.parametrize("panel", _panels())


def test_nobody_edits_the_json(tmp_path) -> None:
    """Writing the boards anew changes nothing, and every file has its board."""
    write_boards(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in BOARDS}
    assert written == committed, "run: make dashboards"


def test_every_board_has_its_picture() -> None:
    """As ``make preview`` draws it, and small."""
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "grafana/pictures").iterdir()}
    assert pictures.keys() == {path.stem for path in BOARDS}
    assert max(pictures.values()) < BYTES_MAX


@each_board
def test_board_sits_beside_those_of_vllm(board) -> None:
    """Classic schema, tags, links that keep the selection, variables by vLLM's names, read-only."""
    assert board["schemaVersion"] == 39
    assert set(board["tags"]) == {"joulemeter", "vllm"}
    assert board["title"].startswith("Joulemeter / ")
    assert board["uid"].startswith("joulemeter-")
    assert board["editable"] is False
    assert (board["refresh"], board["time"]) == ("30s", {"from": "now-1h", "to": "now"})
    (link,) = board["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["vllm"], True, True)
    names = [variable["name"] for variable in board["templating"]["list"]]
    gpu = ["gpu"] if board["uid"] == "joulemeter-gpus" else []
    assert names == ["datasource", "job", "model_name", "instance", *gpu, "filters"]


@each_board
def test_variables_offer_several_and_all(board) -> None:
    """All models includes the energy of none; variables follow the time range."""
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    every_of = {"job": ".+", "instance": ".+", "model_name": ".*", "gpu": ".+"}
    for name, every in every_of.items():
        variable = variables.get(name)
        if variable is None:
            assert name == "gpu"
            continue
        assert (variable["multi"], variable["includeAll"]) == (True, True)
        assert variable["allValue"] == every
        assert variable["refresh"] == 2
        assert variable["datasource"] == DATASOURCE


def test_variables_ask_promql() -> None:
    """Each asks for a label of a selector that parses, of those series that the others chose."""
    for path in BOARDS:
        asked = variables(path)
        assert {"job", "model_name", "instance"} <= asked.keys()
        for name, (selector, label) in asked.items():
            (parsed,) = selectors(selector)
            assert label == name
            assert ("job" in matched(parsed)) == (name != "job")


@each_board
def test_panels_fill_the_grid_without_overlap(board) -> None:
    """No two panels share a cell, none leaves the 24 columns, ids are unique."""
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not own & cells, panel["title"]
        cells |= own
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@each_panel
def test_panel_explains_itself(panel) -> None:
    """A title, words that name every metric it reads, a unit Grafana knows, a named silence."""
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["title"]
    assert panel["targets"]
    assert panel["datasource"] == DATASOURCE
    units = [defaults["unit"], *_overridden(panel, "unit")]
    assert all(unit in UNITS or OWN_UNIT.fullmatch(unit) for unit in units), units
    assert re.search(r"meter blind", defaults["noValue"], re.IGNORECASE)
    for query in panel["targets"]:
        assert query["datasource"] == DATASOURCE
        for selector in selectors(filled(query["expr"])):
            name = re.sub(r"_(bucket|count|sum)$", "", selector.name)
            assert f"`{name}`" in panel["description"]


def _overridden(panel, property_id: str) -> list[Any]:
    """What a panel's overrides set a property to."""
    return [
        one["value"]
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == property_id
    ]


@each_panel
def test_colours_mean_something(panel) -> None:
    """More than one level only where the description says what crossing it means.

    Single figures always have levels; of graphs only stacked ones may go without: they show parts
    of a whole, of which none is too much.
    """
    own = panel["fieldConfig"]["defaults"].get("thresholds", {})
    all_steps = [levels["steps"] for levels in (own, *_overridden(panel, "thresholds")) if levels]
    said = "Colour: " in panel["description"]
    assert said or not any(len(steps) > 1 for steps in all_steps)
    if panel["type"] in {"stat", "bargauge"}:
        assert all_steps
    if panel["type"] == "timeseries":
        stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
        assert said or stacked
    for steps in all_steps:
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:])


@each_panel
def test_a_figure_never_hides_that_it_is_missing(panel) -> None:
    """A stat shows the last answer even if it is NaN, and NaN is not the meter's blindness."""
    if panel["type"] != "stat":
        return
    assert panel["options"]["reduceOptions"]["calcs"] == ["last"]
    mappings = panel["fieldConfig"]["defaults"]["mappings"]
    (nan,) = [m["options"] for m in mappings if m["type"] == "special"]
    assert nan["match"] == "nan"
    assert nan["result"]["text"].startswith("No ")
    assert all(query["instant"] for query in panel["targets"])
    # A name in the legend (the currency, with or without idle) is part of the figure.
    named = any(query["legendFormat"] != "__auto" for query in panel["targets"])
    assert panel["options"]["textMode"] == ("value_and_name" if named else "value")


@each_target
def test_query_is_promql(target: Target) -> None:
    """It parses, once Grafana's macros are filled in."""
    assert nodes(filled(target.expr))


@each_target
def test_query_follows_the_variables(target: Target) -> None:
    """Every selector matches job and instance, and the model where the metric has one.

    DCGM's job and instance are its own: its cards are joined with those that the variables choose.
    """
    for selector in selectors(filled(target.expr, {"$job": "J", "$instance": "I"})):
        labels = matched(selector)
        if selector.name.startswith("gpu:dcgm_"):
            assert "* on (gpu_uuid) group_right () max by (instance, gpu, gpu_uuid)" in target.expr
            continue
        assert (labels["job"], labels["instance"]) == ("J", "I"), selector
        if "model_name" not in labels:
            assert not OF_MODELS.match(selector.name) or target.panel in OF_ALL_MODELS


@each_target
def test_counters_are_read_as_rates(target: Target) -> None:
    """Over the graph's own interval; a single figure may cover the whole range shown."""
    windows = set(re.findall(r"\[([^]]+)\]", target.expr))
    allowed = {"$__rate_interval"}
    if target.instant:
        allowed |= {"$__range", "$__range:$__rate_interval"}
    # As the recording rules of DCGM's counter have them: what is compared is over the same time.
    if target.panel in {"Difference to DCGM", "Meter against DCGM"}:
        allowed = {"1h"}
    if target.panel == "Meter and DCGM":
        allowed = {"5m"}
    assert windows <= allowed
    tree = nodes(filled(target.expr))
    rated = {
        call.args[0].vector_selector.name
        for call in tree
        if isinstance(call, promql_parser.Call) and call.func.name in OVER_TIME
    }
    counters = {
        selector.name
        for selector in selectors(filled(target.expr))
        if selector.name.endswith(("_total", "_bucket"))
    }
    # These ask what the counters stand at, or only whether a meter is there at all.
    at_rest = {"joulemeter_gpu_energy_joules_total"}
    if target.panel in {"Conservation error", "Receipts against accounts"}:
        at_rest.add("joulemeter_energy_joules_total")
    assert counters - at_rest <= rated
