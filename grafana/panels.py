"""The house's panels: every one names its metrics, has a unit, and says what its silence means.

A single figure shows the last value of an instant query, NaN included (``last``, not
``lastNotNull``, which would show an old figure for a missing one): NaN reads ``No traffic``, no
answer ``Meter blind``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge as bars
from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

DATASOURCE = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")
AUTO = "__auto"
NO_TRAFFIC = "No traffic"
BLIND = "Meter blind"
NOT_FOUND = f"Not found yet; or {BLIND.lower()}"
SILENT = f"{NO_TRAFFIC}; or, if Meter says so above, meter blind"

_METRIC = re.compile(r"\b(?:joulemeter_[a-z0-9_]+|vllm:[a-z_]+)|\bgpu:dcgm_[a-z0-9_:]+")
_HISTOGRAM_PART = re.compile(r"_(bucket|count|sum)$")
Panel = TypeVar("Panel", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel, bars.Panel)
Level = tuple[float | None, str]


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus and the name of its answer in the legend."""

    expr: str
    legend: str = AUTO


@dataclass(frozen=True, slots=True)
class About:
    """What a panel shows, in words; ``threshold`` says what a change of colour means."""

    title: str
    text: str
    unit: str
    threshold: str = ""


@dataclass(frozen=True, slots=True)
class Right:
    """Lines that a graph shows on an axis of their own, on the right.

    ``legends``: a regular expression; ``unit``: that axis' unit.
    """

    legends: str
    unit: str


def stat_panel(
    about: About,
    queries: Sequence[Query],
    width: int,
    levels: Sequence[Level],
    names: Sequence[str] = (),
    nan: str = NO_TRAFFIC,
    height: int = 4,
    decimals: int | None = None,
) -> stat.Panel:
    """Single figures. ``names``: texts for the values 0, 1, 2, each with the level's colour."""
    panel = (
        stat.Panel()
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(levels))
        .mappings(_mappings(names, nan))
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .color_mode(common_model.BigValueColorMode.VALUE)
        .text_mode(
            common_model.BigValueTextMode.VALUE_AND_NAME
            if any(query.legend != AUTO for query in queries)
            else common_model.BigValueTextMode.VALUE
        )
        .reduce_options(common.ReduceDataOptions().calcs(["last"]).values(False))
        .no_value(BLIND)
    )
    panel = panel.span(width).height(height)
    if decimals is not None:
        panel = panel.decimals(decimals)
    for ref, query in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(target(ref, query).instant())
    return common_parts(panel, about, queries)


def bar_panel(
    about: About,
    queries: Sequence[Query],
    width: int,
    levels: Sequence[Level],
    no_value: str = SILENT,
    nan: str = NO_TRAFFIC,
    height: int = 8,
) -> bars.Panel:
    """Figures beside each other as bars, each from zero, shares up to the whole."""
    panel = (
        bars.Panel()
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(levels))
        .mappings(_mappings((), nan))
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .value_mode(common_model.BarGaugeValueMode.TEXT)
        .name_placement(common_model.BarGaugeNamePlacement.TOP)
        .reduce_options(common.ReduceDataOptions().calcs(["last"]).values(False))
        .no_value(no_value)
        .min(0)
        .span(width)
        .height(height)
    )
    if about.unit == "percentunit":
        panel = panel.max(1)
    for ref, query in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(target(ref, query).instant())
    return common_parts(panel, about, queries)


def graph_panel(
    about: About,
    queries: Sequence[Query],
    width: int,
    levels: Sequence[Level] = (),
    stacked: bool = False,
    no_value: str = BLIND,
    exemplars: bool = False,
    right: Right | None = None,
    behind: str = "",
    soft_max: float | None = None,
) -> timeseries.Panel:
    """Lines over time; ``levels`` are drawn as dashed lines, ``stacked`` lines are filled.

    ``behind``: a regular expression for the legends of lines that are drawn broad, as others lie
    on them; ``soft_max``: where the axis ends while all values are lower.
    """
    panel = (
        timeseries.Panel()
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(40 if stacked else 0)
        .show_points(common_model.VisibilityMode.NEVER)
        .span_nulls(False)
        .axis_soft_min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
        .no_value(no_value)
    )
    if stacked:
        normal = common_model.StackingMode.NORMAL
        panel = panel.stacking(common.StackingConfig().mode(normal).group("A"))
    if levels:
        dashed = common_model.GraphThresholdsStyleMode.DASHED
        panel = panel.thresholds(_thresholds(levels)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(dashed)
        )
    if soft_max is not None:
        panel = panel.axis_soft_max(soft_max)
    if behind:
        panel = panel.override_by_regexp(behind, [model.DynamicConfigValue("custom.lineWidth", 5)])
    if right:
        panel = panel.override_by_regexp(
            right.legends,
            [
                model.DynamicConfigValue("custom.axisPlacement", "right"),
                model.DynamicConfigValue("unit", right.unit),
            ],
        )
    panel = panel.span(width).height(8)
    for ref, query in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(target(ref, query).range().exemplar(exemplars))
    return common_parts(panel, about, queries)


def heat_panel(about: About, query: Query, width: int) -> heatmap.Panel:
    """A histogram over time, from classic buckets."""
    asked = target("A", query).range().format(prometheus_model.PromQueryFormat.HEATMAP)
    scheme = (
        heatmap.HeatmapColorOptions()
        .mode(heatmap_model.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .steps(64)
    )
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(scheme)
        .y_axis(heatmap.YAxisConfig().unit(about.unit))
        .cell_gap(1)
        .no_value(SILENT)
        .span(width)
        .height(8)
        .with_target(asked.exemplar(True))
    )
    return common_parts(panel, about, [query])


def metrics_in(expr: str) -> list[str]:
    """The metrics that an expression reads, by the names under which they are documented."""
    return [_HISTOGRAM_PART.sub("", name) for name in _METRIC.findall(expr)]


def common_parts(panel: Panel, about: About, queries: Sequence[Query]) -> Panel:
    """What every panel has: its title, words, metrics, unit and data source."""
    metrics = dict.fromkeys(name for query in queries for name in metrics_in(query.expr))
    parts = [about.text]
    if about.threshold:
        parts.append(f"Colour: {about.threshold}")
    parts.append("Metric: " + ", ".join(f"`{name}`" for name in metrics))
    panel = panel.title(about.title).description("\n\n".join(parts))
    return panel.unit(about.unit).datasource(DATASOURCE)


def target(ref: str, query: Query) -> prometheus.Dataquery:
    """A query under its reference letter."""
    return (
        prometheus.Dataquery()
        .datasource(DATASOURCE)
        .ref_id(ref)
        .expr(query.expr)
        .legend_format(query.legend)
    )


def _thresholds(levels: Sequence[Level]) -> build.ThresholdsConfig:
    steps = [model.Threshold(value=value, color=color) for value, color in levels]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _mappings(
    names: Sequence[str], nan: str
) -> list[model.ValueMap | model.RangeMap | model.RegexMap | model.SpecialValueMap]:
    values = {
        str(value): model.ValueMappingResult(text=name, index=value)
        for value, name in enumerate(names)
    }
    not_a_number = model.SpecialValueMap(
        model.DashboardSpecialValueMapOptions(
            match=model.SpecialValueMatch.NA_N,
            result=model.ValueMappingResult(text=nan, color="text", index=len(names)),
        )
    )
    return [model.ValueMap(options=values), not_a_number] if names else [not_a_number]
