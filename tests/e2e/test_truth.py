"""The truth of the end-to-end run, by hand on small logs: what the real run is judged by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from truth import Life, LoggedStep, Part, read_lives, read_log, true_joules

S = 1_000_000_000


def _step(t0_s: float, t1_s: float, power_w: float, *parts: Part) -> LoggedStep:
    return LoggedStep(
        t0_ns=round(t0_s * S),
        t1_ns=round(t1_s * S),
        power_w=power_w,
        static_w=100.0,
        after_w=100.0,
        fixed_j=10.0,
        fixed_s=0.5,
        parts=parts,
    )


def test_a_step_is_split_by_the_hooks_own_terms() -> None:
    """Fixed joules and seconds in equal parts, the rest to whom it belongs."""
    step = _step(1, 2, 500.0, Part("a", 4, 0, 1, 20.0, 0.5), Part("b", 1, 9, 0, 10.0, 0.0))
    lives = [Life("a", "A", S, 2 * S), Life("b", "B", S, 2 * S)]
    truth = true_joules([step], lives, S, 2 * S, 100.0)
    assert truth.requests_j["A"] == pytest.approx(400 * (5 + 20) / 40 + 100 * 0.75)
    assert truth.requests_j["B"] == pytest.approx(400 * (5 + 10) / 40 + 100 * 0.25)
    assert truth.prefill_j == {"A": truth.requests_j["A"], "B": 0}
    assert truth.idle_j == 0
    assert truth.total_j == pytest.approx(500)


def test_gaps_go_to_the_next_step_and_a_tail_to_the_last_one() -> None:
    """From opening to the first step, between steps, and from the last step to the close."""
    part_a, part_b = Part("a", 1, 0, 0, 1.0, 0.1), Part("b", 1, 0, 0, 1.0, 0.1)
    steps = [_step(2, 3, 100.0, part_a), _step(4, 5, 100.0, part_a, part_b)]
    lives = [Life("a", "A", S, 6 * S), Life("b", "B", round(3.5 * S), 6 * S)]
    truth = true_joules(steps, lives, 0, 10 * S, 100.0)
    assert truth.idle_j == pytest.approx(100 * (1 + 4))
    assert truth.gaps_j == pytest.approx(100 * (1 + 1 + 1))
    assert truth.requests_j["A"] == pytest.approx(100 * (1 + 1 + 0.5 + 0.5 + 0.5))
    assert truth.requests_j["B"] == pytest.approx(100 * (0.5 + 0.5 + 0.5))


def test_everything_is_somewhere() -> None:
    """Requests and idle sum to what the card drew; children sum to their parent."""
    parts = [Part(f"{i}", i + 1, 3, i % 2, 2.0 * i + 1, 0.01 * i) for i in range(4)]
    steps = [_step(k, k + 0.7, 150.0 + 20 * k, *parts[: k % 4 + 1]) for k in range(1, 9)]
    lives = [Life(f"{i}", f"p{i // 2}", S, 8 * S) for i in range(4)]
    truth = true_joules(steps, lives, 0, 12 * S, 90.0)
    assert sum(truth.requests_j.values()) + truth.idle_j == pytest.approx(truth.total_j)
    assert set(truth.requests_j) == {"p0", "p1"}


def test_a_log_cut_short_keeps_its_whole_lines(tmp_path: Path) -> None:
    """The engine's end may cut the last line."""
    row = {"t0_ns": 1, "t1_ns": 2, "power_w": 3.0, "static_w": 1.0, "after_w": 1.0}
    row |= {"fixed_j": 1.0, "fixed_s": 1.0, "work": [["a", 1, 0, 1, 1.0, 0.1]]}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
    assert [step.parts[0].request for step in read_log(log)] == ["a"]


def test_lives_come_from_the_request_lines(tmp_path: Path) -> None:
    """Parents where they are named; what never closed is held to the end."""
    rows = [
        {"type": "meta", "version": 1},
        {"type": "request", "event": "open", "id": "a", "t": 1.0, "parent": "A"},
        {"type": "request", "event": "open", "id": "b", "t": 1.5},
        {"type": "request", "event": "close", "id": "a", "t": 2.0},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_lives(trace) == [Life("a", "A", S, 2 * S), Life("b", "b", S + S // 2, 2 * S)]
