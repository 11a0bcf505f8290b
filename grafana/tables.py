"""Tables: a row for each thing (a model, a card, a coefficient), a column for each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, table
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model

from grafana.panels import About, Level, Query, common_parts, target

# Pixels: columns share a table's width, and may become as narrow as this before it scrolls.
_MIN_WIDTH = 60
# What always has a length of its own.
_WIDTHS = {"Instance": 130, "GPU": 60, "Engine": 80, "UUID": 370, "Name": 260}


@dataclass(frozen=True, slots=True)
class Column:
    """A question whose answers fill a column; ``levels`` colour its figures."""

    title: str
    expr: str
    unit: str
    decimals: int | None = None
    levels: Sequence[Level] = ()


def table_panel(
    about: About,
    keys: dict[str, str],
    columns: Sequence[Column],
    width: int,
    no_value: str,
    sort_by: str = "",
    height: int = 8,
) -> table.Panel:
    """Answers joined by their labels. ``keys``: the labels that name a row, with their headings."""
    panel = table.Panel().no_value(no_value).span(width).height(height).min_width(_MIN_WIDTH)
    queries = [Query(column.expr) for column in columns]
    for ref, query in zip(ascii_uppercase, queries, strict=False):
        asked = target(ref, query).instant().format(prometheus_model.PromQueryFormat.TABLE)
        panel = panel.with_target(asked)
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    titles = {_value(i, len(columns)): column.title for i, column in enumerate(columns)}
    panel = _shown(panel, keys | titles)
    if sort_by:
        state = common.TableSortByFieldState().display_name(sort_by).desc(True)
        panel = panel.sort_by([state])
    panel = _sized(panel, keys)
    for column in columns:
        panel = panel.override_by_name(column.title, _look(column))
    return common_parts(panel, about, queries)


def labels_panel(
    about: About,
    query: Query,
    columns: dict[str, str],
    width: int,
    no_value: str,
    height: int = 6,
) -> table.Panel:
    """The labels of an info metric, one row a series; ``columns``: labels with their headings."""
    asked = target("A", query).instant().format(prometheus_model.PromQueryFormat.TABLE)
    panel = table.Panel().no_value(no_value).span(width).height(height).min_width(_MIN_WIDTH)
    panel = panel.with_target(asked)
    panel = _sized(panel, columns)
    return common_parts(_shown(panel, columns), about, [query])


def _value(place: int, columns: int) -> str:
    """What Grafana calls a query's figures in a table: by its letter where there are several."""
    return f"Value #{ascii_uppercase[place]}" if columns > 1 else "Value"


def _shown(panel: table.Panel, names: dict[str, str]) -> table.Panel:
    """These fields alone, in this order, under these headings."""
    keep = model.DataTransformerConfig(
        id_val="filterFieldsByName", options={"include": {"names": list(names)}}
    )
    order = model.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": {},
            "indexByName": {name: place for place, name in enumerate(names)},
            "renameByName": names,
        },
    )
    return panel.with_transformation(keep).with_transformation(order)


def _sized(panel: table.Panel, names: dict[str, str]) -> table.Panel:
    """Columns whose length is known get it; the others share the rest."""
    for heading in sorted(_WIDTHS.keys() & set(names.values())):
        width = model.DynamicConfigValue("custom.width", _WIDTHS[heading])
        panel = panel.override_by_name(heading, [width])
    return panel


def _look(column: Column) -> list[model.DynamicConfigValue]:
    look: dict[str, Any] = {"unit": column.unit}
    if column.decimals is not None:
        look["decimals"] = column.decimals
    if column.levels:
        steps = [{"value": value, "color": color} for value, color in column.levels]
        look["thresholds"] = {"mode": "absolute", "steps": steps}
        look["color"] = {"mode": "thresholds"}
        look["custom.cellOptions"] = {"type": common_model.TableCellDisplayMode.COLOR_TEXT.value}
    return [model.DynamicConfigValue(name, value) for name, value in look.items()]
