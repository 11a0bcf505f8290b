"""Findings against the truth: what a trace shows of counter and coefficients is what was hidden."""

from __future__ import annotations

import numpy as np
import pytest

from meter.export.figures import quantity
from meter.model import Device, Engine, Phase, Quality, Reading, RequestClosed, Step, Work
from meter.selftest.bound import decode, floor_j
from meter.selftest.counter import examine, told
from meter.selftest.findings import SelftestError, find
from meter.selftest.html import to_html
from meter.selftest.look import Intervals, look
from meter.selftest.plots import lines
from meter.selftest.promises import Verdict, exit_code, promises
from meter.selftest.stage import of_trace
from meter.selftest.text import to_text
from meter.trace import Trace
from tests.truth.scenarios import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def case():
    """75 seconds of an 8B model on an H100, its data sheets told."""
    return build("moderate-h100-1-facts", seconds=75.0)


@pytest.fixture(scope="module")
def found(case):
    return find(case.trace(), case.name)


def verdicts(found):
    return {one.id: one.verdict for one in promises(found)}


def test_the_counter_is_found(case, found):
    """Its tick, its lag and its smear, its finest step: as they were hidden."""
    counter, truth = found.devices[0].counter, case.truth.devices["GPU-0"]
    assert counter.refresh_s == pytest.approx(truth.refresh_s, rel=1e-3)
    # Readings bound the ticks' phase to half of what lies between two: the rest is in the delay.
    assert counter.delay_s == pytest.approx(truth.delay_s, abs=0.01)
    assert counter.smear_s == pytest.approx(truth.smear_s, abs=0.02)
    assert counter.step_j == pytest.approx(0.001)
    assert counter.poll_s == pytest.approx(0.02, rel=0.01)


def test_static_power_and_coefficients_are_found(case, found):
    """Each lies near what it was, and says how near."""
    device, truth = found.devices[0], case.truth.devices["GPU-0"].coefficients
    assert device.counter.idle_w == pytest.approx(truth["static_w"], rel=0.01)
    for name in ("static_w", "F", "a", "b", "c"):
        value, sd = device.coefficients[name]
        assert value == pytest.approx(truth[name], rel=0.08), name
        assert abs(value - truth[name]) < 4 * sd, name


def test_an_honest_trace_breaks_no_promise(found):
    """And what everything rests on is known."""
    kept = promises(found)
    assert [one.id for one in kept if one.verdict is Verdict.FAIL] == []
    assert verdicts(found)["foreseen"] is Verdict.PASS
    assert exit_code(kept) == 0


def test_the_other_half_is_foreseen_without_having_been_seen(case, found):
    """The factors spread as the noise of steps lets them, around one."""
    foreseen = found.devices[0].foreseen
    assert foreseen.off < 0.02
    assert abs(foreseen.bias) < 0.005
    assert 0 < foreseen.quantile(0.5) < foreseen.quantile(0.9)
    shares = [factor for _, factor in foreseen.quantiles()]
    assert len(shares) == 7 and shares == sorted(shares)
    assert shares[0] < 1 < shares[-1]


def test_decode_gets_cheaper_with_the_batch_and_stays_above_the_floor(found):
    """By batch size, in order, at each context, each with the physical floor beside it."""
    rows = found.devices[0].decode
    assert len(rows) >= 4
    for line in lines(rows):
        joules = [j for _, j in line.points]
        assert joules == sorted(joules, reverse=True)
    assert all(row.floor_j and row.token_j > row.floor_j for row in rows)


def test_a_prompt_token_costs_what_was_hidden_and_its_part_of_the_step(case, found):
    """More than its own joules, the less so the longer the prompt; never below the floor."""
    rows = found.devices[0].prefill
    own_j = case.truth.devices["GPU-0"].coefficients["a"]
    assert len(rows) >= 4
    assert all(row.floor_j == pytest.approx(2 * 8.03e9 * 0.25e-12) for row in rows)
    assert all(own_j < row.token_j for row in rows)
    short, long = min(rows, key=lambda r: r.prompt), max(rows, key=lambda r: r.prompt)
    assert long.token_j < short.token_j
    assert long.token_j < 2 * own_j


def test_contexts_are_kept_apart():
    """Eight at a time at 200 and at 3,000 tokens: two rows, not a mean of both."""
    count = 40
    read = np.where(np.arange(count) % 2, 200.0, 3000.0)
    ones = np.ones(count)
    features = np.stack(
        (0 * ones, 10 * ones, 0 * ones, 0 * ones, 80 * ones, 80 * read, 0 * ones), axis=1
    )
    start = np.arange(count, dtype=np.int64) * 100_000_000
    known = np.ones(count, dtype=bool)
    intervals = Intervals(start, start + 100_000_000, 30 + read / 100, 30 * ones, features,
                          0.099 * ones, 0.1 * ones, 0.001 * ones, known)  # fmt: skip
    short, long = decode(intervals, [Engine("0", ("g",))], 1)
    assert (short.context, long.context) == (200.0, 3000.0)
    assert (short.token_j, long.token_j) == (pytest.approx(0.4), pytest.approx(0.75))
    assert short.floor_j is None and short.intervals == long.intervals == 20


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("stranger-1", {"attributed", "foreseen"}),
        ("polls-9hz", {"ticks", "foreseen"}),
        ("pp2", {"foreseen"}),
        ("coarse", {"resolution"}),
        ("lost-steps", {"attributed"}),
    ],
)
def test_what_is_wrong_breaks_its_promise(name, broken):
    """A stranger, slow polls, a wrong form, a coarse counter, losses: each its own."""
    found = find(build(name, seconds=75.0).trace(), name)
    kept = promises(found)
    failed = {one.id for one in kept if one.verdict is Verdict.FAIL}
    assert broken <= failed
    assert not {"conservation", "receipts"} & failed
    assert exit_code(kept) == 1


def test_two_models_on_one_card_are_understood():
    found = find(build("shared-mixed", seconds=75.0).trace(), "shared-mixed")
    foreseen = next(one for one in promises(found) if one.id == "foreseen")
    assert foreseen.verdict is Verdict.PASS
    costs = found.devices[0].coefficients
    assert costs["F of small"][0] < 0.6 * costs["F of large"][0]
    assert "e of large" not in costs


def test_the_floor_is_that_of_the_design():
    """8B in bf16 at context 512: 0.069, 0.014 and 0.008 J a token for 8, 64 and 256 at once."""
    engine = Engine("0", ("g",), params=8.03e9, weight_bytes=16.06e9, kv_bytes_per_token=131072.0)
    for batch, joules in ((8, 0.069), (64, 0.0140), (256, 0.0081)):
        assert floor_j(engine, batch, 512, 1) == pytest.approx(joules, rel=0.03)
    assert floor_j(Engine("0", ("g",)), 8, 512, 1) is None


def test_counter_and_power_are_compared():
    """A counter that shows 4 % less than the power beside it has a ratio of 0.96."""
    device = Device("g", "card", Quality.MEASURED)
    readings = [
        Reading("g", i * 20_000_000, (i // 5) * 9_600_000, power_w=100.0) for i in range(501)
    ]
    looked = look([device], [], readings)
    counter = examine(looked.snapshot.devices[0], readings, looked.intervals["g"])
    assert counter.power_ratio == pytest.approx(0.96, rel=0.001)


@pytest.mark.parametrize(("bare_s", "least_w"), [(2.0, 70.0), (0.2, 115.0)])
def test_idle_is_told_bare_and_with_a_context(bare_s, least_w):
    """70 W, then 115 W from when the server is there, before its first step; a mixture of both is
    neither."""
    device, engine = Device("g", "card", Quality.MEASURED), Engine("0", ("g",))
    energy_uj, events = 0, []
    for i in range(100):
        events.append(Reading("g", i * 100_000_000, energy_uj))
        energy_uj += round(100_000 * (70.0 if i < 10 * bare_s else 115.0 if i < 60 else 400.0))
    step = Step("0", 0, 0, 6_000_000_000, 9_000_000_000, (Work("a", 1, 5, Phase.DECODE),))
    events.insert(90, step)
    looked = look([device], [engine], events)
    counter = examine(looked.snapshot.devices[0], events[:90], looked.intervals["g"])
    assert counter.bare_w == pytest.approx(least_w)
    assert ("least idle before the first step", quantity(least_w, "W", 3)) in told(counter)
    assert "idle with the server on it" not in dict(told(counter))


def test_a_device_without_work_is_not_judged(case, found):
    """Another card that idles beside it adds its joules to the sum, and breaks no promise."""
    trace = case.trace()
    first, last = trace.events[0].t_ns, trace.events[-1].t_ns
    other = Device("idle", "another", Quality.MEASURED)
    readings = [Reading("idle", t, (t - first) // 10) for t in range(first, last, 50_000_000)]
    events = sorted([*trace.events, *readings], key=lambda event: event.t_ns)
    both = find(Trace((*trace.devices, other), trace.engines, events), "two")
    assert [device.device.id for device in both.devices] == ["GPU-0"]
    assert both.measured_j > found.measured_j + 5000
    assert verdicts(both) == verdicts(found)


def test_requests_that_never_end_are_no_error(case):
    """Then nothing is known of requests alone; the rest is judged."""
    trace = case.trace()
    trace.events = [e for e in trace.events if not isinstance(e, RequestClosed)]
    assert verdicts(find(trace, "cut"))["alone"] is Verdict.UNKNOWN


def test_a_trace_without_work_cannot_be_judged():
    """It says so, and what to look at."""
    device = Device("g", "card", Quality.MEASURED)
    readings = [Reading("g", i * 20_000_000, i * 1_000_000) for i in range(50)]
    with pytest.raises(SelftestError, match="no engine step"):
        find(Trace((device,), (), list(readings)), "idle.jsonl")


def test_what_a_trace_does_not_cover_is_said(case, tmp_path):
    """Bad lines and the steps that they cost, beside the promises, which they may spoil."""
    lines = case.write(tmp_path).read_text().splitlines(keepends=True)
    steps = [number for number, line in enumerate(lines) if '"step"' in line]
    lines[steps[500]] = "nonsense\n"
    lines[steps[501]] = "{}\n"
    path = tmp_path / "spoilt.jsonl"
    path.write_text("".join(lines))
    found = of_trace(path)
    kept = promises(found)
    text, page = to_text(found, kept), to_html(found, kept)
    assert found.lost_steps >= 2
    first = (
        f"2 bad lines were not used, the first: line {steps[500] + 1}: not JSON: Expecting value"
    )
    assert found.holes[0].startswith(first)
    lost = f"lost: {found.lost_steps} steps; the joules of that time are unattributed"
    for said in (text, page):
        assert f"ot covered: {first}" in said
        assert f"ot covered: {lost}" in said
    whole = find(case.trace(), case.name)
    assert whole.holes == ()
    assert "not covered" not in to_text(whole, promises(whole))
