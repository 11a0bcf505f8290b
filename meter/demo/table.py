"""What the demo shows while it runs: one frame from the meter's own summary and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from meter.export.figures import (
    J_PER_KWH,
    UNKNOWN,
    count,
    duration,
    energy,
    many,
    money,
    number,
    percent,
    printable,
    quantity,
)

ACCOUNTS = (
    ("prefill", "blue"),
    ("decode", "green"),
    ("recompute", "magenta"),
    ("idle", "bright_black"),
    ("startup", "yellow"),
    ("unattributed", "red"),
    ("pending", "white"),
)
_BAR = 30
_WIDE = 96
_WIDE_ONLY = ("cached", "±", "end")
_LEVELS = "▁▂▃▄▅▆▇█"
_QUALITY_STYLE = {"measured": "bold green", "estimated": "bold yellow", "simulated": "bold cyan"}


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything on the screen. ``summary`` is ``/v1/summary``, ``None`` before there is one;
    ``power_w`` the last readings, oldest first; ``receipts`` the newest final ones."""

    title: str
    url: str
    state: str
    elapsed_s: float
    requests_sent: int = 0
    summary: Mapping[str, Any] | None = None
    power_w: Sequence[float] = ()
    receipts: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def draw(frame: Frame, width: int = 100) -> RenderableType:
    """The whole screen, ``width`` columns wide; below 96 receipts show less."""
    quality = (frame.summary or {}).get("quality")
    parts: list[RenderableType] = [_now(frame, quality), _accounts(frame, quality)]
    if frame.receipts:
        parts.append(_receipts(frame.receipts, width >= _WIDE))
    parts.append(_footer(frame))
    return Group(*parts)


def _tag(quality: str | None) -> Text:
    return Text(quality or UNKNOWN, style=_QUALITY_STYLE.get(quality or "", "dim"))


def _now(frame: Frame, quality: str | None) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(5):
        grid.add_column(no_wrap=True)
    figures = _figures(frame)
    grid.add_row(*(Text(value, style="bold") for value, _ in figures))
    grid.add_row(*(Text(label, style="dim") for _, label in figures))
    title = Text.assemble(("joulemeter", "bold"), " · ", frame.title)
    sub = Text.assemble(_tag(quality), f" · {frame.state} · {frame.elapsed_s:.0f} s · {frame.url}")
    spark = Text(sparkline(frame.power_w), style="cyan")
    return Panel(Group(grid, spark), title=title, subtitle=sub, title_align="left",
                 subtitle_align="left", box=box.ROUNDED, padding=(0, 1))  # fmt: skip


def _figures(frame: Frame) -> list[tuple[str, str]]:
    summary = frame.summary or {}
    token = _per_token(summary)
    kwh = token.get("kwh_per_token")
    cost = token.get("cost_per_million_tokens")
    currency = (summary.get("cost") or {}).get("currency", "")
    return [
        (quantity(frame.power_w[-1] if frame.power_w else None, "W", 3), "power now"),
        (count(summary.get("requests_running")), "requests running"),
        (energy(kwh * J_PER_KWH if kwh else None, "J", 3), "per output token"),
        (f"{number(kwh * 1e6, 3)} kWh" if kwh else UNKNOWN, "per million"),
        (money(cost, currency), "per million"),
    ]


def _per_token(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figure of the last minute, idle energy apart."""
    wanted = {"token_type": "output", "idle": "without", "window": "1m"}
    rows: Sequence[Mapping[str, Any]] = summary.get("per_token") or ()
    return next((row for row in rows if wanted.items() <= row.items()), {})


def sparkline(values: Sequence[float]) -> str:
    """Values as bars from zero to the largest."""
    most = max(values, default=0.0)
    if most <= 0:
        return ""
    return "".join(_LEVELS[min(7, int(8 * max(0.0, value) / most))] for value in values)


def _accounts(frame: Frame, quality: str | None) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("where every joule went")
    table.add_column("energy", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", ratio=1)
    summary = frame.summary
    if summary is None:
        table.add_row("waiting for the first reading", "", "", "")
        return table
    measured_j = summary["measured_j"]
    for name, colour in ACCOUNTS:
        energy_j = summary[f"{name}_j"]
        share = energy_j / measured_j if measured_j else 0.0
        said = percent(energy_j, measured_j)
        bar = Text("█" * round(_BAR * share) or ("▏" if energy_j else ""), style=colour)
        table.add_row(Text(name, style=colour), energy(energy_j), said, bar)
    table.add_section()
    residual = f"residual {abs(summary['conservation_error_j']):.0e} J"
    table.add_row(
        Text("measured", style="bold"),
        Text(energy(measured_j), style="bold"),
        "",
        Text.assemble(_tag(quality), (f" · {residual}", "dim")),
    )
    return table


def _receipts(receipts: Sequence[Mapping[str, Any]], wide: bool) -> RenderableType:
    rows = [_receipt_row(receipt) for receipt in receipts]
    known = [name for name in rows[0] if any(row[name] != UNKNOWN for row in rows)]
    names = [name for name in known if wide or name not in _WIDE_ONLY]
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("newest receipts", no_wrap=True, min_width=17)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for receipt, row in zip(receipts, rows, strict=True):
        # As text: in a string the table would take [words] for markup.
        cells = (receipt["id"], *(row[name] for name in names))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _receipt_row(receipt: Mapping[str, Any]) -> dict[str, str]:
    """One receipt's figures by column; a dash is what is not known."""
    energy_j, output = receipt["energy_j"], receipt["completion_tokens"]
    cost = receipt.get("cost") or {}
    amount = float(cost["amount"]) if cost else None
    return {
        "prompt": count(receipt["prompt_tokens"]),
        "cached": count(receipt["cached_tokens"]),
        "output": count(output),
        "energy": energy(energy_j),
        "±": percent(receipt["uncertainty_j"], energy_j),
        "per token": energy(energy_j / output if output else None, "J", 3),
        "cost": money(amount, cost.get("currency", "")),
        "end": receipt["reason"] or UNKNOWN,
        "tenant": receipt["tenant"] or UNKNOWN,
    }


def _footer(frame: Frame) -> RenderableType:
    sent = f"{many(frame.requests_sent, 'request')} sent" if frame.requests_sent else ""
    settled = (frame.summary or {}).get("settled_lag_s")
    lag = f"figures settle {duration(settled)} behind" if settled is not None else ""
    first = " · ".join(part for part in (sent, lag, "Ctrl-C ends") if part)
    return Text("\n".join([first, *map(printable, frame.notes)]), style="dim")
