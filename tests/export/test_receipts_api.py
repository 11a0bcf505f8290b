"""Receipts: kept, found by every id a client may have, combined, and as JSON."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from export_samples import NS, make_on_host, make_receipt, make_snapshot

from meter.export.receipts import (
    GoneError,
    Priced,
    ReceiptStore,
    combine,
    look_up,
    receipt_json,
    receipt_line,
)
from meter.export.state import Health
from meter.export.summary import summary_json
from meter.model import Device, DeviceState, Engine, Quality
from meter.pricing import Component, Cost


def test_the_oldest_receipt_makes_room():
    """The store is bounded, children's ids included."""
    store = ReceiptStore(capacity=2)
    for name in "abc":
        child = make_receipt(f"{name}-child")
        store.add(make_receipt(name, children=(child,)))
    assert store.find("a") is None
    assert store.find("a-child") is None
    assert store.find("b").id == "b"
    assert store.find("c-child").id == "c-child"
    assert len(store) == 2
    assert [receipt.id for receipt in store.recent(5)] == ["c", "b"]


def test_a_client_that_repeats_its_id_costs_no_memory():
    """Its later request takes the place; the earlier one's own name is gone, and says why."""
    store = ReceiptStore(capacity=10)
    for i in range(1000):
        store.add(make_receipt("same", requests=(f"engine-{i}",)))
    assert len(store) == 1
    assert store.names <= 1 + 1 + 10
    assert store.find("engine-999").id == "same"
    assert store.find("engine-998") is None
    assert "later request" in store.why_gone("engine-998")


def test_no_name_of_an_evicted_receipt_is_left():
    """Nor is a look-up by one an error; a name that is used anew is another's."""
    store = ReceiptStore(capacity=3)
    store.add(make_receipt("A", requests=("a1", "a2")))
    store.add(make_receipt("B", requests=("a1",)))  # the engine's name again
    for name in ("C", "D", "E"):
        store.add(make_receipt(name))
    assert [store.find(name) for name in ("A", "B", "a1", "a2")] == [None] * 4
    assert all("made room" in store.why_gone(name) for name in ("A", "B", "a1", "a2")[1:])
    store.add(make_receipt("B"))
    assert store.find("B").id == "B"
    assert store.why_gone("B") is None
    assert store.why_gone("never") is None


def test_what_is_gone_is_remembered_within_bounds():
    """As many names as receipts are kept."""
    store = ReceiptStore(capacity=5)
    for i in range(100):
        store.add(make_receipt(f"r{i}", requests=(f"e{i}", f"f{i}")))
    assert store.names <= 5 + 2 * 5 + 5


def test_a_receipt_that_is_gone_is_told_from_one_that_never_was(publisher):
    """By the id of a completion's answer as well."""
    publisher._store = ReceiptStore(capacity=1)
    publisher.publish(make_snapshot(), [make_receipt("cmpl-x-0"), make_receipt("b")], Health())
    with pytest.raises(GoneError, match="made room"):
        publisher.find("cmpl-x", lambda name: None)
    assert publisher.find("cmpl-y", lambda name: None) is None


def test_a_receipt_is_found_by_the_engines_own_id():
    """Which the engine's log shows."""
    store = ReceiptStore()
    store.add(make_receipt("chatcmpl-1", requests=("chatcmpl-1-ab12",)))
    assert store.find("chatcmpl-1-ab12").id == "chatcmpl-1"


def test_a_completion_is_found_by_the_answers_id():
    """``cmpl-x`` of the answer is ``cmpl-x-0`` in the engine."""
    known = {"cmpl-x-0": make_receipt("cmpl-x-0")}
    assert look_up("cmpl-x", known.get).id == "cmpl-x-0"
    assert look_up("cmpl-x-0", known.get).id == "cmpl-x-0"
    assert look_up("cmpl-y", known.get) is None


def test_several_prompts_of_one_completion_are_combined():
    """Each prompt is a request of its own: everything adds up, parts inside."""
    known = {f"cmpl-x-{i}": make_receipt(f"cmpl-x-{i}") for i in range(3)}
    receipt = look_up("cmpl-x", known.get)
    assert receipt.id == "cmpl-x"
    assert receipt.prompt_tokens == 300
    assert receipt.cached_tokens == 120
    assert receipt.completion_tokens == 36
    assert receipt.energy_j == 108.0
    assert receipt.requests == ("cmpl-x-0", "cmpl-x-1", "cmpl-x-2")
    assert [part.id for part in receipt.children] == list(receipt.requests)
    assert receipt.final


def test_a_combination_is_final_when_all_parts_are():
    """And knows a count only where all know it."""
    parts = [make_receipt("a"), make_receipt("b", final=False, closed_ns=None, reason=None,
                                             completion_tokens=None)]  # fmt: skip
    receipt = combine("x", parts)
    assert not receipt.final
    assert receipt.closed_ns is None
    assert receipt.completion_tokens is None
    assert receipt.reason is None


def test_json_has_the_energy_the_cost_and_their_units(publisher, state):
    """Money is text, to the last digit; the lot survives a round trip."""
    line = json.loads(json.dumps(receipt_json(publisher.find("r1", lambda name: None))))
    assert line["energy_j"] == line["prefill_j"] + line["decode_j"] + line["recompute_j"] == 36.0
    assert line["kwh"] == pytest.approx(1e-5)
    assert line["boundary"] == "gpu"
    assert line["children"] == []
    assert line["final"] is True
    cost = line["cost"]
    assert cost["currency"] == "EUR"
    assert Decimal(cost["components"]["electricity"]) == Decimal("0.00000375")
    parts = sum(map(Decimal, cost["components"].values()))
    assert Decimal(cost["amount"]) == parts


def test_without_prices_the_cost_is_null():
    """Unknown, not zero."""
    assert receipt_json(Priced(make_receipt(), None))["cost"] is None


def test_what_a_request_took_of_the_host_stands_apart(publisher, state):
    """In none of the receipt's other figures; settled in its own time; where it is not known, or
    of another request, or of a part of it alone, it is null."""
    line = json.loads(json.dumps(receipt_json(publisher.find("r1", lambda name: None))))
    assert line["energy_j"] == 36.0
    assert line["host"] == {
        "boundary": "host",
        "energy_j": 5.0,
        "prefill_j": 1.0,
        "decode_j": 4.0,
        "recompute_j": 0.0,
        "uncertainty_j": 0.5,
        "quality": "estimated",
        "final": True,
    }
    assert publisher.recent(1)[0].host is not None
    receipts = {f"cmpl-x-{i}": make_receipt(f"cmpl-x-{i}") for i in range(3)}
    hosts = {name: make_on_host(name, final=False) for name in receipts}
    found = publisher.find("cmpl-x", receipts.get, hosts.get)
    assert receipt_json(found)["host"]["energy_j"] == 15.0
    assert receipt_json(found)["host"]["final"] is False
    del hosts["cmpl-x-2"]
    found = publisher.find("cmpl-x", receipts.get, hosts.get)
    assert receipt_json(found)["host"] is None
    assert receipt_json(publisher.find("cmpl-x", receipts.get))["host"] is None
    unmeasured = make_on_host("r3", quality=None)
    found = publisher.find("r3", {"r3": make_receipt("r3")}.get, {"r3": unmeasured}.get)
    assert receipt_json(found)["host"] is None


def test_a_request_that_nobody_measured_has_no_figures():
    """Its engine owns no device that was read: null and why, never zero; a combined receipt has
    what is known of its parts."""
    unknown = make_receipt("r3", prefill_j=0.0, decode_j=0.0, uncertainty_j=0.0, quality=None)
    told = receipt_json(Priced(unknown, Cost("EUR", {Component.ELECTRICITY: Decimal(0)})))
    figures = ("energy_j", "prefill_j", "decode_j", "recompute_j", "uncertainty_j", "kwh", "cost")
    assert {told[name] for name in (*figures, "quality")} == {None}
    assert (told["missed"], told["completion_tokens"]) == ("not_measured", 12)
    assert receipt_line(replace(unknown, missed="lost_steps"))["missed"] == "lost_steps"
    both = receipt_json(Priced(combine("r", [make_receipt("r1"), unknown]), None))
    assert (both["energy_j"], both["missed"]) == (36.0, None)
    assert both["children"][1]["energy_j"] is None


def test_the_hosts_accounts_stand_apart(state):
    """In the summary; their sum is what was claimed, and no other sum has any of it."""
    summary = json.loads(json.dumps(summary_json(state, 32 * NS)))
    host = summary["host"]
    assert (host["measured_j"], host["attributed_j"], host["idle_j"]) == (15.0, 11.0, 3.0)
    assert (host["pending_j"], host["conservation_error_j"]) == (1.0, 0.0)
    assert (host["quality"], host["devices"][0]["boundary"]) == ("estimated", "host")
    assert summary["measured_j"] == 455.0
    assert summary["quality"] == "simulated"
    without = replace(state, snapshot=replace(state.snapshot, host=None))
    assert summary_json(without, 32 * NS) == summary | {"host": None}


def test_an_open_request_is_answered_by_the_core(publisher, state):
    """Only where no final receipt is kept."""
    so_far = make_receipt("r2", final=False, closed_ns=None)
    assert publisher.find("r2", {"r2": so_far}.get).receipt is so_far
    assert publisher.find("r1", {"r1": so_far}.get).receipt.id == "r1"
    assert publisher.find("r3", {}.get) is None


def test_a_receipt_says_whose_joules_it_bounds(publisher):
    """An engine on a CPU has the host's."""
    cpu = DeviceState(
        Device("cpu", "CPU", Quality.ESTIMATED, boundary="host"),
        450.0, 0.0, None, None, None, {}, {}, 0, 0, None,
    )  # fmt: skip
    snapshot = make_snapshot(devices=(cpu,), engines=(Engine("0", ("cpu",)),))
    publisher.publish(snapshot, [make_receipt()], Health())
    assert publisher.find("r1", {}.get).boundary == "host"
