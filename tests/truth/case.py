"""A scenario played: what the meter is told, and the truth beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from meter.model import Device, Engine, Event
from meter.trace import Trace, TraceWriter
from tests.truth.costs import Array
from tests.truth.settle import Settled


class Charge(NamedTuple):
    """What one request truly took, in joules. ``lost_j``: the part of it in steps that the meter
    was not told of."""

    prefill_j: float
    decode_j: float
    recompute_j: float
    lost_j: float
    opened_s: float
    tenant: str

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j


@dataclass(frozen=True, slots=True)
class DeviceTruth:
    """One device. ``integral_j``: its power over the whole run; ``moved_j``: what its readings
    show of that (the rest was drawn before the first and after the last, while idle)."""

    integral_j: float
    moved_j: float
    delay_s: float
    smear_s: float
    refresh_s: float
    coefficients: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Truth:
    """Every joule in one account. ``idle_j`` is what the readings can show of it (see
    ``DeviceTruth``); the other accounts lie wholly within them."""

    requests: dict[str, Charge]
    idle_j: float
    startup_j: float
    stranger_j: float
    lost_j: float
    devices: dict[str, DeviceTruth]

    @property
    def moved_j(self) -> float:
        return sum(device.moved_j for device in self.devices.values())

    @property
    def requests_j(self) -> float:
        return sum(charge.energy_j for charge in self.requests.values())

    def tenants(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for charge in self.requests.values():
            sums[charge.tenant] = sums.get(charge.tenant, 0.0) + charge.energy_j - charge.lost_j
        return sums


@dataclass(slots=True)
class Case:
    """``targets``: which of the issue's targets it has to meet (see ``targets``).

    ``noise``, ``ticks`` (by device, as polls saw them) and ``settled`` are for a closer look.
    """

    name: str
    about: str
    targets: str
    devices: tuple[Device, ...]
    engines: tuple[Engine, ...]
    events: list[Event]
    truth: Truth
    origin_ns: int
    noise: float
    ticks: list[Array]
    settled: Settled

    def trace(self) -> Trace:
        return Trace(self.devices, self.engines, list(self.events))

    def write(self, folder: Path, ending: str = ".jsonl") -> Path:
        """Write it as a trace file, with ``NAME.truth.json`` beside it."""
        path = folder / f"{self.name}{ending}"
        writer = TraceWriter(path, self.devices, self.engines)
        for event in self.events:
            writer.write(event)
        writer.close()
        told = {"name": self.name, "about": self.about, "origin_ns": self.origin_ns}
        truth = asdict(self.truth) | {
            "requests": {id: c._asdict() for id, c in self.truth.requests.items()}
        }
        (folder / f"{self.name}.truth.json").write_text(json.dumps(told | truth, indent=1))
        return path
