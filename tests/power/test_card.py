"""The simulated card's own truth: energy is the integral of what was posted, at any moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.demo import card as card_file
from meter.demo.card import FAULT_SLOTS, RING_SLOTS, Card, CardSpec, Fault

posts = st.lists(
    st.tuples(st.integers(0, 10**9), st.integers(0, 1_000_000)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(posts, st.integers(0, 40 * 10**9))
def test_energy_is_the_integral(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], until: int
) -> None:
    """At every moment: the sum of power times time, to the nanojoule per post."""
    card = Card.create(tmp_path_factory.mktemp("card") / "c", [CardSpec()])
    t, expected_j, history = 1_000, 0.0, []
    for gap, power_mw in steps:
        t += gap
        card.post(0, power_mw / 1000, t)
        history.append((t, power_mw / 1000))
    ends = [start for start, _ in history[1:]] + [max(until, t)]
    for (start, power_w), end in zip(history, ends, strict=True):
        expected_j += power_w * max(0, min(end, until) - start) / 1e9
    assert card.energy_j(0, until) == pytest.approx(expected_j, abs=1e-9 * len(steps) + 1e-12)
    card.close()


def test_time_does_not_run_backwards(tmp_path: Path) -> None:
    """A post before the last one counts from the last one's moment."""
    card = Card.create(tmp_path / "c", [CardSpec()])
    card.post(0, 100.0, 2_000_000_000)
    card.post(0, 300.0, 1_000_000_000)
    assert card.energy_j(0, 3_000_000_000) == pytest.approx(300.0)


def test_the_ring_turns(tmp_path: Path) -> None:
    """After more posts than the ring holds, the sum is still exact."""
    card = Card.create(tmp_path / "c", [CardSpec()])
    for i in range(RING_SLOTS + 100):
        card.post(0, 10.0, (i + 1) * 1_000_000)
    end = (RING_SLOTS + 101) * 1_000_000
    assert card.energy_j(0, end) == pytest.approx(10.0 * (end - 1_000_000) / 1e9)


def test_another_process_sees_the_same(tmp_path: Path) -> None:
    """Attached, the cards are those that were made."""
    made = Card.create(tmp_path / "c", [CardSpec(), CardSpec(uuid="GPU-x")])
    made.post(1, 200.0, 0)
    assert Card.attach(tmp_path / "c").energy_j(1, 10**9) == pytest.approx(200.0)


def test_a_strange_file_is_refused(tmp_path: Path) -> None:
    """A file that is no card is named."""
    (tmp_path / "c").write_bytes(b"x" * 4096)
    with pytest.raises(ValueError, match="no simulated card"):
        Card.attach(tmp_path / "c")


def test_faults_are_bounded(tmp_path: Path) -> None:
    """One fault too many is refused, not written over something else."""
    card = Card.create(tmp_path / "c", [CardSpec()])
    for _ in range(FAULT_SLOTS):
        card.fault(0, Fault.STUCK, 0, 1)
    with pytest.raises(ValueError, match="at most"):
        card.fault(0, Fault.STUCK, 0, 1)


def test_a_moment_that_the_ring_forgot_is_refused(tmp_path: Path) -> None:
    """An energy that is no longer known is an error, never a zero; so is a fault there."""
    card = Card.create(tmp_path / "c", [CardSpec()])
    for i in range(RING_SLOTS + 10):
        card.post(0, 10.0, (i + 1) * 1_000_000)
    with pytest.raises(ValueError, match="lies before"):
        card.energy_j(0, 2_000_000)
    with pytest.raises(ValueError, match="lies before"):
        card.fault(0, Fault.RESET, 2_000_000)


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """A program without the meter can load the file by its path: a hook inside vLLM does."""
    Card.create(tmp_path / "c", [CardSpec()])
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('card', sys.argv[1])\n"
        "card = importlib.util.module_from_spec(spec)\n"
        "sys.modules['card'] = card\n"
        "spec.loader.exec_module(card)\n"
        "one = card.Card.attach(sys.argv[2])\n"
        "one.post(0, 100.0, 0)\n"
        "print(one.energy_j(0, 10**9), 'meter' in sys.modules)\n"
    )
    words = [sys.executable, "-I", "-S", "-c", code, str(card_file.__file__), str(tmp_path / "c")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100.0", "False"]
