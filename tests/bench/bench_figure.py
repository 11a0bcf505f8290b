"""What a benchmark found: one line of the table."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """``target``: the value that should not be exceeded (``None``: shown beside, no target)."""

    item: str
    what: str
    value: float
    unit: str = ""
    target: float | None = None

    def row(self) -> str:
        target = "" if self.target is None else f"≤ {self.target:g} {self.unit}".rstrip()
        value = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        met = "" if self.target is None else ("yes" if self.value <= self.target else "no")
        return f"| {self.item} | {self.what} | {value} {self.unit} | {target} | {met} |"


HEADER = "| benchmark | figure | measured | target | met |\n|---|---|---|---|---|"
