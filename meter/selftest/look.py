"""Runs the core over events, and keeps every interval with its work and what was foreseen for it.

The core shows each block of intervals as it hands out their joules. Nothing is computed a second
time: what is judged is what the receipts were made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meter.attribution import Attributor, Fit
from meter.attribution.fit import SIZE, Rows
from meter.attribution.load import RUN_S
from meter.attribution.settle import Block
from meter.model import Device, Engine, Event, Receipt, Snapshot

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
_SOME = 1e-9


@dataclass(frozen=True, slots=True)
class Intervals:
    """One device's settled intervals, all (n,) but ``features`` (n, 7).

    ``start_ns``, ``end_ns``: on the counter's own time axis; ``foreseen_j``: by the coefficients
    that the interval was closed with; ``jitter``: doubt of the edges as a share of the interval;
    ``known``: all work in it is known, and no start-up.
    """

    start_ns: Ints
    end_ns: Ints
    energy_j: Array
    foreseen_j: Array
    features: Array
    run_s: Array
    run_share: Array
    jitter: Array
    known: Mask

    @property
    def seconds(self) -> Array:
        return np.asarray((self.end_ns - self.start_ns) / 1e9)

    @property
    def busy(self) -> Mask:
        """Some step lies in it."""
        return np.asarray(self.features[:, 1] > _SOME)

    def rows(self, chosen: Mask) -> Rows:
        """To learn from."""
        return Rows(
            self.features[chosen],
            self.energy_j[chosen],
            self.run_s[chosen],
            self.run_share[chosen],
            self.jitter[chosen],
        )


@dataclass(frozen=True, slots=True)
class Looked:
    """What a run of the core gave; intervals by device."""

    snapshot: Snapshot
    receipts: tuple[Receipt, ...]
    intervals: Mapping[str, Intervals]
    fits: Mapping[str, Fit]


def look(
    devices: Iterable[Device],
    engines: Iterable[Engine],
    events: Iterable[Event],
    fits: Mapping[str, Fit] | None = None,
) -> Looked:
    """Over all events: with given ``fits``, else with what all intervals teach."""
    kept: dict[str, list[Intervals]] = {}

    def keep(device: str, block: Block, closed: int) -> None:
        kept.setdefault(device, []).append(_intervals(block, closed))

    core = Attributor(devices, engines, fits=fits, hindsight=fits is None, watch=keep)
    for event in events:
        core.feed(event)
    core.finish()
    snapshot = core.snapshot()
    found = {s.device.id: _joined(kept.get(s.device.id, [])) for s in snapshot.devices}
    return Looked(snapshot, tuple(core.drain()), found, core.fits())


def learn(
    devices: Iterable[Device], engines: Iterable[Engine], events: Iterable[Event]
) -> Mapping[str, Fit]:
    """What these events alone teach, by device."""
    core = Attributor(devices, engines, hindsight=True)
    for event in events:
        core.feed(event)
    core.finish()
    return core.fits()


def runs(chosen: Mask) -> list[Ints]:
    """Places of neighbours that are all chosen."""
    places = np.flatnonzero(chosen)
    return [run for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(run)]


def _intervals(block: Block, closed: int) -> Intervals:
    edges_ns = block.load.origin_ns + np.rint(block.edges * 1e9).astype(np.int64)
    totals = block.totals[:closed]
    return Intervals(
        start_ns=edges_ns[:closed],
        end_ns=edges_ns[1 : closed + 1],
        energy_j=block.energy_j[:closed],
        foreseen_j=block.foreseen_j[:closed],
        features=block.features[:closed],
        run_s=totals[:, RUN_S],
        run_share=block.run_share[:closed],
        jitter=block.jitter[:closed],
        known=block.teaches[:closed],
    )


def _joined(parts: list[Intervals]) -> Intervals:
    if not parts:
        none = np.zeros(0)
        times = np.zeros(0, dtype=np.int64)
        wide, no = np.zeros((0, SIZE)), np.zeros(0, dtype=bool)
        return Intervals(times, times, none, none, wide, none, none, none, no)
    names = Intervals.__dataclass_fields__
    return Intervals(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})
