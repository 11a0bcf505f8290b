"""What intervals can tell apart, against plain matrices."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meter.attribution.curve import Array
from meter.attribution.resolution import Sight

COUNT = 12
EDGES = np.linspace(0.0, 1.2, COUNT + 1)


def runs(seed: int, longest_s: float) -> tuple[Array, Array, Array]:
    """Starts, ends and joules of steps that follow one another, all well within the edges."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.002, longest_s, 400)) + 0.2
    times = times[times < 1.0]
    return times[:-1], times[1:], rng.uniform(0.5, 3.0, len(times) - 1)


def dense(t0: Array, t1: Array, width_s: float) -> Array:
    """Which part of each run each interval shows, by summing a fine grid: (intervals, runs)."""
    fine = (np.arange(400) + 0.5) / 400
    at = t0[:, None] + fine * (t1 - t0)[:, None]
    if width_s:
        spread = (np.arange(200) + 0.5) / 200 - 0.5
        at = (at[:, :, None] + spread * width_s).reshape(len(t0), -1)
    place = np.searchsorted(EDGES, at, side="right") - 1
    return np.stack([(place == i).mean(axis=1) for i in range(COUNT)])


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.03, 0.1, 0.17]), st.sampled_from([0.02, 0.25]))
def test_parts_are_those_of_the_window(seed: int, width_s: float, longest_s: float) -> None:
    """Every run is shown whole, each part of it by the interval it falls into."""
    t0, t1, joules = runs(seed, longest_s)
    sight = Sight.of(t0, t1, EDGES, width_s)
    true = dense(t0, t1, width_s)
    found = np.zeros((COUNT, len(t0)))
    found[sight.place, sight.run] = sight.part
    assert np.allclose(found, true, atol=0.02)
    assert np.allclose(np.bincount(sight.run, sight.part), 1.0)
    assert np.allclose(sight.summed(joules, COUNT), found @ joules)
    assert np.allclose(sight.squares(joules, COUNT), np.square(found) @ np.square(joules))
    shared = (found[1:] * found[:-1]) @ np.square(joules)
    assert np.allclose(sight.shared(joules, COUNT)[1:], shared)
    rates = np.arange(COUNT) + 1.0
    assert np.allclose(sight.handed_back(rates, len(t0)), rates @ found)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1]))
def test_what_comes_later_in_an_interval(seed: int, width_s: float) -> None:
    """For each entry: what its interval shows of the runs behind it."""
    t0, t1, joules = runs(seed, 0.03)
    sight = Sight.of(t0, t1, EDGES, width_s)
    later = sight.later(joules, COUNT)
    for entry in range(0, len(later), 7):
        behind = (sight.place == sight.place[entry]) & (sight.run > sight.run[entry])
        assert np.isclose(later[entry], (sight.part * joules[sight.run])[behind].sum(), atol=1e-9)


def test_a_run_that_fills_an_interval_alone_is_named() -> None:
    """From edge to edge: only then is it the interval's sole witness."""
    sight = Sight.of(np.array([0.15, 0.55]), np.array([0.52, 0.6]), EDGES, 0.0)
    assert sight.alone.tolist() == [-1, -1, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1]
