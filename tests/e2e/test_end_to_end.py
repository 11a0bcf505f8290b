"""A real vLLM under ``joulemeter run``, from the client's requests to Prometheus and back.

One run (``run.py``) serves all tests here; what is not real is the card, and its true joules per
request are known (``truth.py``). What is judged does not follow the machine's load: tokens, sums,
phases, and errors as multiples of a taught meter's in the same run (``floor.py``). The errors
themselves are printed, and kept as one JSON line a run in ``build/e2e.jsonl``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import mutations
import pytest
from accuracy import BETTER_THAN_BASELINES, LIVE, WHOLE, Bill, Errors, errors, shows, warmed_up
from floor import floor
from load import Answer
from run import BEFORE_W, REQUESTS, WARM_UP, Run, run_all, samples
from truth import Life, Truth, read_lives, read_log, true_joules

from meter.attribution import on_device
from meter.model import Phase, Receipt, Step
from meter.replay import CalibrationMode, Policy, replay_trace
from meter.trace import Trace, read_trace
from tests import needs

RECORD = Path(__file__).parents[2] / "build" / "e2e.jsonl"

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@dataclass
class Judged:
    """The run, its recorded trace and its truth."""

    run: Run

    @cached_property
    def trace(self) -> Trace:
        return read_trace(self.run.trace)

    @cached_property
    def lives(self) -> list[Life]:
        return read_lives(self.run.trace)

    @cached_property
    def truth(self) -> Truth:
        steps = read_log(self.run.hook_log)
        return true_joules(steps, self.lives, self.run.started_ns, self.run.stopped_ns, BEFORE_W)

    @cached_property
    def floor(self) -> dict[str, Bill]:
        """The receipts of a taught meter."""
        steps = read_log(self.run.hook_log)
        return floor(steps, self.lives, self.run.started_ns, self.run.stopped_ns, BEFORE_W)

    @cached_property
    def whole(self) -> Errors:
        """Of the trace replayed, calibrated on the whole of it."""
        return errors(self.replayed(), self.truth)

    @cached_property
    def live(self) -> dict[str, Bill]:
        """What the meter answered while it ran, for every request that has a receipt."""
        return {
            id: Bill(row["energy_j"], row["prefill_j"] + row["recompute_j"])
            for id, row in self.run.receipts.items()
            if row
        }

    def replayed(
        self,
        trace: Trace | None = None,
        policy: Policy = Policy.SHAPLEY,
        calibration: CalibrationMode = CalibrationMode.WHOLE,
    ) -> dict[str, Bill]:
        receipts = replay_trace(trace or self.trace, policy, calibration).receipts
        return {receipt.id: _bill(receipt) for receipt in receipts}


def _bill(receipt: Receipt) -> Bill:
    return Bill(receipt.energy_j, receipt.prefill_j + receipt.recompute_j)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return Judged(run_all(needs.vllm("0.32.0"), tmp_path_factory.mktemp("e2e")))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], None]]:
    """Print past pytest's capture: these figures are the run's result."""

    def aloud(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="")

    yield aloud


# --- the requests and their receipts --------------------------------------------------------


def test_the_load_was_what_it_should_be(judged: Judged) -> None:
    """200 requests and more, of every kind; nothing failed; the cache was hit; chunks were cut."""
    answers = judged.run.answers
    assert [a.error for a in answers if a.error] == []
    assert len(answers) >= 0.98 * (REQUESTS + WARM_UP) >= 200
    kinds = Counter(answer.ask.kind for answer in answers)
    assert len(kinds) == 10
    assert min(kinds.values()) >= 5
    assert sum(answer.left for answer in answers) >= 5
    assert all(answer.refused == (answer.ask.kind == "refused") for answer in answers)
    assert sum(_cached(a) > 0 for a in answers if a.usage) >= 10
    assert sum((a.usage or {}).get("prompt_tokens", 0) > 256 for a in answers) >= 20


def test_every_completed_receipt_equals_the_servers_usage(judged: Judged) -> None:
    """Prompt, cached and completion tokens, exactly; beyond a stop string there may be more."""
    completed = [answer for answer in judged.run.answers if answer.completed]
    assert len(completed) >= 180
    for answer in completed:
        assert answer.usage is not None
        receipt = judged.run.receipts[answer.id]
        assert receipt, f"no receipt for {answer.id} ({answer.ask.kind})"
        assert receipt["prompt_tokens"] == answer.usage["prompt_tokens"], answer
        more = receipt["completion_tokens"] - answer.usage["completion_tokens"]
        # A stop string ends in the front end; until that tells it, the engine computes on.
        assert more == 0 or (more > 0 and receipt["reason"] == "stop_or_abort"), answer
        one_of = receipt.get("children") or [receipt]
        cached = [each["cached_tokens"] for each in one_of]
        assert _cached(answer) in cached, (answer.ask.kind, answer.id)
        assert receipt["final"]
        assert receipt["energy_j"] > 0


def test_pairs_have_their_children_inside(judged: Judged) -> None:
    """``n = 2`` gives one receipt; its children sum to it, and the prompt counts once."""
    pairs = [a for a in judged.run.answers if a.ask.kind == "n=2" and a.completed]
    assert pairs
    for answer in pairs:
        receipt = judged.run.receipts[answer.id]
        children = receipt["children"]
        assert len(children) == 2
        for key in ("energy_j", "completion_tokens"):
            assert sum(child[key] for child in children) == pytest.approx(receipt[key], rel=1e-12)
        assert {child["prompt_tokens"] for child in children} == {receipt["prompt_tokens"]}


def test_who_left_has_a_receipt_and_who_was_refused_has_none(judged: Judged) -> None:
    """An aborted request took energy; a refused one never reached the engine."""
    for answer in judged.run.answers:
        assert bool(judged.run.receipts[answer.id]) is not answer.refused, answer
    left = [judged.run.receipts[a.id] for a in judged.run.answers if a.left]
    assert sum("abort" in receipt["reason"] for receipt in left) >= 3


def test_every_step_equals_the_workers_own(judged: Judged) -> None:
    """Who, how many tokens, after how many, in which phase: as the worker ran it, step by step."""
    recorded = [
        {(w.request, w.tokens, w.context, int(w.phase is not Phase.DECODE)) for w in step.work}
        for step in mutations.full_steps(judged.trace.events)
        if isinstance(step, Step)
    ]
    worker = [{part[:4] for part in step.parts} for step in read_log(judged.run.hook_log)]
    assert len(worker) > 500
    assert recorded == worker


# --- every joule in an account --------------------------------------------------------------


def test_the_accounts_hold_at_every_moment_in_the_summary(judged: Judged) -> None:
    """Measured = attributed + idle + startup + unattributed + pending, to 1e-9, each second."""
    summaries = [*judged.run.summaries, judged.run.last_summary]
    assert len(summaries) > 30
    for summary in summaries:
        accounts = sum(
            summary[f"{name}_j"]
            for name in ("attributed", "idle", "startup", "unattributed", "pending")
        )
        assert accounts == pytest.approx(summary["measured_j"], rel=1e-9)
        receipts = summary["receipts_open_j"] + summary["receipts_closed_j"]
        assert receipts == pytest.approx(summary["attributed_j"], abs=1e-9 * summary["measured_j"])
    measured = [summary["measured_j"] for summary in summaries]
    assert measured == sorted(measured)


def test_the_accounts_hold_at_every_moment_in_the_metrics(judged: Judged) -> None:
    """The accounts' sum is what the hardware's counter moved, in each scrape."""
    texts = [*judged.run.metrics, judged.run.last_metrics]
    assert len(texts) > 30
    for text in texts:
        accounts = sum(value for _, value in samples(text, "joulemeter_energy_joules_total"))
        moved = sum(value for _, value in samples(text, "joulemeter_gpu_energy_joules_total"))
        assert accounts == pytest.approx(moved, rel=1e-9)


def test_the_receipts_sum_to_what_is_attributed(judged: Judged) -> None:
    """Each receipt as its owner got it: together they are the account."""
    summary = judged.run.last_summary
    together = sum(bill.energy_j for bill in judged.live.values())
    assert together == pytest.approx(summary["attributed_j"], abs=1e-9 * summary["measured_j"])


def test_hardly_anything_is_unattributed(judged: Judged) -> None:
    """Under 0.2 % of what was measured, and never negative."""
    summary = judged.run.last_summary
    assert 0 <= summary["unattributed_j"] < 0.002 * summary["measured_j"]


def test_the_truth_and_the_cards_counter_agree(judged: Judged) -> None:
    """What the hook posted is what the counter showed, through pynvml and all."""
    end = replay_trace(judged.trace).snapshot
    whole_j = judged.truth.total_j
    assert end.measured_j == pytest.approx(whole_j, rel=0.01)
    requests_j = sum(judged.truth.requests_j.values())
    assert end.attributed_j == pytest.approx(requests_j, rel=0.01)


# --- how true the receipts are --------------------------------------------------------------


def test_live_receipts_are_true(judged: Judged, say: Callable[[str], None]) -> None:
    """After the warm-up within five times the taught meter's errors, in the phases as well."""
    early, late = warmed_up(judged.lives)
    least = errors(judged.floor, judged.truth, late)
    say(f"live, warm-up       {errors(judged.live, judged.truth, early)}")
    say(f"live, after it      {errors(judged.live, judged.truth, late)}")
    say(f"  a taught meter    {least}")
    found = errors(judged.live, judged.truth, late)
    assert found.count >= 100
    assert LIVE.holds(found, least)


def test_receipts_calibrated_on_the_whole_run_are_truer(
    judged: Judged, say: Callable[[str], None]
) -> None:
    """Over all requests, warm-up included: within three times the taught meter's errors."""
    least = errors(judged.floor, judged.truth)
    say(f"whole, all          {judged.whole}")
    say(f"  a taught meter    {least}")
    assert judged.whole.count >= 180
    assert WHOLE.holds(judged.whole, least)


@pytest.mark.parametrize("policy", [Policy.TOKENS, Policy.TIME, Policy.INFLIGHT])
def test_the_rules_in_use_elsewhere_are_far_off(
    judged: Judged, say: Callable[[str], None], policy: Policy
) -> None:
    """The same run under the rules that others use."""
    found = errors(judged.replayed(policy=policy), judged.truth)
    say(f"rule {policy:14s} {found}")
    assert found.mean > BETTER_THAN_BASELINES * judged.whole.mean


def test_the_run_is_put_on_record(judged: Judged, say: Callable[[str], None]) -> None:
    """One JSON line: when, how busy the machine was, how far off each way of counting was."""
    early, late = warmed_up(judged.lives)
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "taught": errors(judged.floor, judged.truth).json(),
        "whole": judged.whole.json(),
        "live_warm_up": errors(judged.live, judged.truth, early).json(),
        "live_after_it": errors(judged.live, judged.truth, late).json(),
        "taught_after_warm_up": errors(judged.floor, judged.truth, late).json(),
        "measured_j": judged.run.last_summary["measured_j"],
        "unattributed_j": judged.run.last_summary["unattributed_j"],
    }
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("a", encoding="utf-8") as record:
        record.write(json.dumps(line) + "\n")
    say(json.dumps(line))


def test_an_online_replay_gives_the_live_receipts(judged: Judged, tmp_path: Path) -> None:
    """By the command line, to the microjoule, in every phase."""
    command = Path(sys.executable).with_name("joulemeter")
    out = tmp_path / "receipts.jsonl"
    subprocess.run(
        [command, "replay", judged.run.trace, "--receipts", out, "--calibration", "online"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    again = {line["id"]: line for line in lines}
    live = {id: row for id, row in judged.run.receipts.items() if row}
    assert set(live) == set(again)
    for id, row in live.items():
        for phase in ("prefill_j", "decode_j", "recompute_j"):
            assert row[phase] == pytest.approx(again[id][phase], rel=0, abs=1e-6), id


# --- a broken meter is caught ---------------------------------------------------------------


@pytest.mark.parametrize(
    "bend", [mutations.swapped_phases, mutations.dropped_context, mutations.dropped_tokens]
)
def test_a_wrong_view_of_the_work_fails(
    judged: Judged, say: Callable[[str], None], bend: Callable[[Trace], Trace]
) -> None:
    """The same core on bent steps is told from the right one."""
    found = errors(judged.replayed(bend(judged.trace)), judged.truth)
    say(f"{bend.__name__:19s} {found}")
    assert shows(found, judged.whole)


def test_intervals_that_are_not_closed_fail(
    judged: Judged, say: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every λ = 1 the receipts are only a model's, and are told from the right ones."""
    distribute = on_device.distribute
    monkeypatch.setattr(
        on_device, "distribute", lambda e, foreign, *rest: distribute(e, foreign | True, *rest)
    )
    found = errors(judged.replayed(), judged.truth)
    say(f"every λ = 1         {found}")
    assert shows(found, judged.whole)


@pytest.mark.parametrize(
    ("names", "scale"),
    [(("step_j",), 0.5), (("prefill_j",), 0.5), (("decode_j", "context_j"), 4.0)],
)
def test_wrong_coefficients_fail(
    judged: Judged, say: Callable[[str], None], names: tuple[str, ...], scale: float
) -> None:
    """Closing each interval does not hide a wrong price for a part of its work.

    Of decoding both: how it is split between tokens and contexts differs from run to run.
    """
    found = _with_wrong_coefficients(judged, names, scale)
    say(f"{' '.join(names) + f' x {scale}':19s} {found}")
    assert shows(found, judged.whole)


def _with_wrong_coefficients(judged: Judged, names: tuple[str, ...], scale: float) -> Errors:
    bills = mutations.with_coefficients(
        judged.trace,
        lambda right: right._replace(**{name: scale * getattr(right, name) for name in names}),
    )
    return errors({receipt.id: _bill(receipt) for receipt in bills}, judged.truth)


# --- Prometheus, and the end ----------------------------------------------------------------


def test_prometheus_sees_what_the_meter_says(judged: Judged) -> None:
    """Scraped by a real Prometheus, queried from it."""
    found = {
        name: [float(row["value"][1]) for row in rows]
        for name, rows in judged.run.prometheus.items()
    }
    assert found["up"] == [1.0]
    assert found["hardware"][0] > 0
    assert found["accounts"] == pytest.approx(found["hardware"], rel=1e-9)
    assert found["kwh"]
    assert all(0 < value < 1 for value in found["kwh"])


def test_promtool_has_nothing_to_complain_of(judged: Judged) -> None:
    """The metrics at the end of the run, linted by Prometheus' own tool."""
    done = subprocess.run(
        [needs.program("promtool"), "check", "metrics"],
        input=judged.run.last_metrics,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_ends_as_the_server_ends_and_leaves_nothing(judged: Judged) -> None:
    """SIGTERM reaches the server; its exit code is ours; none of its processes is left."""
    assert judged.run.exit_code == 0
    assert judged.run.left_behind == []


def _cached(answer: Answer) -> int:
    details = (answer.usage or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
