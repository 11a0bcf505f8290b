"""What metering costs: the ratio that was hidden is found, and how sure it is is told truly."""

from __future__ import annotations

import numpy as np
import pytest

from meter.selftest.price import Counted, Price, Ratio, Run, Slot, order, price, student
from meter.selftest.promises import Verdict, prices
from meter.selftest.steady import Came, Event, Stream, completion_of, cut, tokens_of

SLOTS, STREAMS, STEPS = 20, 2, 50


def runs(pairs, slower=0.0, lives=0.0, between=0.0, drift=0.0, seed=0):
    """Steps of 10 ms, metered ones longer by a share; lives of the server differ by ``lives``, and
    in them each run from the others by ``between``."""
    random = np.random.default_rng(seed)
    made, life, before = [], 1.0, None
    for number, metered in enumerate(order(pairs)):
        if metered is not before:
            life, before = random.normal(1.0, lives), metered
        factor = life * (1 + slower * metered) * (1 + drift * number) * random.normal(1.0, between)
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


@pytest.mark.parametrize("spread", [{"lives": 0.005}, {"between": 0.005}])
def test_the_interval_holds_the_truth_as_often_as_it_says(spread):
    """Over many seeds, with 0.5 % between lives or between runs."""
    found = [price(runs(6, **spread, seed=seed)).throughput for seed in range(200)]
    held = sum(one.low <= 1.0 <= one.high for one in found)
    assert 183 <= held <= 198, "95 % of 200, within 2.3 of its standard deviations"


def test_the_interval_is_as_wide_as_lives_differ():
    """Seven lives, four of them metered, leave four degrees of freedom, which see 0.94 of σ."""
    found = [price(runs(6, lives=0.005, seed=seed)).throughput for seed in range(200)]
    width = np.mean([one.high - one.low for one in found])
    assert width == pytest.approx(2 * 2.776 * 0.94 * 0.005 * (1 / 4 + 1 / 3) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("free", "exact"), [(2, 4.3027), (4, 2.7764), (6, 2.4469), (20, 2.0860)])
def test_students_quantile(free, exact):
    """As tables have it."""
    assert student(free) == pytest.approx(exact, rel=0.003)


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
    times = [(9.9, None), (10.0, None), (10.2, 0.2), (10.6, 0.4), (11.0, 0.4)]
    came = [Came(t_s, gap_s, 1) for t_s, gap_s in times]
    assert cut(came, 10.0, 2) == (Slot(2, (0.2,)), Slot(1, (0.4,)))


def test_tokens_that_come_at_once_have_no_time_between_them():
    """An event of three is three tokens, after one wait."""
    came = [Came(10.0, None, 2), Came(10.2, 0.2, 3), Came(10.6, 0.4, 1)]
    assert cut(came, 10.0, 2) == (Slot(5, (0.0, 0.2, 0.0, 0.0)), Slot(1, (0.4,)))


def stream(*so_far, total=None):
    """Events a tenth of a second apart."""
    return Stream(tuple(Event(k / 10, n) for k, n in enumerate(so_far)), total)


def test_each_event_says_how_many_tokens_it_brings():
    """What brings none is no event; the first has no gap."""
    came, counted = tokens_of([stream(0, 1, 4, 4, 6), stream(2)])
    assert counted is Counted.EACH
    assert [one.tokens for one in came] == [1, 3, 2, 2]
    assert [one.gap_s for one in came] == [None, pytest.approx(0.1), pytest.approx(0.2), None]


def test_where_only_the_end_says_it_the_events_share_it():
    """To the last token; who hung up before is taken to be like the others."""
    came, counted = tokens_of([stream(None, None, None, None, total=10), stream(None, None)])
    assert counted is Counted.ENDS
    assert [one.tokens for one in came] == [2, 3, 3, 2, 2, 3]
    assert sum(one.tokens for one in came[:4]) == 10


def test_where_nothing_says_it_events_are_counted_and_that_is_said():
    """They are no tokens, and not called so."""
    came, counted = tokens_of([stream(None, None, 7), stream(None)])
    assert counted is Counted.EVENTS
    assert [one.tokens for one in came] == [1, 1, 1, 1]
    ratio = Ratio(1.0, 0.999, 1.001)
    (throughput, _) = prices(Price(6, ratio, ratio, 1000.0, 0.01, counted))
    assert "1,000 events/s (the server does not tell its tokens) bare" in throughput.note
    (throughput, _) = prices(Price(6, ratio, ratio, 1000.0, 0.01, Counted.EACH))
    assert "1,000 tokens/s bare" in throughput.note


@pytest.mark.parametrize(
    "usage",
    [None, 5, {}, {"completion_tokens": None}, {"completion_tokens": True},
     {"completion_tokens": -1}, {"completion_tokens": 1.5}, {"completion_tokens": 10**30}],
)  # fmt: skip
def test_odd_usage_is_none(usage):
    """Whatever a server writes there."""
    assert completion_of({"choices": [{}], "usage": usage}) is None
    assert completion_of({"choices": [{}], "usage": {"completion_tokens": 7}}) == 7


def test_runs_that_are_counted_in_two_ways_are_not_compared():
    """Events on one side and tokens on the other are no ratio."""
    slots = (Slot(100, (0.01,) * 99),) * 4
    alike = [Run(metered, slots) for metered in order(4)]
    assert price(alike) is not None
    assert price([*alike[:-1], alike[-1]._replace(counted=Counted.EVENTS)]) is None
