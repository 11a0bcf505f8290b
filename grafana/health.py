"""The board ``Joulemeter / Meter health``: do the accounts close, and how good are the sources."""

from __future__ import annotations

from grafana import head
from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.learned import coefficients
from grafana.panels import About, Query, graph_panel, stat_panel
from grafana.sources import counter, sources

UID = "joulemeter-health"

_NOTHING = "Nothing here; or, if Meter says so above, meter blind"


def health() -> str:
    """The board as JSON, top to bottom: figures, conservation, counter, sources, coefficients."""
    return board_json(
        UID,
        "Joulemeter / Meter health",
        "Whether the meter can be believed: conservation, its counters, its sources, its model.",
        [_figures(), _conservation(), counter(), sources(), coefficients()],
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
                [Query(f"sum by (instance, gpu) ({pending})", q.CARD_NAME)],
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
