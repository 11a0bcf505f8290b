"""Direct work (chunks of prefill, recompute, speculation): each pays its pass's own prices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from meter.attribution.batch import Direct
from meter.attribution.bill import Bill, Own
from meter.attribution.curve import Array, Ints
from meter.attribution.fit import DOUBTED
from meter.attribution.resolution import FACTS
from meter.attribution.settled import Settled
from meter.model import Phase


def charge(direct: Sequence[tuple[Bill, Direct]], block: Settled, first: int) -> float:
    """Put direct work on its bills; returns its joules. ``first``: the block's first pass."""
    if not direct:
        return 0.0
    work = [change.work for _, change in direct]
    place = np.array([change.k for _, change in direct]) - first
    tokens = np.array([w.tokens for w in work])
    energy_j, features = _priced(
        block,
        place,
        tokens,
        context=np.array([w.context for w in work]),
        decodes=np.array([w.phase is Phase.DECODE for w in work]),
        attends=np.array([w.phase is not Phase.ENCODER for w in work]),
    )
    both = np.stack((features, energy_j[:, None] * block.mix[place]), axis=1)
    unlearned = block.unlearned[place].tolist()
    joules = energy_j.tolist()
    for (bill, change), own, energy, part in zip(direct, both, joules, unlearned, strict=True):
        _add(bill, change.work.phase, energy)
        if change.work.phase is Phase.DECODE:
            bill.decoded += 1 if change.work.kept is None else change.work.kept
        elif change.work.phase is not Phase.RECOMPUTE:
            bill.prefilled += change.work.tokens
        bill.work += own
        bill.passes += 1
        bill.unlearned += part
    _note_own([bill for bill, _ in direct], energy_j, block, place)
    return float(energy_j.sum())


def _priced(
    block: Settled, place: Ints, tokens: Ints, context: Ints, decodes: Ints, attends: Ints
) -> tuple[Array, Array]:
    """Joules (n,) and λ-weighted features (n, 8; the last is nobody's) of each piece of work."""
    pairs = np.where(attends, tokens * context + tokens * (tokens + 1) // 2, 0)
    factor = block.factor[place]
    own_j = np.where(
        decodes,
        block.decode_j[place] * tokens + block.context_j[place] * context,
        block.prefill_j[place] * tokens + block.pair_j[place] * pairs,
    )
    features = np.zeros((len(place), DOUBTED))
    features[:, 0], features[:, 1] = block.gap_s[place], block.step_share[place]
    features[:, 2], features[:, 3] = factor * tokens, factor * pairs
    features[:, 4], features[:, 5] = factor * tokens, factor * context
    features[decodes, 2:4] = 0.0
    features[~decodes, 4:6] = 0.0
    features[:, 6] = block.expert_share[place] * tokens
    return block.fixed_j[place] + block.expert_j[place] * tokens + own_j, features


def _add(bill: Bill, phase: Phase, energy_j: float) -> None:
    if phase is Phase.DECODE:
        bill.decode_j += energy_j
    elif phase is Phase.RECOMPUTE:
        bill.recompute_j += energy_j
    else:
        bill.prefill_j += energy_j


def _note_own(bills: Sequence[Bill], joules: Array, block: Settled, place: Ints) -> None:
    """Remember direct work by interval, for what the intervals cannot tell of it."""
    parts = block.parts[place]
    work, offset = np.nonzero(parts)
    number = block.interval[place][work] + offset
    facts = np.zeros((len(work), FACTS))
    if len(block.facts):
        facts = block.facts.take(number - block.first_fact, axis=0, mode="clip")
    columns = (
        number,
        joules[work] * parts[work, offset],
        joules[work] * block.shares[place][work, offset],
        block.later_j[place][work, offset],
        *facts.T,
    )
    shown = zip(*(column.tolist() for column in columns), strict=True)
    counts = np.bincount(work, minlength=len(bills)).tolist()
    noise2 = block.doubts[place, 0].tolist()
    for bill, energy_j, noise, count in zip(bills, joules.tolist(), noise2, counts, strict=True):
        if bill.own is None:
            bill.own = Own()
        bill.own.add(energy_j, noise, islice(shown, count))
