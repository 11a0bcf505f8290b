"""The whole demo, short: the real runtime, the real wire, the real pynvml on the simulated card."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meter.demo.closing import Comparison, add_up
from meter.demo.demo import Demo
from meter.demo.process import free_port
from meter.demo.stage import simulated
from meter.replay import CalibrationMode, Policy, replay
from meter.top.feed import FeedError, Query, listen

pytestmark = pytest.mark.slow


@dataclass
class Played:
    demo: Demo
    comparison: Comparison
    output: str
    messages: list[dict[str, Any]]
    record: Path


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder: Path = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=120)
    record = folder / "kept.jsonl.zst"
    demo = Demo(simulated(folder, free_port()), folder, console, threading.Event(), record)
    messages: list[dict[str, Any]] = []
    port = free_port()
    watcher = threading.Thread(target=_watch, args=(f"http://127.0.0.1:{port}", messages))
    watcher.start()
    comparison = demo.run(8.0, port)
    watcher.join(10.0)
    assert comparison is not None
    assert isinstance(console.file, io.StringIO)
    yield Played(demo, comparison, console.file.getvalue(), messages, record)


def _watch(url: str, messages: list[dict[str, Any]]) -> None:
    """Follow the meter's stream from its first answer to its end."""
    for _ in range(600):
        try:
            messages.extend(listen(url, Query()))
        except FeedError:
            time.sleep(0.1)
        if messages:
            return


def test_every_joule_is_in_an_account(played: Played) -> None:
    """What the card's counter moved is the accounts' sum, to a billionth, and nearly all known."""
    assert played.demo.summary is not None
    total = add_up(played.demo.summary)
    assert total.measured_j > 500.0
    assert abs(total.residual_j) <= 1e-9 * total.measured_j
    assert total.accounts_j["attributed"] > 0.3 * total.measured_j
    assert total.accounts_j["startup"] > 0.0
    assert total.accounts_j["unattributed"] <= 0.002 * total.measured_j
    assert played.demo.summary["quality"] == "simulated"


def test_its_trace_can_be_kept(played: Played) -> None:
    """And replays to the live receipts."""
    replayed = replay(played.record, Policy.SHAPLEY, CalibrationMode.ONLINE)
    again = {receipt.id: receipt.energy_j for receipt in replayed.receipts}
    live = {id: receipt["energy_j"] for id, receipt in played.demo.receipts.items()}
    assert {id: again[id] for id in live} == pytest.approx(live)


def test_receipts_say_what_usage_said(played: Played) -> None:
    """Of every completed request, exactly; who left has a receipt too, who was refused has none."""
    receipts = played.demo.receipts
    answers = played.demo.load.answers
    assert len(answers) > 5
    for answer in answers:
        assert answer.error is None
        receipt = receipts.get(answer.id) or receipts.get(f"{answer.id}-0")
        if answer.status == 400:
            assert receipt is None
            continue
        if answer.left:
            continue
        assert receipt is not None, answer
        assert answer.usage is not None
        assert receipt["prompt_tokens"] == answer.usage["prompt_tokens"]
        assert receipt["completion_tokens"] == answer.usage["completion_tokens"]
        cached = answer.usage["prompt_tokens_details"]["cached_tokens"]
        assert receipt["cached_tokens"] == cached
        assert receipt["tenant"] == answer.tenant
        assert receipt["energy_j"] > 0


def test_receipts_sum_to_what_was_attributed(played: Played) -> None:
    """Every joule attributed stands on a receipt that was handed out."""
    assert played.demo.summary is not None
    assert sum(r["energy_j"] for r in played.demo.receipts.values()) == pytest.approx(
        played.demo.summary["attributed_j"], rel=1e-9
    )


def test_the_live_stream_shows_requests_growing(played: Played) -> None:
    """Joules and tokens of a running request only grow, up to its receipt; every sum holds; the
    stream's last word is that the meter ends."""
    *messages, end = played.messages
    assert end == {}
    assert len(messages) > 10
    last: dict[str, tuple[float, int]] = {}
    grown = set()
    for message in messages:
        if "summary" not in message:
            continue
        assert abs(message["summary"]["conservation_error_j"]) < 1e-6
        for row in message["running"]["rows"]:
            energy_j, tokens = last.get(row["id"], (0.0, 0))
            assert row["energy_j"] >= energy_j * (1 - 1e-6)
            assert row["output_tokens"] >= tokens
            assert row["cost"] is None or row["cost"] >= 0
            if row["energy_j"] > energy_j > 0:
                grown.add(row["id"])
            last[row["id"]] = (row["energy_j"], row["output_tokens"])
    assert len(grown) > 5
    for id, (energy_j, tokens) in last.items():
        receipt = played.demo.receipts.get(id)
        if receipt is not None:
            assert receipt["energy_j"] >= energy_j * (1 - 1e-6)
            assert receipt["completion_tokens"] is None or receipt["completion_tokens"] >= tokens


def test_the_meter_is_nearer_to_the_truth_than_the_rules(played: Played) -> None:
    """Even in its first seconds; how near is told with its figures."""
    found = played.comparison.by_rule
    assert played.comparison.against == "truth"
    assert set(found) == {"joulemeter", "tokens", "time", "inflight"}
    charged = [r for r in played.demo.receipts.values() if r["energy_j"] > 0]
    assert found["joulemeter"].requests == len(charged) > 5
    assert found["joulemeter"].mean < 0.1
    assert found["joulemeter"].mean < min(found[r].mean for r in ("tokens", "time", "inflight"))


def test_what_is_printed_can_be_checked(played: Played) -> None:
    """The address first, then at the end the sum in one line, and the errors beside the rules'."""
    lines = played.output.splitlines()
    assert lines[1].startswith("page and metrics: http://127.0.0.1:")
    (line,) = [line for line in lines if line.startswith("measured ")]
    for name in ("(simulated)", "attributed", "idle", "startup", "unattributed", "residual"):
        assert name in line
    for name in ("joulemeter", "tokens", "time", "inflight"):
        assert any(row.strip().startswith(name) and "%" in row for row in lines)
