"""The requests under way as the live stream gives them: all counted, the first few of an order."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from meter.export.plain import figure, known
from meter.export.query import QueryError, only, whole
from meter.model import Progress, Running

ROWS_MAX = 200
CELLS_MAX = 4096


def unpriced(request: Running) -> float | None:
    """No price is known."""
    return None


class UnderWay(NamedTuple):
    """Requests under way, and what one of them has cost so far (``None``: unknown)."""

    requests: Sequence[Running] = ()
    cost_of: Callable[[Running], float | None] = unpriced


def _energy_j(request: Running) -> float:
    """To order by; not a number where it is not known."""
    return request.energy_j if request.measured else math.nan


# By which figure rows are ordered, largest first.
ORDERS: Mapping[str, Callable[[Running], float]] = {
    "energy": _energy_j,
    "tokens": lambda request: request.output_tokens,
    "prompt": lambda request: request.prompt_tokens or 0,
    "token": lambda request: _energy_j(request) / max(1, request.output_tokens),
    "age": lambda request: -request.opened_ns,
    "newest": lambda request: request.opened_ns,
}
_LETTERS = {progress: progress.value[0] for progress in Progress}


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows one watcher wants: the first ``rows`` by ``order`` whose id, tenant or model
    contains ``match`` (any case)."""

    rows: int = 50
    order: str = "energy"
    match: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Query:
        """From an address's parameters. Raises ``QueryError``."""
        only(given, ("rows", "sort", "match"))
        order = given.get("sort", "energy")
        if order not in ORDERS:
            raise QueryError("sort", f"{order[:100]!r}", f"Give one of {', '.join(ORDERS)}.")
        rows = whole(given, "rows", 50, 0, ROWS_MAX)
        return cls(rows, order, given.get("match", "").casefold())


def running_json(under_way: UnderWay, query: Query, now_ns: int) -> dict[str, Any]:
    """Counts of all, a letter for each in order of opening, and the rows that were asked for."""
    rows = under_way.requests
    found = [row for row in rows if _matches(row, query.match)] if query.match else rows
    counted = Counter(row.progress for row in rows)
    first = heapq.nlargest(query.rows, found, key=_rank(ORDERS[query.order]))
    return {
        "total": len(rows),
        "matching": len(found),
        "counts": {progress.value: counted[progress] for progress in Progress},
        "cells": "".join([_LETTERS[row.progress] for row in rows[:CELLS_MAX]]),
        "rows": [_row(row, known(partial(under_way.cost_of, row)), now_ns) for row in first],
    }


def _rank(
    order: Callable[[Running], float],
) -> Callable[[Running], tuple[bool, float]]:
    """Requests whose figure is none come last: they would put all others out of order."""

    def rank(request: Running) -> tuple[bool, float]:
        found = known(lambda: figure(order(request)))
        return found is not None, found or 0.0

    return rank


def _matches(request: Running, match: str) -> bool:
    names = (request.id, request.tenant or "", request.model or "")
    return any(match in name.casefold() for name in names)


def _row(request: Running, cost: float | None, now_ns: int) -> dict[str, Any]:
    def short(work_out: Callable[[], float | None]) -> float | None:
        return known(lambda: _short(work_out())) if request.measured else None

    return {
        "id": request.id,
        "engine": request.engine,
        "model": request.model,
        "tenant": request.tenant,
        "progress": request.progress.value,
        "age_s": known(lambda: round(max(0, now_ns - request.opened_ns) / 1e9, 3)),
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "energy_j": short(lambda: request.energy_j),
        "prefill_j": short(lambda: request.prefill_j),
        "decode_j": short(lambda: request.decode_j),
        "recompute_j": short(lambda: request.recompute_j),
        "cost": short(lambda: cost),
    }


def _short(value: float | None) -> float | None:
    """Seven digits: they are for the eye, and thousands of them are sent."""
    return None if value is None else float(f"{value:.7g}")
