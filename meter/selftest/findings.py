"""What a trace shows of the meter's truth; pure: events in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meter.export.state import coefficients_by_model
from meter.model import Device, Engine, Event, Reading, Receipt, Step
from meter.replay import not_covered
from meter.selftest.bound import Decode, Prefill, decode, prefill, published
from meter.selftest.counter import Counter, examine
from meter.selftest.foresight import Alone, Company, Foreseen, Sweep, alone, foreseen, sweep
from meter.selftest.look import Looked, learn, look
from meter.selftest.presence import Presence, presence
from meter.selftest.price import Price
from meter.selftest.repeats import Repeats, repeats
from meter.selftest.zeus import Beside, Window, compare
from meter.trace import Trace


class SelftestError(Exception):
    """It cannot be run; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class DeviceFindings:
    """One device; ``None`` is not known. ``coefficients``: value and standard deviation."""

    device: Device
    counter: Counter
    coefficients: Mapping[str, tuple[float, float | None]]
    foreseen: Foreseen | None
    alone: Alone | None
    sweep: Sweep | None
    decode: tuple[Decode, ...]
    prefill: tuple[Prefill, ...]
    published: tuple[tuple[int, float], ...]
    intervals: int
    resets: int
    jumps: int


@dataclass(frozen=True, slots=True)
class Findings:
    """``devices``: those on which work ran. ``holes``: what the figures leave out, a sentence each:
    bad lines, resets, jumps, lost steps. ``receipts_residual_j``: what requests were charged
    less what the accounts hold of them. ``meter_cpu_share``: of one core, while the load was
    played. The last three are ``None`` where they were not measured."""

    source: str
    seconds: float
    quality: str | None
    model: str | None
    measured_j: float
    attributed_j: float
    unattributed_by_reason: Mapping[str, float]
    residual_j: float
    receipts_residual_j: float
    requests: int
    lost_steps: int
    devices: tuple[DeviceFindings, ...]
    repeats: Repeats | None
    holes: tuple[str, ...] = ()
    zeus: Beside | None = None
    price: Price | None = None
    meter_cpu_share: float | None = None

    @property
    def unattributed_share(self) -> float:
        return sum(self.unattributed_by_reason.values()) / self.measured_j


def find(trace: Trace, source: str, zeus: Window | None = None) -> Findings:
    """``zeus``: what it measured beside. Raises ``SelftestError`` where there is no work in the
    trace, or no joules."""
    steps = [e.t1_ns for e in trace.events if isinstance(e, Step)]
    if not steps:
        raise SelftestError(f"{source} has no engine step: was the server started under the meter?")
    looked = look(trace.devices, trace.engines, trace.events)
    if not looked.snapshot.measured_j:
        raise SelftestError(f"in {source} no counter moves: `joulemeter doctor` says why")
    if not any(intervals.busy.any() for intervals in looked.intervals.values()):
        raise SelftestError(f"in {source} no counter moves while a step runs: is the trace whole?")
    middle_ns = int(np.median(steps))
    taught = learn(trace.devices, trace.engines, _until(trace.events, middle_ns))
    tested = look(trace.devices, trace.engines, trace.events, taught)
    snapshot = looked.snapshot
    quality = snapshot.quality
    charged_j = sum(receipt.energy_j for receipt in looked.receipts) + snapshot.receipts_open_j
    times = [event.t_ns for event in trace.events]
    presences = presence(trace.events)
    return Findings(
        source=source,
        seconds=(max(times) - min(times)) / 1e9,
        quality=str(quality) if quality else None,
        model=next((e.model for e in snapshot.engines if e.model), None),
        measured_j=snapshot.measured_j,
        attributed_j=snapshot.attributed_j,
        unattributed_by_reason={r: j for r, j in snapshot.unattributed.items() if j > 0},
        residual_j=snapshot.conservation_error_j,
        receipts_residual_j=charged_j - snapshot.attributed_j,
        requests=len(looked.receipts),
        lost_steps=snapshot.lost_steps,
        devices=tuple(
            _device(state.device.id, looked, tested, middle_ns, trace.events, presences)
            for state in snapshot.devices
            if looked.intervals[state.device.id].busy.any()
        ),
        repeats=repeats(looked.receipts, presences),
        holes=(*_bad_lines(trace), *not_covered(snapshot)),
        zeus=compare(zeus, trace.events, len(snapshot.devices)),
    )


def _bad_lines(trace: Trace) -> list[str]:
    """How many there are, and the first of them."""
    if not trace.bad_lines:
        return []
    number, reason = trace.bad_lines[0]
    count = len(trace.bad_lines) + trace.bad_unlisted
    many = (
        f"{count:,} bad lines were not used, the first" if count > 1 else "a bad line was not used"
    )
    return [f"{many}: line {number}: {reason}"]


def _until(events: Sequence[Event], t_ns: int) -> list[Event]:
    return [event for event in events if event.t_ns < t_ns]


def _device(
    id: str,
    looked: Looked,
    tested: Looked,
    middle_ns: int,
    events: Sequence[Event],
    presences: Mapping[tuple[str, str], Presence],
) -> DeviceFindings:
    state = next(d for d in looked.snapshot.devices if d.device.id == id)
    owners = [e for e in looked.snapshot.engines if id in e.devices]
    intervals, fit = looked.intervals[id], looked.fits[id]
    receipts = _of(looked.receipts, owners)
    company = Company(receipts)
    readings = [e for e in events if isinstance(e, Reading) and e.device == id]
    single = owners[0] if len(owners) == 1 else None
    mixed = any(engine.experts is not None for engine in owners)
    return DeviceFindings(
        device=state.device,
        counter=examine(state, readings, intervals),
        coefficients={
            f"{name} of {model}" if model else name: (value, sd)
            for model, name, value, sd in coefficients_by_model(state)
        },
        foreseen=foreseen(tested.intervals[id], tested.fits.get(id), middle_ns),
        alone=alone(intervals, company, fit, mixed),
        sweep=sweep(intervals, company, fit),
        decode=decode(intervals, owners, len(single.devices) if single else 1),
        prefill=prefill(receipts, presences, owners),
        published=published(single, state.device.name) if single else (),
        intervals=state.intervals,
        resets=state.resets,
        jumps=state.jumps,
    )


def _of(receipts: Sequence[Receipt], engines: Sequence[Engine]) -> list[Receipt]:
    """The receipts of these engines; each child of a combined one for itself."""
    ids = {engine.id for engine in engines}
    return [one for whole in receipts for one in (whole.children or (whole,)) if one.engine in ids]
