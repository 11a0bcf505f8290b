"""The same under the same load: whose load it was is read off the steps, not off the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter.model import Phase, RequestClosed, Step, Work
from meter.selftest.presence import Presence, presence
from meter.selftest.repeats import repeats
from tests.selftest.test_foresight import receipt

MS = 1_000_000


def step(seq, work, same=False, drop=()):
    return Step("0", 0, seq, seq * MS, (seq + 1) * MS, tuple(work), same, drop)


def decode(request, context):
    return Work(request, 1, context, Phase.DECODE)


def test_parts_are_counted_step_by_step():
    """One alone, then two, then three with a prefill, then a change form, then two again."""
    events = [
        step(0, [decode("a", 5)]),
        step(1, [decode("a", 6), decode("b", 9)]),
        step(2, [Work("c", 7, 0, Phase.PREFILL)], same=True),
        step(3, [decode("c", 7)], same=True),
        RequestClosed("0", "b", 4 * MS, "stop", 9, 0, 3),
        step(4, [], same=True),
        RequestClosed("0", "a", 5 * MS, "stop", 5, 0, 5),
        RequestClosed("0", "c", 5 * MS, "stop", 7, 0, 3),
    ]
    found = presence(events)
    assert {request: one.steps for (_, request), one in found.items()} == {"a": 5, "b": 3, "c": 3}
    assert found["0", "a"].parts == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 3 + 1 / 2)
    assert found["0", "b"].parts == pytest.approx(1 / 2 + 1 / 3 + 1 / 3)
    assert found["0", "c"].parts == pytest.approx(1 / 3 + 1 / 3 + 1 / 2)


def test_who_was_there_while_steps_were_lost_is_left_out():
    """Nobody knows who was beside it."""
    events = [
        step(0, [decode("a", 5)]),
        step(2, [decode("a", 7), decode("b", 9)]),
        RequestClosed("0", "a", 3 * MS, "stop", 5, 0, 3),
        RequestClosed("0", "b", 3 * MS, "stop", 9, 0, 1),
    ]
    assert [request for _, request in presence(events)] == ["b"]


def alike(energies, id="a", output=10, apart=200, start=0, long=100):
    """Receipts that begin ``apart`` ns from each other."""
    begun = [(start + apart * i, j) for i, j in enumerate(energies)]
    return [receipt(f"{id}{t}", j, t, t + long, output) for t, j in begun]


def shared(receipts, parts):
    return {("0", one.id): Presence(10, parts) for one in receipts}


def test_the_same_is_compared_with_the_same():
    """The spread is that within groups, robustly, with its own error; one alone is no group."""
    energies = [10.0 + 0.1 * (i % 3 - 1) for i in range(30)]
    many, longer = alike(energies), alike([99.0], "l", output=11)
    found = repeats([*many, *longer], shared([*many, *longer], 10.0))
    assert (found.groups, found.requests) == (1, 30)
    assert found.spread == pytest.approx(1.4826 * 0.01, rel=0.02)
    assert found.error == pytest.approx(1.17 * found.spread / 29**0.5)
    assert found.quantile(1.0) == pytest.approx(0.01, rel=0.02)
    assert found.doubt == pytest.approx(0.01, rel=0.01)
    wild = alike([10.0 + i for i in range(10)])
    assert repeats(wild, shared(wild, 10.0)).spread > 0.1
    assert repeats(longer, shared(longer, 10.0)) is None


def test_another_company_is_another_load():
    """Half of them had the first step alone and took 5 % more: in groups of their own."""
    lone = alike([10.5 + 0.01 * (i % 3) for i in range(12)], "l")
    rest = alike([10.0 + 0.01 * (i % 3) for i in range(12)], "r", start=9000)
    found = repeats([*lone, *rest], shared(lone, 5.5) | shared(rest, 5.0))
    assert found.groups == 2
    assert found.spread < 0.002
    assert repeats([*lone, *rest], shared([*lone, *rest], 5.0)).spread > 0.02


def test_who_started_together_is_one_repeat():
    """32 that started within a third of their time say no more than one of them."""
    burst = alike([10.0] * 32, apart=1)
    assert repeats(burst, shared(burst, 5.0)) is None
    staggered = alike([10.0] * 32, apart=25)
    assert repeats(staggered, shared(staggered, 5.0)).requests == 16


def test_who_took_longer_was_under_another_load():
    """10 % more time and joules, twelve of each: two groups, both narrow."""
    quick = alike([10.0 + 0.01 * (i % 3) for i in range(12)])
    slow = alike([11.0 + 0.01 * (i % 3) for i in range(12)], "s", start=9000, long=110)
    found = repeats([*quick, *slow], shared([*quick, *slow], 5.0))
    assert (found.groups, found.requests) == (2, 24)
    assert found.spread < 0.002


def test_what_is_not_known_is_not_compared():
    """No presence, none; no joules, none; and who was preempted had another load."""
    many = alike([10.0] * 8)
    preempted = [replace(one, recompute_j=1.0) for one in many]
    assert repeats(preempted, shared(many, 5.0)) is None
    assert repeats(many, {}) is None
    assert repeats(alike([0.0] * 8), shared(many, 5.0)) is None
