"""Tables of a report; every cell is text and escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def row(cells: Iterable[str], kind: str = "") -> str:
    """``kind``: a CSS class, ``whole`` or ``other``."""
    made = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="{kind}">{made}</tr>' if kind else f"<tr>{made}</tr>"


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """It scrolls by itself where the screen is too narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
