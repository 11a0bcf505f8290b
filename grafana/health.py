"""The board ``Joulemeter / Meter health``: do the accounts close, and how good are the sources."""

from __future__ import annotations

from grafana import head
from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.panels import BLIND, About, Query, graph_panel, stat_panel
from grafana.tables import Column, labels_panel, table_panel

UID = "joulemeter-health"

_NOTHING = "Nothing here; or, if Meter says so above, meter blind"
_NOT_FOUND = f"Not found yet; or {BLIND.lower()}"
_NAME = "{{instance}} GPU {{gpu}}"
_NONE_ALLOWED = ((None, "green"), (1e-9, "red"))


def health() -> str:
    """The board as JSON, top to bottom: figures, conservation, counter, sources, coefficients."""
    return board_json(
        UID,
        "Joulemeter / Meter health",
        "Whether the meter can be believed: conservation, its counters, its sources, its model.",
        [_figures(), _conservation(), _counter(), _sources(), _coefficients()],
    )


def _figures() -> Section:
    return Section(
        "",
        [
            head.meter_state(4),
            head.quality(4),
            head.conservation(4),
            _receipts(),
            _unattributed_share(),
            _lost(),
        ],
    )


def _receipts() -> Panel:
    return stat_panel(
        About(
            "Receipts against accounts",
            "The sum of all receipts, open and closed, over what the accounts attributed, less "
            "one. The two are summed on ways of their own.",
            "percentunit",
            "orange beyond one in a million, more than rounding can do: report it. Red beyond "
            "0.1 %: do not bill.",
        ),
        [Query(q.figure(q.receipts_error()))],
        4,
        ((None, "green"), (1e-6, "orange"), (1e-3, "red")),
        decimals=4,
    )


def _unattributed_share() -> Panel:
    return stat_panel(
        About(
            "Unattributed share",
            "Part of the energy, over the time shown, that no request, idle time or start-up "
            "explains. It is shown, never spread over requests.",
            "percentunit",
            "orange from 0.2 %, the meter's own promise; red from 1 %: look at the reasons below.",
        ),
        [Query(q.figure(q.unattributed_share(q.RANGE)))],
        4,
        ((None, "green"), (0.002, "orange"), (0.01, "red")),
        nan="No energy yet",
        decimals=3,
    )


def _lost() -> Panel:
    names = ("joulemeter_datagrams_lost_total", "joulemeter_events_dropped_total")
    lost = (f"sum(increase({q.series(name, scope=q.TARGET)}[{q.RANGE}]))" for name in names)
    return stat_panel(
        About(
            "Messages lost",
            "Messages of engines, over the time shown, that never arrived or were dropped because "
            "the meter's queue was full. Their steps make unattributed energy.",
            "short",
            "red above zero: there should be none.",
        ),
        [Query(" + ".join(lost))],
        4,
        ((None, "green"), (0.5, "red")),
        decimals=0,
    )


def _conservation() -> Section:
    moved = q.rate(q.series("joulemeter_gpu_energy_joules_total", scope=q.TARGET))
    accounts = q.rate(q.series("joulemeter_energy_joules_total", scope=q.TARGET))
    pending = q.series("joulemeter_pending_joules", scope=q.TARGET)
    unattributed = q.series("joulemeter_unattributed_joules_total", scope=q.TARGET)
    return Section(
        "Conservation",
        [
            graph_panel(
                About(
                    "Measured against accounts",
                    "What the hardware's counters moved, and the sum of all accounts. The two "
                    "lines lie on each other.",
                    "watt",
                    "a line at 0 W: below it an account would give energy back, which none can.",
                ),
                [Query(moved, "hardware"), Query(accounts, "accounts")],
                12,
                ((None, "red"), (0.0, "green")),
                behind="/^hardware$/",
            ),
            graph_panel(
                About(
                    "Conservation error",
                    "All accounts over all that the hardware's counters moved, less one; receipts "
                    "over what the accounts attributed, less one. Each at one moment.",
                    "percentunit",
                    "a line at 0.1 %: beyond, do not bill.",
                ),
                [
                    Query(q.conservation_error(), "accounts"),
                    Query(q.receipts_error(), "receipts"),
                ],
                12,
                ((None, "green"), (1e-3, "red")),
                soft_max=1e-3,
            ),
            graph_panel(
                About(
                    "Pending",
                    "Energy that the counters moved and that is not settled yet, about two "
                    "seconds' worth. If it grows, settling is stuck.",
                    "joule",
                    "a line at 10 kJ, more than ten seconds of the strongest card.",
                ),
                [Query(f"sum by (instance, gpu) ({pending})", _NAME)],
                12,
                ((None, "green"), (10_000.0, "red")),
            ),
            graph_panel(
                About(
                    "Unattributed by reason",
                    "Power that no request, idle time or start-up explains.",
                    "watt",
                ),
                [Query(q.rate(unattributed, "reason"), "{{reason}}")],
                12,
                stacked=True,
                no_value=_NOTHING,
            ),
        ],
    )


def _counter() -> Section:
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
                [Query(_of_card("joulemeter_gpu_energy_refresh_seconds"), _NAME)],
                6,
                ((None, "green"), (1.0, "orange")),
                no_value=_NOT_FOUND,
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
                    Query(_of_card("joulemeter_gpu_energy_latency_seconds"), f"{_NAME} lag"),
                    Query(lag_sd, f"{_NAME} lag's doubt"),
                    Query(_of_card("joulemeter_gpu_energy_smear_seconds"), f"{_NAME} smear"),
                ],
                10,
                ((None, "green"), (1.0, "orange")),
                no_value=_NOT_FOUND,
            ),
            graph_panel(
                About(
                    "Stands still",
                    "How long a counter has not moved although its card draws power.",
                    "s",
                    "a line at 60 s: its card is in no figure any more.",
                ),
                [Query(_of_card("joulemeter_gpu_energy_still_seconds"), _NAME)],
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


def _sources() -> Section:
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
                [Query(_of_card("joulemeter_sample_latency_seconds"), _NAME)],
                8,
                ((None, "green"), (0.01, "orange")),
                soft_max=0.01,
                no_value=_NOT_FOUND,
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


def _coefficients() -> Section:
    by = "instance, gpu, name"
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
                    "token, e joules for all experts. Doubt is one standard deviation; drift is "
                    "the change over the time shown.",
                    "none",
                    "of the doubt: orange from 20 %, the data cannot tell it well. Of the drift: "
                    "orange beyond 20 % either way.",
                ),
                {"instance": "Instance", "gpu": "GPU", "name": "Coefficient"},
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
                _NOT_FOUND,
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
                no_value=_NOT_FOUND,
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
