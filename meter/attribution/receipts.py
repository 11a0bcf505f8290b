"""From bills to receipts: one for what the client asked, its children inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from meter.attribution.bill import Bill
from meter.attribution.engine import Request
from meter.model import Engine, Quality, Receipt, sum_known, unfrozen, worst

_OpenReceipt = unfrozen(Receipt)


def receipt_of(
    id: str,
    request: Request,
    bill: Bill,
    engine: Engine,
    quality: Quality | None,
    uncertainty_j: float,
    final: bool,
) -> Receipt:
    """The receipt of one engine request, under the name ``id``."""
    opened, closed = request.opened, request.closed
    receipt = _OpenReceipt(
        id=id,
        engine=engine.id,
        model=opened.model or engine.model,
        tenant=opened.tenant,
        opened_ns=opened.t_ns,
        closed_ns=closed.t_ns if closed else None,
        reason=closed.reason if closed else None,
        prompt_tokens=_first(closed.prompt_tokens if closed else None, opened.prompt_tokens),
        cached_tokens=closed.cached_tokens if closed else None,
        completion_tokens=closed.completion_tokens if closed else None,
        prefill_j=bill.prefill_j,
        decode_j=bill.decode_j,
        recompute_j=bill.recompute_j,
        uncertainty_j=uncertainty_j,
        fidelity=engine.fidelity,
        quality=quality,
        final=final,
        requests=(opened.request,),
        children=(),
        missed=request.missed,
    )
    receipt.__class__ = Receipt
    return receipt


def joined(id: str, children: Sequence[Receipt]) -> Receipt:
    """One receipt under the id that the client saw; each child is a line in it.

    The children of one engine (``n > 1``) and then the engines, in the order in which they took the
    request up, come together; what one engine handed over (its prefill) is the next one's prompt.
    Children may also be spread over data-parallel ranks: then all their completions count.
    """
    if len(children) == 1 and children[0].id == id:
        return children[0]
    by_engine: dict[str, list[Receipt]] = {}
    for child in sorted(children, key=lambda c: c.opened_ns):
        by_engine.setdefault(child.engine, []).append(child)
    parts = [_siblings(id, same) for same in by_engine.values()]
    if len(parts) == 1:
        return parts[0]
    together = replace(
        _summed(parts[0], parts),
        uncertainty_j=_root(sum_known(_squared(part.uncertainty_j) for part in parts)),
    )
    if not all(_hands_over(*pair) for pair in pairwise(parts)):
        return replace(
            together, completion_tokens=sum_known(part.completion_tokens for part in parts)
        )
    last = parts[-1]
    return replace(
        together,
        engine=last.engine,
        reason=last.reason,
        completion_tokens=last.completion_tokens,
    )


def _hands_over(part: Receipt, after: Receipt) -> bool:
    """Whether the next engine went on where this one ended: after prefill, with a token each."""
    ended = part.closed_ns is not None and part.closed_ns <= after.opened_ns
    return ended and (part.completion_tokens or 0) <= max(1, len(part.children))


def _siblings(id: str, children: Sequence[Receipt]) -> Receipt:
    """Children of one engine.

    The prompt counts once, as ``usage`` counts it, and so do the tokens that the first child found
    cached; completions and joules are sums. Doubts add up: the children share one fit.
    """
    if len(children) == 1:
        return children[0] if children[0].id == id else replace(children[0], id=id)
    return replace(
        _summed(replace(children[0], id=id), children),
        completion_tokens=sum_known(c.completion_tokens for c in children),
        uncertainty_j=sum_known(c.uncertainty_j for c in children),
    )


def _summed(first: Receipt, parts: Sequence[Receipt]) -> Receipt:
    """``first`` with the joules of all parts, from the first's opening to the last's end."""
    closed = [part.closed_ns for part in parts]
    return replace(
        first,
        opened_ns=min(part.opened_ns for part in parts),
        closed_ns=None if None in closed else max(ns for ns in closed if ns is not None),
        prefill_j=sum(part.prefill_j for part in parts),
        decode_j=sum(part.decode_j for part in parts),
        recompute_j=sum(part.recompute_j for part in parts),
        final=all(part.final for part in parts),
        quality=worst([part.quality for part in parts if part.quality is not None]),
        requests=tuple(request for part in parts for request in part.requests),
        children=tuple(parts),
        missed=next((part.missed for part in parts if part.missed is not None), None),
    )


def _squared(value: float | None) -> float | None:
    return None if value is None else value**2


def _root(value: float | None) -> float | None:
    return None if value is None else value**0.5


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
