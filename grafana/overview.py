"""The board ``Joulemeter / Overview``: what inference takes per token, and how far to trust it."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.panels import SILENT, About, Query, graph_panel, heat_panel, stat_panel
from grafana.trust import meter_state, quality, trust_section

UID = "joulemeter-overview"

# A token that takes no energy, or less than none, is a broken meter, not a frugal model.
_ABOVE_ZERO = ((None, "red"), (1e-9, "green"))
_BROKEN = "red at zero or below, which no token can take: the meter is broken."
_PLAIN = ((None, "blue"),)
_PER_REQUEST = "joulemeter_request_energy_joules"
_PER_OUTPUT_TOKEN = "joulemeter_output_token_energy_joules"
_NO_PRICE = "No traffic or no price"
_SILENT_OR_UNPRICED = f"No price set; or {SILENT[0].lower()}{SILENT[1:]}"


def overview() -> str:
    """The board as JSON, top to bottom: figures, power, requests, cost, trust."""
    return board_json(
        UID,
        "Joulemeter / Overview",
        "Energy and cost of LLM inference, per token and per request, with what proves them.",
        [_figures(), _power(), _requests(), _cost(), trust_section()],
    )


def _figures() -> Section:
    """What matters at a glance, over the time shown."""
    return Section(
        "",
        [
            meter_state(),
            quality(),
            _power_now(),
            _idle_share(),
            _kwh_per_million_tokens(),
            _cost_per_million_tokens(),
            _joules_per_token("J per output token", "output", "generated tokens"),
            _joules_per_token("J per token", "total", "all tokens, cached ones included"),
            _cost_per_hour_now(),
            _requests_now(),
            _tokens_now(),
        ],
    )


def _power_now() -> Panel:
    return stat_panel(
        About(
            "Power now",
            "Power of all metered GPUs at their last reading.",
            "watt",
            "red below 1 W: no GPU draws so little, the reading is not live.",
        ),
        [Query(f"sum({q.series('joulemeter_gpu_power_watts', scope=q.TARGET)})")],
        3,
        ((None, "red"), (1.0, "green")),
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
        ((None, "green"), (0.3, "orange"), (0.6, "red")),
        nan="No energy yet",
    )


def _kwh_per_million_tokens() -> Panel:
    return stat_panel(
        About(
            "kWh per million output tokens",
            "Energy at the GPU boundary, no PUE, over the time shown: of the requests alone, and "
            "with the idle energy spread over the tokens.",
            "suffix:kWh",
            _BROKEN,
        ),
        [
            Query(q.figure(q.kwh_per_million_tokens(phases, "output", window=q.RANGE)), legend)
            for legend, phases in (("with idle", q.WITH_IDLE), ("without idle", q.ATTRIBUTED))
        ],
        6,
        _ABOVE_ZERO,
    )


def _joules_per_token(title: str, token_type: str, tokens: str) -> Panel:
    return stat_panel(
        About(
            title,
            f"Joules over {tokens}, over the time shown. 3.6 J per token are 1 kWh per million "
            "tokens.",
            "suffix:J/tok",
            _BROKEN,
        ),
        [
            Query(q.figure(q.joules_per_token(phases, token_type, window=q.RANGE)), legend)
            for legend, phases in (("with idle", q.WITH_IDLE), ("without idle", q.ATTRIBUTED))
        ],
        6,
        _ABOVE_ZERO,
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
        4,
        ((None, "red"), (0.0, "blue")),
        nan="No price set",
    )


def _requests_now() -> Panel:
    return stat_panel(
        About("Requests / s", "Requests ended per second, aborted ones too.", "reqps"),
        [Query(q.figure(q.rate(q.series("joulemeter_requests_total"))))],
        4,
        _PLAIN,
    )


def _tokens_now() -> Panel:
    return stat_panel(
        About("Output tok/s", "Generated tokens per second, as settled.", "count:tok/s"),
        [Query(q.figure(q.tokens_per_s("output")))],
        4,
        _PLAIN,
    )


def _power() -> Section:
    power = q.series("joulemeter_gpu_power_watts", scope=q.TARGET)
    return Section(
        "Power and energy",
        [
            graph_panel(
                About(
                    "Power by GPU",
                    "Instantaneous power at each scrape, for display; energy never comes from it.",
                    "watt",
                ),
                [Query(f"max by (instance, gpu) ({power})", "{{instance}} GPU {{gpu}}")],
                12,
            ),
            graph_panel(
                About(
                    "Where the power goes",
                    "Every account, stacked. The top of the stack is all that the hardware's "
                    "counters moved.",
                    "watt",
                ),
                [Query(q.energy_w('phase!=""', "phase"), "{{phase}}")],
                12,
                stacked=True,
            ),
            *_per_token_over_time(),
        ],
    )


def _per_token_over_time() -> list[Panel]:
    prefill, decode, by = 'phase="prefill"', 'phase="decode"', "model_name"
    return [
        graph_panel(
            About(
                "J per output token",
                "By model, of the requests alone and with idle.",
                "suffix:J/tok",
                "a line at 0, which no token can reach.",
            ),
            [
                Query(q.joules_per_token(q.ATTRIBUTED, "output", by), "{{model_name}}"),
                Query(q.joules_per_token(q.WITH_IDLE, "output", by), "{{model_name}} with idle"),
            ],
            8,
            ((None, "green"), (0.0, "red")),
            no_value=SILENT,
        ),
        graph_panel(
            About(
                "Prefill against decode",
                "Joules per token of each phase: prefill over prompt tokens computed (cached "
                "ones cost nothing), decode over tokens generated.",
                "suffix:J/tok",
            ),
            [
                Query(q.joules_per_token(prefill, "input", by), "{{model_name}} prefill"),
                Query(q.joules_per_token(decode, "output", by), "{{model_name}} decode"),
            ],
            8,
            no_value=SILENT,
        ),
        graph_panel(
            About(
                "Idle share",
                "Part of all energy that went by while no request ran.",
                "percentunit",
                "lines at 30 % and 60 %: beyond, most of what a token costs is waiting.",
            ),
            [Query(q.idle_share(), "idle")],
            8,
            ((None, "green"), (0.3, "orange"), (0.6, "red")),
        ),
    ]


def _requests() -> Section:
    ended = q.series("joulemeter_requests_total")
    tokens = q.series("joulemeter_tokens_total")
    buckets = q.series(f"{_PER_REQUEST}_bucket")
    return Section(
        "Requests",
        [
            heat_panel(
                About(
                    "J per request",
                    "How the joules of single requests are spread. A dot is an exemplar: it names "
                    "a request whose receipt the meter serves.",
                    "joule",
                ),
                Query(q.rate(buckets, "le"), "{{le}}"),
                12,
            ),
            _quantiles("J per request, quantiles", _PER_REQUEST, "joule", 12),
            _quantiles("J per output token, quantiles", _PER_OUTPUT_TOKEN, "suffix:J/tok", 8),
            graph_panel(
                About("Requests / s by end", "Requests ended, by the engine's reason.", "reqps"),
                [Query(q.rate(ended, "finished_reason"), "{{finished_reason}}")],
                8,
                stacked=True,
                no_value=SILENT,
            ),
            graph_panel(
                About(
                    "Tokens / s",
                    "Prompt tokens computed, prompt tokens from the prefix cache, generated "
                    "tokens; counted when their energy is settled.",
                    "count:tok/s",
                ),
                [Query(q.rate(tokens, "token_type"), "{{token_type}}")],
                8,
                stacked=True,
                no_value=SILENT,
            ),
        ],
    )


def _quantiles(title: str, histogram: str, unit: str, width: int) -> Panel:
    text = "Over requests, one observation each when its receipt is final."
    return graph_panel(
        About(title, text, unit),
        [Query(q.quantile(p, histogram), f"p{p * 100:.0f}") for p in (0.5, 0.9, 0.99)],
        width,
        no_value=SILENT,
        exemplars=True,
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
                ),
                [Query(per_million, "{{model_name}} ({{currency}})")],
                12,
                no_value=_SILENT_OR_UNPRICED,
            ),
        ],
    )
