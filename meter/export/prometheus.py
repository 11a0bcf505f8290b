"""The Prometheus exporter: a custom collector over the published state, in its own registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from meter.export.families import (
    account_families,
    cost_families,
    counter,
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
from meter.export.plain import LeftOut, figure, text
from meter.export.state import State

disable_created_metrics()  # type: ignore[no-untyped-call]


class StateCollector(Collector):
    """Collects from whatever state is published at the moment of the scrape; changes nothing.

    One bad value never makes a scrape fail: its series is left out and counted.
    """

    def __init__(
        self,
        state: Callable[[], State | None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        left_out: LeftOut | None = None,
    ) -> None:
        self._state = state
        self._now_ns = now_ns
        self._left_out = left_out or LeftOut()

    def describe(self) -> Iterator[Metric]:
        """Nothing: families depend on the state, and registering must not read it."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families of one state; none while there is none."""
        state = self._state()
        if state is None:
            return
        now_ns = self._now_ns()
        for families in (
            device_families,
            account_families,
            work_families,
            receipt_families,
            tenant_families,
            request_families,
            window_families,
            cost_families,
            partial(health_families, now_ns=now_ns),
            partial(lane_families, now_ns=now_ns),
            host_families,
            info_families,
        ):
            yield from self._guarded(families, state)
        yield counter(
            "joulemeter_values_left_out",
            "Values that could not be shown, here or in JSON: no finite number, or no UTF-8 text.",
            (),
            [((), self._left_out.count)],
        )

    def _guarded(
        self, families: Callable[[State], Iterator[Metric]], state: State
    ) -> Iterator[Metric]:
        """The families as far as they come; what is behind one that fails is left out with it."""
        made = families(state)
        name = getattr(families, "__name__", "") or getattr(families, "func", families).__name__
        while True:
            try:
                family = next(made, None)
            except Exception as error:
                self._left_out.note(f"{name}: {type(error).__name__}")
                return
            if family is None:
                return
            yield self._sayable(family)

    def _sayable(self, family: Metric) -> Metric:
        """Without samples that cannot be shown, and with labels that can."""
        kept: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
        for sample in family.samples:
            labels = {key: text(value) for key, value in sample.labels.items()}
            value, exemplar = figure(sample.value), sample.exemplar
            if value is None or labels != sample.labels:
                self._left_out.note(family.name)
            if value is None:
                continue
            if exemplar is not None and labels_of(exemplar) != exemplar.labels:
                exemplar = exemplar._replace(labels=labels_of(exemplar))
            key = sample.name, tuple(labels.items())
            if key in kept and family.type in ("counter", "histogram"):
                value += kept[key].value  # mended, two series have become one
            kept[key] = sample._replace(labels=labels, value=value, exemplar=exemplar)
        family.samples = list(kept.values())
        return family


def labels_of(exemplar: Exemplar) -> dict[str, str]:
    """An exemplar's labels as they can be shown."""
    return {key: text(value) for key, value in exemplar.labels.items()}


def make_registry(
    state: Callable[[], State | None],
    now_ns: Callable[[], int] = time.monotonic_ns,
    left_out: LeftOut | None = None,
) -> CollectorRegistry:
    """A registry that holds this collector and nothing else (no process or GC metrics)."""
    # Without names known beforehand, so that ``/metrics?name[]=…`` finds them all the same.
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(StateCollector(state, now_ns, left_out))
    return registry
