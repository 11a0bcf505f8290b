"""One frame: figures, power by account, devices, the sum, the running requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from meter.export.figures import (
    TERMS,
    UNKNOWN,
    closes,
    count,
    duration,
    energy,
    many,
    number,
    printable,
    quantity,
    summands,
)
from meter.top.feed import Heard
from meter.top.graph import COLOURS, area, bar, columns, spark
from meter.top.requests import knows_tenants, requests
from meter.top.series import Series
from meter.top.view import View, help_lines

_STALE_S = 3.0
_DEAF_S = 10.0
_WINDOW_S = 120.0
_ACCOUNTS = ("prefill", "decode", "recompute", "idle", "startup", "unattributed", "pending")
_QUALITY = {"measured": "green", "estimated": "yellow", "simulated": "cyan"}


@dataclass(frozen=True, slots=True)
class Size:
    """Of the screen, in cells."""

    width: int = 80
    height: int = 24


def frame(heard: Heard, view: View, size: Size, now_s: float) -> Group:
    """The screen: no line wider, no more lines than ``size``."""
    message = heard.message
    lines = [_title(message), _state(heard, view, now_s, size.width)]
    if view.help:
        lines += [
            Text(""),
            *(_help(keys, what) for keys, what in help_lines(knows_tenants(message))),
        ]
    elif message is None or "summary" not in message:
        lines += [Text(""), *_nothing(heard, message)]
    else:
        lines += _body(message, heard.series or Series(), view, size)
    lines = lines[: size.height - 1]
    lines += [Text("")] * (size.height - 1 - len(lines))
    lines.append(_footer(view, size.width))
    for line in lines:
        # Ids, models and tenants are others' words: a terminal must not obey them.
        line.plain = printable(line.plain)
        line.truncate(size.width, overflow="ellipsis")
        line.no_wrap = True
    return Group(*lines)


def _body(message: Mapping[str, Any], series: Series, view: View, size: Size) -> list[Text]:
    summary = message["summary"]
    width, roomy = size.width, size.height >= 36
    lines = [_figures(summary, series, view)]
    lines += _power(series, message["now_s"], width, 6 if roomy else 3)
    lines.append(_batch(series, message["now_s"], width))
    lines += _devices(summary, series, view, width, 8 if roomy else 2)
    lines += _sum(summary, view, width)
    left = size.height - 3 - len(lines)
    lines += requests(message["running"], summary.get("cost"), view, width, max(2, left))
    return lines


def _title(message: Mapping[str, Any] | None) -> Text:
    summary = (message or {}).get("summary") or {}
    models = dict.fromkeys(e["model"] for e in summary.get("engines", ()) if e["model"])
    cards: dict[str, int] = {}
    for device in summary.get("devices", ()):
        cards[device["gpu_name"]] = cards.get(device["gpu_name"], 0) + 1
    on = ", ".join(f"{n} × {name}" if n > 1 else name for name, n in cards.items())
    text = Text(" joulemeter", style="bold")
    text.append(
        f"  {' · '.join(part for part in (', '.join(models), on) if part)}", style="not bold"
    )
    return text


def _state(heard: Heard, view: View, now_s: float, width: int) -> Text:
    """Live, quiet, or blind: an idle engine is never taken for a blind meter."""
    style, word = condition(heard, now_s)
    text = Text.assemble(" ", ("● ", style), (word, style))
    if view.frozen:
        text.append("  frozen", style="bold yellow")
    summary = (heard.message or {}).get("summary") or {}
    quality = summary.get("quality")
    if quality:
        text.append("  ")
        text.append(f" {quality} ", style=f"reverse {_QUALITY.get(quality, 'white')}")
    if summary:
        text.append(f"  {many(summary['requests'], 'request')} done", style="dim")
        lag_s = summary.get("settled_lag_s")
        if lag_s is not None and width >= 100:
            text.append(f"  settles {duration(lag_s)} behind", style="dim")
    return text


def condition(heard: Heard, now_s: float) -> tuple[str, str]:
    """A style and words for how the meter is."""
    silent_s = now_s - heard.at_s if heard.at_s is not None else None
    if heard.ended:
        return "bold red", "the meter has ended"
    if silent_s is None:
        return "yellow", "connecting"
    if silent_s > _STALE_S:
        return "bold red", f"connection lost: what you see is {silent_s:.0f} s old"
    message = heard.message or {}
    summary = message.get("summary")
    problems = "; ".join(message.get("problems", ()))
    if summary is None:
        return "yellow", problems or "waiting for the first reading"
    ages = summary.get("source_age_s", {})
    power_s, engine_s = ages.get("power"), ages.get("engine")
    if power_s is None or not summary["devices"]:
        return "bold red", f"METER BLIND: no energy reading at all; {problems}".rstrip("; ")
    if power_s > _STALE_S:
        return "bold red", f"METER BLIND: no energy reading for {power_s:.0f} s"
    silent = [d for d in summary["devices"] if (d["age_s"] or 0.0) > _STALE_S]
    if silent:
        names = ", ".join(d["gpu"] for d in silent)
        return "bold red", f"METER BLIND on device {names} for {silent[0]['age_s']:.0f} s"
    running = summary["requests_running"]
    if running and engine_s is not None and engine_s > _DEAF_S:
        return "bold red", f"engine not heard for {engine_s:.0f} s while {_run(running)}"
    if problems:
        return "yellow", problems
    if not running:
        if engine_s is None:
            return "cyan", "no traffic: no engine heard yet"
        quiet_s = heard.series.quiet_s() if heard.series else None
        return "cyan", "no traffic" + (f", idle for {quiet_s:.0f} s" if quiet_s is not None else "")
    return "green", "live"


def _run(running: int) -> str:
    return f"{many(running, 'request')} run{'s' * (running == 1)}"


def _nothing(heard: Heard, message: Mapping[str, Any] | None) -> list[Text]:
    said = [heard.trouble] if heard.trouble else list((message or {}).get("problems", ()))
    return [Text(f" {line}", style="yellow") for line in said if line]


def _figures(summary: Mapping[str, Any], series: Series, view: View) -> Text:
    """Power, energy and cost a token in the last minute, speed."""
    watts = series.power_w()
    minute = [
        row
        for row in summary["per_token"]
        if row["window"] == "1m" and row["token_type"] == "output" and row["idle"] == "without"
    ]
    figure = minute[0] if len(minute) == 1 else {}
    kwh = figure.get("kwh_per_token")
    per_token_j = None if kwh is None else kwh * 3.6e6
    cost = figure.get("cost_per_million_tokens")
    currency = (summary.get("cost") or {}).get("currency", "")
    speed = series.tokens_per_s()
    shown = (
        (quantity(sum(watts) if watts else None, "W", 3), ""),
        (energy(per_token_j, view.unit, 3), "/token"),
        (f"{number(cost, 3)} {currency}".rstrip(), "/M tokens"),
        (number(speed, 4 if speed and speed >= 1000 else 3), " tokens/s"),
        (count(summary["requests_running"]), " running"),
    )
    text = Text(" ")
    for value, label in shown:
        text.append(value, style="bold")
        text.append(f"{label}   ", style="dim")
    return text


def _power(series: Series, now_s: float, width: int, height: int) -> list[Text]:
    room = width - 10
    lines, most = area(series.flows, now_s, room, height, _WINDOW_S)
    for row, line in enumerate(lines):
        label = quantity(most, "W", 3) if row == 0 else "0 W" if row == height - 1 else ""
        lines[row] = Text.assemble((f"{label:>8} ", "dim"), line)
    return lines


def _batch(series: Series, now_s: float, width: int) -> Text:
    moments = series.moments
    places = columns(moments, now_s, width - 10, _WINDOW_S)
    values = [None if i is None else float(moments[i].running) for i in places]
    most = max((value for value in values if value is not None), default=0.0)
    label = f"{most:.0f} req"
    return Text.assemble((f"{label:>8} ", "dim"), spark(values, COLOURS["decode"]))


def _devices(
    summary: Mapping[str, Any], series: Series, view: View, width: int, room: int
) -> list[Text]:
    """A bar of power for each, against its limit where it has one, else against the largest; one
    that is alone and has no limit has none, for it would be full whatever is drawn."""
    devices: Sequence[Mapping[str, Any]] = summary["devices"]
    watts: Sequence[float | None] = series.power_w() or [None] * len(devices)
    most = max((value for value in watts if value is not None), default=0.0) or 1.0
    rows = []
    for device, value in list(zip(devices, watts, strict=True))[:room]:
        name = "CPU" if device["boundary"] == "host" else f"GPU {device['gpu']}"
        text = Text(f"{name:>8} ")
        limit_w = device["power_limit_w"]
        part = (value or 0.0) / (limit_w or most)
        room_for_bar = max(10, width - 44)
        if limit_w or len(devices) > 1:
            text.append_text(bar([("#d8ac45", min(1.0, part))], room_for_bar))
        else:
            text.append(" " * room_for_bar)
        text.append(f" {quantity(value, 'W', 3):>7}", style="bold")
        text.append(f" / {quantity(limit_w, 'W', 3)}" if limit_w else "", style="dim")
        text.append(f" {energy(device['measured_j'], view.unit):>10}", style="dim")
        rows.append(text)
    if len(devices) > room:
        rows.append(Text(f"         and {many(len(devices) - room, 'more device')}", style="dim"))
    return rows


def _sum(summary: Mapping[str, Any], view: View, width: int) -> list[Text]:
    """The sum that must hold, to be added up by the reader; under it each account's share."""
    measured_j, terms_j = summary["measured_j"], [summary[f"{name}_j"] for name in TERMS]
    if measured_j is None or None in terms_j:
        return [Text(f" {UNKNOWN} measured: a figure is no number", style="bold red")]
    total, terms, unit = summands(measured_j, terms_j, view.unit)
    lines = [Text.assemble((f" {total} {unit}", "bold"), " measured")]
    indent = len(lines[0])
    for i, (name, term) in enumerate(zip(TERMS, terms, strict=True)):
        piece = Text.assemble((" + " if i else " = ", "dim"), (term, "bold"), f" {name}")
        if len(lines[-1]) + len(piece) > width - 4:
            lines.append(Text(" " * indent))
        lines[-1].append_text(piece)
    residual_j = summary["conservation_error_j"]
    holds = residual_j is not None and closes(measured_j, residual_j)
    said = " ✓" if holds else f" ✗ residual {energy(residual_j, view.unit)}"
    lines[-1].append(said, style="bold green" if holds else "bold red")
    whole = max(measured_j, 1e-12)
    shares = [(name, (summary[f"{name}_j"] or 0.0) / whole) for name in _ACCOUNTS]
    strip = Text(" ")
    strip.append_text(bar(shares, width - 2))
    return [strip, *_key(shares, width), *lines]


def _key(shares: Sequence[tuple[str, float]], width: int) -> list[Text]:
    """What each colour stands for: in one line, or as many as it takes."""
    lines = [Text()]
    for name, share in shares:
        if share < 0.0005:
            continue
        said = Text.assemble(" ", ("■ ", COLOURS[name]), (f"{name} {100 * share:.1f}%", "dim"))
        if lines[-1] and len(lines[-1]) + 1 + len(said) > width:
            lines.append(Text())
        lines[-1].append(" " if lines[-1] else "")
        lines[-1].append_text(said)
    return lines


def _help(keys: str, what: str) -> Text:
    return Text.assemble((f"   {keys:<12}", "bold"), what)


def _footer(view: View, width: int) -> Text:
    """The keys: with what they do, where there is room, else with what is set alone."""
    if view.typing:
        return Text.assemble((" filter: ", "bold"), view.match, ("█", "blink"), "  Enter, Esc")
    match = view.match or UNKNOWN
    roomy = [("q", "quit"), ("s", f"sort: {view.order}"), ("/", f"filter: {match}")]
    roomy += [("u", f"unit: {view.unit}"), ("f", "freeze"), ("?", "help")]
    short = match if len(match) <= 10 else match[:9] + "…"
    brief = [("q", "quit"), ("s", view.order), ("/", short), ("u", view.unit)]
    ways = (
        _keys(roomy, " ", "  "),
        _keys(roomy, "", " "),
        _keys([*brief, ("f", "freeze"), ("?", "help")], "", " "),
    )
    return next((text for text in ways if len(text) <= width), ways[-1])


def _keys(keys: Sequence[tuple[str, str]], around: str, gap: str) -> Text:
    text = Text(" ")
    for key, what in keys:
        text.append(f"{around}{key}{around}", style="reverse")
        text.append(f" {what}{gap}")
    text.rstrip()
    return text
