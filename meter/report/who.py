"""Who used what, and what it cost: the tables of models, tenants and requests."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from meter.export.figures import closes, count, duration, energy, money, percent, quantity
from meter.report import charts
from meter.report.figures import OTHERS, Ask, Line, Report
from meter.report.table import row, table

_SHOWN = 12
_TAKEN = ("output", "energy", "share", "per output token", "cost")
_MODEL_HEADS = ("model", "requests", "input", "cached", *_TAKEN)
_TENANT_HEADS = ("tenant", "requests", "prompt", *_TAKEN)


def by_model(report: Report) -> str:
    """Models, then what no request pays, then the whole."""
    if not report.models:
        return ""
    rows = [_line(line, "model", (line.cached_tokens,), report) for line in report.models]
    made = table(_MODEL_HEADS, [*rows, *_beside(report), _whole(report)])
    return f"<h2>By model</h2>{made}"


def by_tenant(report: Report) -> str:
    if not report.tenants:
        return ""
    rows = [_line(line, "tenant", (), report) for line in report.tenants]
    return f"<h2>By tenant</h2>{table(_TENANT_HEADS, rows)}"


def _line(line: Line, kind: str, cached: tuple[int | None, ...], report: Report) -> str:
    per_token_j = line.energy_j / line.output_tokens if line.output_tokens else None
    return row(
        (
            line.name or f"no {kind} named",
            count(line.requests),
            count(line.input_tokens),
            *map(count, cached),
            count(line.output_tokens),
            energy(line.energy_j),
            percent(line.energy_j, report.measured_j),
            quantity(per_token_j, "J", 3),
            money(line.cost, report.currency),
        )
    )


def _beside(report: Report) -> Iterator[str]:
    """What no request pays, or none yet."""
    joules = {**report.accounts_j, "pending": report.pending_j}
    for name in (*OTHERS, "pending"):
        if joules.get(name, 0.0) > 0:
            amount = report.others_cost.get(name)
            cost = money(amount, report.currency) if amount is not None else ""
            share = percent(joules[name], report.measured_j)
            yield row((name, "", "", "", "", energy(joules[name]), share, "", cost), "other")
    if not closes(report.measured_j, report.residual_j):
        share = percent(report.residual_j, report.measured_j)
        said = energy(report.residual_j)
        yield row(("in no account", "", "", "", "", said, share, "", ""), "other")


def _whole(report: Report) -> str:
    totals = ("requests", "input_tokens", "cached_tokens", "output_tokens")
    counts = (count(report.total(name)) for name in totals)
    cost = money(report.cost, report.currency)
    return row(("all", *counts, energy(report.measured_j), "100 %", "", cost), "whole")


def requests(report: Report) -> str:
    """How requests differ, and those that took the most."""
    if not report.asks:
        return ""

    def joules(value: float) -> str:
        return quantity(value, "J", 2)

    per_request = [ask.energy_j for ask in report.asks]
    per_token = [ask.energy_j / ask.output_tokens for ask in report.asks if ask.output_tokens]
    plots = (
        ("Energy of a request", charts.histogram(per_request, joules, "Requests by energy")),
        (
            "Energy per output token, by request",
            charts.histogram(per_token, joules, "Requests by energy per output token"),
        ),
    )
    shown = "".join(f'<div class="keep"><h3>{name}</h3>{svg}</div>' for name, svg in plots if svg)
    most = sorted(report.asks, key=lambda ask: -ask.energy_j)[:_SHOWN]
    tenants = any(ask.tenant for ask in most)
    named = ("request", "tenant") if tenants else ("request",)
    heads = (*named, "prompt", "output", "energy", "± (1 σ)", "cost", "time", "end")
    rows = [_ask(ask, report.currency, tenants) for ask in most]
    return (
        f'<h2>Requests</h2><div class="two">{shown}</div>'
        f"<h3>Those that took the most</h3>{table(heads, rows)}"
    )


def _ask(ask: Ask, currency: str, tenants: bool) -> str:
    return row(
        (
            ask.id,
            *((ask.tenant or "–",) if tenants else ()),
            count(ask.prompt_tokens),
            count(ask.output_tokens),
            energy(ask.energy_j),
            "–" if ask.uncertainty_j is None else f"± {percent(ask.uncertainty_j, ask.energy_j)}",
            money(ask.cost, currency),
            duration(ask.seconds),
            ask.reason or "–",
        )
    )


def cost(report: Report) -> str:
    """By component, with the prices that were assumed."""
    if report.cost is None:
        return (
            "<h2>Cost</h2><p>No price was given: with <code>pricing</code> in a file of settings "
            "(<code>--config</code>) the report has costs.</p>"
        )
    rows = [
        row((name, money(amount, report.currency), percent(amount, report.cost)))
        for name, amount in report.cost_components.items()
    ]
    rows.append(row(("all", money(report.cost, report.currency), "100 %"), "whole"))
    said = ""
    if report.prices:
        assumed = ", ".join(f"{name} {value}" for name, value in report.prices.items())
        said = f"<p>Assumed: {escape(assumed)}.</p>"
        if "PUE" not in report.prices:
            said += "<p>Without a PUE the electricity's cost is a lower bound.</p>"
    made = table(("component", "amount", "share"), rows)
    return f'<div class="keep"><h2>Cost</h2>{made}{said}</div>'
