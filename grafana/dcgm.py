"""The meter beside dcgm-exporter, which reads the same counters of the same cards.

It is joined by the card's UUID, as its job and instance are its own. What it calls its metrics, and
in which unit they are, the recording rules alone know.
"""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Panel, Section
from grafana.panels import About, Query, graph_panel, stat_panel

NO_DCGM = "No DCGM metrics, or no rules loaded; or meter blind"
_ONE_PERCENT = ((None, "green"), (0.01, "red"))


def disagreement_now() -> Panel:
    return stat_panel(
        About(
            "Meter against DCGM",
            "The card that differs most: what the meter read over what dcgm-exporter's counter "
            "moved, less one, over an hour. Both read the same hardware.",
            "percentunit",
            "red from 1 %: one of them misses readings or reads another card.",
        ),
        [Query(q.figure(f"max({q.dcgm_difference('1h')})"))],
        4,
        _ONE_PERCENT,
        nan="No DCGM",
        decimals=2,
    )


def beside_dcgm() -> Section:
    return Section(
        "Beside DCGM",
        [
            graph_panel(
                About(
                    "Meter and DCGM",
                    "Watts from the meter's readings of the energy counter, and from "
                    "dcgm-exporter's, over five minutes: each begins when it has been there so "
                    "long. The lines lie on each other.",
                    "watt",
                    "a line at 0 W, which no card under power can reach.",
                ),
                [
                    Query(q.counter_whole_w(q.CARD, "5m"), f"{q.CARD_NAME} meter"),
                    Query(q.dcgm_w(q.CARD, "5m"), f"{q.CARD_NAME} DCGM"),
                ],
                12,
                ((None, "red"), (0.0, "green")),
                no_value="Not read for five minutes yet; or meter blind",
                behind="/ meter$/",
            ),
            graph_panel(
                About(
                    "Difference to DCGM",
                    "Meter over DCGM, less one, either way, over an hour: over less the two "
                    "scrapes' edges would be seen.",
                    "percentunit",
                    "a line at 1 %: beyond, one of them misses readings or reads another card.",
                ),
                [Query(q.dcgm_difference("1h"), q.CARD_NAME)],
                12,
                _ONE_PERCENT,
                no_value=NO_DCGM,
                soft_max=0.01,
            ),
        ],
    )
