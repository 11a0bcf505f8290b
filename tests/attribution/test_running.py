"""The requests under way, as watchers see them, against the core's own sums and receipts."""

import pytest

from meter.attribution import Attributor
from meter.model import Progress, RequestClosed
from tests.attribution.scenes import ENGINE, GPU, Scene


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
