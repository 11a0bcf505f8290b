"""Costs of accounts and requests: they sum to the whole, and only grow."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.model import Account, AccountKey, Fidelity, Quality, Receipt, Snapshot
from meter.pricing import (
    Component,
    CostKey,
    Costs,
    EnergyCurve,
    Tariff,
    advance,
    request_cost,
    split,
)

HOUR_NS = 3_600_000_000_000
DECODE = AccountKey("0", "m", Account.DECODE, Quality.MEASURED)
IDLE = AccountKey("0", "m", Account.IDLE, Quality.MEASURED)
COMPUTE = Tariff("EUR", hardware_price_per_hour=Decimal(4))


def at(hours, **accounts):
    """A snapshot settled at that hour, with joules for ``decode`` and ``idle``."""
    keys = {"decode": DECODE, "idle": IDLE}
    joules = {keys[name]: value for name, value in accounts.items()}
    t_ns = int(hours * HOUR_NS)
    return Snapshot(t_ns=t_ns, settled_ns=t_ns, accounts=joules)


def run(tariff, *snapshots):
    """The costs after these snapshots in turn."""
    costs, before = Costs(), None
    for snapshot in snapshots:
        costs, before = advance(costs, before, snapshot, tariff), snapshot
    return costs


@given(
    st.decimals(0, 10**9, places=12),
    st.dictionaries(st.text(max_size=3), st.floats(0, 1e9), min_size=1),
)
def test_a_split_sums_to_the_amount_exactly(amount, weights):
    """To the last digit, whatever the weights."""
    parts = split(amount, weights)
    assert sum(parts.values()) == (amount if parts else 0)
    assert all(part >= 0 for part in parts.values())
    assert bool(parts) == any(weight > 0 for weight in weights.values())


@given(st.decimals(1, 1000, places=2), st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_a_split_is_in_proportion(amount, one, other):
    """Each part is its weight's fraction."""
    parts = split(amount, {"one": one, "other": other})
    assert float(parts["one"]) == pytest.approx(float(amount) * one / (one + other), rel=1e-9)


def test_electricity_follows_the_accounts():
    """It is a view of the energy, whatever the moment."""
    costs = run(Tariff("EUR", Decimal("0.5")), at(0), at(1, decode=7.2e6))
    assert costs.charges == {CostKey("0", "m", Account.DECODE, Component.ELECTRICITY): Decimal(1)}
    assert not costs.credits


def test_a_negative_price_fills_credits():
    """Charges stay at zero, so that the counter of costs never falls."""
    costs = run(Tariff("EUR", Decimal("-0.5")), at(0), at(1, decode=7.2e6))
    key = CostKey("0", "m", Account.DECODE, Component.ELECTRICITY)
    assert costs.charges[key] == 0
    assert costs.credits[key] == 1


def test_compute_is_split_by_the_energy_of_each_stretch():
    """An hour of decoding and one of idling: each pays its own hour."""
    costs = run(COMPUTE, at(0), at(1, decode=100.0), at(2, decode=100.0, idle=900.0))
    assert costs.charges[CostKey("0", "m", Account.DECODE, Component.COMPUTE)] == 4
    assert costs.charges[CostKey("0", "m", Account.IDLE, Component.COMPUTE)] == 4


def test_compute_without_energy_waits_for_the_next_energy():
    """No money is lost where for a while no account moved."""
    resting = run(COMPUTE, at(0), at(1))
    assert resting.waiting == 4
    assert not resting.charges
    costs = run(COMPUTE, at(0), at(1), at(2, decode=1.0))
    assert costs.waiting == 0
    assert sum(costs.charges.values()) == 8


def test_hardware_is_paid_from_the_start_of_metering():
    """Also for the time before anything was settled, and not for the time before metering."""
    start = Costs(settled_ns=HOUR_NS)
    unsettled = Snapshot(t_ns=0, settled_ns=None)
    costs = advance(start, None, unsettled, COMPUTE)
    assert costs.settled_ns == HOUR_NS
    assert not costs.charges
    costs = advance(costs, unsettled, at(3, decode=1.0), COMPUTE)
    assert sum(costs.charges.values()) == 8
    assert not run(COMPUTE, unsettled, at(5, decode=1.0)).charges


def test_without_prices_there_are_no_costs():
    """Unknown is absent."""
    costs = run(Tariff("EUR"), at(0), at(1, decode=5.0))
    assert not costs.charges
    assert not costs.credits


steps = st.lists(
    st.tuples(st.floats(0, 2), st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8
)


@given(steps, st.decimals("0.01", 100, places=2))
def test_compute_sums_to_hours_times_price_and_only_grows(moves, price):
    """Every stretch of metered time is paid once; no charge ever falls."""
    tariff = Tariff("EUR", hardware_price_per_hour=price)
    hours = decode = idle = 0.0
    before = at(0)
    costs = advance(Costs(), None, before, tariff)
    for dt, d_decode, d_idle in moves:
        hours, decode, idle = hours + dt, decode + d_decode, idle + d_idle
        now = at(hours, decode=decode, idle=idle)
        later = advance(costs, before, now, tariff)
        assert all(later.charges[key] >= amount for key, amount in costs.charges.items())
        costs, before = later, now
    paid = sum(costs.charges.values(), costs.waiting)
    assert abs(paid - tariff.hardware(before.settled_ns)) < Decimal("1e-18")


def receipt(energy_j, opened_h, closed_h):
    """A request of these joules between two hours."""
    return Receipt(
        id="r",
        engine="0",
        model="m",
        tenant=None,
        opened_ns=int(opened_h * HOUR_NS),
        closed_ns=None if closed_h is None else int(closed_h * HOUR_NS),
        reason="stop",
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        prefill_j=0.0,
        decode_j=energy_j,
        recompute_j=0.0,
        uncertainty_j=0.0,
        fidelity=Fidelity.STEP,
        quality=Quality.MEASURED,
        final=closed_h is not None,
    )


def curve(*points):
    """A curve through (hours, joules)."""
    line = EnergyCurve()
    for hours, energy_j in points:
        line.add(int(hours * HOUR_NS), energy_j)
    return line


def test_a_request_pays_its_part_of_the_time_it_lived_in():
    """A quarter of the energy of two hours is half an hour of hardware."""
    cost = request_cost(receipt(25.0, 1, 3), COMPUTE, curve((0, 0.0), (4, 200.0)))
    assert cost.components == {Component.COMPUTE: Decimal(2)}
    assert cost.amount == 2


def test_a_request_alone_pays_all_of_its_time_and_no_more():
    """Rounding of the meter cannot make it pay for more than its own life."""
    cost = request_cost(receipt(101.0, 1, 2), COMPUTE, curve((0, 0.0), (1, 0.0), (2, 100.0)))
    assert cost.amount == 4


def test_an_open_request_has_its_cost_so_far():
    """Up to the settled watermark."""
    cost = request_cost(receipt(50.0, 0, None), COMPUTE, curve((0, 0.0), (1, 100.0)))
    assert cost.amount == 2


def test_compute_is_left_out_where_nothing_is_settled_yet():
    """Electricity is known all the same."""
    tariff = replace(COMPUTE, electricity_price_per_kwh=Decimal(1))
    cost = request_cost(receipt(3.6e6, 5, 6), tariff, curve((0, 0.0), (1, 100.0)))
    assert cost.components == {Component.ELECTRICITY: Decimal(1)}


def test_without_prices_a_request_has_no_cost():
    """``None``, not zero."""
    assert request_cost(receipt(1.0, 0, 1), Tariff("EUR"), curve((0, 0.0), (1, 1.0))) is None
