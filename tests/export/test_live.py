"""The live stream: what a watcher is told, how often the writer is asked, and when it ends."""

import asyncio
import json
from dataclasses import replace

import pytest
from export_samples import NS, make_receipt, make_snapshot

from meter.export.live import Live
from meter.export.moments import ACCOUNTS, Moments
from meter.export.publisher import Publisher
from meter.export.query import QueryError
from meter.export.receipts import Priced
from meter.export.running import CELLS_MAX, Query, UnderWay, running_json
from meter.export.state import Health
from meter.model import Progress, Running
from meter.pricing import Tariff


def make_running(name, energy_j=10.0, **changes):
    values = {
        "id": name,
        "engine": "0",
        "model": "m",
        "tenant": "acme",
        "opened_ns": 20 * NS,
        "progress": Progress.DECODE,
        "prompt_tokens": 100,
        "output_tokens": 5,
        "prefill_j": 1.0,
        "decode_j": energy_j - 1.0,
        "recompute_j": 0.0,
    }
    return Running(**(values | changes))


class FakeView:
    """A running meter that ends after some looks at it."""

    def __init__(self, state, rows=(), looks=3):
        self.the_state = state
        self.rows = UnderWay(list(rows))
        self.left = looks
        self.asked = 0
        self.busy = False

    def state(self):
        return self.the_state

    def running(self):
        self.asked += 1
        if self.busy:
            raise TimeoutError
        return self.rows

    def recent(self, limit):
        return [Priced(make_receipt(), None)]

    def problems(self):
        return ()

    def alive(self):
        self.left -= 1
        return self.left >= 0


def messages(view, query=None):
    """All that one watcher is sent, until the end."""

    async def watch():
        live = Live(view, lambda: 32 * NS, tick_s=0.01)
        return [part async for part in live.stream(query or Query())]

    parts = asyncio.run(watch())
    assert parts[0].startswith(b"retry:")
    assert parts[-1] == b"event: end\ndata: {}\n\n"
    return [json.loads(part.removeprefix(b"data: ")) for part in parts[1:-1]]


def test_a_message_is_whole_and_its_sum_holds(state):
    """The accounts, the requests under way and the newest receipts, in every message."""
    for message in messages(FakeView(state, [make_running("r7", 12.5)])):
        s = message["summary"]
        parts = ("attributed_j", "idle_j", "startup_j", "unattributed_j", "pending_j")
        assert sum(s[part] for part in parts) == pytest.approx(s["measured_j"])
        assert s["source_age_s"] == {"power": 1.0, "engine": 2.0}
        assert [row["energy_j"] for row in message["running"]["rows"]] == [12.5]
        assert message["running"]["rows"][0]["age_s"] == 12.0
        assert [receipt["id"] for receipt in message["finished"]] == ["r1"]


def test_the_past_is_sent_once(state):
    """The first message has the last minutes, later ones only what came since."""
    first, second, third = messages(FakeView(state))
    assert len(first["moments"]) == len(state.moments) == 2
    assert second["moments"] == third["moments"] == []
    (_, settled_s, measured_j, accounts_j, running, tokens) = first["moments"][-1]
    assert (settled_s, running, tokens) == (30.0, 1, 120)
    assert sum(measured_j) - 5.0 == pytest.approx(sum(accounts_j))
    assert len(accounts_j) == len(first["accounts"]) == len(ACCOUNTS)


def test_before_the_first_state_it_says_so():
    """No figures, and no zeros."""
    assert all(set(m) == {"now_s", "problems"} for m in messages(FakeView(None)))


def test_a_busy_writer_leaves_the_rows_as_they_were(state):
    """The stream goes on; the writer is left alone for a while."""
    view = FakeView(state, [make_running("r7")], looks=5)
    view.busy = True
    told = messages(view)
    assert len(told) == 5
    assert all(message["running"]["rows"] == [] for message in told)
    assert view.asked == 1


def test_many_watchers_ask_the_writer_no_more_than_one(state):
    """Looks between two ticks share one answer."""
    view = FakeView(state, [make_running("r7")], looks=10)

    async def watch():
        live = Live(view, lambda: 32 * NS, tick_s=60.0)
        streams = [live.stream(Query()) for _ in range(5)]
        for stream in streams:
            await anext(stream)
        told = [await anext(stream) for stream in streams]
        assert live.watchers == 5
        for stream in streams:
            await stream.aclose()
        assert live.watchers == 0
        return told

    assert len(set(asyncio.run(watch()))) == 1
    assert view.asked == 1


def test_rows_are_bounded_and_all_are_counted():
    """At a thousand requests: the first few of the order, one letter each, and the counts."""
    stages = list(Progress)
    rows = [make_running(f"r{i}", float(i), progress=stages[i % 4]) for i in range(1000)]
    priced = []
    told = running_json(UnderWay(rows, priced.append), Query(rows=3), 32 * NS)
    assert len(priced) == 3, "only those that are shown are priced"
    assert [row["id"] for row in told["rows"]] == ["r999", "r998", "r997"]
    assert told["total"] == told["matching"] == len(told["cells"]) == 1000
    assert told["cells"][:4] == "wpds"
    assert told["counts"] == dict.fromkeys(("waiting", "prefill", "decode", "settling"), 250)
    assert len(json.dumps(told)) < 3000
    many = running_json(UnderWay(rows * 10), Query(rows=0), 32 * NS)
    assert (len(many["cells"]), many["total"], many["rows"]) == (CELLS_MAX, 10_000, [])


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("energy", "b"),
        ("tokens", "c"),
        ("token", "a"),
        ("prompt", "b"),
        ("age", "c"),
        ("newest", "a"),
    ],
)
def test_rows_come_in_the_order_asked_for(order, first):
    """Largest first; ``token`` is energy per output token, ``age`` the longest running."""
    rows = [
        make_running("a", 10.0, output_tokens=1, prompt_tokens=None, opened_ns=30 * NS),
        make_running("b", 20.0, output_tokens=10, prompt_tokens=900, opened_ns=25 * NS),
        make_running("c", 5.0, output_tokens=50, prompt_tokens=7, opened_ns=1 * NS),
    ]
    told = running_json(UnderWay(rows), Query(order=order), 32 * NS)
    assert told["rows"][0]["id"] == first


@pytest.mark.parametrize("order", ["energy", "token"])
def test_a_row_that_nobody_measures_has_no_figures_and_comes_last(order):
    """Nor a cost: unknown is null."""
    rows = [make_running("a", 1.0, measured=False), make_running("b", 0.5, prefill_j=0.0)]
    told = running_json(UnderWay(rows, lambda row: 0.0), Query(order=order), 32 * NS)
    assert [row["id"] for row in told["rows"]] == ["b", "a"]
    figures = ("energy_j", "prefill_j", "decode_j", "recompute_j", "cost")
    assert [told["rows"][1][name] for name in figures] == [None] * 5


def test_a_filter_finds_id_tenant_or_model():
    """In any case; all are still counted."""
    rows = [
        make_running("x", tenant="Umbrella"),
        make_running("umbr-1"),
        make_running("y", model=None, tenant=None),
    ]
    told = running_json(UnderWay(rows), Query.parse({"match": "UMBR"}), 32 * NS)
    assert {row["id"] for row in told["rows"]} == {"x", "umbr-1"}
    assert (told["total"], told["matching"]) == (3, 2)


@pytest.mark.parametrize("given", [{"rows": "201"}, {"rows": "-1"}, {"rows": "x"}, {"sort": "x"}])
def test_a_bad_query_names_its_field(given):
    """With what it may be."""
    with pytest.raises(QueryError) as caught:
        Query.parse(given)
    assert caught.value.field in given
    assert caught.value.remedy.startswith("Give ")


def test_what_runs_has_a_cost_like_its_receipt(publisher):
    """The same rule as a final receipt's, in floats."""
    publisher.publish(make_snapshot(0.0, 0.0), [], Health())
    publisher.publish(make_snapshot(30.0), [], Health())
    request = make_running("r7", 36.0, opened_ns=10 * NS)
    receipt = make_receipt("r7", prefill_j=1.0, decode_j=35.0, opened_ns=10 * NS, closed_ns=None)
    cost = float(publisher.price(receipt).cost.amount)
    under_way = publisher.running([request])
    # It is asked later, elsewhere, when the meter has gone on.
    publisher.publish(make_snapshot(60.0), [], Health())
    assert under_way.cost_of(request) == pytest.approx(cost)


def test_without_prices_there_is_no_cost():
    """Unknown, and not zero."""
    request = make_running("r")
    assert Publisher(Tariff("EUR"), 0).running([request]).cost_of(request) is None


def test_moments_are_thinned_and_bounded():
    """One every so often, the oldest goes."""
    moments = Moments(every_ns=NS, kept=3)
    kept = ()
    for tenth in range(100):
        t_ns = tenth * NS // 10
        kept = moments.add(replace(make_snapshot(), t_ns=t_ns))
    assert [moment.t_ns for moment in kept] == [7 * NS, 8 * NS, 9 * NS]
