"""Hidden cost coefficients: what work takes in joules beyond static power, and in seconds.

A step costs ``step + prompt·p + pair·pairs + decode·n + context·kv + expert·m(T)``, the same sum in
both units. Work is held as rows of ``features`` that add up over the step: then a request's Shapley
value is the product of its own row with the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.model import Experts

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Columns of a row of work: the request's number, tokens computed, context before, phase, and the
#: tokens kept (-1: as the rule says).
WHO, TOKENS, CONTEXT, PHASE, KEPT = range(5)
PREFILL, DECODE, RECOMPUTE = range(3)
#: Columns of features, in the order of ``Terms``.
STEP, PROMPT, PAIR, DECODED, READ, EXPERT = range(6)


class Terms(NamedTuple):
    """One kind of cost (joules, or seconds) of one unit of each feature."""

    step: float
    prompt: float
    pair: float
    decode: float
    context: float
    expert: float = 0.0

    def array(self) -> Array:
        return np.array(self)

    def scaled(self, factor: float) -> Terms:
        return Terms(*(factor * term for term in self))


@dataclass(frozen=True, slots=True)
class Model:
    """The public facts of a model; counts and bytes."""

    name: str
    params: float
    weight_bytes: float
    kv_bytes_per_token: float
    layers: int
    heads: int
    head_dim: int
    active_params: float | None = None
    experts: Experts | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """A model on a card: the card's data sheet, and the hidden costs of the pair."""

    card: str
    model: Model
    static_w: float
    bare_w: float
    limit_w: float
    mem_bandwidth: float
    joules: Terms
    seconds: Terms
    kv_tokens: int


LLAMA_8B: Final = Model("llama-8b", 8.03e9, 16.06e9, 131072, 32, 32, 128)
LLAMA_3B: Final = Model("llama-3b", 3.21e9, 6.43e9, 114688, 28, 24, 128)
QWEN_MOE: Final = Model(
    "qwen-30b-a3b", 30.5e9, 61.0e9, 98304, 48, 32, 128, active_params=3.3e9, experts=Experts(128, 8)
)

#: 8B in bf16 on one H100, as the demo's card has it (``meter.demo.physics``).
H100: Final = Setup(
    card="NVIDIA H100 80GB HBM3",
    model=LLAMA_8B,
    static_w=115.0,
    bare_w=70.0,
    limit_w=700.0,
    mem_bandwidth=3.35e12,
    joules=Terms(2.0, 16.5e-3, 0.75e-6, 30e-3, 24e-6),
    seconds=Terms(6.6e-3, 29e-6, 1.1e-9, 50e-6, 45e-9),
    kv_tokens=380_000,
)

#: 3B in bf16 on a card of 72 W and 300 GB/s: 21 ms to read the weights, 51 TFLOP/s in prefill; each
#: term draws 44 to 52 W beyond static power.
LIGHT: Final = Setup(
    card="NVIDIA L4",
    model=LLAMA_3B,
    static_w=16.0,
    bare_w=12.0,
    limit_w=72.0,
    mem_bandwidth=3.0e11,
    joules=Terms(1.19, 6.3e-3, 0.34e-6, 11e-3, 17.6e-6),
    seconds=Terms(27e-3, 125e-6, 6.5e-9, 230e-6, 400e-9),
    kv_tokens=100_000,
)

#: 30B with 3B active on one H100: a step that wakes all experts reads 57 GB for them.
MOE: Final = Setup(
    card="NVIDIA H100 80GB HBM3",
    model=QWEN_MOE,
    static_w=115.0,
    bare_w=70.0,
    limit_w=700.0,
    mem_bandwidth=3.35e12,
    joules=Terms(0.9, 11e-3, 0.9e-6, 20e-3, 15e-6, 7.8),
    seconds=Terms(3.5e-3, 19e-6, 1.6e-9, 36e-6, 29e-9, 18.5e-3),
    kv_tokens=120_000,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How work turns into features: a mixture's experts, and how inefficient short chunks are.

    A chunk of m tokens costs as much as ``m·(1 + short·exp(−m / 256))`` in a long one.
    """

    experts: Experts | None = None
    short: float = 0.0

    def awake(self, tokens: float) -> float:
        """The share of the experts that a step over ``tokens`` tokens reads: ``m(T)``."""
        if self.experts is None:
            return 0.0
        return float(1.0 - (1.0 - self.experts.active / self.experts.total) ** tokens)

    def features(self, rows: Ints, weight: Array) -> Array:
        """Shape (n, 6): what each row adds to the step. ``weight``: (n,), 1 but for adapters.

        The fixed part goes in equal parts, the experts' in parts by token.
        """
        tokens, context = rows[:, TOKENS].astype(float), rows[:, CONTEXT].astype(float)
        decodes = rows[:, PHASE] == DECODE
        chunk = np.where(decodes, 0.0, weight)
        plain = np.where(decodes, weight, 0.0)
        found = np.empty((len(rows), 6))
        found[:, STEP] = 1.0 / max(1, len(rows))
        found[:, PROMPT] = chunk * tokens * (1.0 + self.short * np.exp(-tokens / 256.0))
        found[:, PAIR] = chunk * (tokens * context + tokens * (tokens + 1.0) / 2.0)
        found[:, DECODED] = plain * tokens
        found[:, READ] = plain * context
        total = float(tokens.sum())
        found[:, EXPERT] = self.awake(total) * tokens / max(total, 1.0)
        return found

    def dummy(self) -> Array:
        """The features of a step with nobody in it: one token of nothing."""
        return np.array([1.0, 0.0, 0.0, 0.0, 0.0, self.awake(1.0)])
