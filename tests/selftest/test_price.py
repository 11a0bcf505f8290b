"""What metering costs: the ratio that was hidden is found, and how sure it is is told truly."""

from __future__ import annotations

import numpy as np
import pytest

from meter.selftest.price import Price, Ratio, Run, Slot, order, price
from meter.selftest.promises import Verdict, prices
from meter.selftest.steady import cut

SLOTS, STREAMS, STEPS = 20, 2, 50


def runs(pairs, slower=0.0, between=0.0, drift=0.0, seed=0):
    """Steps of 10 ms, metered ones longer by a share; each run apart from others by ``between``."""
    random = np.random.default_rng(seed)
    made = []
    for number, metered in enumerate(order(pairs)):
        factor = (1 + slower * metered) * (1 + drift * number) * random.normal(1.0, between)
        slots = []
        for _ in range(SLOTS):
            gaps = 0.01 * factor * random.normal(1.0, 0.02, STEPS)
            slots.append(Slot(round(1e5 / gaps.sum()), tuple(gaps.repeat(STREAMS).tolist())))
        made.append(Run(metered, tuple(slots)))
    return made


def test_the_order_is_a_b_b_a():
    """So that each kind has the same mean place, and neighbours that are alike share a life."""
    assert order(4) == [True, False, False, True, True, False, False, True]
    places = {kind: [i for i, m in enumerate(order(6)) if m is kind] for kind in (True, False)}
    assert sum(places[True]) == sum(places[False])


def test_what_was_hidden_is_found():
    """1 % longer steps: 1 % less throughput, and 1 % more between the slowest tokens."""
    found = price(runs(6, slower=0.01))
    assert found.pairs == 6
    assert found.throughput.value == pytest.approx(1 / 1.01, abs=0.001)
    assert found.itl_p99.value == pytest.approx(1.01, abs=0.003)
    assert found.throughput.low < found.throughput.value < found.throughput.high < 0.995
    assert found.bare_itl_p99_s == pytest.approx(0.01 * 1.0465, rel=0.01)


def test_a_drift_falls_on_both_alike():
    """Every run 1 % slower than the one before; nothing is made of it."""
    assert price(runs(6, drift=0.01)).throughput.value == pytest.approx(1.0, abs=0.001)


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    """Over many seeds, with 0.5 % between runs; few pairs are a little too sure of themselves."""
    monkeypatch.setattr("meter.selftest.price._DRAWS", 150)
    found = [price(runs(8, between=0.005, seed=seed), seed) for seed in range(40)]
    held = sum(one.throughput.low <= 1.0 <= one.throughput.high for one in found)
    assert 32 <= held <= 40
    width = np.mean([one.throughput.high - one.throughput.low for one in found])
    assert width == pytest.approx(2 * 1.96 * 0.005 * (2 / 8) ** 0.5, rel=0.3)


def test_too_few_pairs_say_nothing():
    """Three pairs, or four of which one holds no token."""
    assert price(runs(3)) is None
    broken = runs(4)
    broken[2] = Run(False, (Slot(0, ()),) * SLOTS)
    assert price(broken) is None
    with pytest.raises(ValueError, match="a metered and a bare run"):
        price([*broken[:1], *broken[3:4]])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.997, 1.001, Verdict.PASS),
        (0.98, 0.99, Verdict.FAIL),
        (0.99, 1.01, Verdict.UNKNOWN),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    """0.5 % may be lost: an interval across that is no answer, and says what to do."""
    one = Price(6, Ratio((low + high) / 2, low, high), Ratio(1.0, 0.999, 1.005), 1000.0, 0.01)
    throughput, latency = prices(one)
    assert throughput.verdict is verdict
    assert latency.verdict is Verdict.PASS
    assert ("more --pairs" in throughput.note) == (verdict is Verdict.UNKNOWN)
    assert f"{100 * (1 - high):+.2f} %" in throughput.note
    assert [p.verdict for p in prices(None)] == [Verdict.UNKNOWN] * 2


def test_tokens_are_cut_into_slots():
    """By their time; what came before or after is left out; a first token has no gap."""
    came = [(9.9, None), (10.0, None), (10.2, 0.2), (10.6, 0.4), (11.0, 0.4)]
    assert cut(came, 10.0, 2) == (Slot(2, (0.2,)), Slot(1, (0.4,)))
