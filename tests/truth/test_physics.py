"""Costs, shares and counters against plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from meter.model import Experts
from tests.truth.board import Board
from tests.truth.card import Counter, show
from tests.truth.costs import DECODE, H100, PREFILL, Array, Ints, Setup, Shape
from tests.truth.curve import Piecewise, Pulses, stacked
from tests.truth.engine import Limits, Scheduler
from tests.truth.layouts import Log, Pace, Server, take_turns
from tests.truth.settle import Settled, settle
from tests.truth.workload import Mix, Profile, Uniform, ask

ROWS = np.array(
    [(0, 1, 900, DECODE, -1), (1, 1, 40, DECODE, -1), (2, 300, 0, PREFILL, -1)], dtype=np.int64
)
WEIGHTS = np.array([1.0, 1.05, 1.0])


def one_pass(rows: Ints, limit_w: float = math.inf, gap_s: float = 0.0) -> tuple[Settled, Board]:
    """A board that runs one step with these rows, and nothing else."""
    shape = Shape()
    board = Board("GPU-0", 115.0, np.random.default_rng(3), limit_w=limit_w)
    seat = board.seat(H100.joules, H100.seconds)
    features = shape.features(rows, WEIGHTS[rows[:, 0]])
    totals = features.sum(axis=0)
    draw = seat.draw(totals, seat.natural_s(totals))
    log = Log()
    pass_id = log.add(0, rows, features)
    log.timed(pass_id, 1.0, 1.0 + draw.seconds)
    seat.spend(pass_id, 1.0, 1.0 + draw.seconds, draw)
    nobody = Pulses(*np.zeros((3, 0)))
    return settle(log, shape, [board], [np.array([1.0 - gap_s])], [nobody]), board


def worth(rows: Ints, limit_w: float, gap_s: float) -> float:
    """What a step with these rows alone would have cost, with the noise it had."""
    if not len(rows):
        return 0.0
    noise = 1.0 + 0.03 * max(-4.0, min(4.0, float(np.random.default_rng(3).standard_normal())))
    totals = Shape().features(rows, WEIGHTS[rows[:, 0]]).sum(axis=0)
    dynamic_j, seconds = float(H100.joules.array() @ totals), float(H100.seconds.array() @ totals)
    seconds = max(seconds, dynamic_j / (limit_w / noise - 115.0))
    return noise * (115.0 * seconds + dynamic_j) + 115.0 * gap_s


def shapley(count: int, value: Callable[[tuple[int, ...]], float]) -> list[float]:
    """By enumeration of all coalitions."""
    shares = []
    for player in range(count):
        others = [i for i in range(count) if i != player]
        share = 0.0
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1)
            for coalition in combinations(others, size):
                gain = value(tuple(sorted((*coalition, player)))) - value(coalition)
                share += weight / math.factorial(count) * gain
        shares.append(share)
    return shares


@pytest.mark.parametrize("gap_s", [0.0, 0.004])
def test_shares_are_shapley_values(gap_s: float) -> None:
    """By enumeration over all coalitions, noise, adapter and gap included."""
    settled, _ = one_pass(ROWS, gap_s=gap_s)
    wanted = shapley(3, lambda who: worth(ROWS[list(who)], math.inf, gap_s))
    assert settled.share_j == pytest.approx(wanted, rel=1e-9)


def test_under_the_power_limit_shares_come_close() -> None:
    """Along the diagonal: the sum is exact, each share within a few per cent of Shapley's."""
    rows = np.array([(0, 400, 0, PREFILL, -1)] * 6, dtype=np.int64)
    settled, board = one_pass(rows, limit_w=430.0)
    assert board.spells[0].natural_s is not None
    wanted = shapley(6, lambda who: worth(rows[list(who)], 430.0, 0.0))
    assert settled.share_j == pytest.approx(wanted, rel=0.02)
    assert settled.share_j.sum() == pytest.approx(worth(rows, 430.0, 0.0), rel=1e-9)
    mixed, _ = one_pass(ROWS, limit_w=400.0)
    wanted = shapley(3, lambda who: worth(ROWS[list(who)], 400.0, 0.0))
    assert mixed.share_j == pytest.approx(wanted, rel=0.05)


def test_a_mixtures_experts_are_shared_by_token() -> None:
    """``e·m(T)`` goes to rows in parts by token."""
    shape = Shape(Experts(128, 8))
    features = shape.features(ROWS, np.ones(3))
    awake = 1 - (1 - 8 / 128) ** 302
    assert features[:, 5] == pytest.approx([awake / 302, awake / 302, awake * 300 / 302])


def test_two_engines_on_a_board_carry_static_power_once() -> None:
    """Whatever overlaps, the sum of all accounts is the integral of power."""
    requests = ask(np.random.default_rng(1), Mix(output=Uniform(5, 40)), np.linspace(1, 3, 40))
    log, shape = Log(), Shape()
    board = Board("GPU-0", 115.0, np.random.default_rng(2))
    servers = []
    for number in range(2):
        seat = board.seat(H100.joules, H100.seconds)
        rng = np.random.default_rng(number)
        scheduler = Scheduler(requests, Limits(), rng)
        servers.append(Server(number, scheduler, [seat], shape, Pace(), rng, log))
    for who, t_s in enumerate(requests.arrival_s.tolist()):
        servers[who % 2].scheduler.submit(t_s, who)
    take_turns(servers)
    nobody = Pulses(*np.zeros((3, 0)))
    since = [np.array([s.scheduler.opened[0][0]]) for s in servers]
    settled = settle(log, shape, [board], since, [nobody])
    end = np.array([10.0])
    drawn = settled.drawn[0]
    total_j = float(settled.share_j.sum() + drawn.idle.until(end)[0])
    assert total_j == pytest.approx(float(drawn.power.until(end)[0]), rel=1e-9)
    busy_s = 15.0 - float(drawn.idle.until(end)[0]) / 115.0
    assert busy_s < sum(np.array(log.end_s) - np.array(log.start_s))


# --- counters


def power() -> Piecewise:
    """100 W, but for 400 W from second 2 to 3."""
    base = Piecewise.of(np.array([-5.0]), np.array([100.0]))
    return stacked(base, [Pulses(np.array([2.0]), np.array([3.0]), np.array([300.0]))])


def shown_j(counter: Counter, end_s: float = 6.0) -> tuple[Array, Array]:
    """Times and joules of the readings, joules from the first on."""
    shown = show("GPU-0", counter, power(), np.random.default_rng(0), end_s, 0)
    joules = np.array([r.energy_uj or 0 for r in shown.readings]) / 1e6
    return np.array([r.t_ns for r in shown.readings]) / 1e9, joules - joules[0]


@pytest.mark.parametrize(("lag_s", "smear_s"), [(0.0, 0.0), (0.15, 0.0), (0.0, 0.15), (0.1, 0.1)])
def test_lag_and_smear_delay_each_joule(lag_s: float, smear_s: float) -> None:
    """The mean delay of the burst's joules is the lag and half the smear."""
    counter = Counter(
        0.001, lag_s, smear_s, phase=0.0, poll_s=0.001, poll_noise=0.0, late=0.0, step_uj=1
    )
    times, joules = shown_j(counter)
    burst = np.diff(joules - 100.0 * (times - times[0]))
    mean_s = float((burst * times[1:]).sum() / burst.sum())
    assert burst.sum() == pytest.approx(300.0, rel=1e-3)
    assert mean_s - 2.5 == pytest.approx(lag_s + smear_s / 2, abs=0.002)


def test_a_counter_moves_at_its_ticks_only() -> None:
    """With 100 ms between ticks, 50 polls a second see at most ten changes a second."""
    times, joules = shown_j(Counter(lag_s=0.0, smear_s=0.0))
    moved = times[1:][np.diff(joules) > 0]
    assert 55 <= len(moved) <= 61
    assert np.diff(moved).min() > 0.06


def test_smearing_is_a_mean_of_the_energy() -> None:
    """Against a plain sum over many points."""
    curve = power()
    for t in (1.9, 2.05, 2.5, 3.1):
        fine = curve.until(np.linspace(t - 0.15, t, 20_001))
        wanted = float((fine[:-1] + fine[1:]).mean() / 2)
        assert float(curve.smeared(np.array([t]), 0.15)[0]) == pytest.approx(wanted, rel=1e-9)


def test_costs_are_consistent_with_the_cards() -> None:
    """No kind of work draws more than the card's limit, or less than its static power."""
    from tests.truth.costs import LIGHT, MOE

    setups: tuple[Setup, ...] = (H100, LIGHT, MOE)
    for setup in setups:
        for joules, seconds in zip(setup.joules, setup.seconds, strict=True):
            if seconds:
                assert setup.static_w < joules / seconds + setup.static_w < 1.15 * setup.limit_w


def test_arrivals_follow_the_profile() -> None:
    """Rates hold in each spell, again and again."""
    times = Profile(((10.0, 20.0), (10.0, 1.0))).times(np.random.default_rng(0), 0.0, 200.0)
    busy = (times % 20 < 10).sum()
    assert 1800 < busy < 2200
    assert 60 < len(times) - busy < 140
