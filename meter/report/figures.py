"""What a report says, wherever it comes from. ``None`` is unknown, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: Accounts that requests pay, and those that nobody does, in the order in which they are shown.
REQUESTS = ("prefill", "decode", "recompute")
OTHERS = ("startup", "idle", "unattributed")
ACCOUNTS = REQUESTS + OTHERS


class Line(NamedTuple):
    """One model or tenant: what its requests took. Tokens: computed, cached, given out.

    A tenant's input is its whole prompts, with what was cached of them.
    """

    name: str
    requests: int | None
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    energy_j: float
    cost: float | None


class Bin(NamedTuple):
    """A stretch of time (s from the start): mean watts by account in ``ACCOUNTS``' order, requests
    in flight at its end, output tokens a second. ``None`` where nothing was measured."""

    start_s: float
    end_s: float
    watts: tuple[float, ...] | None
    running: float | None
    output_tokens_per_s: float | None


class Ask(NamedTuple):
    """One request: its joules, their doubt (k = 1), its tokens, its life (s), its cost."""

    id: str
    model: str | None
    tenant: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    energy_j: float
    uncertainty_j: float | None
    seconds: float | None
    cost: float | None
    reason: str | None


class Meter(NamedTuple):
    """One device and what is known of its counter; coefficients as name, value, doubt."""

    name: str
    id: str
    boundary: str
    quality: str
    energy_j: float
    refresh_s: float | None = None
    delay_s: float | None = None
    delay_sd_s: float | None = None
    coefficients: tuple[tuple[str, float, float | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """``start_utc_s``: ``None`` where the clock of the time is not known. ``measured_j`` is the sum
    of ``accounts_j`` and ``pending_j``, but for ``residual_j``. ``metered_s``: for how much of
    ``seconds`` a meter was there; ``None`` where that is not known. ``asks`` are the receipts,
    where the source has them. ``others_cost``: by account, what no request pays. ``prices``: what
    was assumed; ``holes``: what the figures leave out; ``notes``: what a reader must know of
    them."""

    source: str
    start_utc_s: float | None
    seconds: float
    quality: str | None
    measured_j: float
    accounts_j: Mapping[str, float]
    pending_j: float
    residual_j: float
    unattributed_by_reason: Mapping[str, float]
    currency: str
    cost_components: Mapping[str, float]
    others_cost: Mapping[str, float]
    prices: Mapping[str, str]
    models: tuple[Line, ...]
    tenants: tuple[Line, ...]
    timeline: tuple[Bin, ...]
    meters: tuple[Meter, ...]
    asks: tuple[Ask, ...] = ()
    fidelity: str | None = None
    holes: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
    metered_s: float | None = None

    @property
    def attributed_j(self) -> float:
        return sum(self.accounts_j.get(name, 0.0) for name in REQUESTS)

    @property
    def mean_power_w(self) -> float | None:
        """Over the time that was metered; ``None`` where there was none, or it is not known."""
        return self.measured_j / self.metered_s if self.metered_s else None

    @property
    def cost(self) -> float | None:
        """All of it; ``None`` where no price is known."""
        return sum(self.cost_components.values()) if self.cost_components else None

    def total(self, what: str) -> int | None:
        """The models' ``requests`` or tokens together; ``None`` where one is unknown."""
        values = [getattr(line, what) for line in self.models]
        return None if None in values else sum(values)
