"""The requests under way, as watchers see them, against the core's own sums and receipts."""

from dataclasses import replace

import pytest

from meter.attribution import Attributor
from meter.model import (
    Phase,
    Progress,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from tests.attribution.scenes import ENGINE, GPU, Scene
from tests.attribution.test_closed_form import CONTINUOUS


@pytest.mark.parametrize("change_form", [False, True])
def test_what_runs_agrees_with_the_accounts_and_the_receipts(change_form):
    """At any moment: the rows sum to the open receipts' joules, and each is its receipt so far."""
    scene = Scene(seconds=6.0, change_form=change_form)
    core = Attributor((GPU,), (ENGINE,))
    seen = set()
    for number, event in enumerate(scene.events):
        core.feed(event)
        if number % 97:
            continue
        rows, snapshot = core.running(), core.snapshot()
        assert len(rows) == snapshot.receipts_open
        assert sum(row.energy_j for row in rows) == pytest.approx(snapshot.receipts_open_j)
        for row in rows:
            receipt = core.receipt(row.id)
            assert row.prefill_j == pytest.approx(receipt.prefill_j)
            assert row.decode_j == pytest.approx(receipt.decode_j)
            assert (row.progress is Progress.SETTLING) == (receipt.closed_ns is not None)
            seen.add(row.progress)
            if receipt.completion_tokens is not None:
                assert row.output_tokens <= receipt.completion_tokens
    assert seen == set(Progress)
    core.finish()
    ended = {event.request for event in scene.events if isinstance(event, RequestClosed)}
    assert ended.isdisjoint(row.id for row in core.running())


def test_tokens_grow_to_what_the_receipt_says():
    """A row's tokens are those whose joules are settled: they only grow, up to the receipt's."""
    scene = Scene(seconds=6.0)
    core = Attributor((GPU,), (ENGINE,))
    last = {}
    for number, event in enumerate(scene.events):
        core.feed(event)
        if number % 23:
            continue
        for row in core.running():
            assert row.output_tokens >= last.get(row.id, 0)
            last[row.id] = row.output_tokens
    core.finish()
    for receipt in core.drain():
        if receipt.completion_tokens is not None and receipt.id in last:
            assert last[receipt.id] <= receipt.completion_tokens


NS = 1_000_000_000


def step(seq, *work, engine="0"):
    """A step of a tenth of a second, from the first second on."""
    start = NS + seq * NS // 10
    return Step(engine, 0, seq, start, start + NS // 10, work)


def test_children_are_one_row():
    """n > 1: what the client sent, under its name: the children's sums, of those too that have
    ended; as the receipt will say it."""
    core = Attributor((CONTINUOUS,), (ENGINE,))
    core.feed(Reading("GPU-0", NS, 0))
    for name, parent in (("0_x", "x"), ("1_x", "x"), ("y-internal", "y")):
        core.feed(RequestOpened("0", name, NS, parent=parent, tenant="acme", prompt_tokens=9))
    core.feed(step(0, Work("0_x", 9, 0, Phase.PREFILL), Work("1_x", 9, 0, Phase.PREFILL)))
    core.feed(RequestClosed("0", "0_x", NS + NS // 10 + 1, "stop", 9, 0, 1))
    work = Work("y-internal", 9, 0, Phase.PREFILL)
    for seq in range(1, 40):
        core.feed(step(seq, Work("1_x", 1, 8 + seq, Phase.DECODE), work))
        core.feed(Reading("GPU-0", NS + (seq + 1) * NS // 10, 30_000_000 * (seq + 1)))
        work = Work("y-internal", 1, 8 + seq, Phase.DECODE)
    rows = {row.id: row for row in core.running()}
    assert list(rows) == ["x", "y"]
    row, receipt = rows["x"], core.receipt("x")
    assert row.energy_j == pytest.approx(receipt.energy_j)
    assert row.prefill_j == pytest.approx(receipt.prefill_j) and row.prefill_j > 0
    assert (row.tenant, row.prompt_tokens, row.progress) == ("acme", 9, Progress.DECODE)
    # The ended child's one, and as many as its sibling has with its first.
    assert row.output_tokens == rows["y"].output_tokens + 2 > 10
    assert core.snapshot().receipts_open == 2


def test_what_two_engines_do_for_one_request_is_one_row():
    """Prefilled on one and decoded on another: the later one's tokens, both ones' joules."""
    engines = (ENGINE, replace(ENGINE, id="1"))
    core = Attributor((CONTINUOUS,), engines)
    core.feed(Reading("GPU-0", NS, 0))
    core.feed(RequestOpened("0", "x", NS, prompt_tokens=9))
    core.feed(step(0, Work("x", 9, 0, Phase.PREFILL)))
    core.feed(RequestClosed("0", "x", NS + NS // 10 + 1, "stop", 9, 0, 1))
    core.feed(RequestOpened("1", "x", NS + NS // 10 + 2, prompt_tokens=9))
    for seq in range(1, 40):
        core.feed(step(seq, Work("x", 1, 8 + seq, Phase.DECODE), engine="1"))
        core.feed(Reading("GPU-0", NS + (seq + 1) * NS // 10, 30_000_000 * (seq + 1)))
    (row,) = core.running()
    assert (row.id, row.engine, row.opened_ns) == ("x", "1", NS)
    assert row.energy_j == pytest.approx(core.receipt("x").energy_j)
    assert row.prefill_j > 0
    assert row.output_tokens <= 40


def test_children_on_two_ranks_are_one_row_too():
    """All of their tokens count: nothing is handed over."""
    core = Attributor((CONTINUOUS,), (ENGINE, replace(ENGINE, id="1")))
    core.feed(Reading("GPU-0", NS, 0))
    for engine in ("0", "1"):
        core.feed(RequestOpened(engine, f"{engine}_x", NS, parent="x", prompt_tokens=9))
        core.feed(step(0, Work(f"{engine}_x", 9, 0, Phase.PREFILL), engine=engine))
    for seq in range(1, 40):
        for engine in ("0", "1"):
            work = Work(f"{engine}_x", 1, 8 + seq, Phase.DECODE)
            core.feed(step(seq, work, engine=engine))
        core.feed(Reading("GPU-0", NS + (seq + 1) * NS // 10, 30_000_000 * (seq + 1)))
    (row,) = core.running()
    tokens = core.snapshot().tokens
    settled = {key.engine: n for key, n in tokens.items() if key.token_type == "output"}
    assert settled["0"] == settled["1"] > 5
    # Each one's first token comes with the end of its prefill, and is booked at its end.
    assert row.output_tokens == sum(settled.values()) + 2
    assert row.energy_j == pytest.approx(core.receipt("x").energy_j)
