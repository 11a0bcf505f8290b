"""A published state for all tests of what is exported."""

from dataclasses import replace

import pytest
from export_samples import NS, TARIFF, make_host, make_on_host, make_receipt, make_snapshot

from meter.export.publisher import Publisher
from meter.export.state import Health, State
from meter.model import Device, Quality
from meter.power.claim import Claimed
from meter.power.lane import LaneState

H100 = Device("GPU-0", "Simulated H100", Quality.SIMULATED)


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(TARIFF, start_ns=0, utc_offset_ns=1_000 * NS)


@pytest.fixture
def state(publisher: Publisher) -> State:
    """The second of two published states, half a minute apart, with one final receipt."""
    health = Health(
        samples=1500,
        sample_errors={"nvml": 2},
        datagrams=40,
        datagrams_lost=1,
        source_last_ns={"power": 31 * NS, "engine": 30 * NS},
        host=Claimed(Quality.ESTIMATED, 12_500_000, 87_500_000, 20.5),
        lanes=(
            LaneState(
                H100, "nvml", samples=1500, missed=3, good_ns=31 * NS, gap=-0.25, still_s=6.5
            ),
            LaneState(replace(H100, id="GPU-1", index="1"), "nvml", owned=False, owner=42),
        ),
    )
    publisher.publish(make_snapshot(0.0, 0.0), [], Health())
    snapshot = make_snapshot(30.0, host=make_host())
    return publisher.publish(snapshot, [make_receipt()], health, [make_on_host()])
