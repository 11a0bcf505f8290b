"""Flat prices: what a kilowatt-hour and an hour of the hardware cost, and the PUE."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

JOULES_PER_KWH = Decimal(3_600_000)
NS_PER_HOUR = Decimal(3_600_000_000_000)
#: Beyond these a price was mistyped, in whatever currency; and no facility draws ten times its IT.
PRICE_MAX = Decimal(1_000_000_000)
PUE_MAX = Decimal(10)


class TariffError(ValueError):
    """A price that cannot be one; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """Flat prices in one currency (ISO 4217). ``None`` is unknown, never free.

    ``electricity_price_per_kwh`` may be negative. ``pue`` (facility / IT energy, >= 1) where it is
    unknown makes the electricity's cost a lower bound. ``hardware_price_per_hour`` is for all
    metered hardware together.
    """

    currency: str
    electricity_price_per_kwh: Decimal | None = None
    pue: Decimal | None = None
    hardware_price_per_hour: Decimal | None = None

    def __post_init__(self) -> None:
        _within(
            "electricity_price_per_kwh",
            self.electricity_price_per_kwh,
            (-PRICE_MAX, PRICE_MAX),
            "is it the price of one kilowatt-hour?",
        )
        _within(
            "pue",
            self.pue,
            (Decimal(1), PUE_MAX),
            "a facility cannot draw less than its servers, and none draws so much more",
        )
        _within(
            "hardware_price_per_hour",
            self.hardware_price_per_hour,
            (Decimal(0), PRICE_MAX),
            "hardware that pays its owner is not a price: leave it out",
        )

    @property
    def known(self) -> bool:
        """Whether any price is known."""
        return self.electricity_price_per_kwh is not None or (
            self.hardware_price_per_hour is not None
        )

    def electricity(self, energy_j: float) -> Decimal | None:
        """``kWh x PUE x price``; negative where the price is; ``None`` where it is unknown."""
        if self.electricity_price_per_kwh is None:
            return None
        return kwh(energy_j) * (self.pue or Decimal(1)) * self.electricity_price_per_kwh

    def hardware(self, elapsed_ns: int | float) -> Decimal | None:
        """What the hardware costs over ``elapsed_ns``; ``None`` where its price is unknown."""
        if self.hardware_price_per_hour is None:
            return None
        return Decimal(elapsed_ns) / NS_PER_HOUR * self.hardware_price_per_hour


def kwh(energy_j: float) -> Decimal:
    """Joules in kilowatt-hours."""
    return Decimal(energy_j) / JOULES_PER_KWH


def _within(name: str, value: Decimal | None, bounds: tuple[Decimal, Decimal], remedy: str) -> None:
    if value is None:
        return
    least, most = bounds
    if not value.is_finite():
        raise TariffError(f"{name} is {value}: give a finite number, or leave it out")
    if not least <= value <= most:
        raise TariffError(f"{name} is {value:.6g}, expected from {least} to {most}: {remedy}")
