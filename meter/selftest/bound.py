"""Joules per token by batch size and context, beside what physics asks at least.

The floor: every byte read from memory at 3.9 pJ a bit (HBM2: O'Connor et al., MICRO 2017) and every
operation at 0.25 pJ, nothing else drawn, all perfectly overlapped. A figure below it means a
broken meter. A step reads the active weights once and each request's context once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution.fit import OWN
from meter.model import Engine, Receipt
from meter.selftest.look import Array, Intervals
from meter.selftest.presence import Presence

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


class Prefill(NamedTuple):
    """``batch``: requests in its steps, ``prompt``: tokens computed of each (both means)."""

    batch: float
    prompt: float
    token_j: float
    floor_j: float | None
    requests: int


def decode(intervals: Intervals, engines: Sequence[Engine], devices: int) -> tuple[Decode, ...]:
    """From intervals that were busy with decoding alone, of all models; by batch in powers of two,
    and by context in powers of four."""
    work = intervals.features[:, 1:].reshape(len(intervals.features), -1, OWN).sum(axis=1)
    steps, prefill, _, tokens, context, _ = work.T
    chosen = intervals.known & (steps > 0) & (tokens > 0) & (prefill < 1e-3 * tokens)
    chosen &= intervals.run_s > _BUSY * intervals.seconds
    each = context / np.maximum(tokens, 1e-12)
    levels = np.stack((_level(each, 2), _level(tokens / np.maximum(steps, 1e-12), 1)))
    rows = []
    for level in np.unique(levels[:, chosen], axis=1).T:
        inside = chosen & (levels == level[:, None]).all(axis=0)
        if inside.sum() < _FEW:
            continue
        batch = float(tokens[inside].sum() / steps[inside].sum())
        read = float(context[inside].sum() / tokens[inside].sum())
        token_j = float(intervals.energy_j[inside].sum() / tokens[inside].sum())
        low_j = floor_j(engines[0], batch, read, devices) if len(engines) == 1 else None
        rows.append(Decode(batch, read, token_j, low_j, int(inside.sum())))
    return tuple(rows)


def prefill(
    receipts: Sequence[Receipt],
    presences: Mapping[tuple[str, str], Presence],
    engines: Sequence[Engine],
) -> tuple[Prefill, ...]:
    """From what requests were charged for their prompts, all devices of the engine together; by
    company in powers of two, and by computed prompt in powers of four."""
    found = []
    for one in receipts:
        there = presences.get((one.engine, one.requests[0])) if len(one.requests) == 1 else None
        tokens = (one.prompt_tokens or 0) - (one.cached_tokens or 0)
        if there is not None and there.steps and tokens > 0 and one.prefill_j > 0:
            found.append((there.steps / there.parts, tokens, one.prefill_j))
    if not found:
        return ()
    batch, tokens, energy_j = np.array(found).T
    levels = np.stack((_level(tokens, 2), _level(batch, 1)))
    low_j = prefill_floor_j(engines[0]) if len(engines) == 1 else None
    rows = []
    for level in np.unique(levels, axis=1).T:
        inside = (levels == level[:, None]).all(axis=0)
        if inside.sum() >= _FEW:
            token_j = float(energy_j[inside].sum() / tokens[inside].sum())
            mean, length = float(batch[inside].mean()), float(tokens[inside].mean())
            rows.append(Prefill(mean, length, token_j, low_j, int(inside.sum())))
    return tuple(rows)


def _level(values: Array, doublings: int) -> Array:
    return np.asarray(np.round(np.log2(np.maximum(values, 1.0)) / doublings))


def prefill_floor_j(engine: Engine) -> float | None:
    """Least joules for a prompt token: its operations alone (weights are read for many)."""
    active = engine.active_params or engine.params
    return None if active is None else 2 * active * _J_PER_FLOP


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
