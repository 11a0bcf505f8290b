"""Final receipts for look-up, with what they cost, and receipts as JSON."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from meter.export.plain import known
from meter.model import Receipt, sum_known, worst
from meter.pricing import Cost, kwh


@dataclass(frozen=True, slots=True)
class Priced:
    """A receipt, what it cost (``None`` where no price is known), and what its joules bound.

    ``host``: what it took of the host beside that; ``None``: not known.
    """

    receipt: Receipt
    cost: Cost | None
    boundary: str = "gpu"
    host: Receipt | None = None


class GoneError(LookupError):
    """A receipt that was here and is not any more; the message says why."""


#: Why a receipt has no joules: its engine owns no device that was ever read.
NOT_MEASURED = "not_measured"
EVICTED = "its receipt made room for newer ones"
REPLACED = "a later request with the same id of the client's has taken its place"


class ReceiptStore:
    """The last ``capacity`` final receipts, found by the client's id or an engine's.

    Of as many names that are gone it is remembered why, by hash.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._parents: dict[str, str] = {}
        self._gone: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._receipts)

    @property
    def names(self) -> int:
        """How many names are kept, those that are gone included."""
        return len(self._receipts) + len(self._parents) + len(self._gone)

    def add(self, receipt: Receipt) -> None:
        """Keep a receipt; the oldest goes when there is no room. Adding again replaces."""
        before = self._receipts.get(receipt.id)
        if before is not None:
            self._forget(before, REPLACED)
        self._receipts[receipt.id] = receipt
        self._receipts.move_to_end(receipt.id)
        self._gone.pop(hash(receipt.id), None)
        for name in _engine_ids(receipt):
            self._parents[name] = receipt.id
            self._gone.pop(hash(name), None)
        if len(self._receipts) > self._capacity:
            oldest = next(iter(self._receipts.values()))
            self._forget(oldest, EVICTED)

    def _forget(self, receipt: Receipt, why: str) -> None:
        del self._receipts[receipt.id]
        names = [name for name in _engine_ids(receipt) if self._parents.get(name) == receipt.id]
        for name in names:
            del self._parents[name]
        for name in (receipt.id, *names):
            self._gone[hash(name)] = why
            self._gone.move_to_end(hash(name))
        while len(self._gone) > self._capacity:
            self._gone.popitem(last=False)

    def find(self, request: str) -> Receipt | None:
        """The receipt of a request by the client's id or an engine's, which may be a child's."""
        receipt = self._receipts.get(request)
        if receipt is not None or request not in self._parents:
            return receipt
        parent = self._receipts[self._parents[request]]
        return next((child for child in parent.children if child.id == request), parent)

    def why_gone(self, request: str) -> str | None:
        """Why there is no receipt of a request any more; ``None`` where none is known of."""
        names = (request, f"{request}-0")  # the first prompt of a completions request
        return next((why for name in names if (why := self._gone.get(hash(name)))), None)

    def recent(self, limit: int) -> list[Receipt]:
        """The newest first."""
        return list(itertools.islice(reversed(self._receipts.values()), limit))


def _engine_ids(receipt: Receipt) -> set[str]:
    """The engine's own ids of all that a receipt covers."""
    return {*receipt.requests, *(child.id for child in receipt.children)} - {receipt.id}


def look_up(request: str, find: Callable[[str], Receipt | None]) -> Receipt | None:
    """The receipt a client means. A completions answer ``cmpl-x`` stands for one engine request
    ``cmpl-x-0``, ``cmpl-x-1`` … for each of its prompts: one is returned as it is, more combined.
    """
    receipt = find(request)
    if receipt is not None:
        return receipt
    numbered = (find(f"{request}-{i}") for i in itertools.count())
    parts = list(itertools.takewhile(lambda part: part is not None, numbered))
    found = [part for part in parts if part is not None]
    return combine(request, found) if len(found) > 1 else next(iter(found), None)


def combine(request: str, parts: list[Receipt]) -> Receipt:
    """One receipt over several independent prompts. Precondition: at least one part.

    The doubts of the parts add up as if fully correlated: they rest on the same coefficients.
    """
    first = parts[0]
    final = all(part.final for part in parts)
    return replace(
        first,
        id=request,
        opened_ns=min(part.opened_ns for part in parts),
        closed_ns=max(part.closed_ns or 0 for part in parts) if final else None,
        reason=_same(part.reason for part in parts),
        prompt_tokens=sum_known(part.prompt_tokens for part in parts),
        cached_tokens=sum_known(part.cached_tokens for part in parts),
        completion_tokens=sum_known(part.completion_tokens for part in parts),
        prefill_j=_sum(part.prefill_j for part in parts),
        decode_j=_sum(part.decode_j for part in parts),
        recompute_j=_sum(part.recompute_j for part in parts),
        uncertainty_j=known(lambda: sum_known(part.uncertainty_j for part in parts)),
        quality=worst([part.quality for part in parts if part.quality is not None]),
        final=final,
        requests=tuple(name for part in parts for name in part.requests),
        children=tuple(parts),
        missed=next((part.missed for part in parts if part.missed is not None), None),
    )


def _sum(values: Iterable[float]) -> float:
    total = known(lambda: sum(values))
    return math.nan if total is None else total


def _same(reasons: Iterable[str | None]) -> str | None:
    """The reason that all share, else ``None``."""
    distinct = set(reasons)
    return distinct.pop() if len(distinct) == 1 else None


def receipt_json(priced: Priced) -> dict[str, Any]:
    """A receipt as the API gives it: a replay's receipt line, and what is known here beyond it."""
    receipt = priced.receipt
    measured = receipt.quality is not None
    return {
        "children": [],
        **receipt_line(receipt),
        "boundary": priced.boundary,
        "host": _host_json(priced.host),
        "kwh": known(lambda: float(kwh(receipt.energy_j))) if measured else None,
        "cost": _cost_json(priced.cost) if measured else None,
    }


def _host_json(receipt: Receipt | None) -> dict[str, Any] | None:
    """What a request took of the host: in none of the other figures of its receipt."""
    if receipt is None or receipt.quality is None:
        return None
    return {
        "boundary": "host",
        "energy_j": known(lambda: receipt.energy_j),
        "prefill_j": receipt.prefill_j,
        "decode_j": receipt.decode_j,
        "recompute_j": receipt.recompute_j,
        "uncertainty_j": receipt.uncertainty_j,
        "quality": str(receipt.quality),
        "final": receipt.final,
    }


def receipt_line(receipt: Receipt) -> dict[str, Any]:
    """A receipt as replay and the HTTP API write it; unknown figures are ``null``.

    Of an engine without a device that was ever read no joules are known: ``missed`` says so.
    """
    measured = receipt.quality is not None
    doubt_j = receipt.uncertainty_j
    line: dict[str, Any] = {
        "id": receipt.id,
        "engine": receipt.engine,
        "model": receipt.model,
        "tenant": receipt.tenant,
        "reason": receipt.reason,
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "energy_j": known(lambda: receipt.energy_j) if measured else None,
        "prefill_j": receipt.prefill_j if measured else None,
        "decode_j": receipt.decode_j if measured else None,
        "recompute_j": receipt.recompute_j if measured else None,
        "uncertainty_j": doubt_j if measured else None,
        "fidelity": str(receipt.fidelity),
        "quality": None if receipt.quality is None else str(receipt.quality),
        "final": receipt.final,
        "missed": receipt.missed if measured else receipt.missed or NOT_MEASURED,
    }
    if receipt.children:
        line["children"] = [receipt_line(child) for child in receipt.children]
    return line


def _cost_json(cost: Cost | None) -> dict[str, Any] | None:
    """The amount is the sum of the components as they are written."""
    if cost is None or not all(amount.is_finite() for amount in cost.components.values()):
        return None
    components = {str(name): money(amount) for name, amount in cost.components.items()}
    amount = sum(map(Decimal, components.values()), Decimal(0))
    return {"amount": f"{amount:f}", "currency": cost.currency, "components": components}


def money(amount: Decimal) -> str:
    """Money as a decimal string with twelve digits after the point: a request may cost 1e-6."""
    return f"{amount:.12f}"
