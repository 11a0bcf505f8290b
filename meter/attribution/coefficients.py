"""What a step costs: the coefficients of the cost game and the features they price.

``cost = static_w·seconds + F·steps + a·p + q·pairs + b·n + c·kv + e·m``, where
``seconds`` is time outside steps (idle and gaps), ``p`` prefill tokens computed, ``pairs`` the
token pairs that prefill attention sees, ``n`` decode tokens computed, ``kv`` the context tokens
that decoding requests read and ``m`` the share of a mixture's experts that a step wakes. The other
coefficients hold the *time* that their work adds as well: static power during a longer step belongs
to what made it longer.
"""

from __future__ import annotations

from typing import NamedTuple

from meter.model import Device, Engine

NAMES = ("static_w", "F", "a", "q", "b", "c", "e")


class Features(NamedTuple):
    """What was done in some stretch of time; counts are fractional where a step is cut."""

    seconds: float
    steps: float
    prefill: float
    pairs: float
    decode: float
    context: float
    experts: float = 0.0


class Coefficients(NamedTuple):
    """Watts for ``static_w``, joules per unit for the rest, in the order of ``Features``."""

    static_w: float
    step_j: float
    prefill_j: float
    pair_j: float
    decode_j: float
    context_j: float
    expert_j: float = 0.0


def prefill_pairs(tokens: int, context: int) -> int:
    """Token pairs that causal attention sees for a chunk: ``m·ctx + m(m+1)/2``."""
    return tokens * context + tokens * (tokens + 1) // 2


class Prior(NamedTuple):
    """Where calibration starts; ``informed`` is false where only the shape means anything."""

    coefficients: Coefficients
    informed: bool


#: The shape of an 8B model's costs on an H100, as the demo's card has them
#: (``meter.demo.physics``). Used where the model's facts are unknown: the data set its scale at
#: once, and then every coefficient by itself.
GENERIC = Prior(Coefficients(115.0, 2.0, 16.5e-3, 0.75e-6, 30e-3, 24e-6), informed=False)

#: A mixture of experts of unknown size: waking all of them costs about as much as a step.
_GENERIC_EXPERT_SHARE = 1.0

_BUSY_SHARE_OF_LIMIT = 0.8
_STATIC_SHARE_OF_LIMIT = 0.16
_JOULES_PER_FLOP = 0.71e-12
_MODEL_FLOP_UTILISATION = 0.5
_STEP_OVERHEAD = 1.4
_DECODE_TO_PREFILL = 1.8


def with_experts(prior: Prior) -> Prior:
    """The prior of a shape, for an engine whose model mixes experts."""
    coefficients = prior.coefficients
    if coefficients.expert_j:
        return prior
    expert_j = _GENERIC_EXPERT_SHARE * coefficients.step_j
    return prior._replace(coefficients=coefficients._replace(expert_j=expert_j))


def roofline_prior(engine: Engine, device: Device, shards: int = 1) -> Prior:
    """Coefficients from the model's and the card's data sheets, each right within about 1.4.

    With ``P`` 0.8 of the power limit: a byte read takes ``P / bandwidth``; ``F`` reads the weights,
    1.4 times for what else a step does, and ``c`` a token's KV cache. A FLOP takes 0.71 pJ at full
    utilisation, here half of it: ``a`` is ``2·parameters`` of them, ``b`` 1.8 times ``a``, and
    ``q`` is ``4·heads·head_dim·layers``. Checked against published figures for 8B models on one
    H100 (ML.ENERGY leaderboard, version 3) alone, not yet against a trace of our own
    (``tests/data``). A mixture's experts hold ``(params − active) / (1 − active/total)`` of its
    parameters; reading them all is ``e``, reading the rest is in ``F``.

    ``shards``: devices that share the engine's work; each carries an equal part. Returns
    ``GENERIC`` where a fact is missing.
    """
    active = engine.active_params or engine.params
    if (
        active is None
        or engine.weight_bytes is None
        or engine.kv_bytes_per_token is None
        or engine.layers is None
        or engine.heads is None
        or engine.head_dim is None
        or device.mem_bandwidth is None
        or device.power_limit_w is None
    ):
        return with_experts(GENERIC) if engine.experts is not None else GENERIC
    busy_w = _BUSY_SHARE_OF_LIMIT * device.power_limit_w
    joules_per_byte = busy_w / device.mem_bandwidth / shards
    joules_per_flop = _JOULES_PER_FLOP / _MODEL_FLOP_UTILISATION / shards
    prefill_j = 2 * active * joules_per_flop
    read_j = _STEP_OVERHEAD * engine.weight_bytes * joules_per_byte
    expert_j = _expert_share(engine) * read_j
    return Prior(
        Coefficients(
            static_w=_STATIC_SHARE_OF_LIMIT * device.power_limit_w,
            step_j=read_j - expert_j,
            prefill_j=prefill_j,
            pair_j=4 * engine.heads * engine.head_dim * engine.layers * joules_per_flop,
            decode_j=_DECODE_TO_PREFILL * prefill_j,
            context_j=engine.kv_bytes_per_token * joules_per_byte,
            expert_j=expert_j,
        ),
        informed=True,
    )


def _expert_share(engine: Engine) -> float:
    """The share of a mixture's weights that lies in its experts; 0 for a dense model."""
    if engine.experts is None or not engine.params:
        return 0.0
    asleep = 1 - engine.experts.active / engine.experts.total
    active = engine.active_params
    if active is None or asleep <= 0:
        return 0.8
    return min(0.95, max(0.0, (engine.params - active) / asleep / engine.params))
