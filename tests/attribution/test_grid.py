"""The ticks of a counter, timed from the polls that saw it move."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meter.attribution.grid import Grid, _slot, _tight
from meter.attribution.intervals import Counter
from meter.model import Device, Quality, Reading

MS = 1_000_000
PERIOD_NS = 100 * MS
POLL_NS = 20 * MS


def changes(
    ticks: int, seed: int = 1, late: float = 0.01, wander_ns: float = 0.0
) -> list[tuple[int, int, int]]:
    """(number of the last tick in it, lower, upper) of each change that polls see.

    Polls come every 20 ms, a millisecond off at most, and some late.
    """
    rng = np.random.default_rng(seed)
    times = (np.arange(1, ticks + 1) * PERIOD_NS).astype(float) + 7.3 * MS
    times += wander_ns * rng.standard_normal(ticks)
    due = np.arange(5 * ticks + 5) * POLL_NS + rng.uniform(-MS, MS, 5 * ticks + 5)
    polls = due + np.where(rng.random(len(due)) < late, rng.exponential(40 * MS, len(due)), 0.0)
    polls = np.maximum.accumulate(polls)
    polls = polls[np.diff(polls, prepend=-1.0) > 1000].round().astype(np.int64)
    count = np.searchsorted(times, polls, side="right")
    moved = np.flatnonzero(np.diff(count))
    return [(int(count[i + 1]), int(polls[i]), int(polls[i + 1])) for i in moved]


def learned(told: list[tuple[int, int, int]]) -> tuple[Grid, list[int | None]]:
    """A grid that has seen these changes, and the numbers it gave them."""
    grid = Grid(None)
    return grid, [grid.learn(lower, upper) for _, lower, upper in told]


def known(told: list[tuple[int, int, int]]) -> tuple[Grid, list[tuple[int, int, int]], list[int]]:
    """The same without the changes of which it cannot be told which tick they were."""
    grid, numbers = learned(told)
    kept = [(n, change) for n, change in zip(numbers, told, strict=True) if n is not None]
    return grid, [(n, lower, upper) for n, (_, lower, upper) in kept], [c[0] for _, c in kept]


def test_a_late_poll_that_saw_two_ticks_is_the_second():
    """What moved belongs to both, and the interval ends at the later one."""
    told = changes(400, late=0.0)
    at = next(i for i, change in enumerate(told) if change[0] == 300)
    (_, lower, _), (number, _, upper) = told[at], told[at + 1]
    told[at : at + 2] = [(number, lower, upper + 1 * MS)]
    _, numbers = learned(told)
    first = told[0][0]
    assert numbers == [number - first for number, _, _ in told]


def test_every_tick_keeps_its_number_under_late_polls():
    """A poll that hangs for several ticks gives the last of them."""
    for seed in range(5):
        told = changes(3000, seed=seed, late=0.02)
        _, found, true = known(told)
        assert [n for n, _, _ in found] == [n - told[0][0] for n in true], f"seed {seed}"
        assert len(found) > 0.98 * len(told)


def test_in_hindsight_all_edges_are_off_by_the_same():
    """What they share is for the counter's delay to take up; what they don't would be error."""
    grid, found, true = known(changes(2000))
    edges = grid.in_hindsight(found)
    off_ns = [e - (n * PERIOD_NS + 7.3 * MS) for (e, _), n in zip(edges, true, strict=True)]
    assert np.ptp(off_ns) < 0.05 * MS


def test_live_the_edges_move_only_where_a_poll_proves_them_wrong():
    """After the first ticks there are few moves, and none is back and forth."""
    grid = Grid(None)
    off_ns = []
    for number, lower, upper in changes(4000):
        told = grid.learn(lower, upper)
        if told is None:
            continue
        edge, _ = grid.edge_ns(told, lower, upper)
        off_ns.append(edge - (number * PERIOD_NS + 7.3 * MS))
    later = np.array(off_ns[600:])
    moves = np.flatnonzero(np.abs(np.diff(later)) > 0.05 * MS)
    assert len(moves) < 20
    assert np.abs(later[-500:]).max() <= np.abs(later[:500]).max()


def test_ticks_that_wander_are_timed_by_those_near_them():
    """No slot is left for all together: what is missing is stated as doubt of each edge."""
    grid, found, _ = known(changes(2000, wander_ns=4 * MS))
    doubts = [doubt for _, doubt in grid.in_hindsight(found)]
    assert np.median(doubts) > 1 * MS


@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=3, max_size=80),
    st.floats(95.0, 105.0),
)
def test_bounds_that_are_dropped_said_nothing(slacks: list[tuple[float, float]], period: float):
    """The tightest bounds leave the same slot as all of them, for every period."""
    numbers = np.arange(len(slacks), dtype=float)
    lower = numbers * 100.0 - [a for a, _ in slacks]
    upper = numbers * 100.0 + [b for _, b in slacks]
    table = np.stack((numbers, lower, upper), axis=1)
    every, some = _slot(table, period), _slot(table[_tight(table)], period)
    assert np.allclose(every, some)


def test_a_counter_that_ticks_and_then_seems_to_move_at_every_poll() -> None:
    """Found by random traces: the changes of both kinds are timed together, in hindsight too.

    The count of changes passes four in five for a moment; that change is no tick's.
    """
    for still in range(1, 12):
        held = Counter(Device("g", "X", Quality.MEASURED), hindsight=True)
        energy_uj, closed = 0, []
        moves = [True, False] * still + [True] * 6 * still + [False] * 6
        for number, moved in enumerate(moves):
            energy_uj += 2_000_000 * moved
            closed += held.add(Reading("g", number * POLL_NS, energy_uj)) or []
        closed += held.flush()
        edges = [closed[0].start_ns, *(interval.end_ns for interval in closed)]
        assert edges == sorted(set(edges))
        assert sum(interval.energy_uj for interval in closed) == held.moved_uj
