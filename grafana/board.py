"""The frame of every board: variables as on vLLM's own boards, links, rows, and the JSON.

The variables have vLLM's names, so that a link between the boards keeps the selection.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import bargauge, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from grafana.panels import DATASOURCE

# The classic model that Grafana 10 to 13 all read, and that vLLM's boards are written in.
SCHEMA_VERSION = 39
TAGS = ["joulemeter", "vllm"]
Panel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel | bargauge.Panel


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the board, or of its head where ``title`` is empty. Widths fill lines of 24."""

    title: str
    panels: Sequence[Panel]


def board_json(
    uid: str, title: str, text: str, sections: Sequence[Section], gpus: bool = False
) -> str:
    """A whole board as Grafana's classic JSON, ready to be committed.

    ``gpus``: it has the variable ``gpu`` as well, as dcgm-exporter's board has.
    """
    board = (
        build.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags(TAGS)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(_family_link())
        .readonly()
    )
    for variable in _variables(gpus):
        board = board.with_variable(variable)
    for section in sections:
        if section.title:
            board = board.with_row(build.Row(section.title))
        for panel in section.panels:
            board = board.with_panel(panel)
    built = board.build()
    built.schema_version = SCHEMA_VERSION
    return _encode(built)


def _family_link() -> build.DashboardLink:
    """A menu of every board tagged ``vllm``: vLLM's own and ours."""
    return (
        build.DashboardLink("vLLM and Joulemeter")
        .type(model.DashboardLinkType.DASHBOARDS)
        .icon("external link")
        .tags(["vllm"])
        .include_vars(True)
        .keep_time(True)
    )


def _variables(
    gpus: bool,
) -> list[build.DatasourceVariable | build.QueryVariable | build.AdHocVariable]:
    metric = "joulemeter_gpu_energy_joules_total"
    models = "joulemeter_tokens_total"
    of_gpus = f'label_values({metric}{{job=~"$job", instance=~"$instance"}}, gpu)'
    return [
        build.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _query("job", "Job", f"label_values({metric}, job)", ".+"),
        # Energy that belongs to no model has an empty label: all models must mean that as well.
        _query("model_name", "Model", f'label_values({models}{{job=~"$job"}}, model_name)', ".*"),
        _query("instance", "Instance", f'label_values({metric}{{job=~"$job"}}, instance)', ".+"),
        *([_query("gpu", "GPU", of_gpus, ".+")] if gpus else []),
        build.AdHocVariable("filters").label("Filters").datasource(DATASOURCE),
    ]


def _query(name: str, label: str, query: str, every: str) -> build.QueryVariable:
    chosen = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(every)
        .current(chosen)
    )


def _encode(board: model.Dashboard) -> str:
    text = JSONEncoder(sort_keys=True, indent=2).encode(board)
    values: dict[str, Any] = json.loads(text)
    for place, panel in enumerate(values["panels"], start=1):
        panel["id"] = place
    for link in values["links"]:
        # Newer than the schema above; it would also hide the link in a menu.
        link.pop("placement", None)
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
