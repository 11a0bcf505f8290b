"""Whatever stands in an id, a label or a figure: the rest is served, and no page fails."""

import asyncio
import json
from dataclasses import replace
from decimal import Decimal

import httpx
import numpy as np
import pytest
import structlog
from export_samples import NS, make_device, make_receipt, make_snapshot
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_http_api import HERE, FakeView

from meter.export.http import create_app
from meter.export.live import Live
from meter.export.plain import LeftOut, dumps, text
from meter.export.prometheus import make_registry
from meter.export.publisher import Publisher
from meter.export.receipts import Priced, combine, receipt_json
from meter.export.running import Query, UnderWay
from meter.export.state import Health
from meter.export.summary import summary_json
from meter.model import (
    Engine,
    Fidelity,
    Progress,
    Quality,
    Running,
    TenantKey,
    TokenKey,
)
from meter.pricing import Component, Cost, Tariff

HALF = "half \ud800 a character"
NUMBERS = {
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "numpy_int": np.int64(7),
    "numpy_float": np.float32(1.5),
}
each_number = pytest.mark.parametrize("bad", NUMBERS.values(), ids=NUMBERS)
# What is not one of these is a name, a record, or a mapping of them.
FIGURES = ("int", "float", "int | None", "float | None")


def figures_of(record):
    return [name for name, kind in type(record).__annotations__.items() if str(kind) in FIGURES]


def strict(body):
    """JSON as a strict reader takes it: UTF-8, no NaN."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(body.decode("utf-8"), parse_constant=refuse)


def exposition(state):
    """Every sample, as Prometheus reads it; no series twice."""
    read = generate_latest(make_registry(lambda: state, lambda: 32 * NS)).decode()
    found = {}
    for family in text_string_to_metric_families(read):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            assert np.isfinite(sample.value), key
            found[key] = sample.value
    return found


def pages(state):
    """Both forms in which a state is shown."""
    return exposition(state), strict(dumps(summary_json(state, 32 * NS), LeftOut()))


@each_number
def test_a_bad_figure_of_the_accounts_is_left_out_alone(state, bad):
    """Any single one: all others are as they were."""
    good, _ = pages(state)
    for name in figures_of(state.snapshot):
        series, _ = pages(replace(state, snapshot=replace(state.snapshot, **{name: bad})))
        assert len(set(good.items()) - set(series.items())) <= 2, name
    for name in ("accounts", "unattributed", "tokens", "requests", "tenant_energy_j"):
        values = dict(getattr(state.snapshot, name))
        first = next(iter(values))
        changed = replace(state.snapshot, **{name: values | {first: bad}})
        series, summary = pages(replace(state, snapshot=changed))
        lost = set(good) - set(series)
        assert len(lost) <= 2, (name, lost)
        assert summary["devices"][0]["power_w"] == 310.5


@each_number
def test_a_bad_figure_of_a_device_is_left_out_alone(state, bad):
    """Its other figures stay, as do those of the other devices."""
    good, _ = pages(state)
    (device,) = state.snapshot.devices
    for name in figures_of(device):
        changed = replace(device, **{name: bad})
        other = replace(make_device(1.0, 0.0, "GPU-1"))
        snapshot = replace(state.snapshot, devices=(changed, other))
        series, summary = pages(replace(state, snapshot=snapshot))
        assert len({k for k in good if k not in series}) <= 2, name
        assert summary["devices"][1]["measured_j"] == 1.0
    learned = replace(
        device, coefficients={"F": bad, "a": 1.0}, coefficient_sd={"F": bad, "a": bad}
    )
    shared = replace(device, by_model={"m": {"F": (bad, bad), "a": (1.0, None)}})
    for changed in (learned, shared, replace(device, device=replace(device.device, index=HALF))):
        pages(replace(state, snapshot=replace(state.snapshot, devices=(changed,))))


@each_number
def test_a_bad_figure_of_the_meters_health_is_left_out_alone(state, bad):
    """Counters of the meter itself are figures too."""
    good, _ = pages(state)
    lane = state.health.lanes[0]
    health = state.health
    cases = [replace(health, **{name: bad}) for name in ("samples", "datagrams", "events_dropped")]
    cases += [
        replace(health, sample_errors={"nvml": bad}),
        replace(health, source_last_ns={"power": bad, "engine": 1}),
        *(replace(health, lanes=(replace(lane, **{f: bad}),)) for f in figures_of(lane)),
        *(replace(health, host=replace(health.host, **{f: bad})) for f in figures_of(health.host)),
    ]
    for changed in cases:
        series, summary = pages(replace(state, health=changed))
        assert len(set(good) - set(series)) <= 4
        assert summary["measured_j"] == state.snapshot.measured_j


def with_names(state, name):
    """A state in which every name that others choose is ``name``."""
    snapshot = make_snapshot(
        30.0,
        tokens={TokenKey(name, name, name): 3, TokenKey("0", "m", "output"): 5},
        requests={(name, name, name): 2},
        unattributed={name: 1.0},
        tenant_energy_j={TenantKey(name, name): 1.0},
        tenant_tokens={(name, name, name): 4},
        engines=(Engine(name, ("GPU-0", name), model=name, engine_version=name),),
        running={name: 1},
    )
    device = replace(snapshot.devices[0].device, id=name, name=name, note=name, index=name)
    other = replace(snapshot.devices[0], device=device, by_model={name: {"F": (1.0, None)}})
    snapshot = replace(snapshot, devices=(*snapshot.devices, other))
    publisher = Publisher(Tariff("EUR"), start_ns=0)
    receipt = make_receipt(name, model=name, tenant=name, reason=name, engine=name, missed=name)
    health = Health(problems=(name,), sample_errors={name: 1}, source_last_ns={name: 1})
    return publisher.publish(snapshot, [receipt], health), receipt


def test_half_characters_in_every_name(state):
    """They are shown as a decoder would show them."""
    hostile, _ = with_names(state, HALF)
    series, summary = pages(hostile)
    tokens = {
        labels: v for (name, labels), v in series.items() if name == "joulemeter_tokens_total"
    }
    assert sorted(tokens.values()) == [3, 5]
    assert "half � a character" in str(tokens)
    assert summary["engines"][0]["engine"] == "half � a character"


def test_names_that_become_alike_are_summed(state):
    """Two series with one name would be refused, and a joule lost."""
    tokens = {TokenKey("0", f"m{half}", "output"): 2 for half in ("\ud800", "\ud801", "\ufffd")}
    publisher = Publisher(Tariff("EUR"), start_ns=0)
    hostile = publisher.publish(make_snapshot(tokens=tokens), [], Health())
    series = exposition(hostile)
    (total,) = [v for (name, _), v in series.items() if name == "joulemeter_tokens_total"]
    assert total == 6


class HostileView(FakeView):
    """A view with a hostile receipt and a hostile running request."""

    def __init__(self, state, receipt, under_way):
        super().__init__(state)
        self.receipts = {"r1": receipt}
        self.under_way = under_way

    def running(self):
        return self.under_way


def running_request(**changes):
    names = {"id": "r9", "engine": "0", "model": "m", "tenant": "acme"}
    values = {
        "progress": Progress.DECODE,
        "opened_ns": 1,
        "prompt_tokens": 5,
        "output_tokens": 2,
        "prefill_j": 1.0,
        "decode_j": 2.0,
        "recompute_j": 0.0,
    }
    return Running(**(names | values | changes))


def answers(view):
    """Each page as a client gets it."""

    async def run():
        transport = httpx.ASGITransport(create_app(view, lambda: 32 * NS))
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            paths = ("/metrics", "/v1/summary", "/v1/receipts", "/v1/receipts/r1", "/", "/readyz")
            return [await client.get(path) for path in paths]

    return asyncio.run(run())


def first_message(view):
    """Of ``/v1/live``."""

    async def run():
        stream = Live(view, lambda: 32 * NS).stream(Query())
        await anext(stream)
        return await anext(stream)

    return strict(asyncio.run(run()).removeprefix(b"data: "))


@each_number
def test_no_figure_of_a_request_fails_a_page(state, bad):
    """Each figure of a receipt and of a running request: unknown, and the others stay."""
    under_way = UnderWay([running_request()], lambda request: 1.0)
    for name in figures_of(make_receipt()):
        cost = Cost("EUR", {Component.ELECTRICITY: Decimal("1e-6")})
        view = HostileView(state, Priced(make_receipt(**{name: bad}), cost), under_way)
        answered = answers(view)
        assert [a.status_code for a in answered] == [200] * 6, name
        assert strict(answered[3].content)["id"] == "r1"
    for name in figures_of(running_request()):
        under_way = UnderWay([running_request()._replace(**{name: bad}), running_request(id="r10")])
        view = HostileView(state, Priced(make_receipt(), None), under_way)
        rows = first_message(view)["running"]["rows"]
        assert {row["id"] for row in rows} == {"r9", "r10"}, name


def test_half_characters_in_a_request(state):
    """In ids, models, tenants and reasons, and in an id that is asked for."""
    hostile, receipt = with_names(state, HALF)
    under_way = UnderWay([running_request(id=HALF, model=HALF, tenant=HALF, engine=HALF)])
    view = HostileView(hostile, Priced(receipt, None), under_way)
    view.the_problems = ()
    assert [a.status_code for a in answers(view)] == [200] * 6
    assert first_message(view)["running"]["rows"][0]["id"] == "half � a character"
    assert first_message(view)["running"]["rows"][0]["tenant"] == "half � a character"


def test_a_bad_cost_is_unknown(state):
    """Money that is no number is none."""
    cost = Cost("EUR", {Component.ELECTRICITY: Decimal("NaN"), Component.COMPUTE: Decimal("inf")})
    told = strict(dumps(receipt_json(Priced(make_receipt(), cost)), LeftOut()))
    assert told["cost"] is None


@each_number
def test_a_bad_receipt_stops_nothing(publisher, bad):
    """It is kept and shown; what is counted of all receipts does not take it in."""
    hostile = [make_receipt(f"bad-{name}", **{name: bad}) for name in figures_of(make_receipt())]
    state = publisher.publish(make_snapshot(), [*hostile, make_receipt("good")], Health())
    (histogram,) = state.request_energy.values()
    assert np.isfinite(histogram.sum)
    assert sum(histogram.counts) >= 1
    assert publisher.find("good", lambda name: None) is not None
    exposition(state)
    for name in figures_of(make_receipt()):
        priced = publisher.find(f"bad-{name}", lambda name: None)
        strict(dumps(receipt_json(priced), LeftOut()))
    combined = combine("all", hostile)
    strict(dumps(receipt_json(publisher.price(combined)), LeftOut()))


def test_what_is_left_out_is_counted_and_named_once(state):
    """In a metric and in one line a field, however often the page is asked for."""
    device = replace(state.snapshot.devices[0], power_w=float("nan"))
    hostile = replace(state, snapshot=replace(state.snapshot, devices=(device,)))
    registry = make_registry(lambda: hostile, lambda: 32 * NS)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            told = generate_latest(registry).decode()
    assert "joulemeter_values_left_out_total 3.0" in told
    assert [(line["event"], line["field"]) for line in logs] == [
        ("value_left_out", "joulemeter_gpu_power_watts")
    ]


def test_json_is_told_of_any_value():
    """Also of what is no value at all, or has no end."""
    left_out = LeftOut()
    endless = []
    endless.append(endless)
    values = {
        "a": [np.bool_(True), np.int64(3), Quality.MEASURED, Fidelity.STEP, {1}, object()],
        "\ud800": [endless],
        ("a", 1): Decimal("1.5"),
    }
    told = strict(dumps(values, left_out))
    assert told["a"] == [True, 3, "measured", "step", [1], None]
    assert told["('a', 1)"] == 1.5
    assert "�" in told
    assert left_out.count > 0
    assert text("\ud83d\ude00") == "😀"


def test_no_name_breaks_out_of_its_label(state):
    """Line ends, quotes, backslashes and braces stay in the label: no series is made up."""
    hostile = 'x"} 1\njoulemeter_energy_joules_total{phase="idle"} 9e99\\n{"\r\x00<b>'
    shown, _ = with_names(state, hostile)
    series = exposition(shown)
    assert max(series.values()) < 1e6
    names = {dict(labels).get("model_name") for _, labels in series}
    assert hostile in names
    good, _ = with_names(state, "plain")
    assert len(series) == len(exposition(good))
