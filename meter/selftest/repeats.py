"""The same request under the same load: how far do its receipts spread?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.model import Receipt

_FEW = 4


class Repeats(NamedTuple):
    """``groups``: same tokens, same company; ``spread``: robust relative standard deviation in a
    group, mean over requests; ``doubt``: what the receipts say of themselves, relative."""

    groups: int
    requests: int
    spread: float
    doubt: float


def repeats(receipts: Sequence[Receipt]) -> Repeats | None:
    """``None`` where no request came often enough under one load."""
    groups: dict[tuple[object, ...], list[Receipt]] = {}
    for receipt, company in zip(receipts, _company(receipts), strict=True):
        if receipt.completion_tokens is None or receipt.energy_j <= 0 or receipt.children:
            continue
        asked = (receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens)
        groups.setdefault((receipt.engine, *asked, company), []).append(receipt)
    often = [group for group in groups.values() if len(group) >= _FEW]
    if not often:
        return None
    sizes = np.array([len(group) for group in often])
    spreads = np.array([_spread([r.energy_j for r in group]) for group in often])
    doubts = [r.uncertainty_j / r.energy_j for group in often for r in group]
    return Repeats(
        groups=len(often),
        requests=int(sizes.sum()),
        spread=float((spreads * sizes).sum() / sizes.sum()),
        doubt=float(np.mean(doubts)),
    )


def _spread(values: Sequence[float]) -> float:
    """1.4826 times the median absolute deviation, over the median."""
    middle = float(np.median(values))
    return float(1.4826 * np.median(np.abs(np.array(values) - middle)) / middle)


def _company(receipts: Sequence[Receipt]) -> list[int]:
    """How many requests were there on average while each one was, in steps of a tenth."""
    opened = np.array([r.opened_ns for r in receipts], dtype=np.float64)
    closed = np.array([r.closed_ns or r.opened_ns for r in receipts], dtype=np.float64)
    found = []
    for start, end in zip(opened, closed, strict=True):
        shared = np.minimum(closed, end) - np.maximum(opened, start)
        mean = np.maximum(shared, 0.0).sum() / max(1.0, end - start)
        found.append(round(10 * np.log2(max(1.0, mean)) / 3))
    return found
