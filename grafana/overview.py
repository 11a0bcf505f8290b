"""The board ``Joulemeter / Overview``: what inference takes per token, and what it costs."""

from __future__ import annotations

from grafana import head
from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.panels import BLIND, SILENT, About, Query, bar_panel, graph_panel, stat_panel

UID = "joulemeter-overview"

_NO_PRICE = "No traffic or no price"
_SILENT_OR_UNPRICED = f"No price set; or {SILENT[0].lower()}{SILENT[1:]}"
_IDLE_LEVELS = ((None, "green"), (0.3, "orange"), (0.6, "red"))
_ZERO_LINE = ((None, "red"), (0.0, "green"))
_BOTH = (("with idle", q.WITH_IDLE), ("without idle", q.ATTRIBUTED))


def overview() -> str:
    """The board as JSON, top to bottom: figures, power, energy per token, cost."""
    return board_json(
        UID,
        "Joulemeter / Overview",
        "Energy and cost of LLM inference: where the power goes and what a token takes.",
        [_figures(), _power(), _per_token(), _cost()],
    )


def _figures() -> Section:
    """What matters at a glance, over the time shown."""
    return Section(
        "",
        [
            head.meter_state(),
            head.quality(),
            head.power_now(),
            _idle_share(),
            _kwh_per_million_tokens(),
            _cost_per_million_tokens(),
            _joules_per_token("J per output token", "output", "generated tokens"),
            _joules_per_token("J per total token", "total", "all tokens, cached ones included"),
            _cost_per_hour_now(),
            head.requests_now(),
            head.tokens_now(),
            head.conservation(3),
        ],
    )


def _idle_share() -> Panel:
    return stat_panel(
        About(
            "Idle share",
            "Part of the energy, over the time shown, that went by while no request ran.",
            "percentunit",
            "orange from 30 %, red from 60 %: most of what a token costs is then waiting.",
        ),
        [Query(q.figure(q.idle_share(q.RANGE)))],
        3,
        _IDLE_LEVELS,
        nan="No energy yet",
        decimals=1,
    )


def _kwh_per_million_tokens() -> Panel:
    return stat_panel(
        About(
            "kWh per million output tokens",
            "Energy at the GPU boundary, no PUE, over the time shown: of the requests alone, and "
            "with the idle energy spread over the tokens.",
            "suffix:kWh",
            head.BROKEN,
        ),
        [
            Query(q.figure(q.kwh_per_million_tokens(phases, "output", window=q.RANGE)), legend)
            for legend, phases in _BOTH
        ],
        6,
        head.ABOVE_ZERO,
    )


def _joules_per_token(title: str, token_type: str, tokens: str) -> Panel:
    return stat_panel(
        About(
            title,
            f"Joules over {tokens}, over the time shown. 3.6 J per token are 1 kWh per million "
            "tokens.",
            "suffix:J/tok",
            head.BROKEN,
        ),
        [
            Query(q.figure(q.joules_per_token(phases, token_type, window=q.RANGE)), legend)
            for legend, phases in _BOTH
        ],
        6,
        head.ABOVE_ZERO,
    )


def _cost_per_million_tokens() -> Panel:
    cost = q.cost_per_million_tokens("output", "currency", q.RANGE)
    return stat_panel(
        About(
            "Cost per million output tokens",
            "Over the time shown, of the components whose price is set; idle, start-up and "
            "unattributed energy included, and the PUE where one is set.",
            "short",
            "red below zero: electricity was so cheap that tokens earned money.",
        ),
        [Query(q.figure(cost), "{{currency}}")],
        6,
        ((None, "red"), (0.0, "blue")),
        nan=_NO_PRICE,
    )


def _cost_per_hour_now() -> Panel:
    return stat_panel(
        About(
            "Cost per hour",
            "What the metered hardware costs at the present rate, of the components whose price "
            "is set.",
            "short",
            "red below zero: electricity now pays back more than all else costs.",
        ),
        [Query(q.figure(f"3600 * {q.cost_per_s('currency')}"), "{{currency}}")],
        3,
        ((None, "red"), (0.0, "blue")),
        nan="No price set",
    )


def _power() -> Section:
    power = q.series("joulemeter_gpu_power_watts", scope=q.TARGET)
    by_gpu = f"max by (instance, gpu) ({power})"
    return Section(
        "Power",
        [
            graph_panel(
                About(
                    "Where the power goes",
                    "Every account, stacked. The top of the stack is all that the hardware's "
                    "counters moved.",
                    "watt",
                ),
                [Query(q.energy_w('phase!=""', "phase"), "{{phase}}")],
                10,
                stacked=True,
            ),
            graph_panel(
                About(
                    "Power by GPU",
                    "Instantaneous power at each scrape, for display; energy never comes from it.",
                    "watt",
                    "a line at 0 W, which no card under power can reach.",
                ),
                [Query(by_gpu, "{{instance}} GPU {{gpu}}")],
                8,
                _ZERO_LINE,
            ),
            bar_panel(
                About(
                    "Power now by device",
                    "At the last reading, highest first.",
                    "watt",
                    "red below 1 W: no GPU draws so little, the reading is not live.",
                ),
                [Query(f"sort_desc({by_gpu})", "{{instance}} GPU {{gpu}}")],
                6,
                ((None, "red"), (1.0, "green")),
                no_value=BLIND,
            ),
        ],
    )


def _per_token() -> Section:
    return Section(
        "Energy per token",
        [
            _both_over_time("J per output token", "output", "generated tokens"),
            _both_over_time("J per total token", "total", "all tokens, cached ones included"),
            _prefill_against_decode(),
            graph_panel(
                About(
                    "Idle share",
                    "Part of all energy that went by while no request ran.",
                    "percentunit",
                    "lines at 30 % and 60 %: beyond, most of what a token costs is waiting.",
                ),
                [Query(q.idle_share(), "idle")],
                12,
                _IDLE_LEVELS,
            ),
        ],
    )


def _both_over_time(title: str, token_type: str, tokens: str) -> Panel:
    by = "model_name"
    return graph_panel(
        About(
            title,
            f"By model, over {tokens}: of the requests alone and with idle.",
            "suffix:J/tok",
            "a line at 0, which no token can reach.",
        ),
        [
            Query(q.joules_per_token(q.ATTRIBUTED, token_type, by), "{{model_name}}"),
            Query(q.joules_per_token(q.WITH_IDLE, token_type, by), "{{model_name}} with idle"),
        ],
        12,
        _ZERO_LINE,
        no_value=SILENT,
    )


def _prefill_against_decode() -> Panel:
    prefill, decode, by = 'phase="prefill"', 'phase="decode"', "model_name"
    return graph_panel(
        About(
            "Prefill against decode",
            "Joules per token of each phase: prefill over prompt tokens computed (cached ones cost "
            "nothing), decode over tokens generated.",
            "suffix:J/tok",
            "a line at 0, which no token can reach.",
        ),
        [
            Query(q.joules_per_token(prefill, "input", by), "{{model_name}} prefill"),
            Query(q.joules_per_token(decode, "output", by), "{{model_name}} decode"),
        ],
        12,
        _ZERO_LINE,
        no_value=SILENT,
    )


def _cost() -> Section:
    per_hour = f"3600 * {q.cost_per_s('component, currency')}"
    per_million = q.cost_per_million_tokens("output", "model_name, currency")
    return Section(
        "Cost",
        [
            graph_panel(
                About(
                    "Cost per hour by component",
                    "Of the components whose price is set. Without a PUE, electricity is a lower "
                    "bound.",
                    "short",
                ),
                [Query(per_hour, "{{component}} ({{currency}})")],
                12,
                stacked=True,
                no_value="No price set, or meter blind",
            ),
            graph_panel(
                About(
                    "Cost per million output tokens",
                    "By model, the model's idle included.",
                    "short",
                    "a line at 0: below it electricity pays back more than all else costs.",
                ),
                [Query(per_million, "{{model_name}} ({{currency}})")],
                12,
                _ZERO_LINE,
                no_value=_SILENT_OR_UNPRICED,
            ),
        ],
    )
