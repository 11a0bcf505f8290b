"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from meter import __version__
from meter.export.figures import duration, quantity
from meter.report.surely import MEANINGS
from meter.report.table import row, table
from meter.selftest import plots
from meter.selftest.bound import Decode, Prefill
from meter.selftest.counter import told
from meter.selftest.findings import DeviceFindings, Findings
from meter.selftest.promises import FORESEEN_MAX, Promise, Verdict
from meter.selftest.text import closing, limit, value

_STYLE = """
.verdict { font-weight: 600; white-space: nowrap; } .pass { color: var(--accent); }
.fail { color: var(--warn); } .unknown { color: var(--soft); }
.promises td { text-align: left; vertical-align: top; white-space: normal; }
.promises td:first-child { width: 5.5rem; } .promises small { display: block; }
.promises td + td { padding-left: .9rem; }
polyline { fill: none; stroke-width: 2; } polyline.drawn { stroke: var(--prefill); }
polyline.bound { stroke: var(--warn); stroke-dasharray: 5 4; }
circle.drawn { fill: var(--prefill); } circle.told { fill: var(--startup); }
"""
_CLASSES = {Verdict.PASS: "pass", Verdict.FAIL: "fail", Verdict.UNKNOWN: "unknown"}


def to_html(found: Findings, kept: tuple[Promise, ...], made: datetime | None = None) -> str:
    """``made``: when, for its footer (default: now)."""
    css = files("meter.report").joinpath("report.css").read_text(encoding="utf-8") + _STYLE
    when = (made or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    quality = found.quality or "quality unknown"
    cards = ", ".join(dict.fromkeys(device.device.name for device in found.devices))
    body = (
        f"<header><h1>How truly this meter measures</h1><p>{escape(found.model or 'unnamed model')}"
        f" on {escape(cards)}<br>"
        f'<span class="soft">{found.requests:,} requests in {duration(found.seconds)}</span> '
        f'<span class="tag {escape(quality)}">{escape(quality)}</span></p></header>'
        + "".join(f'<p class="soft">Not covered: {escape(hole)}.</p>' for hole in found.holes)
        + f"<h2>Promises: {closing(kept)}</h2>{_promises(kept)}"
        + "".join(_device(device) for device in found.devices)
        + f"<footer><p>From {escape(found.source)}; made {when} by joulemeter {__version__}.</p>"
        "</footer>"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>joulemeter selftest</title>\n<style>\n{css}</style>\n{body}\n</html>\n"
    )


def _promises(kept: tuple[Promise, ...]) -> str:
    rows = "".join(
        f'<tr><td><span class="verdict {_CLASSES[one.verdict]}">{one.verdict}</span></td>'
        f"<td>{escape(one.says)}<small>{escape(one.note)}</small></td>"
        f"<td>{escape(value(one))}<small>{escape(limit(one))}</small></td></tr>"
        for one in kept
    )
    return f'<table class="promises"><tbody>{rows}</tbody></table>'


def _device(one: DeviceFindings) -> str:
    parts = [f"<h2>{escape(one.device.name)} ({escape(one.device.id)})</h2>"]
    if one.foreseen is not None:
        parts.append(
            "<h3>Measured over foreseen energy: intervals of the second half, by coefficients of "
            "the first</h3>" + plots.factors(one.foreseen.factors, FORESEEN_MAX)
        )
        shares = [f"{name}: {factor:.3f}" for name, factor in one.foreseen.quantiles()]
        parts.append(f'<p class="soft">{", ".join(shares)}</p>')
    if one.decode:
        title = "Joules per decoded token, by requests in a step"
        parts.append(f"<h3>{title}</h3>{_legend(one)}")
        parts.append(plots.by_batch(plots.lines(one.decode), title, one.published))
        parts.append(_tokens("context", one.decode))
    if one.prefill:
        title = "Joules per prompt token, by requests in its steps"
        said = "line: what was charged, by tokens of the prompt; dashed: its operations alone"
        parts.append(f'<h3>{title}</h3><p class="soft">{said}</p>')
        parts.append(plots.by_batch(plots.lines(one.prefill), title))
        parts.append(_tokens("prompt", one.prefill))
    rows = [
        row(
            (
                MEANINGS.get(name, name),
                name,
                quantity(value, unit),
                "–" if sd is None else f"± {quantity(sd, unit, 2)}",
            )
        )
        for name, (value, sd) in one.coefficients.items()
        for unit in ("W" if name.endswith("_w") else "J",)
    ]
    heads = ("what", "coefficient", "value", "1 σ")
    counter = table(("the counter", ""), (row(cells) for cells in told(one.counter)))
    return (
        f"{''.join(parts)}<h3>What work costs</h3>{table(heads, rows)}"
        f"<h3>What the counter is like</h3>{counter}"
    )


def _tokens(read: str, rows: Sequence[Decode | Prefill]) -> str:
    heads = ("requests", read, "J a token", "floor", "times the floor")
    return table(
        heads,
        (
            row(
                (
                    f"{one.batch:.1f}",
                    f"{one[1]:,.0f}",
                    quantity(one.token_j, "J", 3),
                    quantity(one.floor_j, "J", 3),
                    f"{one.token_j / one.floor_j:.1f}" if one.floor_j else "–",
                )
            )
            for one in rows
        ),
    )


def _legend(one: DeviceFindings) -> str:
    said = ["line: measured, decoding alone, by tokens of context"]
    if any(r.floor_j for r in one.decode):
        said.append("dashed: the physical floor, at the same contexts")
    if one.published:
        said.append(
            "dots alone: published for Llama-3.1-8B on an H100 (ML.ENERGY), prefill included"
        )
    return f'<p class="soft">{escape("; ".join(said))}</p>'
