"""Bars and areas of block characters, coloured by account."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from meter.top.series import STACK, Flow, Moment

COLOURS = {
    "prefill": "#5a9fe8",
    "decode": "#35bd91",
    "recompute": "#ac86e8",
    "idle": "#8b9893",
    "startup": "#d8ac45",
    "unattributed": "#ec6a5c",
    "pending": "#4c5a54",
    "waiting": "#8b9893",
    "settling": "#d8c27a",
}
_LEVELS = " ▁▂▃▄▅▆▇█"
_HOLE_S = 3.0


def bar(parts: Sequence[tuple[str, float]], width: int) -> Text:
    """One line of ``width`` cells, shared by parts (colour name, fraction) by largest remainder."""
    cells = [max(0.0, fraction) * width for _, fraction in parts]
    whole = [int(value) for value in cells]
    left = min(width, round(sum(cells))) - sum(whole)
    for i in sorted(range(len(cells)), key=lambda i: whole[i] - cells[i])[: max(0, left)]:
        whole[i] += 1
    text = Text()
    for (name, _), size in zip(parts, whole, strict=True):
        text.append("█" * size, style=COLOURS.get(name, name))
    text.append("░" * (width - sum(whole)), style="dim")
    return text


def spark(values: Sequence[float | None], style: str) -> Text:
    """One line, from zero to the largest; a blank is what nobody saw."""
    most = max((value for value in values if value is not None), default=0.0) or 1.0
    cells = (
        " " if value is None else _LEVELS[max(1, round(8 * max(0.0, value) / most))]
        for value in values
    )
    return Text("".join(cells), style=style)


def columns(
    points: Sequence[Flow] | Sequence[Moment], now_s: float, width: int, window_s: float
) -> list[int | None]:
    """For each column of a graph that ends now, the point that it shows; ``None``: none near."""
    found: list[int | None] = []
    at = 0
    for column in range(width):
        t_s = now_s - window_s * (1 - (column + 1) / width)
        while at + 1 < len(points) and points[at + 1].t_s <= t_s:
            at += 1
        near = bool(points) and 0 <= t_s - points[at].t_s < _HOLE_S
        found.append(at if near else None)
    return found


def area(
    flows: Sequence[Flow], now_s: float, width: int, height: int, window_s: float
) -> tuple[list[Text], float]:
    """Lines of stacked power, coloured by account, top first; and the watts at the top."""
    shown = columns(flows, now_s, width, window_s)
    sums = [sum(flows[i].watts) for i in shown if i is not None]
    most = max(sums, default=0.0) or 1.0
    lines = [Text() for _ in range(height)]
    for place in shown:
        stack = _stacked(flows[place], most, height) if place is not None else []
        for row, line in enumerate(lines):
            _cell(line, stack, height - 1 - row)
    return lines, most


def _stacked(flow: Flow, most: float, height: int) -> list[tuple[float, str]]:
    """Tops of the accounts in cells from below, with their names."""
    tops, total = [], 0.0
    for name, watts in zip(STACK, flow.watts, strict=True):
        total += watts
        if watts > 0:
            tops.append((height * total / most, name))
    return tops


def _cell(line: Text, stack: Sequence[tuple[float, str]], floor: int) -> None:
    """The part of a column between ``floor`` and one cell above it.

    A full cell in which two accounts meet shows the lower one as a block before the other's
    background.
    """
    inside = [(top, name) for top, name in stack if top > floor + 1 / 16]
    if not inside:
        line.append(" ")
        return
    top, name = inside[0]
    level = min(8, max(1, round(8 * (top - floor))))
    style = COLOURS[name]
    if level < 8 and len(inside) > 1 and stack[-1][0] >= floor + 1:
        style += f" on {COLOURS[inside[1][1]]}"
    elif level < 8 and len(inside) > 1:
        level = min(8, max(1, round(8 * (stack[-1][0] - floor))))
    line.append(_LEVELS[level], style=style)
