"""The Prometheus exporter: a custom collector over the published state, in its own registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from meter.export.families import (
    account_families,
    cost_families,
    receipt_families,
    request_families,
    tenant_families,
    window_families,
    work_families,
)
from meter.export.lane_families import host_families, lane_families
from meter.export.meter_families import (
    device_families,
    health_families,
    info_families,
)
from meter.export.state import State

disable_created_metrics()  # type: ignore[no-untyped-call]


class StateCollector(Collector):
    """Collects from whatever state is published at the moment of the scrape; changes nothing."""

    def __init__(
        self,
        state: Callable[[], State | None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._state = state
        self._now_ns = now_ns

    def describe(self) -> Iterator[Metric]:
        """Nothing: families depend on the state, and registering must not read it."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families of one state; none while there is none."""
        state = self._state()
        if state is None:
            return
        yield from device_families(state)
        yield from account_families(state)
        yield from work_families(state)
        yield from receipt_families(state)
        yield from tenant_families(state)
        yield from request_families(state)
        yield from window_families(state)
        yield from cost_families(state)
        yield from health_families(state, self._now_ns())
        yield from lane_families(state, self._now_ns())
        yield from host_families(state)
        yield from info_families(state)


def make_registry(
    state: Callable[[], State | None],
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> CollectorRegistry:
    """A registry that holds this collector and nothing else (no process or GC metrics)."""
    # Without names known beforehand, so that ``/metrics?name[]=…`` finds them all the same.
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(StateCollector(state, now_ns))
    return registry
