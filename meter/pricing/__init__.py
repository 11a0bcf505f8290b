"""What energy and hardware cost: pure functions of prices and accounts, money as ``Decimal``."""

from meter.pricing.cost import Component, Cost, CostKey, Costs, advance, request_cost, split
from meter.pricing.curve import EnergyCurve
from meter.pricing.tariff import Tariff, TariffError, kwh

__all__ = [
    "Component",
    "Cost",
    "CostKey",
    "Costs",
    "EnergyCurve",
    "Tariff",
    "TariffError",
    "advance",
    "kwh",
    "request_cost",
    "split",
]
