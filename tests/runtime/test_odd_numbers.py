"""Nothing is round: a tick of 100.371 ms, 212.3337 W, a price of 0.2137.

numpy's numbers look like Python's, but are none: an encoder refuses them, and then nothing is kept.
So all that leaves the core is walked to its leaves.
"""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import numpy
import pytest
import structlog.testing

from meter.attribution import Boundaries, to_facts
from meter.export.publisher import Publisher
from meter.export.receipts import receipt_json
from meter.export.running import Query, running_json
from meter.export.state import Health
from meter.export.summary import summary_json
from meter.model import Device, Quality, Reading, Step
from meter.pricing import Tariff
from meter.replay import CalibrationMode, replay, summary
from meter.report.make import from_trace, to_json
from meter.runtime.memory import Memory
from meter.runtime.takeover import Notes
from meter.selftest.findings import find
from meter.selftest.promises import promises
from meter.trace import TraceWriter, read_trace
from tests.attribution.scenes import ENGINE, GPU, Scene
from tests.plain import leaves, not_plain

HOST = Device("host", "cpu", Quality.ESTIMATED, boundary="host", refresh_s=0.0)
TARIFF = Tariff("EUR", Decimal("0.2137"), Decimal("1.237"), Decimal("2.401"))
RESET_S = 25.0


@pytest.fixture(scope="module")
def events():
    """Half a minute; the counter is reset once, the host is read beside."""
    scene = Scene(seed=1, seconds=32, refresh_s=0.100371, tenants=("a", "b"))
    told = []
    for event in scene.events:
        if not isinstance(event, Reading):
            told.append(event)
            continue
        energy_uj = event.energy_uj - (100_000_003 if event.t_ns > RESET_S * 1e9 else 0)
        told.append(replace(event, energy_uj=energy_uj, power_w=212.3337, latency_s=0.00033331))
        told.append(Reading(HOST.id, event.t_ns, event.t_ns // 33_331))
    return told


@pytest.fixture(scope="module")
def run(events):
    """A life of the core and the publisher; all that was published is in the second."""
    core = Boundaries((GPU,), (ENGINE,), beside=HOST.id, host=HOST)
    publisher = Publisher(TARIFF, events[0].t_ns, 1_764_000_000_123_456_789)
    published = []
    for number, event in enumerate(events):
        core.feed(event)
        if number % 400 == 0:
            state = publisher.publish(core.snapshot(), core.drain(), Health(), core.drain_host())
            under_way = publisher.running(core.running())
            published += [state, *under_way.requests]
            published.append(running_json(under_way, Query(), event.t_ns))
            published.append(summary_json(state, event.t_ns))
    core.finish()
    state = publisher.publish(core.snapshot(), core.drain(), Health(), core.drain_host())
    priced = publisher.recent(10_000)
    published += [state, *priced, *map(receipt_json, priced)]
    return core, state, published


def test_what_is_published_is_pythons_own(run):
    """States, receipts, requests under way, summaries: every leaf, keys too."""
    _, state, published = run
    assert not_plain(published) == set()
    (device,) = state.snapshot.devices
    assert device.refresh_s == pytest.approx(0.100371, rel=1e-4)
    assert device.resets == 1
    assert len(state.snapshot.accounts) > 2


def test_what_was_learned_is_kept(run, tmp_path):
    """Of a tick that is no whole number of milliseconds: nothing was, ever."""
    core, state, _ = run
    learned = core.learned()
    assert learned
    assert not_plain([to_facts(one) for one in learned]) == set()
    with structlog.testing.capture_logs() as logs:
        Memory(tmp_path).keep(learned, state.snapshot)
    assert logs == []
    assert [known.model for known in Memory(tmp_path).restore([GPU])] == ["m"]


def test_a_note_for_the_next_meter_is_readable(run, tmp_path):
    """Where the counters stood."""
    _, state, _ = run
    notes = Notes(tmp_path)
    notes.write(state.snapshot, ["1"])
    note = notes.read()
    assert note is not None
    assert not_plain(note) == set()
    assert note.counters.keys() == {GPU.id}


def test_what_replay_report_and_selftest_say_is_pythons_own(events, tmp_path):
    """From the record of that run, and JSON takes all of it."""
    path = tmp_path / "t.jsonl"
    record = TraceWriter(path, (GPU,), (ENGINE,))
    for event in events:
        if not isinstance(event, Reading) or event.device == GPU.id:
            record.write(event)
    record.close()
    for mode in CalibrationMode:
        replayed = replay(path, calibration=mode)
        assert not_plain([replayed, summary(replayed)]) == set()
    report = from_trace(path, TARIFF)
    assert not_plain([report, json.loads(to_json(report))]) == set()
    found = find(read_trace(path), "t")
    assert found.devices[0].counter.power_ratio is not None
    assert not_plain([found, promises(found)]) == set()


def test_the_walk_finds_what_is_not_plain():
    """In whatever holds it."""
    step = Step("0", numpy.int64(0), 1, 2, 3, ())
    assert not_plain([{"a": (step,)}]) == {"[0][a][0].epoch: numpy.int64"}
    assert not_plain({numpy.float64(1.5): None}) == {".keys: numpy.float64"}
    assert list(leaves({"a": [1.5]})) == [(".keys", "a"), ("[a][0]", 1.5)]
