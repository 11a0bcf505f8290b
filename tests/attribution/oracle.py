"""The brute-force allocator: every step, every request, no running sums.

It takes the intervals' factors as settled facts (edges, ΔE, coefficients) and hands each interval's
joules out by looping over all requests of all steps in it, exactly as the share is written down in
``meter.attribution.coefficients``. Both the closed form and this must agree to 1e-9.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from meter.attribution.coefficients import Coefficients, prefill_pairs
from meter.model import Phase, Reading, Step, Work


def brute_force(
    steps: list[Step], gap_starts: list[int], readings: list[Reading], theta: Coefficients
) -> tuple[dict[str, float], float]:
    """Joules by request, and idle joules. ``readings``: one at each edge; full-form steps."""
    joules: dict[str, float] = defaultdict(float)
    idle_j = 0.0
    for before, after in pairwise(readings):
        assert before.energy_uj is not None
        assert after.energy_uj is not None
        start, end = before.t_ns, after.t_ns
        owed: dict[str, float] = defaultdict(float)
        busy_ns = 0
        for step, gap_start in zip(steps, gap_starts, strict=True):
            run_ns = max(0, min(end, step.t1_ns) - max(start, step.t0_ns))
            gap_ns = max(0, min(end, step.t0_ns) - max(start, gap_start))
            busy_ns += run_ns + gap_ns
            share = run_ns / (step.t1_ns - step.t0_ns)
            for work in step.work:
                common = theta.step_j * share + theta.static_w * gap_ns * 1e-9
                owed[work.request] += common / len(step.work) + share * own_j(work, theta)
        idle = theta.static_w * (end - start - busy_ns) * 1e-9
        factor = (after.energy_uj - before.energy_uj) / 1e6 / (sum(owed.values()) + idle)
        idle_j += factor * idle
        for request, energy_j in owed.items():
            joules[request] += factor * energy_j
    return joules, idle_j


def own_j(work: Work, theta: Coefficients) -> float:
    """What a participant's own work costs."""
    if work.phase is Phase.DECODE:
        return theta.decode_j * work.tokens + theta.context_j * work.context
    pairs = prefill_pairs(work.tokens, work.context)
    return theta.prefill_j * work.tokens + theta.pair_j * pairs
