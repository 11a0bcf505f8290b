"""The requests under way as the live stream gives them: all counted, the first few of an order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from meter.export.query import QueryError, only, whole
from meter.model import Progress, Running

ROWS_MAX = 200
CELLS_MAX = 4096


class Shown(NamedTuple):
    """A request under way and its cost so far; ``None`` where no price is known."""

    request: Running
    cost: float | None


# By which figure rows are ordered, largest first.
ORDERS: Mapping[str, Callable[[Shown], float]] = {
    "energy": lambda row: row.request.energy_j,
    "tokens": lambda row: row.request.output_tokens,
    "prompt": lambda row: row.request.prompt_tokens or 0,
    "token": lambda row: row.request.energy_j / max(1, row.request.output_tokens),
    "age": lambda row: -row.request.opened_ns,
    "newest": lambda row: row.request.opened_ns,
}


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


def running_json(rows: Sequence[Shown], query: Query, now_ns: int) -> dict[str, Any]:
    """Counts of all, a letter for each in order of opening, and the rows that were asked for."""
    found = [row for row in rows if _matches(row.request, query.match)] if query.match else rows
    counts = dict.fromkeys((progress.value for progress in Progress), 0)
    for row in rows:
        counts[row.request.progress.value] += 1
    first = heapq.nlargest(query.rows, found, key=ORDERS[query.order])
    return {
        "total": len(rows),
        "matching": len(found),
        "counts": counts,
        "cells": "".join(row.request.progress.value[0] for row in rows[:CELLS_MAX]),
        "rows": [_row(row, now_ns) for row in first],
    }


def _matches(request: Running, match: str) -> bool:
    names = (request.id, request.tenant or "", request.model or "")
    return any(match in name.casefold() for name in names)


def _row(row: Shown, now_ns: int) -> dict[str, Any]:
    request, cost = row
    return {
        "id": request.id,
        "engine": request.engine,
        "model": request.model,
        "tenant": request.tenant,
        "progress": request.progress.value,
        "age_s": round(max(0, now_ns - request.opened_ns) / 1e9, 3),
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "energy_j": _short(request.energy_j),
        "prefill_j": _short(request.prefill_j),
        "decode_j": _short(request.decode_j),
        "recompute_j": _short(request.recompute_j),
        "cost": None if cost is None else _short(cost),
    }


def _short(value: float) -> float:
    """Seven digits: they are for the eye, and thousands of them are sent."""
    return float(f"{value:.7g}")
