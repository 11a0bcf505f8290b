"""Losses, resets, lives and ends: each goes to a stated account, none into a wrong receipt."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from meter.attribution import Attributor, from_facts, to_facts
from meter.model import (
    Account,
    Clock,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Snapshot,
    Step,
    Work,
)
from meter.replay import not_covered, replay_trace
from meter.trace import Trace

from .scenes import ENGINE, GPU, Scene
from .test_closed_form import CONTINUOUS


def play(events: list[Event]) -> Attributor:
    core = Attributor([GPU], [ENGINE])
    for event in events:
        core.feed(event)
    core.finish()
    return core


def conserved(s: Snapshot) -> bool:
    receipts_j = s.receipts_open_j + s.receipts_closed_j
    small = 1e-9 * max(1.0, s.measured_j)
    return abs(s.conservation_error_j) <= small and abs(receipts_j - s.attributed_j) <= small


def test_lost_steps_are_nobodys() -> None:
    """Where `seq` jumps, the time between the neighbours is unattributed{lost_steps}."""
    scene = Scene(seed=7, seconds=30.0, noise=0.0)
    lost = {e.seq for e in scene.events if isinstance(e, Step) and 200 <= e.seq < 230}
    kept = [e for e in scene.events if not (isinstance(e, Step) and e.seq in lost)]
    span = [e for e in scene.events if isinstance(e, Step) and e.seq in lost]
    truth_j = scene.power_between_j(span[0].t0_ns / 1e9, span[-1].t1_ns / 1e9)
    s = play(kept).snapshot()
    assert s.lost_steps == len(lost)
    assert s.unattributed["lost_steps"] == pytest.approx(truth_j, rel=0.25)
    assert conserved(s)


def test_receipts_say_that_steps_of_theirs_were_lost() -> None:
    """Who was served when steps were lost may miss joules; who came before or after does not."""
    scene = Scene(seed=7, seconds=30.0, noise=0.0)
    steps = [e for e in scene.events if isinstance(e, Step)]
    lost = steps[200:230]
    kept = [e for e in scene.events if e not in lost]
    core = play(kept)
    opened = {e.request: e.t_ns for e in kept if isinstance(e, RequestOpened)}
    closed = {e.request: e.t_ns for e in kept if isinstance(e, RequestClosed)}
    until_ns = steps[230].t1_ns  # the first step that is heard again
    there = {
        r for r, t in opened.items() if t < until_ns and closed.get(r, until_ns) > lost[0].t0_ns
    }
    marked = {r for r in opened if (found := core.receipt(r)) and found.missed == "lost_steps"}
    assert 0 < len(there) < len(opened)
    assert marked == there


def test_a_request_that_began_unheard_says_so_with_its_siblings() -> None:
    """``n = 2``: what is missing of one child is missing of the receipt."""
    ns = 1_000_000_000
    opens = [
        RequestOpened("0", "0_x-1", ns, parent="x", missed="meter_down"),
        RequestOpened("0", "1_x-1", ns, parent="x"),
    ]
    core = play([*opens, *(RequestClosed("0", e.request, 2 * ns, "stop", 3, 0, 4) for e in opens)])
    receipt = core.receipt("x")
    assert receipt is not None
    assert receipt.missed == "meter_down"
    assert sorted(str(child.missed) for child in receipt.children) == ["None", "meter_down"]


def test_change_form_after_a_loss_waits_for_a_full_step() -> None:
    """Without its base a change-form step tells nothing: it counts as lost."""
    scene = Scene(seed=7, seconds=20.0, change_form=True)
    kept = [e for e in scene.events if not (isinstance(e, Step) and e.seq == 100)]
    s = play(kept).snapshot()
    assert s.lost_steps > 100
    assert s.attributed_j > 0
    assert conserved(s)


def test_a_reset_counter_invents_nothing() -> None:
    """A counter that starts over loses the time between two readings, and no more."""
    scene = Scene(seed=8, seconds=20.0)
    events: list[Event] = []
    for e in scene.events:
        if isinstance(e, Reading) and e.t_ns > 10_000_000_000 and e.energy_uj is not None:
            events.append(replace(e, energy_uj=e.energy_uj % 1_000_000_000))
        else:
            events.append(e)
    s = play(events).snapshot()
    whole = play(list(scene.events)).snapshot()
    assert s.devices[0].resets >= 1
    assert 0 < whole.measured_j - s.measured_j < 200 * s.devices[0].resets
    assert conserved(s)


def test_failed_readings_are_survived() -> None:
    """Readings that failed make intervals longer, not wrong."""
    scene = Scene(seed=8, seconds=20.0)
    events: list[Event] = [
        replace(e, energy_uj=None, error="timeout") if isinstance(e, Reading) and i % 3 else e
        for i, e in enumerate(scene.events)
    ]
    s = play(events).snapshot()
    whole = play(list(scene.events)).snapshot()
    assert s.measured_j == pytest.approx(whole.measured_j, rel=0.02)
    assert conserved(s)


def test_a_meter_that_starts_in_mid_stream() -> None:
    """Steps before the first full one are unknown; what follows is attributed."""
    scene = Scene(seed=9, seconds=20.0, change_form=True)
    late = [e for e in scene.events if e.t_ns > 5_000_000_000]
    first = next(i for i, e in enumerate(late) if isinstance(e, Step) and i > 400)
    step = late[first]
    assert isinstance(step, Step)
    running = _running_at(scene, step.seq)
    late[first] = replace(step, same=False, work=(*step.work, *running), drop=())
    s = play(late).snapshot()
    assert s.lost_steps > 0
    assert s.attributed_j > 0.5 * s.measured_j
    assert conserved(s)


def _running_at(scene: Scene, seq: int) -> tuple[Work, ...]:
    """Who decodes plainly at ``seq``, from the same scene told in full."""
    full = Scene(seed=scene.seed, seconds=scene.seconds)
    steps = {e.seq: e for e in full.events if isinstance(e, Step)}
    told = {w.request for e in scene.events if isinstance(e, Step) and e.seq == seq for w in e.work}
    return tuple(w for w in steps[seq].work if w.request not in told)


def test_startup_lies_between_up_and_ready() -> None:
    """From the first process to ready is start-up; before and after, idle."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(EngineEvent("0", 2_000_000_000, "up"))
    core.feed(EngineEvent("0", 5_000_000_000, "ready"))
    for second in range(11):
        core.feed(Reading("GPU-0", second * 1_000_000_000 + 1, second * 100_000_000))
    core.finish()
    s = core.snapshot()
    assert s.total_j(Account.STARTUP) == pytest.approx(300.0, rel=1e-6)
    assert s.total_j(Account.IDLE) == pytest.approx(700.0, rel=1e-6)
    assert conserved(s)


def test_engines_that_start_together_on_one_device_start_up_once() -> None:
    """Two data-parallel ranks on one device: their time is not counted twice, nor idle negative."""
    core = Attributor([CONTINUOUS], [ENGINE, replace(ENGINE, id="1")])
    for engine, up, ready in (("0", 2, 5), ("1", 3, 7)):
        core.feed(EngineEvent(engine, up * 1_000_000_000, "up"))
        core.feed(EngineEvent(engine, ready * 1_000_000_000, "ready"))
    for second in range(11):
        core.feed(Reading("GPU-0", second * 1_000_000_000 + 1, second * 100_000_000))
    core.finish()
    s = core.snapshot()
    assert s.total_j(Account.STARTUP) == pytest.approx(500.0, rel=1e-6)
    assert s.total_j(Account.IDLE) == pytest.approx(500.0, rel=1e-6)
    assert conserved(s)


def test_an_engine_that_dies_closes_its_requests() -> None:
    """A request open at the engine's end has a receipt with the reason `lost`."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, (Work("a", 9, 0, Phase.PREFILL),)))
    core.feed(EngineEvent("0", 1_150_000_000, "down"))
    core.feed(Reading("GPU-0", 1_200_000_000, 30_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert receipt.reason == "lost"
    assert receipt.energy_j > 0
    assert conserved(core.snapshot())


def test_a_new_life_starts_with_nobody_running() -> None:
    """Members of an old epoch are not carried into a new one."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    for epoch, name in ((0, "a"), (1, "b")):
        t = (epoch + 1) * 1_000_000_000
        core.feed(RequestOpened("0", name, t))
        core.feed(Step("0", epoch, 0, t, t + 10_000_000, (Work(name, 1, 9, Phase.DECODE),)))
        core.feed(Step("0", epoch, 1, t + 10_000_000, t + 20_000_000, (), same=True))
    core.feed(RequestClosed("0", "b", 2_030_000_000, "stop", 9, 0, 2))
    core.feed(Reading("GPU-0", 2_100_000_000, 10_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert receipt.id == "b"
    s = core.snapshot()
    assert s.receipts_open == 1
    assert conserved(s)


def test_computed_once_more_after_its_end() -> None:
    """Asynchronous scheduling: a step that names a closed request charges it still."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_010_000_000, (Work("a", 1, 9, Phase.DECODE),)))
    core.feed(RequestClosed("0", "a", 1_012_000_000, "stop", 9, 0, 1))
    core.feed(Step("0", 0, 1, 1_010_000_000, 1_020_000_000, (Work("a", 1, 10, Phase.DECODE),)))
    core.feed(Reading("GPU-0", 1_020_000_000, 8_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert receipt.energy_j == pytest.approx(8.0)


def test_n_is_one_receipt_with_children() -> None:
    """n > 1: the prompt once, completions summed, one child's cached tokens, joules summed."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    for child in ("0_x", "1_x"):
        core.feed(RequestOpened("0", child, 1_000_000_000, parent="x", tenant="acme"))
    work = (Work("0_x", 9, 0, Phase.PREFILL), Work("1_x", 1, 8, Phase.PREFILL))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, work))
    core.feed(RequestClosed("0", "0_x", 1_100_000_001, "stop", 9, 0, 5))
    core.feed(RequestClosed("0", "1_x", 1_100_000_002, "length", 9, 8, 7))
    core.feed(Reading("GPU-0", 1_200_000_000, 30_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert (receipt.id, receipt.prompt_tokens, receipt.completion_tokens) == ("x", 9, 12)
    assert receipt.cached_tokens == 0
    assert [c.id for c in receipt.children] == ["0_x", "1_x"]
    assert math.isclose(receipt.energy_j, sum(c.energy_j for c in receipt.children))
    assert core.receipt("x") == receipt
    s = core.snapshot()
    assert s.requests == {("0", "m", "stop"): 1}
    assert (s.receipts_open, s.receipts_closed) == (0, 1)


def test_a_tenants_tokens_are_its_models() -> None:
    """Of one type: computed, not the whole prompt; found in the cache; emitted. A prompt of which
    half was computed when the client left counts for that half."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    for name in ("a", "b"):
        core.feed(RequestOpened("0", name, 1_000_000_000, tenant="acme"))
    work = (Work("a", 10, 8, Phase.PREFILL), Work("b", 50, 0, Phase.PREFILL))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, work))
    work = (Work("a", 1, 18, Phase.DECODE), Work("b", 6, 50, Phase.RECOMPUTE))
    core.feed(Step("0", 0, 1, 1_100_000_000, 1_150_000_000, work))
    core.feed(RequestClosed("0", "a", 1_150_000_001, "stop", 18, 8, 2))
    core.feed(RequestClosed("0", "b", 1_150_000_002, "abort", 100, None, 0))
    core.feed(Reading("GPU-0", 1_200_000_000, 30_000_000))
    core.finish()
    s = core.snapshot()
    tokens = {"input": 60, "input_cached": 8, "output": 2}
    assert {key.token_type: n for key, n in s.tokens.items()} == tokens
    assert {kind: n for (_, _, kind), n in s.tenant_tokens.items()} == tokens


def test_an_open_request_has_a_receipt_so_far() -> None:
    """While it runs, a request's receipt shows what is settled, and says it is not final."""
    scene = Scene(seed=1, seconds=8.5)
    core = Attributor([GPU], [ENGINE])
    for event in scene.events:
        core.feed(event)
    opened = [e.request for e in scene.events if isinstance(e, RequestOpened)]
    receipts = [core.receipt(r) for r in opened]
    running = [r for r in receipts if r is not None and not r.final]
    assert running
    assert sum(r.energy_j for r in running) == pytest.approx(core.snapshot().receipts_open_j)


def test_a_device_may_be_found_later() -> None:
    """Devices and engines may come as events; until then nothing is attributed to them."""
    core = Attributor()
    core.feed(DeviceFound(1_000_000_000, CONTINUOUS))
    core.feed(EngineEvent("0", 1_000_000_000, "ready", info=ENGINE))
    core.feed(Reading("GPU-0", 1_000_000_001, 0))
    core.feed(Reading("GPU-0", 2_000_000_000, 5_000_000))
    core.finish()
    s = core.snapshot()
    assert s.measured_j == pytest.approx(5.0)
    assert {key.quality for key in s.accounts} == {Quality.SIMULATED}


def test_a_device_that_comes_late_is_its_engines() -> None:
    """An engine that was announced while the driver did not answer owns what is found then, all
    of it; what it did before has no joules; one that has devices keeps to them."""
    other = Engine("1", ("GPU-9",), model="m")
    core = Attributor(engines=[replace(ENGINE, devices=()), other])
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    for second in range(1, 4):
        start = second * 1_000_000_000
        if second == 2:
            for id in ("GPU-0", "GPU-1", "GPU-1"):
                core.feed(DeviceFound(start, replace(CONTINUOUS, id=id)))
        if second >= 2:
            for id in ("GPU-0", "GPU-1"):
                core.feed(Reading(id, start, 50_000_000 * second))
        step = (Work("a", 1, 9 + second, Phase.DECODE),)
        core.feed(Step("0", 0, second, start, start + 1_000_000_000, step))
    for id in ("GPU-0", "GPU-1"):
        core.feed(Reading(id, 4_000_000_000, 200_000_000))
    core.feed(RequestClosed("0", "a", 4_000_000_000, "stop", 9, 0, 3))
    core.finish()
    s = core.snapshot()
    assert [e.devices for e in s.engines] == [("GPU-0", "GPU-1"), ("GPU-9",)]
    assert s.measured_j == pytest.approx(200.0)
    assert s.attributed_j == pytest.approx(200.0)
    assert conserved(s)


@pytest.mark.parametrize(
    ("told", "mine"),
    [(Engine("0", (), owns_none=True), ()), (Engine("0", ()), ("GPU-0",))],
)
def test_owning_no_device_is_not_the_same_as_not_being_told(told: Engine, mine: tuple) -> None:
    """An engine that says it may use no GPU lets the command's go, whose joules are not its
    requests'; one that does not say keeps them. Neither loses a joule."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(EngineEvent("0", 500_000_000, "ready", 0, told))
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    for second in range(1, 4):
        start = second * 1_000_000_000
        core.feed(Reading("GPU-0", start, 50_000_000 * second))
        step = (Work("a", 1, 9 + second, Phase.DECODE),)
        core.feed(Step("0", 0, second, start, start + 1_000_000_000, step))
    core.feed(Reading("GPU-0", 4_000_000_000, 200_000_000))
    core.feed(DeviceFound(4_000_000_000, replace(CONTINUOUS, id="GPU-1")))
    core.feed(RequestClosed("0", "a", 4_000_000_000, "stop", 9, 0, 3))
    core.finish()
    s = core.snapshot()
    assert [e.devices for e in s.engines] == [mine], "nor is what comes late its own"
    assert s.attributed_j == pytest.approx(150.0 if mine else 0.0)
    assert s.measured_j == pytest.approx(150.0)
    assert conserved(s)


@pytest.mark.parametrize("devices", [(), ("GPU-0",)])
def test_where_no_device_of_an_engine_was_read_nothing_is_known(devices: tuple) -> None:
    """Without a device, or with one that has never said a thing: no receipt and no row has a
    figure, until the first reading."""
    core = Attributor([CONTINUOUS], [replace(ENGINE, devices=devices, owns_none=not devices)])
    for name in "ab":
        core.feed(RequestOpened("0", name, 1_000_000_000))
    works = tuple(Work(name, 1, 9, Phase.DECODE) for name in "ab")
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_500_000_000, works))
    core.feed(RequestClosed("0", "a", 2_000_000_000, "stop", 9, 0, 1))
    core.feed(Step("0", 0, 1, 5_000_000_000, 6_000_000_000, works[1:]))
    core.feed(Clock(9_000_000_000, 0))
    assert {row.measured for row in core.running()} == {False}
    for name in "ab":
        receipt = core.receipt(name)
        assert receipt is not None
        assert (receipt.quality, receipt.energy_j) == (None, 0.0)
    if devices:
        for second in (10, 11, 12, 13, 16):
            core.feed(Reading("GPU-0", second * 1_000_000_000, 50_000_000 * second))
        assert {row.measured for row in core.running()} == {True}


def test_an_engine_that_lets_its_devices_go_while_it_works_loses_no_joule() -> None:
    """Passes that stand on the device already are settled there all the same."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    for tenth in range(10, 60):
        start = tenth * 100_000_000
        core.feed(Reading("GPU-0", start, 5_000_000 * tenth))
        core.feed(Step("0", 0, tenth, start, start + 90_000_000, (Work("a", 1, 9, Phase.DECODE),)))
        if tenth == 30:
            core.feed(EngineEvent("0", start, "ready", 0, Engine("0", (), owns_none=True)))
        assert conserved(core.snapshot())
    core.finish()
    s = core.snapshot()
    assert 0 < s.attributed_j < s.measured_j
    assert conserved(s)


def test_a_late_device_is_whose_it_is_said_to_be() -> None:
    """Also where others have none, and its engine has some already."""
    devices = {"0": ("GPU-0",), "1": (), "2": ("GPU-0",)}
    core = Attributor(
        [CONTINUOUS], [replace(ENGINE, id=id, devices=d) for id, d in devices.items()]
    )
    core.feed(DeviceFound(1_000_000_000, replace(CONTINUOUS, id="GPU-1"), ("0", "stranger")))
    core.finish()
    owned = {engine.id: engine.devices for engine in core.snapshot().engines}
    assert owned == devices | {"0": ("GPU-0", "GPU-1")}


def test_no_reading_no_joules() -> None:
    """Work without a counter is attributed nothing: unknown is not invented."""
    scene = Scene(seed=1, seconds=5.0)
    events = [e for e in scene.events if not isinstance(e, Reading)]
    replayed = replay_trace(Trace((GPU,), (ENGINE,), events))
    assert replayed.snapshot.measured_j == 0.0
    assert replayed.receipts
    assert all(r.energy_j == 0.0 for r in replayed.receipts)


def test_tokens_are_counted_once() -> None:
    """Counted tokens equal what the requests' ends report."""
    scene = Scene(seed=6, seconds=15.0)
    core = play(list(scene.events))
    closes = [e for e in scene.events if isinstance(e, RequestClosed)]
    tokens = {key.token_type: n for key, n in core.snapshot().tokens.items()}
    completed = sum(e.completion_tokens or 0 for e in closes)
    still_open = core.snapshot().receipts_open
    assert completed <= tokens["output"] <= completed + 200 * still_open


def test_a_jump_of_the_counter_invents_nothing() -> None:
    """Joules that no board could have drawn are in no account, and it is said."""
    scene = Scene(seed=8, seconds=20.0)
    events: list[Event] = [
        replace(e, energy_uj=e.energy_uj + 10**12)
        if isinstance(e, Reading) and e.t_ns > 10_000_000_000 and e.energy_uj is not None
        else e
        for e in scene.events
    ]
    replayed = replay_trace(Trace((GPU,), (ENGINE,), events))
    whole = play(list(scene.events)).snapshot()
    s = replayed.snapshot
    assert s.devices[0].jumps == 1
    assert 0 < whole.measured_j - s.measured_j < 200
    assert conserved(s)
    assert "jumped 1 times" in not_covered(replayed.snapshot)[0]


def test_an_engine_that_dies_in_mid_step_loses_that_step() -> None:
    """From its last known step to its end nobody knows what it did: `lost_steps`, not idle."""
    core = Attributor([CONTINUOUS], [ENGINE])
    core.feed(Reading("GPU-0", 1_000_000_000, 0))
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, (Work("a", 9, 0, Phase.PREFILL),)))
    core.feed(EngineEvent("0", 1_150_000_000, "down"))
    core.feed(Reading("GPU-0", 1_150_000_000, 30_000_000))
    core.finish()
    s = core.snapshot()
    assert s.unattributed["lost_steps"] == pytest.approx(10.0)
    assert s.total_j(Account.IDLE) == pytest.approx(0.0, abs=1e-6)
    assert conserved(s)


def test_prefill_on_one_engine_and_decode_on_another_is_one_receipt() -> None:
    """The client's request has one receipt, with a line for each engine."""
    engines = [replace(ENGINE, id="0"), replace(ENGINE, id="1", devices=("GPU-1",))]
    core = Attributor([CONTINUOUS, replace(CONTINUOUS, id="GPU-1")], engines)
    for device in ("GPU-0", "GPU-1"):
        core.feed(Reading(device, 1_000_000_000, 0))
    core.feed(RequestOpened("0", "a", 1_000_000_000))
    core.feed(Step("0", 0, 0, 1_000_000_000, 1_100_000_000, (Work("a", 9, 0, Phase.PREFILL),)))
    core.feed(RequestClosed("0", "a", 1_100_000_000, "length", 9, 0, 1))
    core.feed(RequestOpened("1", "a", 1_110_000_000))
    core.feed(Step("1", 0, 0, 1_110_000_000, 1_200_000_000, (Work("a", 1, 9, Phase.DECODE),)))
    core.feed(RequestClosed("1", "a", 1_200_000_000, "stop", 9, 0, 5))
    for device in ("GPU-0", "GPU-1"):
        core.feed(Reading(device, 1_300_000_000, 30_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert [line.engine for line in receipt.children] == ["0", "1"]
    assert (receipt.completion_tokens, receipt.reason) == (5, "stop")
    assert receipt.prefill_j > 0
    assert receipt.decode_j > 0
    assert conserved(core.snapshot())


def test_children_on_two_ranks_are_one_receipt() -> None:
    """``n = 2`` behind two data-parallel ranks: both ran at once, so nothing was handed over, and
    all completions count; the prompt does once."""
    engines = [replace(ENGINE, id="0"), replace(ENGINE, id="1", devices=("GPU-1",))]
    core = Attributor([CONTINUOUS, replace(CONTINUOUS, id="GPU-1")], engines)
    for device in ("GPU-0", "GPU-1"):
        core.feed(Reading(device, 1_000_000_000, 0))
    for rank, count in (("0", 1), ("1", 24)):
        name, end_ns = f"{rank}_a-1", 1_010_000_000 + count * 5_000_000
        core.feed(RequestOpened(rank, name, 1_000_000_000, parent="a"))
        work = (Work(name, 9, 0, Phase.PREFILL),)
        core.feed(Step(rank, 0, 0, 1_000_000_000, 1_010_000_000, work))
        core.feed(RequestClosed(rank, name, end_ns, "stop", 9, 0, count))
    for device in ("GPU-0", "GPU-1"):
        core.feed(Reading(device, 1_300_000_000, 30_000_000))
    core.finish()
    (receipt,) = core.drain()
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (9, 25)
    assert [line.completion_tokens for line in receipt.children] == [1, 24]
    assert conserved(core.snapshot())


def test_what_was_learned_is_where_a_new_life_begins() -> None:
    """Facts written down and read back give the same fit, to the bit, and it is used at once."""
    core = play(list(Scene(seed=1, seconds=30.0).events))
    (known,) = core.learned()
    again = from_facts(json.loads(json.dumps(to_facts(known))))
    assert to_facts(again) == to_facts(known)
    fresh = Attributor([GPU], [ENGINE], restored=[again])
    coefficients = fresh.snapshot().devices[0].coefficients
    assert tuple(coefficients.values()) == tuple(known.fit.coefficients[0])


def test_after_a_lost_step_the_batch_is_known_again_when_nobody_runs() -> None:
    """Steps in change form have their base again then: a loss does not cost the rest of the run."""
    events: list[Event] = []
    for i in range(301):
        events.append(Reading(GPU.id, i * 20_000_000, 6_000_000 * i))
    seq = 0
    for number, start_ms in enumerate((500, 3000)):
        name, t_ns = f"r{number}", start_ms * 1_000_000
        events.append(RequestOpened(ENGINE.id, name, t_ns))
        for k in range(50):
            work = (Work(name, 20, 0, Phase.PREFILL),) if k == 0 else ()
            work = (Work(name, 1, 20, Phase.DECODE),) if k == 1 else work
            step = Step(ENGINE.id, 0, seq, t_ns, t_ns + 20_000_000, work, same=seq > 0)
            if seq != 10:
                events.append(step)
            t_ns, seq = t_ns + 20_000_000, seq + 1
        events.append(RequestClosed(ENGINE.id, name, t_ns, reason="stop"))
    core = play(sorted(events, key=lambda event: event.t_ns))
    s = core.snapshot()
    first, second = (core.receipt(name) for name in ("r0", "r1"))
    assert first is not None and second is not None
    assert s.lost_steps == 40
    assert second.energy_j > 4 * first.energy_j > 0
    assert s.unattributed["lost_steps"] > 0
    assert conserved(s)
