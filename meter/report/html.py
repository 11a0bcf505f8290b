"""Writes a report as one HTML page that needs nothing else, and prints well."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from meter import __version__
from meter.export.figures import (
    J_PER_KWH,
    TERMS,
    count,
    duration,
    energy,
    money,
    number,
    percent,
    quantity,
    summands,
)
from meter.report import charts
from meter.report.figures import ACCOUNTS, OTHERS, REQUESTS, Report
from meter.report.surely import surely
from meter.report.who import by_model, by_tenant, cost, requests


def to_html(report: Report, made: datetime) -> str:
    """The page; ``made``: when, for its footer."""
    css = files("meter.report").joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(
        (
            _head(report),
            _figures(report),
            _sum(report),
            _when(report),
            by_model(report),
            by_tenant(report),
            requests(report),
            cost(report),
            surely(report),
            _footer(report, made),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_title(report))}</title>\n<style>\n{css}</style>\n{body}\n</html>\n"
    )


def _title(report: Report) -> str:
    if report.start_utc_s is None:
        return f"joulemeter report: {report.source}"
    return f"joulemeter report: {_utc(report.start_utc_s)} UTC, {duration(report.seconds)}"


def _utc(utc_s: float, kind: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(utc_s, UTC).strftime(kind)


def _head(report: Report) -> str:
    models = ", ".join(line.name or "unnamed model" for line in report.models)
    kinds = [meter.name for meter in report.meters]
    cards = (f"{n} × {k}" if (n := kinds.count(k)) > 1 else k for k in dict.fromkeys(kinds))
    what = " on ".join(part for part in (models, ", ".join(cards)) if part)
    when = f"{duration(report.seconds)}"
    if report.start_utc_s is not None:
        end = _utc(report.start_utc_s + report.seconds)
        when = f"{_utc(report.start_utc_s)} to {end} UTC ({when})"
    quality = report.quality or "quality unknown"
    return (
        f"<header><h1>Energy and cost of inference</h1><p>{escape(what)}<br>"
        f'<span class="soft">{escape(when)}</span> '
        f'<span class="tag {escape(quality)}">{escape(quality)}</span></p></header>'
    )


def _figures(report: Report) -> str:
    output, done = report.total("output_tokens"), report.total("requests")
    per_token_j = report.attributed_j / output if output else None
    with_idle_j = (
        (report.attributed_j + report.accounts_j.get("idle", 0.0)) / output if output else None
    )
    tiles = (
        (quantity(report.measured_j / 3600, "Wh"), "energy measured", energy(report.measured_j)),
        (money(report.cost, report.currency), "cost", "" if report.cost else "no price is given"),
        (count(done), "requests", f"{duration(report.metered_s)} of metering"),
        (count(output), "output tokens", f"{count(report.total('input_tokens'))} computed input"),
        (
            quantity(per_token_j, "J", 3),
            "per output token",
            f"{energy(with_idle_j, 'J', 3)} with idle",
        ),
        (
            f"{number(per_token_j / J_PER_KWH * 1e6 if per_token_j else None, 3)} kWh",
            "per million output tokens",
            f"{quantity(report.mean_power_w, 'W', 3)} on average",
        ),
    )
    cells = "".join(
        f"<div><b>{_with_unit(value)}</b>{escape(label)}<small>{escape(note)}</small></div>"
        for value, label, note in tiles
    )
    return f'<section class="figures">{cells}</section>'


def _with_unit(value: str) -> str:
    """The unit in smaller letters."""
    figure, _, unit = value.partition(" ")
    return f"{escape(figure)} <i>{escape(unit)}</i>" if unit else escape(figure)


def _sum(report: Report) -> str:
    """The one sum, so rounded that a reader can add it up."""
    values = {**report.accounts_j, "attributed": report.attributed_j, "pending": report.pending_j}
    joules = [values.get(name, 0.0) for name in TERMS]
    total, terms, unit = summands(report.measured_j, joules)
    said = " + ".join(f"<b>{t}</b> {n}" for t, n in zip(terms, TERMS, strict=True))
    off = abs(report.residual_j)
    exact = off < 1e-6
    good = exact or off < 1e-3 * report.measured_j
    check = "✓ to a microjoule" if exact else f"{'✓' if good else '✗'} to {energy(off, 'J', 2)}"
    shares = [(name, values.get(name, 0.0)) for name in (*ACCOUNTS, "pending")]
    whole_j = max(report.measured_j, 1e-12)
    strip = "".join(
        f'<i class="{name}" style="width:{100 * max(0.0, j) / whole_j:.3f}%"></i>'
        for name, j in shares
    )
    legend = "".join(
        f'<li><span class="key {name}"></span>{name} {percent(j, report.measured_j)}</li>'
        for name, j in shares
        if j > 0
    )
    return (
        f'<h2>Where every joule went</h2><div class="strip">{strip}</div>'
        f'<ul class="legend">{legend}</ul><p class="sum"><b>{total} {unit}</b> measured = {said} '
        f'<span class="{"ok" if good else "bad"}">{check}</span></p>'
    )


def _when(report: Report) -> str:
    bins = report.timeline
    if not bins:
        return ""
    start = report.start_utc_s
    long = report.seconds > 36 * 3600

    def stamp(seconds: float) -> str:
        if start is None:
            return f"{seconds:,.0f} s"
        return _utc(start + seconds, "%m-%d %H:%M" if long else "%H:%M:%S")

    def watts(value: float) -> str:
        return quantity(value, "W", 3)

    parts = [
        "<h2>When</h2><h3>Power by account</h3>",
        charts.timeline(bins, stamp, watts, "Mean power by account over the time of the report"),
    ]
    if any(one.running for one in bins):
        parts.append("<h3>Requests in flight</h3>")
        parts.append(charts.line(bins, lambda b: b.running, stamp, "Requests in flight over time"))
    if any(one.output_tokens_per_s for one in bins):
        parts.append("<h3>Output tokens a second</h3>")
        title = "Output tokens a second over time"
        parts.append(charts.line(bins, lambda b: b.output_tokens_per_s, stamp, title))
    return "".join(parts)


def _footer(report: Report, made: datetime) -> str:
    notes = " ".join(escape(note) for note in report.notes)
    when = made.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"<footer><p>{notes}</p><p>From {escape(report.source)}; made {when} by joulemeter "
        f"{__version__}. Requests pay {', '.join(REQUESTS)}; {', '.join(OTHERS)} are nobody's.</p>"
        "</footer>"
    )
