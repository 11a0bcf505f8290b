"""Plots as inline SVG: how well energy is foreseen, and what a token takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from meter.export.figures import quantity
from meter.report.charts import grid, scales, svg, text
from meter.selftest.bound import Decode, Prefill

_BARS = 41
_WIDEST = 0.10
#: Least distance of two labels that stand below each other.
_LABEL = 13


def factors(values: Sequence[float], limit: float) -> str:
    """How many intervals lie where: measured / foreseen less one; the ends hold what is beyond."""
    width, height = 960, 220
    off = np.clip(np.array(values) - 1.0, -_WIDEST, _WIDEST)
    counts, edges = np.histogram(off, _BARS, (-_WIDEST, _WIDEST))
    most = max(1, int(counts.max()))
    x, y = scales(width, height, -_WIDEST, _WIDEST, most * 1.08)
    parts = [grid(width, height, most * 1.08, lambda v: f"{v:,.0f}", 2)]
    for number, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        parts.append(
            f'<rect class="count" x="{x(low) + 0.5:.1f}" y="{y(number):.1f}" '
            f'width="{x(high) - x(low) - 1:.1f}" height="{y(0) - y(number):.1f}"/>'
        )
    for at in (-limit, limit):
        parts.append(
            f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="10" y2="{y(0):.1f}"/>'
        )
    for at in np.linspace(-_WIDEST, _WIDEST, 5).tolist():
        anchor = {-_WIDEST: "start", _WIDEST: "end"}.get(at, "middle")
        parts.append(text(x(at), height - 6, f"{at:+.0%}", anchor))
    return svg(width, height, "Measured over foreseen energy of the other half's intervals", parts)


class Line(NamedTuple):
    """(batch, joules) of rows with about one context; ``bound``: what physics asks of them."""

    label: str
    points: Sequence[tuple[float, float]]
    bound: Sequence[tuple[float, float]]


def lines(rows: Sequence[Decode | Prefill]) -> list[Line]:
    """Neighbouring rows with about the same context."""
    found = []
    for _, group in groupby(rows, lambda row: round(math.log2(max(row[1], 1.0)) / 2)):
        same = list(group)
        mean = sum(row[1] for row in same) / len(same)
        points = [(row.batch, row.token_j) for row in same]
        bound = [(row.batch, row.floor_j) for row in same if row.floor_j]
        found.append(Line(f"{mean:,.0f} tokens", points, bound))
    return found


def by_batch(drawn: Sequence[Line], title: str, published: Sequence[tuple[int, float]] = ()) -> str:
    """Joules a token by batch, both logarithmic: measured, the floor, and published figures."""
    width, height = 960, 280
    points = [point for line in drawn for point in (*line.points, *line.bound)]
    points += published
    low, high = (f(math.log10(j) for _, j in points) for f in (min, max))
    low, high = math.floor(2 * low - 0.2) / 2, math.ceil(2 * high + 0.2) / 2
    last = max(math.log2(max(b, 1.0)) for b, _ in points)
    x, y = scales(width, height, -0.2, max(1.0, last) + 1.0, high - low)

    def at(batch: float, joules: float) -> tuple[float, float]:
        return x(math.log2(max(batch, 1.0))), y(math.log10(joules) - low)

    parts = [
        grid(width, height, high - low, lambda v: quantity(10 ** (low + v), "J", 2),
             round(2 * (high - low)))
    ]  # fmt: skip
    for number in range(math.floor(max(1.0, last)) + 1):
        parts.append(text(x(number), height - 6, f"{2**number}", "middle"))
    for line in drawn:
        for places, kind in ((line.points, "drawn"), (line.bound, "bound")):
            track = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*place) for place in places))
            parts.append(f'<polyline class="{kind}" points="{track}"/>')
        parts += [_dot(at(*place), "drawn") for place in line.points]
    parts += [_dot(at(*place), "told") for place in published]
    ends = sorted((at(*line.points[-1])[::-1], line.label) for line in drawn)
    lowest = -math.inf
    for (level, right), label in ends:
        lowest = max(level + 4, lowest + _LABEL)
        parts.append(text(right + 8, lowest, label, "start"))
    return svg(width, height, title, parts)


def _dot(place: tuple[float, float], kind: str) -> str:
    return f'<circle class="{kind}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="4"/>'
