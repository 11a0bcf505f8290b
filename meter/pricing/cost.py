"""The cost of accounts and of single requests.

*Electricity* is a view of the accounts: energy x PUE x price, whatever the moment, so it cannot
drift from them. *Compute* accrues with the wall time that is metered: each stretch of settled time
costs ``hours x hardware_price_per_hour`` and is split over the accounts in proportion to the energy
that they took in just that stretch. Energy, and not time in use, is the key because it is there for
every account, idle included, and because a request that shares the GPU with 255 others should not
pay for the whole of it. Money that accrues while no account took energy waits for the next stretch
that has some. Parts always sum to the whole, to the last digit.

A request's part of compute follows the same rule over its own life: of the hardware's cost between
its opening and its close, the fraction that its energy is of all energy in that time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal
from enum import StrEnum
from typing import NamedTuple, TypeVar

from meter.model import Account, AccountKey, Receipt, Snapshot
from meter.pricing.curve import EnergyCurve
from meter.pricing.tariff import Tariff

_QUANTUM = Decimal("1e-15")
_K = TypeVar("_K", bound=Hashable)


class Component(StrEnum):
    """What is paid for; the values are the ``component`` label."""

    ELECTRICITY = "electricity"
    COMPUTE = "compute"


class CostKey(NamedTuple):
    """Names one cost: who (engine, model), for which account, which component."""

    engine: str
    model: str
    account: Account
    component: Component


@dataclass(frozen=True, slots=True)
class Costs:
    """What has been spent so far. A negative electricity price fills ``credits`` (positive).

    ``waiting`` is compute cost that has accrued and found no energy to follow yet.
    """

    settled_ns: int | None = None
    charges: Mapping[CostKey, Decimal] = field(default_factory=dict)
    credits: Mapping[CostKey, Decimal] = field(default_factory=dict)
    waiting: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request cost; ``components`` holds the known ones only."""

    currency: str
    components: Mapping[Component, Decimal]

    @property
    def amount(self) -> Decimal:
        return sum(self.components.values(), Decimal(0))


def split(amount: Decimal, weights: Mapping[_K, float]) -> dict[_K, Decimal]:
    """Split ``amount`` in proportion to ``weights`` (>= 0); parts sum to ``amount`` exactly.

    What rounding leaves goes to the heaviest. Empty where no weight is positive.
    """
    positive = {key: Decimal(weight) for key, weight in weights.items() if weight > 0}
    if not positive:
        return {}
    total = sum(positive.values())
    parts = {
        key: (amount * weight / total).quantize(_QUANTUM, rounding=ROUND_DOWN)
        for key, weight in positive.items()
    }
    heaviest = max(positive, key=positive.__getitem__)
    parts[heaviest] += amount - sum(parts.values())
    return parts


def advance(costs: Costs, before: Snapshot | None, after: Snapshot, tariff: Tariff) -> Costs:
    """The costs at ``after``, from those at ``before`` (``None``: nothing was metered yet).

    Hardware is paid from ``costs.settled_ns`` on: begin with ``Costs(start of metering)``.
    """
    charges = {k: v for k, v in costs.charges.items() if k.component is Component.COMPUTE}
    credits: dict[CostKey, Decimal] = {}
    for key, energy_j in _energies(after).items():
        electricity = tariff.electricity(energy_j)
        if electricity is None:
            continue
        cost_key = CostKey(*key, Component.ELECTRICITY)
        charges[cost_key] = max(electricity, Decimal(0))
        if electricity < 0:
            credits[cost_key] = -electricity
    waiting = _accrue(charges, costs, before, after, tariff)
    settled_ns = costs.settled_ns if after.settled_ns is None else after.settled_ns
    return Costs(settled_ns, charges, credits, waiting)


def _accrue(
    charges: dict[CostKey, Decimal],
    costs: Costs,
    before: Snapshot | None,
    after: Snapshot,
    tariff: Tariff,
) -> Decimal:
    """Add compute cost since ``before`` to ``charges``; returns what could not be placed."""
    if costs.settled_ns is None or after.settled_ns is None:
        return costs.waiting
    accrued = tariff.hardware(max(0, after.settled_ns - costs.settled_ns))
    if accrued is None:
        return Decimal(0)
    amount = costs.waiting + accrued
    was = _energies(before) if before is not None else {}
    parts = split(amount, {key: j - was.get(key, 0.0) for key, j in _energies(after).items()})
    for key, part in parts.items():
        cost_key = CostKey(*key, Component.COMPUTE)
        charges[cost_key] = charges.get(cost_key, Decimal(0)) + part
    return Decimal(0) if parts else amount


def _energies(snapshot: Snapshot) -> dict[tuple[str, str, Account], float]:
    """Joules by engine, model and account, whatever their quality."""
    sums: dict[tuple[str, str, Account], float] = {}
    for key, energy_j in snapshot.accounts.items():
        name = _without_quality(key)
        sums[name] = sums.get(name, 0.0) + energy_j
    return sums


def _without_quality(key: AccountKey) -> tuple[str, str, Account]:
    return key.engine, key.model, key.account


def request_cost(receipt: Receipt, tariff: Tariff, curve: EnergyCurve) -> Cost | None:
    """What a request cost so far; ``None`` where no price is known.

    Compute is left out while the curve does not yet reach into the request's life.
    """
    components: dict[Component, Decimal] = {}
    electricity = tariff.electricity(receipt.energy_j)
    if electricity is not None:
        components[Component.ELECTRICITY] = electricity
    own_ns = curve.own_time_ns(receipt.energy_j, receipt.opened_ns, receipt.closed_ns)
    compute = tariff.hardware(own_ns) if own_ns is not None else None
    if compute is not None:
        components[Component.COMPUTE] = compute
    return Cost(tariff.currency, components) if components else None
