"""A published state for all tests of what is exported."""

import pytest
from export_samples import NS, TARIFF, make_receipt, make_snapshot

from meter.export.publisher import Publisher
from meter.export.state import Health, State


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
    )
    publisher.publish(make_snapshot(0.0, 0.0), [], Health())
    return publisher.publish(make_snapshot(30.0), [make_receipt()], health)
