"""The board ``Joulemeter / GPUs``: each card's counter, who uses it, its cap, its idle time."""

from __future__ import annotations

from grafana import head
from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.dcgm import beside_dcgm, disagreement_now
from grafana.limits import idle, throttling
from grafana.panels import BLIND, About, Query, graph_panel, stat_panel
from grafana.tables import labels_panel

UID = "joulemeter-gpus"


def gpus() -> str:
    """The board as JSON, top to bottom: figures, counter, use, throttling, idle, DCGM."""
    return board_json(
        UID,
        "Joulemeter / GPUs",
        "What each card's energy counter moved, who used it, and where it stood at its limit.",
        [_figures(), _counter(), _use(), throttling(), idle(), beside_dcgm()],
        gpus=True,
    )


def _figures() -> Section:
    return Section(
        "",
        [
            head.meter_state(),
            head.quality(),
            head.power_now(q.GPU),
            _energy(),
            _at_the_cap(),
            _stranger(),
            disagreement_now(),
        ],
    )


def _energy() -> Panel:
    moved = q.series("joulemeter_gpu_energy_joules_total", scope=q.GPU)
    return stat_panel(
        About(
            "Energy",
            "What the cards' counters moved over the time shown.",
            "kwatth",
            "red at zero: no card that runs takes nothing, its counter stands still.",
        ),
        [Query(f"sum(increase({moved}[{q.RANGE}])) / {q.JOULES_PER_KWH}")],
        3,
        head.ABOVE_ZERO,
        nan="No energy yet",
    )


def _at_the_cap() -> Panel:
    return stat_panel(
        About(
            "Time at the power limit",
            "Of the card that was there most: the part of the time shown in which its power stood "
            "within 2 % of its limit. There it is throttled: steps take longer.",
            "percentunit",
            "orange from 20 %, red from 80 %: more power, or fewer requests at once, would be "
            "faster.",
        ),
        [Query(q.figure(f"max({q.cap_share()})"))],
        4,
        ((None, "green"), (0.2, "orange"), (0.8, "red")),
        nan="No limit known",
        decimals=1,
    )


def _stranger() -> Panel:
    foreign = q.series(
        "joulemeter_unattributed_joules_total", 'reason="foreign_load"', scope=q.TARGET
    )
    moved = q.rate(q.series("joulemeter_gpu_energy_joules_total", scope=q.TARGET), window=q.RANGE)
    taken = q.rate(foreign, window=q.RANGE)
    return stat_panel(
        About(
            "A stranger's share",
            "Part of the energy, over the time shown, that somebody else on the cards took: a "
            "lasting excess over what the metered engines can explain.",
            "percentunit",
            "orange from 1 %, red from 5 %: find the other process, it slows the engine too.",
        ),
        [Query(q.figure(q.ratio(f"({taken} or {moved} * 0)", moved)))],
        4,
        ((None, "green"), (0.01, "orange"), (0.05, "red")),
        nan="No energy yet",
        decimals=2,
    )


def _counter() -> Section:
    power = f"max by ({q.CARD}) ({q.series('joulemeter_gpu_power_watts', scope=q.GPU)})"
    gap = q.series("joulemeter_gpu_energy_gap_ratio", scope=q.GPU)
    return Section(
        "Counter against power",
        [
            graph_panel(
                About(
                    "Counter and power",
                    "Watts from the energy counter, and the instant power at each scrape. The "
                    "counter is the truth; power only shows that both mean the same card.",
                    "watt",
                    "a line at 0 W, which no card under power can reach.",
                ),
                [
                    Query(q.counter_w(q.CARD), f"{q.CARD_NAME} counter"),
                    Query(power, f"{q.CARD_NAME} power"),
                ],
                16,
                ((None, "red"), (0.0, "green")),
                behind="/ counter$/",
            ),
            graph_panel(
                About(
                    "Counter over power",
                    "By how much the counter moved more than the integral of the instant power, "
                    "over the meter's own readings of the last half minute. The two are made by "
                    "different parts of the card.",
                    "percentunit",
                    "lines at 10 % both ways: there the meter warns too; only a meter at the plug "
                    "tells which of the two is right.",
                ),
                [Query(f"max by ({q.CARD}) ({gap})", q.CARD_NAME)],
                8,
                ((None, "red"), (-0.1, "green"), (0.1, "red")),
                soft_max=0.1,
                no_value="No power to compare with, or meter blind",
            ),
        ],
    )


def _use() -> Section:
    uses = q.series("joulemeter_engine_gpu_info", scope=q.GPU)
    by_engine = q.energy_w('phase!=""', "instance, engine, model_name")
    card = q.series("joulemeter_gpu_info", scope=q.GPU)
    host = q.series("joulemeter_host_cpu_energy_joules_total", scope=q.TARGET)
    return Section(
        "Who uses which card",
        [
            labels_panel(
                About("Engines", "Which engine uses which card. A stranger is not here.", "none"),
                Query(uses),
                {
                    "instance": "Instance",
                    "gpu": "GPU",
                    "gpu_uuid": "UUID",
                    "engine": "Engine",
                    "model_name": "Model",
                },
                12,
                "No engine yet, or meter blind",
            ),
            labels_panel(
                About("Cards", "Every metered device, and how its figures come about.", "none"),
                Query(card),
                {
                    "instance": "Instance",
                    "gpu": "GPU",
                    "gpu_name": "Name",
                    "boundary": "Boundary",
                    "quality": "Quality",
                },
                12,
                BLIND,
            ),
            graph_panel(
                About(
                    "Power by engine",
                    "All accounts of each engine, idle included; what belongs to none has no "
                    "engine. An engine on several cards has one line for all of them.",
                    "watt",
                ),
                [Query(by_engine, "{{instance}} engine {{engine}} {{model_name}}")],
                12,
                stacked=True,
            ),
            graph_panel(
                About(
                    "The host's CPU",
                    "What the CPU packages and their memory take: the engines' part, and all "
                    "other. It is beside the cards' energy, in no account of theirs.",
                    "watt",
                ),
                [Query(q.rate(host, "share"), "{{share}}")],
                12,
                stacked=True,
                no_value="The host's CPU is not read; or meter blind",
            ),
        ],
    )
