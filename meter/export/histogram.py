"""Histograms of one observation a request, with the last request of each bucket as an exemplar."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple


class Example(NamedTuple):
    """A request that fell into a bucket; ``utc_s`` is the Unix time of its close."""

    request: str
    value: float
    utc_s: float


def log_bounds(first_exponent: int, last_exponent: int) -> tuple[float, ...]:
    """Upper bounds, three a decade (1, 2.2, 4.6), from ``10**first`` to ``10**last``."""
    bounds = [
        float(f"{digits}e{exponent}")
        for exponent in range(first_exponent, last_exponent)
        for digits in ("1", "2.2", "4.6")
    ]
    return (*bounds, float(f"1e{last_exponent}"))


REQUEST_BOUNDS_J = log_bounds(-2, 5)
TOKEN_BOUNDS_J = log_bounds(-3, 2)


@dataclass(frozen=True, slots=True)
class HistogramState:
    """An immutable histogram: ``counts`` per bucket, not cumulative, the last beyond all bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    examples: tuple[Example | None, ...]


class Histogram:
    """A histogram being filled, by one thread."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._examples: list[Example | None] = [None] * (len(bounds) + 1)

    def observe(self, example: Example) -> None:
        """Count a request's value; a value equal to a bound is below it, as Prometheus has it."""
        i = bisect_left(self._bounds, example.value)
        self._counts[i] += 1
        self._sum += example.value
        self._examples[i] = example

    def state(self) -> HistogramState:
        return HistogramState(self._bounds, tuple(self._counts), self._sum, tuple(self._examples))
