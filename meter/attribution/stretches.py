"""Stretches of plain decoding that are over: from running sums to joules on bills.

The running sums of ``accumulator`` stand in rows of ``COLUMNS`` numbers. What a stretch owes is
linear in what they grew by between its two ends, so many stretches are worked out at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution.bill import Bill, Segment
from meter.attribution.curve import Array
from meter.attribution.fit import DOUBTED

# The running sums, by column: joules; λ-weighted features of a member; unlearned passes; squares
# of u and v (noise), weighted by k as the context grows; the mean work that f, c, c·k joules buy.
ENERGY = slice(0, 3)
FEATURES = slice(3, 8)
UNLEARNED = 8
SQUARES = slice(9, 15)
MIX = 15
COLUMNS = MIX + 3 * DOUBTED


class Stretch(NamedTuple):
    """A segment that ends before the pass at ``place`` of a block."""

    bill: Bill
    segment: Segment
    place: int


def fold(stretches: Sequence[Stretch], sums: Array, doubts: Array, first: int, k0: int) -> float:
    """Put the joules of stretches on their bills; returns all of them together.

    ``sums``, ``doubts``: the running sums before each pass of the block and after its last, and the
    ``Settled.doubts`` of the pass before; ``first``: the block's first pass.
    """
    if not stretches:
        return 0.0
    segments = [stretch.segment for stretch in stretches]
    places = np.array([stretch.place for stretch in stretches])
    begun = np.array([segment.k for segment in segments])
    count = first + places - begun
    start = np.array([s.context for s in segments]) - (begun - k0).astype(np.float64)
    grown = sums[places] - np.array([segment.sums for segment in segments])
    a, b, c = grown[:, ENERGY].T
    energy_j = a + start * b + c
    work = _work(grown, start)
    noise_j2 = _noise_j2(grown, start) + _ends_j2(energy_j, count, doubts[places])
    plain = (energy_j.tolist(), noise_j2.tolist(), grown[:, UNLEARNED].tolist(), count.tolist())
    for stretch, own, joules, noise, unlearned, passes in zip(stretches, work, *plain, strict=True):
        bill = stretch.bill
        bill.decode_j += joules
        bill.work += own
        bill.noise_j2 += noise
        bill.unlearned += unlearned
        bill.passes += passes
        bill.decoded += passes
    return float(energy_j.sum())


def _work(grown: Array, start: Array) -> Array:
    """What each stretch computed, and what its joules would buy on average: (n, 2, 8)."""
    work = np.zeros((len(grown), 2, DOUBTED))
    gap_s, steps, decode, decode_k, experts = grown[:, FEATURES].T
    for i, column in ((0, gap_s), (1, steps), (4, decode), (6, experts)):
        work[:, 0, i] = column
    work[:, 0, 5] = start * decode + decode_k
    mix_f, mix_c, mix_ck = grown[:, MIX:].reshape(-1, 3, DOUBTED).transpose(1, 0, 2)
    work[:, 1] = mix_f + start[:, None] * mix_c + mix_ck
    return work


def _noise_j2(grown: Array, start: Array) -> Array:
    """Variance of what intervals cannot tell of each stretch: Σ(u + κ·v)²·ε²."""
    uu, uv, vv, uvk, vvk, vvkk = grown[:, SQUARES].T
    squares = uu + 2 * (start * uv + uvk) + start**2 * vv + 2 * start * vvk + vvkk
    return np.asarray(np.maximum(0.0, squares))


def _ends_j2(energy_j: Array, count: Array, doubts: Array) -> Array:
    """Variance that stretches of ``count`` passes add by beginning and ending inside intervals.

    Of an interval of ``m`` equal steps one has ``n``: then ``n·(1 − n/m)`` steps' noise is its own,
    ``m/6`` on average at either end, and at most ``count`` in all.
    """
    count = np.maximum(count, 1)
    noise2, edge2, concentration = doubts.T
    steps = 1.0 / np.maximum(concentration, 1e-9)
    alone = 1.0 / (1.0 / count + 3.0 / steps)
    shared = np.minimum(count, steps) / 2
    return np.asarray((energy_j / count) ** 2 * (noise2 * alone + 2 * edge2 * shared**2))
