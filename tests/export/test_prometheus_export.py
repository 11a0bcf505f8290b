"""What Prometheus sees: a golden text, its rules, and that it is a view of the accounts."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from export_samples import NS, TARIFF, key, make_device, make_receipt, make_snapshot
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from meter.attribution.books import NO_PAYER
from meter.export.prometheus import make_registry
from meter.export.publisher import Publisher
from meter.export.state import Health
from meter.model import Account, Engine, TenantKey
from meter.pricing import Tariff
from meter.report import surely
from tests.needs import program

GOLDEN = Path(__file__).parent / "golden.prom"


def registry(state):
    return make_registry(lambda: state, lambda: 32 * NS)


def samples(state):
    """Every sample as ``name{labels}`` and value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry(state).collect()
        for sample in family.samples
    }


def values(state, name):
    """The values of one sample name, by labels."""
    return {labels: value for (sample, labels), value in samples(state).items() if sample == name}


def test_the_text_is_the_golden_one(state):
    """Every family, name, label and value. To renew it: GOLDEN=1 pytest this file, and review."""
    text = generate_latest(registry(state)).decode()
    if os.environ.get("GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_promtool_finds_nothing_to_complain_of(state):
    """Names, units, types and help texts follow the conventions."""
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=generate_latest(registry(state)),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_is_valid_and_exemplars_name_the_request(state):
    """The id of a request is in an exemplar, with the time of its close, and in no label."""
    text = openmetrics(registry(state)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    buckets = families["joulemeter_request_energy_joules"].samples
    exemplars = [sample.exemplar for sample in buckets if sample.exemplar]
    assert [(e.labels, e.value, float(e.timestamp)) for e in exemplars] == [
        ({"request_id": "r1"}, 36.0, 1020.0)
    ]
    assert all(
        "r1" not in sample.labels.values() for f in families.values() for sample in f.samples
    )
    assert not any(
        sample.name.endswith("_created") for f in families.values() for sample in f.samples
    )


def test_an_exemplar_has_the_time_of_a_clock_that_was_set(publisher):
    """NTP sets it while the meter runs; what became final before keeps its time, and no figure of
    the state follows the clock."""
    before = publisher.publish(make_snapshot(0.0, 0.0), [make_receipt()], Health())
    publisher.set_clock(5_000 * NS)
    later = [make_receipt("r2", prefill_j=600.0)]
    after = publisher.publish(make_snapshot(0.0, 0.0), later, Health())
    [times] = [
        sorted(example.utc_s for example in histogram.examples if example is not None)
        for histogram in after.request_energy.values()
    ]
    assert times == [1_020.0, 5_020.0]
    assert after.snapshot == before.snapshot


def test_an_exemplar_never_exceeds_what_the_format_allows(publisher):
    """128 characters, name and value together, however long an id a client sends."""
    publisher.publish(make_snapshot(0.0, 0.0), [], Health())
    long = publisher.publish(make_snapshot(), [make_receipt("x" * 500)], Health())
    text = openmetrics(registry(long)).decode()
    assert "# {" in text
    list(text_string_to_metric_families(text))


def test_the_accounts_sum_to_the_hardware(state):
    """Conservation can be checked by whoever scrapes."""
    hardware = sum(values(state, "joulemeter_gpu_energy_joules_total").values())
    accounts = sum(values(state, "joulemeter_energy_joules_total").values())
    assert accounts == pytest.approx(hardware, rel=1e-9)


def test_receipts_sum_to_what_was_attributed(state):
    """Open and closed ones, from sums of their own."""
    receipts = sum(values(state, "joulemeter_receipts_joules").values())
    accounts = values(state, "joulemeter_energy_joules_total").items()
    spent = {"prefill", "decode", "recompute"}
    assert receipts == sum(j for labels, j in accounts if dict(labels)["phase"] in spent)


def test_a_device_without_a_power_limit_has_none(publisher):
    """A CPU, say: absent, so that nobody is told that it is far below its cap."""
    device = make_device(455.0, 5.0)
    free = replace(device, device=replace(device.device, power_limit_w=None))
    state = publisher.publish(make_snapshot(devices=(free,)), [], Health())
    assert values(state, "joulemeter_gpu_power_limit_watts") == {}


def test_an_engine_names_its_cards(publisher):
    """By the index and UUID that dcgm-exporter uses too; one that no meter reads has no index."""
    engine = Engine("0", ("GPU-0", "GPU-9"), model="m")
    state = publisher.publish(make_snapshot(engines=(engine,)), [], Health())
    used = [dict(labels) for labels in values(state, "joulemeter_engine_gpu_info")]
    assert [(u["gpu"], u["gpu_uuid"]) for u in used] == [("0", "GPU-0"), ("", "GPU-9")]
    assert {(u["engine"], u["model_name"]) for u in used} == {("0", "m")}


def test_the_hardware_counter_never_falls_by_a_rounding_error(publisher):
    """measured - pending wobbles in its last digits; what is settled stays the same number."""
    seen = []
    for extra in range(200):
        pending = 5.0 + extra / 7
        device = make_device(123456.789012 + pending, pending)
        state = publisher.publish(make_snapshot(devices=(device,)), [], Health())
        seen.extend(values(state, "joulemeter_gpu_energy_joules_total").values())
    assert set(seen) == {123456.789012}


def test_reading_changes_nothing(state):
    """Two scrapes of one state are equal."""
    reg = registry(state)
    assert generate_latest(reg) == generate_latest(reg)


def test_a_request_that_nobody_measured_is_no_zero(publisher):
    """Without an energy counter there is a receipt, but no observation of 0 J."""
    unmeasured = make_receipt(prefill_j=0.0, decode_j=0.0, uncertainty_j=0.0, quality=None)
    state = publisher.publish(make_snapshot(), [unmeasured], Health())
    assert (state.request_energy, state.output_token_energy) == ({}, {})
    assert publisher.find(unmeasured.id, lambda _: None) is not None


def test_before_the_first_state_there_is_nothing():
    """And no error."""
    assert generate_latest(make_registry(lambda: None)) == b""


def test_a_delay_that_was_not_found_is_absent(publisher):
    """Never zero: a counter that shows what was drawn at once is another thing."""
    unknown = replace(make_device(455.0, 5.0), delay_s=None, delay_sd_s=None, smear_s=None)
    state = publisher.publish(make_snapshot(devices=(unknown,)), [], Health())
    for name in ("latency", "latency_sd", "smear"):
        assert values(state, f"joulemeter_gpu_energy_{name}_seconds") == {}
    at_once = replace(unknown, delay_s=0.0)
    state = publisher.publish(make_snapshot(devices=(at_once,)), [], Health())
    assert set(values(state, "joulemeter_gpu_energy_latency_seconds").values()) == {0.0}


def test_the_experts_coefficient_is_there_for_experts_alone(publisher):
    """A dense model has no ``e``, nor a doubt of it."""
    dense = make_device(455.0, 5.0)
    mixture = replace(dense, coefficients={"e": 3.0}, coefficient_sd={"e": 0.5})
    for device, there in ((dense, []), (mixture, ["e"])):
        state = publisher.publish(make_snapshot(devices=(device,)), [], Health())
        for name in ("joulemeter_coefficient", "joulemeter_coefficient_sd"):
            found = [dict(labels)["name"] for labels in values(state, name)]
            assert [name for name in found if name == "e"] == there


def test_unknown_prices_are_absent(publisher):
    """Never zero."""
    free = Publisher(Tariff("EUR"), 0)
    free.publish(make_snapshot(0.0, 0.0), [], Health())
    names = {name for name, _ in samples(free.publish(make_snapshot(), [], Health()))}
    assert not {n for n in names if "cost" in n or "price" in n or "facility" in n}
    assert "joulemeter_kwh_per_token" in names


def test_a_negative_price_is_in_the_credits():
    """The cost counter stays at zero."""
    from decimal import Decimal

    paid = Publisher(Tariff("EUR", Decimal("-0.3")), 0)
    paid.publish(make_snapshot(0.0, 0.0), [], Health())
    state = paid.publish(make_snapshot(), [], Health())
    assert set(values(state, "joulemeter_cost_total").values()) == {0.0}
    assert sum(values(state, "joulemeter_cost_credits_total").values()) > 0


def test_too_many_tenants_become_other(publisher):
    """Series stay bounded, nothing of the energy is lost, and the overflow is counted."""
    tenants = {TenantKey(f"t{i}", "m"): 1.0 for i in range(150)}
    state = publisher.publish(make_snapshot(tenant_energy_j=tenants), [], Health())
    energy = values(state, "joulemeter_tenant_energy_joules_total")
    assert len(energy) == 101
    assert energy[("model_name", "m"), ("tenant", "other")] == 50.0
    assert sum(energy.values()) == 150.0
    overflow = values(state, "joulemeter_label_overflow_total")
    assert overflow[(("label", "tenant"),)] == 50.0


def test_an_admitted_label_keeps_its_series(publisher):
    """Whatever comes later and in whatever order."""
    first = {TenantKey("a", "m"): 1.0}
    publisher.publish(make_snapshot(tenant_energy_j=first), [], Health())
    many = {TenantKey(f"t{i}", "m"): 1.0 for i in range(150)} | first
    state = publisher.publish(make_snapshot(tenant_energy_j=many), [], Health())
    energy = values(state, "joulemeter_tenant_energy_joules_total")
    assert energy[("model_name", "m"), ("tenant", "a")] == 1.0


def test_too_many_models_become_other(publisher):
    """A user can make model names too, by adapters."""
    accounts = {key(Account.DECODE, "0", f"m{i}"): 1.0 for i in range(150)}
    state = publisher.publish(make_snapshot(accounts=accounts), [], Health())
    energy = values(state, "joulemeter_energy_joules_total")
    assert len(energy) == 101
    assert sum(energy.values()) == 150.0


def test_a_silent_source_grows_old(state):
    """The age is taken at the scrape, so it grows even if the writer stands still."""
    ages = [
        {
            sample.labels["source"]: sample.value
            for family in make_registry(lambda: state, lambda now=now: now * NS).collect()
            for sample in family.samples
            if sample.name == "joulemeter_source_age_seconds"
        }
        for now in (32, 42)
    ]
    assert ages == [{"power": 1.0, "engine": 2.0}, {"power": 11.0, "engine": 12.0}]


def test_vllms_multiprocess_directory_does_not_switch_the_library(tmp_path):
    """It leaves our environment before the library is imported, and is kept for the engine."""
    code = (
        "import os, meter.export.prometheus as p; from meter.export import SET_ASIDE\n"
        "assert 'PROMETHEUS_MULTIPROC_DIR' not in os.environ\n"
        "print(SET_ASIDE['PROMETHEUS_MULTIPROC_DIR'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_tariff_of_the_golden_text_has_every_price():
    """So that no family of prices is missing from it."""
    assert TARIFF.known
    assert TARIFF.pue is not None


def test_every_reason_is_explained_wherever_it_is_shown():
    """Those of the joules that are nobody's: in the help of the metric, on the page, in reports."""
    page = (Path(__file__).parents[2] / "meter/export/page/words.js").read_text("utf-8")
    helped = next(
        line for line in GOLDEN.read_text().splitlines() if "_unattributed_joules" in line
    )
    reasons = surely._REASONS.keys()
    assert reasons >= {"lost_steps", "dummy_steps", "meter_down", "counter_silent", NO_PAYER}
    for reason in reasons:
        assert reason in helped
        assert f'{reason}: "' in page
