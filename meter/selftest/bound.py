"""Joules per decoded token by batch size, beside what physics asks at least.

The floor: every byte read from memory at 3.9 pJ a bit (HBM2: O'Connor et al., MICRO 2017) and every
operation at 0.25 pJ, nothing else drawn, all perfectly overlapped. A figure below it means a
broken meter. A step reads the active weights once and each request's context once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.model import Engine
from meter.selftest.look import Intervals

_J_PER_BIT = 3.9e-12
_J_PER_FLOP = 0.25e-12
_FEW = 5
_BUSY = 0.9

#: J per output token, prefill included, by mean batch: vLLM 0.11.1 on one H100 (ML.ENERGY
#: leaderboard, version 3, 2026-02), Llama-3.1-8B in bf16.
PUBLISHED_8B_H100 = (
    (8, 0.455),
    (16, 0.263),
    (32, 0.165),
    (64, 0.119),
    (128, 0.0951),
    (256, 0.0766),
)


class Decode(NamedTuple):
    """``batch``: requests that decode in a step, ``context``: tokens each reads (both means);
    ``floor_j``: ``None`` where the model's facts are not known."""

    batch: float
    context: float
    token_j: float
    floor_j: float | None
    intervals: int


def decode(intervals: Intervals, engines: Sequence[Engine], devices: int) -> tuple[Decode, ...]:
    """From intervals that were busy with decoding alone; batches in powers of two."""
    _, steps, prefill, _, tokens, context, _ = intervals.features.T
    chosen = intervals.known & (steps > 0) & (tokens > 0) & (prefill < 1e-3 * tokens)
    chosen &= intervals.run_s > _BUSY * intervals.seconds
    batch = tokens / np.maximum(steps, 1e-12)
    level = np.round(np.log2(np.maximum(batch, 1.0)))
    rows = []
    for one in np.unique(level[chosen]):
        inside = chosen & (level == one)
        if inside.sum() < _FEW:
            continue
        mean = float(tokens[inside].sum() / steps[inside].sum())
        each = float(context[inside].sum() / tokens[inside].sum())
        token_j = float(intervals.energy_j[inside].sum() / tokens[inside].sum())
        low_j = floor_j(engines[0], mean, each, devices) if len(engines) == 1 else None
        rows.append(Decode(mean, each, token_j, low_j, int(inside.sum())))
    return tuple(rows)


def floor_j(engine: Engine, batch: float, context: float, devices: int) -> float | None:
    """Least joules of one device for a decoded token; ``None`` where a fact is missing."""
    active = engine.active_params or engine.params
    if active is None or engine.weight_bytes is None or engine.kv_bytes_per_token is None:
        return None
    share = active / engine.params if engine.params else 1.0
    bytes_read = engine.weight_bytes * share + batch * context * engine.kv_bytes_per_token
    joules = 8 * bytes_read * _J_PER_BIT + 2 * active * batch * _J_PER_FLOP
    return joules / batch / max(1, devices)


def published(engine: Engine, name: str) -> tuple[tuple[int, float], ...]:
    """Published figures that are comparable; none where there are not."""
    alike = engine.params is not None and 7e9 <= engine.params <= 9e9 and engine.experts is None
    return PUBLISHED_8B_H100 if alike and "H100" in name else ()
