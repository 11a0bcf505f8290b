"""The figures that stand first on every board: is the meter there, and how good is its source.

They tell a quiet engine from a blind meter: where a figure below says ``No traffic``, these say
whether that can be believed.
"""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Panel
from grafana.panels import About, Query, stat_panel

# A token that takes no energy, or less than none, is a broken meter, not a frugal model.
ABOVE_ZERO = ((None, "red"), (1e-9, "green"))
BROKEN = "red at zero or below, which no token can take: the meter is broken."
PLAIN = ((None, "blue"),)


def meter_state(width: int = 3) -> Panel:
    """The panel that tells a quiet engine from a blind meter."""
    age = q.series("joulemeter_device_age_seconds", scope=q.TARGET)
    return stat_panel(
        About(
            "Meter",
            "Age of the last reading, of the device that was read least lately. No figure on this "
            "board is younger.",
            "s",
            "orange from 2 s, red from 10 s: readings have stopped; whatever ran since will be "
            "accounted when they return, but not split truly.",
        ),
        [Query(f"max({age})")],
        width,
        ((None, "green"), (2.0, "orange"), (10.0, "red")),
    )


def quality(width: int = 3) -> Panel:
    """The worst quality of what is shown."""
    return stat_panel(
        About(
            "Quality",
            "The worst quality of all sources shown: a total is as good as its worst part.",
            "none",
            "green measured by a counter, orange estimated, purple simulated.",
        ),
        [Query(q.worst_quality())],
        width,
        ((None, "green"), (1.0, "orange"), (2.0, "purple")),
        names=("measured", "estimated", "simulated"),
    )


def conservation(width: int = 6) -> Panel:
    """The one sum that must hold."""
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
        width,
        ((None, "green"), (1e-6, "orange"), (1e-3, "red")),
        nan="No energy yet",
        decimals=4,
    )


def power_now(scope: str = q.TARGET, width: int = 3) -> Panel:
    """What is drawn at this moment."""
    return stat_panel(
        About(
            "Power now",
            "Power of all metered GPUs at their last reading.",
            "watt",
            "red below 1 W: no GPU draws so little, the reading is not live.",
        ),
        [Query(f"sum({q.series('joulemeter_gpu_power_watts', scope=scope)})")],
        width,
        ((None, "red"), (1.0, "green")),
    )


def requests_now(width: int = 3) -> Panel:
    """Requests ended per second."""
    return stat_panel(
        About("Requests / s", "Requests ended per second, aborted ones too.", "reqps"),
        [Query(q.figure(q.rate(q.series("joulemeter_requests_total"))))],
        width,
        PLAIN,
    )


def tokens_now(width: int = 3) -> Panel:
    """Tokens generated per second."""
    return stat_panel(
        About("Output tok/s", "Generated tokens per second, as settled.", "count:tok/s"),
        [Query(q.figure(q.tokens_per_s("output")))],
        width,
        PLAIN,
    )
