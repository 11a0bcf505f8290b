"""What the meter learned of each card: its coefficients, their doubt, their drift."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Section
from grafana.panels import BLIND, NOT_FOUND, About, Query, graph_panel
from grafana.tables import Column, table_panel


def coefficients() -> Section:
    by = "instance, gpu, model, name"
    value = f"max by ({by}) ({q.series('joulemeter_coefficient', scope=q.TARGET)})"
    sd = f"max by ({by}) ({q.series('joulemeter_coefficient_sd', scope=q.TARGET)})"
    before = q.series("joulemeter_coefficient", scope=q.TARGET)
    drift = f"{q.ratio(value, f'max by ({by}) ({before} offset {q.RANGE})')} - 1"
    doubt = q.ratio(sd, value)
    return Section(
        "What it learned",
        [
            table_panel(
                About(
                    "Coefficients",
                    "What work costs, as learned: static_w in watts, F joules a step, a and b "
                    "joules a prefill and a decode token, q joules a pair, c joules a context "
                    "token, e joules for all experts; of each model, where several share a card. "
                    "Doubt is one standard deviation; drift is the change over the time shown.",
                    "none",
                    "of the doubt: orange from 20 %, the data cannot tell it well. Of the drift: "
                    "orange beyond 20 % either way.",
                ),
                {"instance": "Instance", "gpu": "GPU", "model": "Model", "name": "Coefficient"},
                [
                    Column("Value", value, "sishort"),
                    Column("Doubt", doubt, "percentunit", 1, ((None, "green"), (0.2, "orange"))),
                    Column(
                        "Drift",
                        drift,
                        "percentunit",
                        1,
                        ((None, "orange"), (-0.2, "green"), (0.2, "orange")),
                    ),
                ],
                10,
                NOT_FOUND,
            ),
            graph_panel(
                About(
                    "Doubt",
                    "Standard deviation of each coefficient as a part of it, of the card where it "
                    "is largest. It falls as the load varies, and rises where the data cannot tell "
                    "two coefficients apart.",
                    "percentunit",
                    "a line at 20 %: beyond, receipts lean on what such cards usually take.",
                ),
                [Query(f"max by (name) ({doubt})", "{{name}}")],
                7,
                ((None, "green"), (0.2, "orange")),
                soft_max=0.2,
                no_value=NOT_FOUND,
            ),
            graph_panel(
                About(
                    "Drift",
                    "Change of each coefficient, either way, against a whole time range before (an "
                    "hour, where an hour is shown), of the card where it is largest. Temperature "
                    "moves them slowly; a step means that clocks, driver or model were changed.",
                    "percentunit",
                    "a line at 20 %.",
                ),
                [Query(f"max by (name) (abs({drift}))", "{{name}}")],
                7,
                ((None, "green"), (0.2, "orange")),
                soft_max=0.2,
                no_value=f"Not as old as that; or {BLIND.lower()}",
            ),
        ],
    )
