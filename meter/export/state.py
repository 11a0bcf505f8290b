"""What every reader sees: one immutable state, swapped by the writer a few times a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from meter.export.histogram import HistogramState
from meter.export.labels import OTHER
from meter.export.moments import Moment
from meter.export.windows import WindowFigure
from meter.model import DeviceState, Snapshot
from meter.power.claim import Claimed
from meter.power.lane import LaneState
from meter.pricing import Costs, Tariff

ModelEngine = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Health:
    """The meter's own counters. ``source_last_ns``: when each source last said something.

    ``lanes``: how the polling of each device goes, those too that another meter owns.
    ``host``: what the CPU of this host took. ``refused``: what came over the wire and was not
    taken, by reason; ``engines_gone``, ``engines_back``: how often an engine was taken for gone,
    and spoke again; ``thread_errors``: of the meter's own threads, by name.
    ``problems`` are what keeps the meter from being ready, each with its remedy.
    """

    samples: int = 0
    sample_errors: Mapping[str, int] = field(default_factory=dict)
    datagrams: int = 0
    datagrams_lost: int = 0
    events_dropped: int = 0
    source_last_ns: Mapping[str, int] = field(default_factory=dict)
    lanes: tuple[LaneState, ...] = ()
    host: Claimed | None = None
    problems: tuple[str, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    engines_gone: int = 0
    engines_back: int = 0
    thread_errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """Accounts, costs, display figures and health at one moment."""

    snapshot: Snapshot
    tariff: Tariff
    costs: Costs = field(default_factory=Costs)
    windows: tuple[WindowFigure, ...] = ()
    request_energy: Mapping[ModelEngine, HistogramState] = field(default_factory=dict)
    output_token_energy: Mapping[ModelEngine, HistogramState] = field(default_factory=dict)
    health: Health = field(default_factory=Health)
    models: Mapping[str, str] = field(default_factory=dict)
    tenants: Mapping[str, str] = field(default_factory=dict)
    label_overflow: Mapping[str, int] = field(default_factory=dict)
    moments: tuple[Moment, ...] = ()

    def model_label(self, model: str | None) -> str:
        """The bounded label of a model's name."""
        return self.models.get(model or "", OTHER)

    def tenant_label(self, tenant: str | None) -> str:
        """The bounded label of a tenant's name."""
        return self.tenants.get(tenant or "", OTHER)


def coefficients(device: DeviceState) -> Iterator[tuple[str, float, float | None]]:
    """Name, value and standard deviation; the experts' ``e`` only where there are some."""
    for name, value in device.coefficients.items():
        if name != "e" or value:
            yield name, value, device.coefficient_sd.get(name)


def coefficients_by_model(
    device: DeviceState,
) -> Iterator[tuple[str, str, float, float | None]]:
    """The same, with the model before it: empty but where several models share the device."""
    yield from (("", *learned) for learned in coefficients(device))
    for model, costs in device.by_model.items():
        for name, (value, sd) in costs.items():
            if name != "e" or value:
                yield model, name, value, sd
