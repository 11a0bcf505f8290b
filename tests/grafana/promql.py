"""Reading boards and PromQL: shared by the tests of the boards and of the rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser

ROOT = Path(__file__).parents[2]
BOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))

# What Grafana puts in for the variables when everything is chosen, and for its own macros.
ALL = {
    "$__rate_interval": "1m",
    "$__range": "10m",
    "$job": ".+",
    "$instance": ".+",
    "$gpu": ".+",
    "$model_name": ".*",
}


class Target(NamedTuple):
    """One query of one panel."""

    board: str
    panel: str
    panel_type: str
    expr: str
    instant: bool
    unit: str
    legend: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}"


def load(path: Path) -> dict[str, Any]:
    """A board's JSON."""
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return board


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Every panel that shows something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets() -> list[Target]:
    """Every query of every board."""
    return [
        Target(
            path.stem,
            panel["title"],
            panel["type"],
            query["expr"],
            query["instant"],
            _unit(panel, query),
            query["legendFormat"],
        )
        for path in BOARDS
        for panel in panels(load(path))
        for query in panel["targets"]
    ]


def _unit(panel: dict[str, Any], query: dict[str, Any]) -> str:
    """The unit of a query's answer: the panel's, or that of its column or its line."""
    names = {query["legendFormat"]}
    for step in panel.get("transformations", []):
        renamed = step["options"].get("renameByName", {})
        names.add(renamed.get(f"Value #{query['refId']}", ""))
    unit: str = panel["fieldConfig"]["defaults"]["unit"]
    for override in panel["fieldConfig"]["overrides"]:
        asked = override["matcher"]["options"]
        by_regexp = override["matcher"]["id"] == "byRegexp"
        if any(re.search(asked.strip("/"), n) if by_regexp else asked == n for n in names):
            unit = next((p["value"] for p in override["properties"] if p["id"] == "unit"), unit)
    # A heat map's unit is that of its axis; its cells are observations a second.
    return "cps" if panel["type"] == "heatmap" else unit


def variables(path: Path) -> dict[str, tuple[str, str]]:
    """What each of a board's variables asks: selector and label of its ``label_values``."""
    found = {}
    for variable in load(path)["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", str(variable.get("query")))
        if asked:
            found[variable["name"]] = (filled(asked[1]), asked[2])
    return found


def filled(expr: str, variables: dict[str, str] | None = None) -> str:
    """The expression with its variables put in; longest names first, as one may begin another."""
    values = ALL | (variables or {})
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(name, values[name])
    return expr


def nodes(expr: str) -> list[Any]:
    """Every node of a parsed expression; raises ``ValueError`` where it is not PromQL."""
    found: list[Any] = []

    def visit(node: Any) -> None:
        found.append(node)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def selectors(expr: str) -> Iterator[Any]:
    """The vector selectors in an expression."""
    return (node for node in nodes(expr) if isinstance(node, promql_parser.VectorSelector))


def matched(selector: Any) -> dict[str, str]:
    """A selector's matchers: label to value."""
    return {m.name: m.value for m in selector.matchers.matchers}
