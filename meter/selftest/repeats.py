"""The same request under the same load: how far do its receipts spread?

Under the same load means: as many steps, to 1 % the same parts of them (``presence``), and to 5 %
as long. How many were there on average is not enough: of two requests that started within one step
of each other, one may have had its first step alone, and paid for it. And where a step takes longer
(a busy host, lower clocks) it truly takes other joules. Requests that started together are one
repeat, not many: they shared the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from meter.model import Receipt
from meter.selftest.look import Array
from meter.selftest.presence import Presence

_FEW = 4
_SAME = 0.01
_AS_LONG = 0.05
#: Of a request's own duration: who started nearer to each other started together.
_TOGETHER = 0.5
#: A standard deviation, from the median absolute one; and the relative error of that, times √n.
_FROM_MAD = 1.4826
_ERROR_OF_MAD = 1.17


class Repeats(NamedTuple):
    """``groups``: same tokens, same company; ``spread``: robust relative standard deviation within
    groups, ``error`` its own standard error; ``doubt``: what the receipts say of themselves,
    relative. ``offs``: each receipt over its group's median, less one."""

    groups: int
    requests: int
    spread: float
    error: float
    doubt: float
    offs: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Of ``|off|``."""
        return float(np.quantile(np.abs(np.array(self.offs)), share))


def repeats(
    receipts: Sequence[Receipt], presences: Mapping[tuple[str, str], Presence]
) -> Repeats | None:
    """``None`` where no request came often enough under one load."""
    groups: dict[tuple[object, ...], list[Receipt]] = {}
    for receipt in receipts:
        load = _load(receipt, presences)
        if load is not None:
            asked = (receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens)
            groups.setdefault((receipt.engine, *asked, *load), []).append(receipt)
    apart = [_apart(group) for group in groups.values()]
    often = [group for group in apart if len(group) >= _FEW]
    if not often:
        return None
    offs = np.concatenate([_offs([r.energy_j for r in group]) for group in often])
    spread = float(_FROM_MAD * np.median(np.abs(offs)))
    receipts = [receipt for group in often for receipt in group]
    doubts = [r.uncertainty_j / r.energy_j for r in receipts if r.uncertainty_j is not None]
    return Repeats(
        groups=len(often),
        requests=len(offs),
        spread=spread,
        error=_ERROR_OF_MAD * spread / math.sqrt(len(offs) - len(often)),
        doubt=float(np.mean(doubts)),
        offs=tuple(offs.tolist()),
    )


def _load(
    receipt: Receipt, presences: Mapping[tuple[str, str], Presence]
) -> tuple[int, int, int] | None:
    """Its steps, its parts of them and its time, both in steps of what counts as the same; ``None``
    where it cannot be compared."""
    if receipt.completion_tokens is None or receipt.energy_j <= 0 or len(receipt.requests) != 1:
        return None
    if receipt.recompute_j:  # it was preempted: that is another load
        return None
    found = presences.get((receipt.engine, receipt.requests[0]))
    if found is None or not found.steps or not _took_ns(receipt):
        return None
    parts, took = math.log(found.parts), math.log(_took_ns(receipt))
    return found.steps, round(parts / _SAME), round(took / _AS_LONG)


def _took_ns(receipt: Receipt) -> int:
    return (receipt.closed_ns or receipt.opened_ns) - receipt.opened_ns


def _apart(group: list[Receipt]) -> list[Receipt]:
    """One of those that started together."""
    kept: list[Receipt] = []
    for one in sorted(group, key=lambda receipt: receipt.opened_ns):
        if not kept or one.opened_ns - kept[-1].opened_ns >= _TOGETHER * _took_ns(one):
            kept.append(one)
    return kept


def _offs(values: Sequence[float]) -> Array:
    """Over the median, less one; wider by as much as a median of so few lies too near them."""
    middle = float(np.median(values))
    return np.asarray(
        (np.array(values) / middle - 1.0) * math.sqrt(len(values) / (len(values) - 1))
    )
