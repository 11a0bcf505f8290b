"""A block of settled passes of one engine: what each costs per head and per unit of work."""

from __future__ import annotations

import numpy as np

from meter.attribution import passes
from meter.attribution.curve import Array
from meter.attribution.passes import PassTable
from meter.attribution.resolution import EDGE, SQUARES


class Settled:
    """Arrays of shape (n,), one row a pass.

    ``fixed_j``: (F + gap) / participants; ``prefill_j``, ``pair_j``, ``decode_j``, ``context_j``:
    joules per unit of work; ``expert_j``: joules per token for the experts it shares;
    ``expert_share``: λ-weighted share of experts awake per token; ``energy_j``: the whole pass;
    ``member_j``: what a plainly decoding request pays but for its context; ``u`` and ``v``: what it
    pays less what the intervals make of that, but for its context and per token of it (see
    ``resolution``); ``others``: (3, n), what the noise of other engines' steps adds to the squares
    ``u²``, ``u·v``, ``v²``; ``parts``, ``shares``, ``later_j``: (n, 4), which part of a pass its
    intervals show, its share in their joules, and what a member pays there after it; ``facts``: of
    the intervals from ``first_fact`` on; ``doubts``: (n, 3), squared relative noise of a step, and
    ``EDGE`` and ``SQUARES`` of the interval that shows most.
    """

    def __init__(self, table: PassTable, count: int, experts: Array) -> None:
        """Of the first ``count`` passes of a table; ``experts``: the share of them awake."""
        rows, booked = table.rows[:count], table.booked[:count]
        self.rows = rows
        self.heads = passes.heads(rows)
        heads = np.maximum(self.heads, 1)
        tokens = np.maximum(passes.tokens(rows), 1)
        common_j = booked[:, passes.STEP_J] + booked[:, passes.GAP_J]
        self.fixed_j = common_j / heads
        self.prefill_j = booked[:, passes.PREFILL_J]
        self.pair_j = booked[:, passes.PAIR_J]
        self.decode_j = booked[:, passes.DECODE_J]
        self.context_j = booked[:, passes.CONTEXT_J]
        self.expert_j = booked[:, passes.EXPERT_J] * experts / tokens
        self.factor = booked[:, passes.LAMBDA]
        self.expert_share = self.factor * experts / tokens
        self.gap_s = booked[:, passes.GAP_S] / heads
        self.step_share = self.factor / heads
        self.energy_j = (
            common_j
            + self.prefill_j * passes.prefill_tokens(rows)
            + self.pair_j * passes.pairs(rows)
            + self.decode_j * rows[:, passes.D_TOKENS]
            + self.context_j * rows[:, passes.D_CONTEXT]
            + booked[:, passes.EXPERT_J] * experts
        )
        self.member_j = self.fixed_j + self.decode_j + self.expert_j
        self.unlearned = booked[:, passes.UNLEARNED_J] / np.maximum(self.energy_j, 1e-300)
        self.unlearned[self.energy_j <= 0] = 0.0
        self.mix = booked[:, passes.MIX :]
        run_j = self.energy_j - booked[:, passes.GAP_J]
        self.u = self.member_j - run_j * booked[:, passes.MEMBER_SEEN]
        self.v = self.context_j - run_j * booked[:, passes.CONTEXT_SEEN]
        self.others = booked[:, passes.OTHERS : passes.PART].T
        self.parts = booked[:, passes.PART : passes.SHARE]
        self.shares = booked[:, passes.SHARE : passes.LATER]
        self.later_j = booked[:, passes.LATER : passes.MIX]
        self.interval, self.facts = table.interval[:count], table.facts
        self.first_fact = table.first_fact
        self.doubts = np.zeros((count, 3))
        self.doubts[:, 0] = booked[:, passes.NOISE]
        if count and len(self.facts):
            number = self.interval + self.parts.argmax(axis=1) - self.first_fact
            near = self.facts[np.clip(number, 0, len(self.facts) - 1)]
            self.doubts[:, 1:] = near[:, [EDGE, SQUARES]]
