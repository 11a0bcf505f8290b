"""Plots as inline SVG: coloured by CSS classes, so that they follow dark, light and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from meter.report.figures import ACCOUNTS, Bin

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 24
Label = Callable[[float], str]


def timeline(bins: Sequence[Bin], stamp: Label, watts: Label, title: str) -> str:
    """Stacked power by account; time without a measurement is hatched."""
    width, height = 960, 260
    most = _round_up(max((sum(b.watts) for b in bins if b.watts), default=1.0) * 1.05)
    x, y = scales(width, height, bins[0].start_s, bins[-1].end_s, most)
    parts = [grid(width, height, most, watts), _times(bins, x, height, stamp)]
    parts += [_hatched(x(b.start_s), x(b.end_s), height) for b in bins if b.watts is None]
    for run in _runs(bins):
        base = [0.0] * len(run)
        for i, name in enumerate(ACCOUNTS):
            top = [low + (b.watts[i] if b.watts else 0.0) for low, b in zip(base, run, strict=True)]
            if any(high > low for high, low in zip(top, base, strict=True)):
                parts.append(_area(run, base, top, x, y, name))
            base = top
    return svg(width, height, title, parts)


def line(
    bins: Sequence[Bin], value: Callable[[Bin], float | None], stamp: Label, title: str
) -> str:
    """One figure over time, as an area from zero."""
    width, height = 960, 110
    values = [value(b) or 0.0 for b in bins]
    most = _round_up(max(1.0, max(values, default=1.0)) * 1.05)
    x, y = scales(width, height, bins[0].start_s, bins[-1].end_s, most)
    parts = [grid(width, height, most, lambda v: f"{v:,.0f}", 2), _times(bins, x, height, stamp)]
    for run in _runs(bins):
        zero = [0.0] * len(run)
        parts.append(_area(run, zero, [value(b) or 0.0 for b in run], x, y, "count"))
    return svg(width, height, title, parts)


def histogram(values: Sequence[float], label: Label, title: str, bars: int = 24) -> str:
    """How many values lie where, on a logarithmic axis; empty where there are none above zero."""
    positive = sorted(value for value in values if value > 0)
    if not positive:
        return ""
    width, height = 470, 200
    low, high = math.log10(positive[0]), math.log10(positive[-1])
    if high - low < 0.1:
        low, high = low - 0.1, high + 0.1
    counts = [0] * bars
    for value in positive:
        counts[min(bars - 1, int((math.log10(value) - low) / (high - low) * bars))] += 1
    most = _round_up(max(counts))
    x, y = scales(width, height, low, high, most)
    parts = [grid(width, height, most, lambda v: f"{v:,.0f}", 2)]
    step = (high - low) / bars
    for i, count in enumerate(counts):
        left, right = x(low + i * step), x(low + (i + 1) * step)
        words = f"{label(10 ** (low + i * step))} to {label(10 ** (low + (i + 1) * step))}: {count}"
        parts.append(
            f'<rect class="count" x="{left + 0.5:.1f}" y="{y(count):.1f}" '
            f'width="{right - left - 1:.1f}" height="{y(0) - y(count):.1f}">'
            f"<title>{escape(words)}</title></rect>"
        )
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = low + part * (high - low)
        anchor = {0.0: "start", 1.0: "end"}.get(part, "middle")
        parts.append(text(x(at), height - 6, label(10**at), anchor))
    median = positive[len(positive) // 2]
    at = x(math.log10(median))
    parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{y(0):.1f}"/>')
    side, shift = ("end", -5) if at > width / 2 else ("start", 5)
    parts.append(text(at + shift, _TOP + 10, f"median {label(median)}", side, "ink"))
    return svg(width, height, title, parts)


# --- parts ----------------------------------------------------------------------------------


def scales(
    width: int, height: int, low: float, high: float, most: float
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    room = width - _LEFT - _RIGHT
    floor = height - _BOTTOM
    return (
        lambda v: _LEFT + room * (v - low) / (high - low),
        lambda v: floor - (floor - _TOP) * v / most,
    )


def _round_up(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * base for step in (1, 1.5, 2, 3, 4, 5, 8, 10) if step * base >= value)


def grid(width: int, height: int, most: float, label: Label, steps: int = 4) -> str:
    floor, parts = height - _BOTTOM, []
    for i in range(steps + 1):
        at = floor - (floor - _TOP) * i / steps
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(text(_LEFT - 6, at + 4, label(most * i / steps), "end"))
    return "".join(parts)


def _times(bins: Sequence[Bin], x: Callable[[float], float], height: int, stamp: Label) -> str:
    start, end = bins[0].start_s, bins[-1].end_s
    parts = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = start + part * (end - start)
        anchor = {0.0: "start", 1.0: "end"}.get(part, "middle")
        parts.append(text(x(at), height - 6, stamp(at), anchor))
    return "".join(parts)


def text(x: float, y: float, text: str, anchor: str, kind: str = "soft") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _runs(bins: Sequence[Bin]) -> list[list[Bin]]:
    """Stretches in which all was measured."""
    runs: list[list[Bin]] = [[]]
    for one in bins:
        if one.watts is None:
            runs.append([])
        else:
            runs[-1].append(one)
    return [run for run in runs if run]


def _area(
    run: Sequence[Bin],
    base: Sequence[float],
    top: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    kind: str,
) -> str:
    """Steps, since a bin is a mean: no slope is invented between two."""
    there = [
        f"{x(edge):.1f},{y(high):.1f}"
        for one, high in zip(run, top, strict=True)
        for edge in (one.start_s, one.end_s)
    ]
    back = [
        f"{x(edge):.1f},{y(low):.1f}"
        for one, low in zip(reversed(run), reversed(base), strict=True)
        for edge in (one.end_s, one.start_s)
    ]
    return f'<polygon class="{kind}" points="{" ".join(there + back)}"/>'


def _hatched(left: float, right: float, height: int) -> str:
    room = height - _BOTTOM - _TOP
    return (
        f'<rect class="unseen" x="{left:.1f}" y="{_TOP}" '
        f'width="{right - left + 0.2:.1f}" height="{room}"><title>not measured</title></rect>'
    )


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
