"""Panels on the meter itself: is it there, how good is its source, do its accounts close."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Panel, Section
from grafana.panels import BLIND, About, Query, graph_panel, stat_panel, table_panel

_NOTHING = "Nothing here; or, if Meter says so above, meter blind"


def meter_state() -> Panel:
    """The panel that tells a quiet engine from a blind meter."""
    age = q.series("joulemeter_source_age_seconds", 'source="power"', scope=q.TARGET)
    return stat_panel(
        About(
            "Meter",
            "Age of the oldest power reading. No figure on this board is younger.",
            "s",
            "orange from 2 s, red from 10 s: readings have stopped; whatever ran since will be "
            "accounted when they return, but not split truly.",
        ),
        [Query(f"max({age})")],
        3,
        ((None, "green"), (2.0, "orange"), (10.0, "red")),
    )


def quality() -> Panel:
    """The worst quality of what is shown."""
    return stat_panel(
        About(
            "Quality",
            "The worst quality of all sources shown: a total is as good as its worst part.",
            "none",
            "green measured by a counter, orange estimated, purple simulated.",
        ),
        [Query(q.worst_quality())],
        3,
        ((None, "green"), (1.0, "orange"), (2.0, "purple")),
        names=("measured", "estimated", "simulated"),
    )


def trust_section() -> Section:
    """Conservation, what is in no request's account, the meter's own health."""
    return Section(
        "Can it be believed",
        [_conservation(), _unattributed_share(), *_accounts(), *_health(), _sources()],
    )


def _conservation() -> Panel:
    return stat_panel(
        About(
            "Conservation error",
            "All accounts over all that the hardware's counters moved, less one. Both come from "
            "one settled state, so it holds at any moment, not only in the long run.",
            "percentunit",
            "orange beyond one in a million, more than rounding can do: report it. Red beyond "
            "0.1 %: do not bill.",
        ),
        [Query(q.figure(q.conservation_error()))],
        6,
        ((None, "green"), (1e-6, "orange"), (1e-3, "red")),
        nan="No energy yet",
        height=8,
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
        6,
        ((None, "green"), (0.002, "orange"), (0.01, "red")),
        nan="No energy yet",
        height=8,
        decimals=3,
    )


def _accounts() -> list[Panel]:
    moved = q.rate(q.series("joulemeter_gpu_energy_joules_total", scope=q.TARGET))
    accounts = q.rate(q.series("joulemeter_energy_joules_total", scope=q.TARGET))
    pending = q.series("joulemeter_pending_joules", scope=q.TARGET)
    unattributed = q.series("joulemeter_unattributed_joules_total", scope=q.TARGET)
    return [
        graph_panel(
            About(
                "Measured against accounts",
                "What the hardware's counters moved, and the sum of all accounts. The two lines "
                "lie on each other.",
                "watt",
            ),
            [Query(moved, "hardware"), Query(accounts, "accounts")],
            12,
        ),
        graph_panel(
            About(
                "Pending",
                "Energy that the counters moved and that is not settled yet, about two seconds' "
                "worth. If it grows, settling is stuck.",
                "joule",
            ),
            [Query(f"sum by (instance, gpu) ({pending})", "{{instance}} GPU {{gpu}}")],
            12,
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
    ]


def _health() -> list[Panel]:
    age = q.series("joulemeter_source_age_seconds", scope=q.TARGET)
    samples = q.series("joulemeter_samples_total", scope=q.TARGET)
    errors = q.series("joulemeter_sample_errors_total", scope=q.TARGET)
    lost = q.series("joulemeter_datagrams_lost_total", scope=q.TARGET)
    return [
        graph_panel(
            About(
                "Age of sources",
                "Time since each source last said something. An idle engine says nothing, so only "
                "the power source must stay young.",
                "s",
                "a line at 2 s, where power readings count as late.",
            ),
            [Query(f"max by (instance, source) ({age})", "{{instance}} {{source}}")],
            8,
            ((None, "green"), (2.0, "orange")),
        ),
        graph_panel(
            About("Readings / s", "Readings of energy counters taken.", "cps"),
            [Query(q.rate(samples, "instance"), "{{instance}}")],
            8,
        ),
        graph_panel(
            About(
                "Errors and losses / s",
                "Readings that failed, and messages of engines that never arrived. Lost messages "
                "make unattributed energy.",
                "cps",
                "a line just above 0: there should be none.",
            ),
            [
                Query(q.rate(errors, "source"), "failed readings: {{source}}"),
                Query(q.rate(lost), "lost messages"),
            ],
            8,
            ((None, "green"), (1e-9, "red")),
            no_value=BLIND,
        ),
    ]


def _sources() -> Panel:
    return table_panel(
        About("Sources", "Every metered device, and how its figures come about.", "none"),
        Query(q.series("joulemeter_gpu_info", scope=q.TARGET)),
        24,
        ("instance", "gpu", "gpu_name", "gpu_uuid", "boundary", "quality"),
    )
