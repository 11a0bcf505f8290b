"""A block of settled passes of one engine: what each costs per head and per unit of work."""

from __future__ import annotations

import numpy as np

from meter.attribution import passes
from meter.attribution.curve import Array, Ints


class Settled:
    """Arrays of shape (n,), one row a pass.

    ``fixed_j``: (F + gap) / participants; ``prefill_j``, ``pair_j``, ``decode_j``, ``context_j``:
    joules per unit of work; ``expert_j``: joules per token for the experts it shares;
    ``expert_share``: λ-weighted share of experts awake per token; ``energy_j``: the whole pass;
    ``member_j``: what a plainly decoding request pays but for its context; ``share``: the pass's
    share in its interval's joules; ``doubts``: (n, 3), squared relative noise of a step, doubt of
    the interval's edges, Σ of the squared shares of single steps in it.
    """

    def __init__(self, rows: Ints, booked: Array, interval: Ints, experts: Array) -> None:
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
        self.doubts = booked[:, [passes.NOISE, passes.EDGE, passes.RUN_SHARE]]
        self.share = booked[:, passes.SHARE]
        self.interval = interval
        self._compare_in_intervals()

    def _compare_in_intervals(self) -> None:
        """What a member pays in each pass less the pass's share of what it pays in the interval.

        ``u``: but for its context; ``v``: per token of context.
        """
        _, place = np.unique(self.interval, return_inverse=True)

        def summed(values: Array) -> Array:
            return np.asarray(np.bincount(place, values)[place])

        self.u = self.member_j - self.share * summed(self.member_j)
        self.v = self.context_j - self.share * summed(self.context_j)
