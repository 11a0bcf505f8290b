"""The table of running requests, as wide as the screen allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.text import Text

from meter.export.figures import count, duration, energy, money
from meter.top.graph import COLOURS, bar
from meter.top.view import View

Row = Mapping[str, Any]


class _Column(NamedTuple):
    """``least``: how wide the screen must be for it to be shown."""

    title: str
    width: int
    least: int
    text: Callable[[Row, View, str], str]


def _per_token(row: Row, view: View, currency: str) -> str:
    tokens = row["output_tokens"]
    if not tokens or row["energy_j"] is None:
        return "–"
    if view.unit == "cost":
        return money(None if row["cost"] is None else row["cost"] / tokens, currency)
    return energy(row["energy_j"] / tokens, view.unit, 3)


_COLUMNS = (
    _Column("tenant", 10, 70, lambda row, view, _: row["tenant"] or "–"),
    _Column("stage", 8, 60, lambda row, view, _: row["progress"]),
    _Column("prompt", 7, 78, lambda row, view, _: count(row["prompt_tokens"])),
    _Column("output", 7, 0, lambda row, view, _: count(row["output_tokens"])),
    _Column("energy", 9, 0, lambda row, view, _: energy(row["energy_j"], view.unit)),
    _Column("/token", 9, 60, _per_token),
    _Column("cost", 9, 96, lambda row, view, currency: money(row["cost"], currency)),
    _Column("time", 7, 88, lambda row, view, _: duration(row["age_s"])),
)
_LEFT = {"tenant", "stage"}
_BAR = 12

_KEYS: Mapping[str, Callable[[Row], float]] = {
    "energy": lambda row: -(row["energy_j"] or 0),
    "token": lambda row: -(row["energy_j"] or 0) / max(1, row["output_tokens"] or 0),
    "tokens": lambda row: -(row["output_tokens"] or 0),
    "prompt": lambda row: -(row["prompt_tokens"] or 0),
    "age": lambda row: -(row["age_s"] or 0),
    "newest": lambda row: row["age_s"] or 0,
}


def requests(
    running: Mapping[str, Any],
    cost: Mapping[str, Any] | None,
    view: View,
    width: int,
    height: int,
) -> list[Text]:
    """Counts by stage, the heads, and rows, in ``height`` lines.

    Sorted and filtered here as well as by the meter, so that a key shows at once.
    """
    currency = (cost or {}).get("currency", "")
    match = view.match.casefold()
    rows = [row for row in running["rows"] if _matches(row, match)]
    rows.sort(key=_KEYS[view.order])
    shown = rows[min(view.scroll, max(0, len(rows) - 1)) :][: height - 2]
    tenants = knows_tenants({"running": running})
    columns = [c for c in _COLUMNS if width >= c.least and (tenants or c.title != "tenant")]
    if view.unit == "cost":
        columns = [_cost_column() if c.title == "energy" else c for c in columns]
        columns = [c for c in columns if c.title != "cost" or c.width == _cost_column().width]
    with_bar = width >= 110
    name = width - 2 - sum(c.width + 1 for c in columns) - (_BAR + 1 if with_bar else 0)
    most = max((row["energy_j"] or 0.0 for row in rows), default=0.0) or 1.0
    lines = [_counts(running, len(rows), width), _head(columns, name)]
    for row in shown:
        line = Text(f" {_cut(row['id'], name):<{name}}")
        for column in columns:
            said = _cut(column.text(row, view, currency), column.width)
            padded = (
                f"{said:<{column.width}}" if column.title in _LEFT else f"{said:>{column.width}}"
            )
            style = COLOURS[row["progress"]] if column.title == "stage" else ""
            line.append(" ")
            line.append(padded, style="bold" if column.title in ("energy", "spent") else style)
        if with_bar:
            line.append(" ")
            phases = [
                (n, (row[f"{n}_j"] or 0.0) / most) for n in ("prefill", "decode", "recompute")
            ]
            line.append_text(bar(phases, _BAR))
        lines.append(line)
    if not shown:
        lines.append(Text(" no request is running" if not running["total"] else " none matches"))
    return lines


def knows_tenants(message: Mapping[str, Any] | None) -> bool:
    """Whether any request that is told of names a tenant: else there is nothing to show."""
    told = message or {}
    rows = [*(told.get("running") or {}).get("rows", ()), *(told.get("finished") or ())]
    return any(row["tenant"] for row in rows)


def _cost_column() -> _Column:
    return _Column("spent", 10, 0, lambda row, view, currency: money(row["cost"], currency))


def _matches(row: Row, match: str) -> bool:
    names = (row["id"], row["tenant"] or "", row["model"] or "")
    return any(match in name.casefold() for name in names)


def _counts(running: Mapping[str, Any], found: int, width: int) -> Text:
    # Some only settle: the figures above, of now, say how many run.
    total = running["total"]
    text = Text.assemble((f" {count(total)} request{'s' * (total != 1)}", "bold"))
    for stage, number in running["counts"].items():
        text.append("  ■ ", style=COLOURS[stage])
        text.append(f"{count(number)} {stage}", style="dim")
    if running["matching"] != running["total"]:
        text.append(f"  {count(running['matching'])} match", style="yellow")
    return text


def _head(columns: Sequence[_Column], name: int) -> Text:
    text = f" {'request':<{name}}"
    for c in columns:
        text += " " + (f"{c.title:<{c.width}}" if c.title in _LEFT else f"{c.title:>{c.width}}")
    return Text(text, style="dim underline")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
