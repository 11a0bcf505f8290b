"""The board ``Joulemeter / Models and requests``: who takes how much, and how it is spread."""

from __future__ import annotations

from grafana import head
from grafana import queries as q
from grafana.board import Panel, Section, board_json
from grafana.panels import (
    SILENT,
    About,
    Query,
    Right,
    bar_panel,
    graph_panel,
    heat_panel,
    stat_panel,
)
from grafana.tables import Column, table_panel

UID = "joulemeter-models"

_PER_REQUEST = "joulemeter_request_energy_joules"
_PER_OUTPUT_TOKEN = "joulemeter_output_token_energy_joules"
_QUIET = "No traffic, or no vLLM metrics here; or, if Meter says so above, meter blind"
_ZERO_LINE = ((None, "red"), (0.0, "green"))
# Batch sizes, in steps of four: lower bound, upper bound (exclusive), name.
_BATCHES = ((1, 4, "1 to 3"), (4, 16, "4 to 15"), (16, 64, "16 to 63"), (64, None, "64 and more"))


def models() -> str:
    """The board as JSON, top to bottom: figures, ranking, requests, batch, traffic."""
    return board_json(
        UID,
        "Joulemeter / Models and requests",
        "Which models take the energy, and how the joules of requests are spread.",
        [_figures(), _ranking(), _requests(), _batch(), _traffic()],
    )


def _figures() -> Section:
    return Section(
        "",
        [
            head.meter_state(),
            head.quality(),
            head.requests_now(),
            head.tokens_now(),
            _quantile_now("J per request", _PER_REQUEST, "joule"),
            _quantile_now("J per output token, by request", _PER_OUTPUT_TOKEN, "suffix:J/tok"),
        ],
    )


def _quantile_now(title: str, histogram: str, unit: str) -> Panel:
    text = "Half of the requests over the time shown took less than p50, one in a hundred more "
    return stat_panel(
        About(title, text + "than p99.", unit, head.BROKEN),
        [
            Query(q.figure(q.quantile(p, histogram, window=q.RANGE)), f"p{p * 100:.0f}")
            for p in (0.5, 0.99)
        ],
        6,
        head.ABOVE_ZERO,
    )


def _ranking() -> Section:
    by = "model_name"
    # Before an engine is known, idle is no model's.
    energy = q.energy_w(f'{q.WITH_IDLE}, model_name!=""', by, q.RANGE)
    attributed = q.energy_w(q.ATTRIBUTED, by, q.RANGE)
    ended = q.rate(q.series("joulemeter_requests_total"), by, q.RANGE)
    per_token = q.joules_per_token(q.ATTRIBUTED, "output", by, q.RANGE)
    return Section(
        "Ranking",
        [
            table_panel(
                About(
                    "Models",
                    "Over the time shown. Power and cost with the model's idle energy, joules per "
                    "request and token without it.",
                    "short",
                    "red where a token took nothing or less: the meter is broken.",
                ),
                {"model_name": "Model", "currency": "Currency"},
                [
                    Column("Mean power", energy, "watt"),
                    Column("Output tok/s", q.tokens_per_s("output", by, q.RANGE), "count:tok/s"),
                    Column("Requests / s", ended, "reqps", 2),
                    Column("J per request", q.ratio(attributed, ended), "joule"),
                    Column("J per output token", per_token, "suffix:J/tok", 3, head.ABOVE_ZERO),
                    Column(
                        "Cost / M output tok",
                        q.cost_per_million_tokens("output", f"{by}, currency", q.RANGE),
                        "short",
                        2,
                    ),
                ],
                24,
                SILENT,
                sort_by="Mean power",
                height=6,
            ),
            bar_panel(
                About(
                    "J per output token by model",
                    "Over the time shown, of the requests alone; the dearest first.",
                    "suffix:J/tok",
                    head.BROKEN,
                ),
                [Query(f"sort_desc({per_token})", "{{model_name}}")],
                24,
                head.ABOVE_ZERO,
                height=6,
            ),
        ],
    )


def _requests() -> Section:
    return Section(
        "Requests",
        [
            _spread("J per request", _PER_REQUEST, "joule"),
            _quantiles("J per request, quantiles", _PER_REQUEST, "joule"),
            _spread("J per output token", _PER_OUTPUT_TOKEN, "suffix:J/tok"),
            _quantiles("J per output token, quantiles", _PER_OUTPUT_TOKEN, "suffix:J/tok"),
        ],
    )


def _spread(title: str, histogram: str, unit: str) -> Panel:
    return heat_panel(
        About(
            title,
            "How single requests are spread, one observation each when its receipt is final. A "
            "dot is an exemplar: it names a request, and leads to its receipt.",
            unit,
        ),
        Query(q.rate(q.series(f"{histogram}_bucket"), "le"), "{{le}}"),
        12,
    )


def _quantiles(title: str, histogram: str, unit: str) -> Panel:
    return graph_panel(
        About(
            title,
            "Over requests, one observation each when its receipt is final. Dots are exemplars: "
            "each leads to a receipt.",
            unit,
            "a line at 0, which no request can reach.",
        ),
        [Query(q.quantile(p, histogram), f"p{p * 100:.0f}") for p in (0.5, 0.9, 0.99)],
        12,
        _ZERO_LINE,
        no_value=SILENT,
        exemplars=True,
    )


def _batch() -> Section:
    per_token = q.joules_per_token(q.ATTRIBUTED, "output", "model_name")
    by_batch = {name: q.joules_per_token_at(low, high) for low, high, name in _BATCHES}
    return Section(
        "Batch size",
        [
            graph_panel(
                About(
                    "Batch size and J per output token",
                    "What vLLM runs at once (right), and what a token takes then (left), of the "
                    "requests alone: the fuller the batch, the cheaper the token.",
                    "suffix:J/tok",
                    "a line at 0, which no token can reach.",
                ),
                [
                    Query(per_token, "{{model_name}}"),
                    Query(q.running(), "{{model_name}} running"),
                ],
                14,
                _ZERO_LINE,
                no_value=_QUIET,
                right=Right("/ running$/", "short"),
            ),
            bar_panel(
                About(
                    "J per output token by batch size",
                    "Over the time shown, by how many requests of the model vLLM ran at once; of "
                    "the requests alone. Sums over sums, no mean of ratios.",
                    "suffix:J/tok",
                    head.BROKEN,
                ),
                [
                    Query(f"sort_desc({expr})", f"{{{{model_name}}}}, {name} running")
                    for name, expr in by_batch.items()
                ],
                10,
                head.ABOVE_ZERO,
                no_value=_QUIET,
            ),
        ],
    )


def _traffic() -> Section:
    ended = q.series("joulemeter_requests_total")
    tokens = q.series("joulemeter_tokens_total")
    return Section(
        "Traffic",
        [
            graph_panel(
                About("Requests / s by end", "Requests ended, by the engine's reason.", "reqps"),
                [Query(q.rate(ended, "finished_reason"), "{{finished_reason}}")],
                12,
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
                12,
                stacked=True,
                no_value=SILENT,
            ),
        ],
    )
