"""Flat prices: what they refuse, and the money they make of energy and time."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.pricing import Tariff, TariffError, kwh

joules = st.floats(0, 1e12)


def test_electricity_is_kwh_times_pue_times_price():
    """One kWh at 0.30 with a PUE of 1.2 costs 0.36, exactly."""
    tariff = Tariff("EUR", Decimal("0.30"), Decimal("1.2"))
    assert tariff.electricity(3_600_000.0) == Decimal("0.36")


def test_without_a_pue_the_metered_energy_alone_is_paid():
    """An unknown PUE makes the cost a lower bound, not unknown."""
    assert Tariff("EUR", Decimal("0.30")).electricity(3_600_000.0) == Decimal("0.30")


def test_an_unknown_price_is_unknown_and_not_free():
    """Nothing known, nothing said."""
    tariff = Tariff("EUR")
    assert tariff.electricity(1.0) is None
    assert tariff.hardware(1) is None
    assert not tariff.known


def test_hardware_is_paid_by_the_hour():
    """Half an hour at 3 an hour is 1.5."""
    tariff = Tariff("EUR", hardware_price_per_hour=Decimal(3))
    assert tariff.hardware(1_800_000_000_000) == Decimal("1.5")
    assert tariff.known


@pytest.mark.parametrize(
    ("prices", "field"),
    [
        ({"pue": Decimal("0.9")}, "pue"),
        ({"pue": Decimal("NaN")}, "pue"),
        ({"hardware_price_per_hour": Decimal(-1)}, "hardware_price_per_hour"),
        ({"electricity_price_per_kwh": Decimal("Infinity")}, "electricity_price_per_kwh"),
    ],
)
def test_an_impossible_price_is_refused_by_name(prices, field):
    """The message names the field and says what to do."""
    with pytest.raises(TariffError, match=rf"^{field} is .+: "):
        Tariff("EUR", **prices)


@given(joules, joules)
def test_more_energy_never_costs_less(one_j, other_j):
    """At a price above zero money grows with energy, also as a float on a scrape."""
    tariff = Tariff("EUR", Decimal("0.2137"), Decimal("1.13"))
    low, high = sorted((one_j, other_j))
    assert float(tariff.electricity(low)) <= float(tariff.electricity(high))


@given(joules)
def test_kwh_is_exact_before_it_is_rounded(energy_j):
    """3.6 MJ make one kWh."""
    assert float(kwh(energy_j)) == pytest.approx(energy_j / 3.6e6, rel=1e-15)
