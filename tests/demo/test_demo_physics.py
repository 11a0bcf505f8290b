"""The simulated card's physics: the stated figures, and shares that sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.demo.physics import Cost, Hardware, Physics
from meter.model import Phase, Work

EXACT = replace(Hardware(), noise=0.0)

rows = st.lists(
    st.builds(
        Work,
        request=st.text("abc", min_size=1, max_size=3),
        tokens=st.integers(1, 2048),
        context=st.integers(0, 8000),
        phase=st.sampled_from([Phase.PREFILL, Phase.DECODE, Phase.RECOMPUTE]),
    ),
    min_size=1,
    max_size=8,
)


def decoding(batch: int, context: int = 512) -> list[Work]:
    return [Work(f"r{i}", 1, context, Phase.DECODE) for i in range(batch)]


@given(work=rows, seed=st.integers(0, 1000))
def test_shares_sum_to_what_the_card_draws(work: list[Work], seed: int) -> None:
    """Every joule of a step is somebody's, noise or not, and nobody's share is negative."""
    cost = Physics(seed=seed).cost(work)
    assert sum(cost.shares_j) == pytest.approx(cost.energy_j, rel=1e-12)
    assert cost.power_w * cost.duration_ns / 1e9 == pytest.approx(cost.energy_j, rel=1e-12)
    assert min(cost.shares_j) > 0


def test_a_step_costs_what_the_design_says() -> None:
    """The stated figures, term by term."""
    cost = Physics(EXACT).cost([Work("p", 100, 50, Phase.PREFILL), Work("d", 1, 700, Phase.DECODE)])
    pairs = 100 * 50 + 100 * 101 / 2
    seconds = 6.6e-3 + 29e-6 * 100 + 1.1e-9 * pairs + 50e-6 + 45e-9 * 700
    dynamic_j = 2.0 + 16.5e-3 * 100 + 0.75e-6 * pairs + 30e-3 + 24e-6 * 700
    assert cost.duration_ns == pytest.approx(seconds * 1e9, abs=1)
    assert cost.energy_j == pytest.approx(dynamic_j + 115 * seconds, rel=1e-6)


@pytest.mark.parametrize(("batch", "published_j"), [(8, 0.45), (64, 0.12), (256, 0.08)])
def test_joules_per_output_token_are_as_published(batch: int, published_j: float) -> None:
    """Decoding at the batch sizes that the literature gives for this card, within a quarter."""
    assert Physics(EXACT).cost(decoding(batch)).energy_j / batch == pytest.approx(
        published_j, rel=0.25
    )


def test_the_card_stays_below_its_power_limit() -> None:
    """No mix of work makes an H100 draw more than 700 W, a full prefill and noise included."""
    full = Physics(seed=1).cost([Work("p", 2048, 0, Phase.PREFILL)])
    assert 500 < full.power_w < 730
    assert Physics(EXACT).cost(decoding(64)).power_w < 700


def test_shares_are_the_shapley_value() -> None:
    """By enumeration of all orders: a request's mean marginal cost over who came before."""
    work = [
        Work("a", 300, 0, Phase.PREFILL),
        Work("b", 1, 900, Phase.DECODE),
        Work("c", 1, 20, Phase.DECODE),
    ]

    def value(coalition: tuple[Work, ...]) -> float:
        return Physics(EXACT).cost(coalition).energy_j if coalition else 0.0

    cost = Physics(EXACT).cost(work)
    for row, share_j in zip(work, cost.shares_j, strict=True):
        assert share_j == pytest.approx(_shapley(row, work, value), rel=1e-6)


def _shapley(one: Work, everyone: list[Work], value: Callable[[tuple[Work, ...]], float]) -> float:
    others = [row for row in everyone if row is not one]
    n = len(everyone)
    total = 0.0
    for size in range(n):
        weight = factorial(size) * factorial(n - size - 1) / factorial(n)
        for before in combinations(others, size):
            total += weight * (value((*before, one)) - value(before))
    return total


def test_noise_is_seeded_and_three_percent() -> None:
    """Equal seeds, equal steps; the spread of the duration is what it is said to be."""

    def durations(seed: int) -> list[Cost]:
        physics = Physics(seed=seed)
        return [physics.cost(decoding(4)) for _ in range(2000)]

    first = durations(1)
    assert first == durations(1)
    assert first != durations(2)
    exact_ns = Physics(EXACT).cost(decoding(4)).duration_ns
    ratios = [cost.duration_ns / exact_ns - 1 for cost in first]
    spread = (sum(ratio**2 for ratio in ratios) / len(ratios)) ** 0.5
    assert spread == pytest.approx(0.03, rel=0.1)


def test_an_empty_step_is_refused() -> None:
    """The engine never runs one."""
    with pytest.raises(ValueError, match="work"):
        Physics().cost([])
