"""Where the meter's joules and tokens come from: the energy counters, readings, losses."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Panel, Section
from grafana.panels import BLIND, NOT_FOUND, About, Query, graph_panel
from grafana.tables import labels_panel

_NONE_ALLOWED = ((None, "green"), (1e-9, "red"))


def counter() -> Section:
    lag_sd = _of_card("joulemeter_gpu_energy_latency_sd_seconds")
    events = (
        ("joulemeter_device_resets_total", "resets"),
        ("joulemeter_gpu_energy_jumps_total", "jumps"),
    )
    return Section(
        "The energy counter",
        [
            graph_panel(
                About(
                    "Refresh",
                    "How often the counter moves, as found from its readings: 100 ms on Hopper. "
                    "What happens within one refresh cannot be told apart.",
                    "s",
                    "a line at 1 s: a counter that slow tells requests apart badly.",
                ),
                [Query(_of_card("joulemeter_gpu_energy_refresh_seconds"), q.CARD_NAME)],
                6,
                ((None, "green"), (1.0, "orange")),
                no_value=NOT_FOUND,
            ),
            graph_panel(
                About(
                    "Lag and smear",
                    "How late the counter shows what was drawn, with one standard deviation, and "
                    "over how long it averages. Absent until the load has varied enough to show "
                    "them.",
                    "s",
                    "a line at 1 s: beyond, look whether the clocks are right.",
                ),
                [
                    Query(_of_card("joulemeter_gpu_energy_latency_seconds"), f"{q.CARD_NAME} lag"),
                    Query(lag_sd, f"{q.CARD_NAME} lag's doubt"),
                    Query(_of_card("joulemeter_gpu_energy_smear_seconds"), f"{q.CARD_NAME} smear"),
                ],
                10,
                ((None, "green"), (1.0, "orange")),
                no_value=NOT_FOUND,
            ),
            graph_panel(
                About(
                    "Stands still",
                    "How long a counter has not moved although its card draws power.",
                    "s",
                    "a line at 60 s: its card's figures are estimated, from its power.",
                ),
                [Query(_of_card("joulemeter_gpu_energy_still_seconds"), q.CARD_NAME)],
                4,
                ((None, "green"), (60.0, "red")),
                soft_max=60,
            ),
            graph_panel(
                About(
                    "Resets and jumps",
                    "Times a counter went backwards (a driver was loaded anew), or moved by more "
                    "than the card can draw. Neither is in the accounts.",
                    "short",
                    "a line just above 0: there should be none.",
                ),
                [
                    Query(f"sum(increase({q.series(name, scope=q.TARGET)}[{q.STEP}]))", legend)
                    for name, legend in events
                ],
                4,
                _NONE_ALLOWED,
                soft_max=1,
            ),
        ],
    )


def _of_card(metric: str) -> str:
    return f"max by (instance, gpu) ({q.series(metric, scope=q.TARGET)})"


def sources() -> Section:
    age = q.series("joulemeter_source_age_seconds", scope=q.TARGET)
    samples = q.series("joulemeter_samples_total", scope=q.TARGET)
    return Section(
        "Sources",
        [
            graph_panel(
                About(
                    "Age of sources",
                    "Time since each source last said something. An idle engine says nothing, so "
                    "only the power source must stay young.",
                    "s",
                    "a line at 2 s, where power readings count as late.",
                ),
                [Query(f"max by (instance, source) ({age})", "{{instance}} {{source}}")],
                8,
                ((None, "green"), (2.0, "orange")),
            ),
            graph_panel(
                About(
                    "Readings / s",
                    "Readings of energy counters taken, some 50 a second for each card.",
                    "cps",
                    "a line at 10: with fewer, the counter's refresh is seen late.",
                ),
                [Query(q.rate(samples, "instance"), "{{instance}}")],
                8,
                ((None, "red"), (10.0, "green")),
            ),
            graph_panel(
                About(
                    "How long a reading takes",
                    "The last call to the energy counter. Calls queue in the driver behind "
                    "everybody else's.",
                    "s",
                    "a line at 10 ms, half of the time between two readings.",
                ),
                [Query(_of_card("joulemeter_sample_latency_seconds"), q.CARD_NAME)],
                8,
                ((None, "green"), (0.01, "orange")),
                soft_max=0.01,
                no_value=NOT_FOUND,
            ),
            _losses(),
            labels_panel(
                About("Versions", "Which meter runs where.", "none"),
                Query(q.series("joulemeter_build_info", scope=q.TARGET)),
                {"job": "Job", "instance": "Instance", "version": "Version"},
                6,
                BLIND,
                height=8,
            ),
            labels_panel(
                About(
                    "Engines",
                    "What each meter sees of its engines: steps, a stream of chunks, or counters "
                    "alone.",
                    "none",
                ),
                Query(q.series("joulemeter_engine_info")),
                {
                    "instance": "Instance",
                    "engine": "Engine",
                    "model_name": "Model",
                    "fidelity": "Seen by",
                    "engine_version": "Version",
                },
                10,
                "No engine yet, or meter blind",
                height=8,
            ),
        ],
    )


def _losses() -> Panel:
    # A source that never failed has no count of failures, and that is a zero while it is read.
    samples = q.rate(q.series("joulemeter_samples_total", scope=q.TARGET))
    failed = q.rate(q.series("joulemeter_sample_errors_total", scope=q.TARGET))
    losses = (
        ("joulemeter_samples_missed_total", "readings left out"),
        ("joulemeter_datagrams_lost_total", "messages lost"),
        ("joulemeter_events_dropped_total", "events dropped"),
        ("joulemeter_late_events_total", "events too late"),
        ("joulemeter_lost_steps_total", "steps not seen"),
    )
    return graph_panel(
        About(
            "Errors and losses / s",
            "Readings that failed, and what engines said that was not heard, or too late. Lost "
            "steps make unattributed energy.",
            "cps",
            "a line just above 0: there should be none.",
        ),
        [
            Query(f"{failed} or {samples} * 0", "readings failed"),
            *(Query(q.rate(q.series(name, scope=q.TARGET)), legend) for name, legend in losses),
        ],
        8,
        _NONE_ALLOWED,
        soft_max=1,
    )
