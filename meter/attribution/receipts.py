"""From bills to receipts: one for what the client asked, its children inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from meter.attribution.accumulator import Bill
from meter.attribution.engine import Request
from meter.model import Engine, Quality, Receipt


def receipt_of(
    request: Request,
    bill: Bill | None,
    engine: Engine,
    quality: Quality | None,
    uncertainty_j: float,
    final: bool,
) -> Receipt:
    """The receipt of one engine request; its ``id`` is the engine's own."""
    opened, closed = request.opened, request.closed
    bill = bill or Bill()
    return Receipt(
        id=opened.request,
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
    )


def joined(id: str, children: Sequence[Receipt]) -> Receipt:
    """One receipt under the id that the client saw.

    The prompt counts once, as ``usage`` counts it, and so do the tokens that the first child found
    cached; completions and joules are sums. Doubts add up: the children share one fit.
    """
    first = children[0]
    if len(children) == 1:
        return replace(first, id=id)
    completions = [c.completion_tokens for c in children]
    closed = [c.closed_ns for c in children]
    return replace(
        first,
        id=id,
        opened_ns=min(c.opened_ns for c in children),
        closed_ns=None if None in closed else max(ns for ns in closed if ns is not None),
        completion_tokens=(
            None if None in completions else sum(n for n in completions if n is not None)
        ),
        prefill_j=sum(c.prefill_j for c in children),
        decode_j=sum(c.decode_j for c in children),
        recompute_j=sum(c.recompute_j for c in children),
        uncertainty_j=sum(c.uncertainty_j for c in children),
        final=all(c.final for c in children),
        requests=tuple(request for c in children for request in c.requests),
        children=tuple(children),
    )


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
