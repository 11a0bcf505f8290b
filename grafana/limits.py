"""Where a card stands between rest and its limit: throttling, and idle time."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Section
from grafana.dcgm import NO_DCGM
from grafana.panels import BLIND, About, Query, bar_panel, graph_panel
from grafana.tables import Column, table_panel


def throttling() -> Section:
    power = f"max by ({q.CARD}) ({q.series('joulemeter_gpu_power_watts', scope=q.GPU)})"
    limit = f"max by ({q.CARD}) ({q.series('joulemeter_gpu_power_limit_watts', scope=q.GPU)})"
    clock = "gpu:dcgm_sm_clock_hertz:max"
    return Section(
        "Throttling",
        [
            graph_panel(
                About(
                    "Power as a part of the limit",
                    "A card at its limit lowers its clocks to stay there.",
                    "percentunit",
                    "a line at 98 %: from there on it is throttled.",
                ),
                [Query(q.ratio(power, limit), q.CARD_NAME)],
                8,
                ((None, "green"), (0.98, "red")),
                soft_max=1,
                no_value="No limit known, or meter blind",
            ),
            bar_panel(
                About(
                    "Time at the limit by card",
                    "Part of the time shown in which power stood within 2 % of the limit.",
                    "percentunit",
                    "orange from 20 %, red from 80 %.",
                ),
                [Query(f"sort_desc({q.cap_share()})", q.CARD_NAME)],
                8,
                ((None, "green"), (0.2, "orange"), (0.8, "red")),
                no_value="No limit known, or meter blind",
            ),
            graph_panel(
                About(
                    "SM clock, by DCGM",
                    "It falls when a card is throttled, and when it rests.",
                    "hertz",
                    "a line at 0 Hz, where a card is off.",
                ),
                [Query(q.of_card(clock), q.CARD_NAME)],
                8,
                ((None, "red"), (0.0, "green")),
                no_value=NO_DCGM,
            ),
        ],
    )


def idle() -> Section:
    by = "instance, engine"
    idle = q.energy_w('phase="idle"', by)
    share = q.ratio(q.energy_w('phase="idle"', by, q.RANGE), q.energy_w('phase!=""', by, q.RANGE))
    static = q.series("joulemeter_coefficient", 'name="static_w"', scope=q.GPU)
    static_sd = q.series("joulemeter_coefficient_sd", 'name="static_w"', scope=q.GPU)
    return Section(
        "Idle",
        [
            graph_panel(
                About(
                    "Idle power by engine",
                    "Power while an engine held no request. Of a shared card it is nobody's.",
                    "watt",
                ),
                [Query(idle, "{{instance}} engine {{engine}}")],
                8,
                stacked=True,
                no_value=f"Never idle; or {BLIND.lower()}",
            ),
            bar_panel(
                About(
                    "Idle share by engine",
                    "Part of an engine's energy, over the time shown, that went by without a "
                    "request.",
                    "percentunit",
                    "orange from 30 %, red from 60 %: put more on it, or switch it off.",
                ),
                [Query(f"sort_desc({share})", "{{instance}} engine {{engine}}")],
                8,
                ((None, "green"), (0.3, "orange"), (0.6, "red")),
                no_value=f"Never idle; or {BLIND.lower()}",
            ),
            table_panel(
                About(
                    "Static power",
                    "What a card takes to be on, as learned: it costs this much an hour whether "
                    "or not anybody asks. A card that is never idle cannot show it; its doubt "
                    "says so.",
                    "none",
                    "of the doubt: orange from 10 W.",
                ),
                {"instance": "Instance", "gpu": "GPU"},
                [
                    Column("Static power", f"max by ({q.CARD}) ({static})", "watt", 1),
                    Column(
                        "Doubt (1 sd)",
                        f"max by ({q.CARD}) ({static_sd})",
                        "watt",
                        1,
                        ((None, "green"), (10.0, "orange")),
                    ),
                ],
                8,
                f"Not learned yet; or {BLIND.lower()}",
            ),
        ],
    )
