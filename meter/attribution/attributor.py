"""The core: events in, accounts and receipts out. No clock, no I/O, no thread.

What it computes depends on the events alone: fed with the same events it gives the same joules,
live or replayed. Events are sorted in a window (``order``); readings become intervals
(``intervals``); steps become passes (``batch``, ``engine``). An interval is settled when everything
that happened in it is known (``settle``): its joules go to idle, start-up, unattributed, or onto
the passes. A pass is settled when all devices of its engine have settled the time it lies in: then
it moves the running sums (``accumulator``) and the accounts (``books``). What the counters moved
and no account has yet is *pending*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from meter.attribution.accumulator import Bill
from meter.attribution.batch import Pass
from meter.attribution.books import Books
from meter.attribution.calibration import Calibration, Fit
from meter.attribution.coefficients import GENERIC, NAMES, Prior, roofline_prior
from meter.attribution.doubt import Mix, uncertainty_j
from meter.attribution.engine import Dispersed, Ended, EngineState, Request
from meter.attribution.intervals import Counter, Interval
from meter.attribution.order import Reorder
from meter.attribution.receipts import joined, receipt_of
from meter.attribution.settle import Evaluated, distribute, evaluate, is_foreign
from meter.model import (
    Account,
    Device,
    DeviceFound,
    DeviceState,
    Engine,
    EngineEvent,
    Event,
    Gap,
    Quality,
    Reading,
    Receipt,
    RequestClosed,
    RequestOpened,
    Snapshot,
    Step,
    worst,
)

_SILENT_NS = 10_000_000_000
_FOREIGN_WAIT = 4
_RECENT_RECEIPTS = 4096


@dataclass(slots=True)
class _DeviceWork:
    """One device: its counter, its calibration, and its intervals on the way to settlement."""

    counter: Counter
    calibration: Calibration
    waiting: deque[Interval] = field(default_factory=deque)
    evaluated: deque[Evaluated] = field(default_factory=deque)
    history: deque[Evaluated] = field(default_factory=lambda: deque(maxlen=_FOREIGN_WAIT))
    settled_ns: int | None = None
    settled_uj: int = 0
    power_w: float | None = None
    intervals: int = 0


class Attributor:
    """Attributes every joule of ``devices`` to what ``engines`` computed.

    ``fits``: fixed coefficients by device id, instead of online calibration. Devices and engines
    may also come as events. No method raises on odd input: what cannot be used is counted.
    """

    def __init__(
        self,
        devices: Iterable[Device] = (),
        engines: Iterable[Engine] = (),
        fits: Mapping[str, Fit] | None = None,
    ) -> None:
        self._reorder = Reorder()
        self._fits = dict(fits or {})
        self._devices: dict[str, _DeviceWork] = {}
        self._engines: dict[str, EngineState] = {}
        self._books = Books()
        self._mix: dict[str, Mix] = {}
        self._groups: dict[str, dict[str, Receipt | None]] = {}
        self._recent: dict[str, Receipt] = {}
        self._final: list[Receipt] = []
        self._closed_j = 0.0
        self._closed = 0
        self._finishing = False
        self._now_ns = 0
        for device in devices:
            self._add_device(device)
        for engine in engines:
            self._add_engine(engine)

    # --- in

    def feed(self, event: Event) -> None:
        """Take one event, in any order within the window; settle what has become certain."""
        moved = False
        for ordered in self._reorder.push(event):
            self._take(ordered)
            moved = True
        if moved:
            self._settle()

    def finish(self) -> None:
        """The input is over: settle everything that can be."""
        for ordered in self._reorder.flush():
            self._take(ordered)
        self._finishing = True
        for work in self._devices.values():
            work.waiting.extend(work.counter.flush())
        for engine in self._engines.values():
            engine.end_closing(None)
        self._settle()

    def calibrations(self) -> Mapping[str, Calibration]:
        """Each device's calibration as it stands (for ``replay --calibration whole``)."""
        return {id: work.calibration for id, work in self._devices.items()}

    # --- out

    def drain(self) -> list[Receipt]:
        """Receipts that became final since the last call."""
        final, self._final = self._final, []
        return final

    def receipt(self, id: str) -> Receipt | None:
        """The receipt under a client's id or an engine's: final, or what is settled so far."""
        group = self._groups.get(id)
        if group is None:
            return self._so_far(id)
        children = [receipt or self._so_far(child) for child, receipt in group.items()]
        return joined(id, [child for child in children if child is not None])

    def snapshot(self) -> Snapshot:
        """All accounts at the settled watermark."""
        books = self._books
        devices = tuple(self._device_state(work) for work in self._devices.values())
        settled = [w.settled_ns for w in self._devices.values() if w.settled_ns is not None]
        open_bills = [
            engine.accumulator.energy_j(request)
            for engine in self._engines.values()
            for request in engine.requests
        ]
        return Snapshot(
            t_ns=self._now_ns,
            settled_ns=min(settled, default=None),
            accounts=dict(books.accounts),
            unattributed=dict(books.unattributed),
            tokens=dict(books.tokens),
            requests=dict(books.requests),
            tenant_energy_j=dict(books.tenant_energy_j),
            tenant_tokens=dict(books.tenant_tokens),
            devices=devices,
            engines=tuple(engine.info for engine in self._engines.values()),
            measured_j=sum(d.measured_j for d in devices),
            pending_j=sum(d.pending_j for d in devices),
            receipts_open=len(open_bills),
            receipts_open_j=sum(open_bills),
            receipts_closed=self._closed,
            receipts_closed_j=self._closed_j,
            running={id: engine.unfinished for id, engine in self._engines.items()},
            late_events=self._reorder.late,
            lost_steps=sum(engine.lost_steps for engine in self._engines.values()),
        )

    # --- taking events

    def _take(self, event: Event) -> None:
        match event:
            case Reading():
                self._read(event)
            case Step():
                self._engine(event.engine).step(event)
                self._advance(event.t1_ns)
            case RequestOpened():
                self._open(event)
            case RequestClosed():
                self._engine(event.engine).close(event)
            case EngineEvent():
                self._live(event)
            case Gap():
                self._engine(event.engine).gap(event)
            case DeviceFound():
                self._add_device(event.device)
            case _:
                pass

    def _read(self, reading: Reading) -> None:
        work = self._devices.get(reading.device)
        if work is None:
            quality = Quality.ESTIMATED
            work = self._add_device(Device(reading.device, reading.device, quality))
        work.waiting.extend(work.counter.add(reading))
        self._advance(reading.t_ns)

    def _open(self, event: RequestOpened) -> None:
        engine = self._engine(event.engine)
        if event.request not in engine.requests:
            engine.open(event)
            if event.parent is not None:
                self._groups.setdefault(event.parent, {})[event.request] = None

    def _live(self, event: EngineEvent) -> None:
        if event.info is not None:
            self._add_engine(event.info)
        engine = self._engine(event.engine)
        if event.event == "up":
            engine.up(event.t_ns)
        elif event.event == "ready":
            engine.ready(event.t_ns)
        elif event.event == "down":
            engine.down(event.t_ns)

    def _advance(self, t_ns: int) -> None:
        self._now_ns = max(self._now_ns, t_ns)
        for engine in self._engines.values():
            engine.linger(self._now_ns)

    def _add_device(self, device: Device) -> _DeviceWork:
        known = self._devices.get(device.id)
        if known is not None:
            known.counter.device = device
            return known
        calibration = Calibration(self._prior(device), self._fits.get(device.id))
        work = _DeviceWork(Counter(device), calibration)
        self._devices[device.id] = work
        return work

    def _add_engine(self, info: Engine) -> None:
        known = self._engines.get(info.id)
        if known is None:
            self._engines[info.id] = EngineState(info)
            self._mix[info.id] = Mix()
        else:
            devices = info.devices or known.info.devices
            known.info = replace(info, devices=devices)
        for id in info.devices:
            if id in self._devices:
                self._devices[id].calibration.prior = self._prior(self._devices[id].counter.device)

    def _prior(self, device: Device) -> Prior:
        """The roofline's prior where one engine alone owns the device; a shape elsewhere."""
        owners = [e.info for e in self._engines.values() if device.id in e.info.devices]
        if len(owners) != 1:
            return GENERIC
        return roofline_prior(owners[0], device, shards=len(owners[0].devices))

    def _engine(self, id: str) -> EngineState:
        """The engine of that name; one that nobody announced owns every device."""
        if id not in self._engines:
            self._add_engine(Engine(id, tuple(self._devices)))
        return self._engines[id]

    # --- settling

    def _settle(self) -> None:
        for id, work in self._devices.items():
            owners = self._owners(id)
            self._evaluate(work, owners)
            self._close(work, owners)
            for engine in owners:
                settled = [w.settled_ns for d in engine.info.devices if (w := self._devices.get(d))]
                engine.forget_before(min((s or 0 for s in settled), default=0))
        for engine in self._engines.values():
            self._settle_timeline(engine)

    def _owners(self, device: str) -> list[EngineState]:
        return [e for e in self._engines.values() if device in e.info.devices]

    def _evaluate(self, work: _DeviceWork, owners: list[EngineState]) -> None:
        """Evaluate every interval of which all is known, with the coefficients of this moment."""
        while work.waiting:
            edge = work.waiting[0].end_ns
            known = min((e.known_until(self._now_ns) for e in owners), default=self._now_ns)
            if known < edge and not self._finishing:
                return
            work.evaluated.append(evaluate(work.waiting.popleft(), owners, work.calibration.fit))
            self._close(work, owners)

    def _close(self, work: _DeviceWork, owners: list[EngineState]) -> None:
        """Close evaluated intervals in order; an excess waits until it is known to last or not."""
        while work.evaluated:
            head = work.evaluated[0]
            foreign = False
            if head.excess:
                if len(work.evaluated) <= _FOREIGN_WAIT and not self._finishing:
                    return
                window = [*work.history, *list(work.evaluated)[: _FOREIGN_WAIT + 1]]
                foreign = is_foreign(len(work.history), window)
            work.evaluated.popleft()
            work.history.append(head)
            self._hand_out(work, owners, head, foreign)

    def _hand_out(
        self, work: _DeviceWork, owners: list[EngineState], e: Evaluated, foreign: bool
    ) -> None:
        devices = max((len(o.info.devices) for o in owners), default=1)
        power_w = e.energy_j / e.interval.duration_s
        jump_w = abs(power_w - work.power_w) if work.power_w is not None else power_w
        work.power_w = power_w
        shares = distribute(e, foreign, devices, jump_w)
        quality = work.counter.device.quality
        engine, model = (owners[0].info.id, owners[0].model) if len(owners) == 1 else ("", "")
        self._books.add(engine, model, Account.IDLE, quality, shares.idle_j)
        self._books.add(engine, model, Account.STARTUP, quality, shares.startup_j)
        self._books.unattribute("lost_steps", quality, shares.lost_j)
        self._books.unattribute("foreign_load", quality, shares.foreign_j)
        work.settled_ns = e.interval.end_ns
        work.settled_uj += e.interval.energy_uj
        work.intervals += 1
        if e.teaches and not foreign:
            work.calibration.add(e.work, e.energy_j)
            for owner in owners:
                self._mix[owner.info.id].add(e.work, e.energy_j)

    def _settle_timeline(self, engine: EngineState) -> None:
        timeline = engine.timeline
        while timeline:
            head = timeline[0]
            if isinstance(head, Pass):
                if not self._is_settled(engine, head):
                    return
                self._apply(engine, head)
            elif isinstance(head, Dispersed):
                for request in head.requests:
                    engine.accumulator.close_segment(request)
            else:
                self._end(engine, head)
            timeline.popleft()

    def _is_settled(self, engine: EngineState, done: Pass) -> bool:
        return self._finishing or all(
            self._covers(self._devices[id], done.t1_ns)
            for id in engine.info.devices
            if id in self._devices
        )

    def _covers(self, work: _DeviceWork, t_ns: int) -> bool:
        """Has the device said all it will ever say about the time up to ``t``?"""
        if work.settled_ns is not None and work.settled_ns >= t_ns:
            return True
        first, last = work.counter.first_ns, work.counter.last
        if first is not None and t_ns <= first:
            return True
        heard_ns = last.t_ns if last is not None else 0
        silent = self._now_ns - max(heard_ns, t_ns) > _SILENT_NS
        return silent and not work.waiting and not work.evaluated

    def _apply(self, engine: EngineState, done: Pass) -> None:
        engine.accumulator.apply(done)
        if done.participants:
            quality = self._quality(engine) or Quality.ESTIMATED
            self._books.add_pass(engine.info.id, engine.model, quality, done)
        done.pending_j.clear()

    def _quality(self, engine: EngineState) -> Quality | None:
        return worst(
            [
                self._devices[id].counter.device.quality
                for id in engine.info.devices
                if id in self._devices
            ]
        )

    # --- receipts

    def _end(self, engine: EngineState, ended: Ended) -> None:
        engine.accumulator.close_segment(ended.request)
        request = engine.requests.pop(ended.request)
        bill = engine.accumulator.bills.pop(ended.request, None)
        receipt = self._receipt(engine, request, bill, final=True)
        self._closed += 1
        self._closed_j += receipt.energy_j
        self._books.close(receipt, bill.decoded if bill else 0)
        self._remember(receipt.id, receipt)
        parent = request.opened.parent
        group = self._groups.get(parent) if parent is not None else None
        if parent is None or group is None:
            self._final.append(receipt)
            return
        group[receipt.id] = receipt
        children = [child for child in group.values() if child is not None]
        if len(children) == len(group):
            del self._groups[parent]
            whole = joined(parent, children)
            self._remember(parent, whole)
            self._final.append(whole)

    def _so_far(self, id: str) -> Receipt | None:
        for engine in self._engines.values():
            request = engine.requests.get(id)
            if request is not None:
                bill = engine.accumulator.current(id)
                return self._receipt(engine, request, bill, final=False)
        return self._recent.get(id)

    def _receipt(
        self, engine: EngineState, request: Request, bill: Bill | None, final: bool
    ) -> Receipt:
        fits = [
            self._devices[id].calibration.fit for id in engine.info.devices if id in self._devices
        ]
        doubt_j = uncertainty_j(bill, fits, self._mix[engine.info.id]) if bill else 0.0
        return receipt_of(request, bill, engine.info, self._quality(engine), doubt_j, final)

    def _remember(self, id: str, receipt: Receipt) -> None:
        self._recent.pop(id, None)
        self._recent[id] = receipt
        while len(self._recent) > _RECENT_RECEIPTS:
            del self._recent[next(iter(self._recent))]

    def _device_state(self, work: _DeviceWork) -> DeviceState:
        counter, fit = work.counter, work.calibration.fit
        unsettled_j = sum(
            item.pending_j.get(counter.device.id, 0.0)
            for engine in self._owners(counter.device.id)
            for item in engine.timeline
            if isinstance(item, Pass)
        )
        last = counter.last
        return DeviceState(
            device=counter.device,
            measured_j=counter.moved_uj / 1e6,
            pending_j=(counter.moved_uj - work.settled_uj) / 1e6 + unsettled_j,
            power_w=last.power_w if last else None,
            refresh_s=counter.refresh_s,
            latency_s=last.latency_s if last else None,
            coefficients=dict(zip(NAMES, fit.coefficients, strict=True)),
            coefficient_sd=dict(zip(NAMES, fit.sd(), strict=True)),
            intervals=work.intervals,
            resets=counter.resets,
            last_reading_ns=last.t_ns if last else None,
        )
