"""The core: events in, accounts and receipts out. No clock, no I/O, no thread.

What it computes depends on the events alone: fed with the same events it gives the same joules,
live or replayed. Events are sorted in a window (``order``); readings become intervals
(``on_device``); steps become passes (``batch``, ``engine``). A few times a second of the events'
time, all intervals of which all is known are settled as one block (``settle``): their joules go to
idle, start-up, unattributed, or onto the passes. A pass is settled when all devices of its engine
have settled the time it lies in: then it moves the running sums (``accumulator``) and the accounts
(``books``). What the counters moved and no account has yet is *pending*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from meter.attribution.bill import Bill
from meter.attribution.books import NO_PAYER, Books
from meter.attribution.calibration import Calibration
from meter.attribution.doubt import Unknown, uncertainties_j
from meter.attribution.drawn import Drawn
from meter.attribution.engine import LOST_STEPS, OPEN_MAX, EngineState, Request
from meter.attribution.fit import DOUBTED, Fit
from meter.attribution.groups import Groups
from meter.attribution.intervals import Counter
from meter.attribution.learned import Learned, known_of
from meter.attribution.load import experts_awake
from meter.attribution.on_device import OnDevice, kind_of
from meter.attribution.order import WINDOW_NS, Reorder
from meter.attribution.passes import tokens
from meter.attribution.plausible import plausible_device, plausible_engine
from meter.attribution.receipts import receipt_of
from meter.attribution.running import running, together
from meter.attribution.settle import Block
from meter.attribution.settled import Settled
from meter.attribution.waves import share_dummies, waves
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
    Running,
    Snapshot,
    Step,
    worst,
)

#: A settlement costs the same whatever has happened: the more engines, the rarer.
_SETTLE_EVERY_NS_PER_ENGINE = 190_000_000
_SETTLE_EVERY_NS_MIN, _SETTLE_EVERY_NS_MAX = 250_000_000, 1_500_000_000
#: Passes that settle together: their sums stay in the processor's cache.
_PASSES = 2048
_FOREVER_NS = 1 << 62
#: The quality of joules that no device has moved: there are none, so it is never seen.
_UNKNOWN = Quality.ESTIMATED


class Attributor:
    """Attributes every joule of ``devices`` to what ``engines`` computed.

    ``fits``: fixed coefficients by device id, instead of calibration; ``restored``: what an earlier
    life had learned, where calibration begins. With ``hindsight`` nothing settles before
    ``finish``, and then with coefficients that all intervals have taught. ``watch`` is shown each
    block of a device's intervals as its joules are handed out, and how many of them are closed.
    Events may come ``window_ns`` out of order; devices and engines may also come as events. No
    method raises on odd input: what cannot be used is counted. While ``open_max`` requests are open
    a step that names one more is lost (``lost_steps``).
    """

    def __init__(
        self,
        devices: Iterable[Device] = (),
        engines: Iterable[Engine] = (),
        fits: Mapping[str, Fit] | None = None,
        restored: Iterable[Learned] = (),
        hindsight: bool = False,
        watch: Callable[[str, Block, int], None] | None = None,
        window_ns: int = WINDOW_NS,
        open_max: int = OPEN_MAX,
    ) -> None:
        self._watch = watch
        self._reorder = Reorder(window_ns, at_leisure=hindsight)
        self._fits = dict(fits or {})
        self._restored = {(known.device, known.model): known.fit for known in restored}
        self._hindsight = hindsight
        self._open_max = open_max
        self._devices: dict[str, OnDevice] = {}
        self._engines: dict[str, EngineState] = {}
        #: Engines whose devices nobody has told.
        self._without: set[str] = set()
        self._waves: list[list[EngineState]] = []
        self._unknowns: dict[str, Unknown] = {}
        self._qualities: dict[str, Quality | None] = {}
        self._books = Books()
        self._drawn = Drawn()
        self._groups = Groups()
        self._closed_j = 0.0
        self._finishing = False
        self._now_ns = 0
        self._due_ns = 0
        for device in devices:
            self._add_device(device)
        for engine in engines:
            self._add_engine(engine)

    # --- in

    def feed(self, event: Event) -> None:
        """Take one event, in any order within the window; settle what has become certain."""
        for ordered in self._reorder.push(event):
            self._take(ordered)

    def finish(self) -> None:
        """The input is over: settle everything that can be."""
        for ordered in self._reorder.flush():
            self._take(ordered)
        self._finishing = True
        for work in self._devices.values():
            work.waiting.extend(work.counter.flush())
        for engine in self._engines.values():
            engine.end_closing(None)
        if self._hindsight:
            for id, work in self._devices.items():
                work.learn(self._owners(id))
        self._settle()
        self._groups.finish()

    @property
    def out_of_order(self) -> int:
        """How many events came later than the window allows."""
        return self._reorder.late

    def fits(self) -> Mapping[str, Fit]:
        """Each device's fit as it stands."""
        return {id: work.calibration.fit for id, work in self._devices.items()}

    def learned(self) -> list[Learned]:
        """What each device of one engine has taught, once it is sure."""
        known = []
        for id, work in self._devices.items():
            models = {owner.model for owner in self._owners(id)}
            fit = work.calibration.fit
            if len(models) == 1 and fit.converged and not fit.shared:
                known.append(Learned(id, models.pop(), fit))
        return known

    # --- out

    def drain(self) -> list[Receipt]:
        """Receipts that became final since the last call."""
        return self._groups.drain()

    def receipt(self, id: str) -> Receipt | None:
        """The receipt under a client's id or an engine's: final, or what is settled so far."""
        return self._groups.find(id, self._so_far)

    def running(self) -> list[Running]:
        """Every client's request without a final receipt, as it stands at the settled watermark."""
        engines = self._engines.values()
        rows = [row for e in engines for row in running(e, self._quality(e) is not None)]
        return together(rows, self._groups.ended_parts()) if self._groups.several else rows

    def snapshot(self) -> Snapshot:
        """All accounts at the settled watermark."""
        books = self._books
        settled_j = {id: work.settled_uj / 1e6 for id, work in self._devices.items()}
        drawn_j = self._drawn.until(settled_j, self._waves)
        devices = tuple(self._device_state(work, drawn_j[id]) for id, work in self._devices.items())
        settled = [w.settled_ns for w in self._devices.values() if w.settled_ns is not None]
        return Snapshot(
            t_ns=self._now_ns,
            settled_ns=min(settled, default=None),
            accounts=dict(books.accounts),
            unattributed=dict(books.unattributed),
            tokens=dict(books.tokens),
            requests=dict(self._groups.requests),
            tenant_energy_j=dict(books.tenant_energy_j),
            tenant_tokens=dict(books.tenant_tokens),
            devices=devices,
            engines=tuple(engine.info for engine in self._engines.values()),
            measured_j=sum(d.measured_j for d in devices),
            pending_j=sum(d.pending_j for d in devices),
            receipts_open=self._groups.open_count,
            receipts_open_j=sum(e.accumulator.energy_j for e in self._engines.values()),
            receipts_closed=self._groups.requests.total(),
            receipts_closed_j=self._closed_j,
            running={id: engine.unfinished for id, engine in self._engines.items()},
            late_events=self._reorder.late
            + sum(engine.late_steps for engine in self._engines.values()),
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
                self._find(event)
            case _:
                pass

    def _read(self, reading: Reading) -> None:
        work = self._devices.get(reading.device)
        if work is None:
            quality = Quality.ESTIMATED
            work = self._add_device(Device(reading.device, reading.device, quality))
        if reading.missed is not None:
            missed_uj = work.miss(reading)
            if missed_uj:
                quality = work.device.quality
                self._books.unattribute(reading.missed, quality, missed_uj / 1e6)
        work.read(reading)
        self._advance(reading.t_ns)

    def _open(self, event: RequestOpened) -> None:
        engine = self._engine(event.engine)
        if engine.open(event):
            self._groups.open(event)

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
        if not self._hindsight and self._now_ns >= self._due_ns:
            every_ns = _SETTLE_EVERY_NS_PER_ENGINE * len(self._engines)
            every_ns = min(max(every_ns, _SETTLE_EVERY_NS_MIN), _SETTLE_EVERY_NS_MAX)
            self._due_ns = self._now_ns + every_ns
            self._settle()

    def _add_device(self, device: Device) -> OnDevice:
        device = plausible_device(device)
        known = self._devices.get(device.id)
        if known is not None:
            known.become(device)
            return known
        calibration = Calibration(self._fits.get(device.id), self._hindsight)
        work = OnDevice(Counter(device, self._hindsight), calibration)
        self._devices[device.id] = work
        work.believe([engine.info for engine in self._owners(device.id)])
        return work

    def _find(self, event: DeviceFound) -> None:
        """A device comes late, with what is known of it and whose it is."""
        id = event.device.id
        if not self._hindsight:
            known = known_of(event.learned)
            self._restored |= {(one.device, one.model): one.fit for one in known}
        self._add_device(event.device)
        self._take_in(id, event.engines)
        for owner in self._owners(id):
            self._begin(id, owner.info)

    def _take_in(self, device: str, engines: Sequence[str] | None) -> None:
        """A device that comes late (its driver was slow) is that of ``engines``, or, where those
        are not told, of the engines whose devices nobody has told."""
        without = set(self._without)
        theirs = without if engines is None else set(engines)
        for id in [id for id in self._engines if id in theirs]:
            info = self._engines[id].info
            if device not in info.devices:
                devices = (*info.devices, device)
                self._add_engine(replace(info, devices=devices, owns_none=False))
        self._without = without

    def _add_engine(self, info: Engine) -> None:
        info = plausible_engine(info)
        self._without.discard(info.id)
        known = self._engines.get(info.id)
        if known is None:
            self._engines[info.id] = EngineState(info, self._has_room)
        else:
            if not info.devices and not info.owns_none:  # not told: as it was
                before = known.info
                info = replace(info, devices=before.devices, owns_none=before.owns_none)
            known.info = info
        if not info.devices and not info.owns_none:
            self._without.add(info.id)
        for id in info.devices:
            self._begin(id, info)
        self._groups.engines([engine.info for engine in self._engines.values()])

    def _begin(self, device: str, info: Engine) -> None:
        """Where the calibration of an engine's device begins, while it has learned nothing."""
        work = self._devices.get(device)
        if work is not None:
            work.believe([engine.info for engine in self._owners(device)])
            work.calibration.restore(self._restored.get((device, info.model or "")))

    def _has_room(self) -> bool:
        """Whoever names requests and closes none would else take all the memory there is."""
        return sum(engine.unfinished for engine in self._engines.values()) < self._open_max

    def _engine(self, id: str) -> EngineState:
        """The engine of that name; one that nobody announced owns every device."""
        if id not in self._engines:
            self._add_engine(Engine(id, tuple(self._devices)))
        return self._engines[id]

    # --- settling

    def _settle(self) -> None:
        self._waves = waves(list(self._engines.values()))
        for engine in self._engines.values():
            engine.linger(self._now_ns)
        for id, work in self._devices.items():
            self._close(work, self._owners(id))
        self._unknowns.clear()
        self._qualities.clear()
        for wave in self._waves:
            covered_ns = min(self._covered_ns(engine) for engine in wave)
            if any(engine.dummies for engine in wave):
                self._share_dummies(wave, covered_ns)
            for engine in wave:
                self._settle_passes(engine, covered_ns)
        self._groups.advance(self._now_ns)

    def _owners(self, device: str) -> list[EngineState]:
        return [e for e in self._engines.values() if device in e.info.devices]

    def _close(self, work: OnDevice, owners: list[EngineState]) -> None:
        """Hand out the joules of all intervals of which all is known."""
        known_ns = min((self._known_until(e) for e in owners), default=self._now_ns)
        engine, model = (owners[0].info.id, owners[0].model) if len(owners) == 1 else ("", "")
        for block, closed, shares in work.close(owners, known_ns, self._finishing):
            if self._watch is not None:
                self._watch(work.device.id, block, closed)
            quality = work.device.quality
            self._books.add(engine, model, Account.IDLE, quality, shares.idle_j)
            self._books.add(engine, model, Account.STARTUP, quality, shares.startup_j)
            self._drawn.outside(work.device.id, Account.IDLE, shares.idle_j)
            self._drawn.outside(work.device.id, Account.STARTUP, shares.startup_j)
            self._books.unattribute(LOST_STEPS, quality, shares.lost_j)
            self._books.unattribute("foreign_load", quality, shares.foreign_j)
            self._books.unattribute(NO_PAYER, quality, shares.rest_j)

    def _known_until(self, engine: EngineState) -> int:
        """Until when it is known what an engine did; in a wave, what all of it did."""
        wave = next(w for w in self._waves if engine in w)
        return min(member.known_until(self._now_ns) for member in wave)

    def _share_dummies(self, wave: list[EngineState], covered_ns: int) -> None:
        until_ns = _FOREVER_NS if self._finishing else covered_ns
        unowned_j = share_dummies(wave, until_ns)
        self._books.unattribute("dummy_steps", self._quality(wave[0]) or _UNKNOWN, unowned_j)

    def _settle_passes(self, engine: EngineState, covered_ns: int) -> None:
        """Settle the passes until ``covered_ns``, and what lies between them."""
        table, accumulator = engine.table, engine.accumulator
        table.gather()
        count = len(table.rows) if self._finishing else table.ended_by(covered_ns)
        engine.forget_before(covered_ns)
        if not count and not accumulator.may_settle(engine.changes):
            return
        while True:
            some = min(count, _PASSES)
            rows = table.rows[:some]
            awake = experts_awake(engine, tokens(rows))
            block = Settled(table, some, awake)
            quality = self._quality(engine) or _UNKNOWN
            if some:
                booked_j = table.first_j(some)
                self._books.add_block(engine.info.id, engine.model, quality, block, booked_j)
                self._drawn.settle(table, some, awake)
            self._end(engine, accumulator.settle(block, engine.changes))
            table.drop(some)
            count -= some
            if count <= 0:
                break

    def _covered_ns(self, engine: EngineState) -> int:
        """Until when every device of the engine has said all that it will ever say."""
        works = self._works(engine)
        return min((work.covered_ns(self._now_ns) for work in works), default=self._now_ns)

    def _works(self, engine: EngineState) -> list[OnDevice]:
        """The devices of an engine that are there."""
        return [self._devices[id] for id in engine.info.devices if id in self._devices]

    def _quality(self, engine: EngineState) -> Quality | None:
        """The worst of the engine's devices that were ever read; worked out once a settlement."""
        id = engine.info.id
        if id not in self._qualities:
            read = [work for work in self._works(engine) if work.counter.first_ns is not None]
            self._qualities[id] = worst([work.device.quality for work in read])
        return self._qualities[id]

    # --- receipts

    def _end(self, engine: EngineState, ended: list[str]) -> None:
        """Requests that are over, and all of whose work is settled."""
        requests = [engine.requests.pop(id) for id in ended]
        bills = [engine.accumulator.take(id) for id in ended]
        receipts = self._receipts(engine, requests, bills, final=True)
        for request, bill, receipt in zip(requests, bills, receipts, strict=True):
            self._closed_j += receipt.energy_j
            self._books.close(receipt, bill)
            self._groups.close(receipt, request.opened)

    def _so_far(self, engine: str, id: str) -> Receipt | None:
        state = self._engines[engine]
        request = state.requests.get(id)
        if request is None:
            return None
        bill = state.accumulator.current(id)
        return next(self._receipts(state, [request], [bill], final=False))

    def _receipts(
        self, engine: EngineState, requests: Sequence[Request], bills: Sequence[Bill], final: bool
    ) -> Iterator[Receipt]:
        quality, name_of = self._quality(engine), self._groups.name_of
        doubts_j = uncertainties_j(bills, self._unknown(engine))
        for request, bill, doubt_j in zip(requests, bills, doubts_j, strict=True):
            id = name_of(request.opened)
            yield receipt_of(id, request, bill, engine.info, quality, doubt_j, final)

    def _unknown(self, engine: EngineState) -> Unknown:
        """What the fits of the engine's devices do not know; worked out once a settlement."""
        id = engine.info.id
        if id not in self._unknowns:
            kind = kind_of(engine.info)
            known = [work.calibration for work in self._works(engine)]
            doubts = [calibration.fit.doubts(calibration.place(kind)) for calibration in known]
            covariance = sum(doubts, np.zeros((DOUBTED, DOUBTED)))
            drift = max((calibration.fit.drift for calibration in known), default=0.0)
            self._unknowns[id] = Unknown(covariance, drift)
        return self._unknowns[id]

    def _device_state(self, work: OnDevice, drawn_j: Mapping[Account, float]) -> DeviceState:
        """``pending_j`` is what is booked on any pass, also of engines that never owned the device
        (dummy steps are shared with their wave) or own it no more."""
        id = work.device.id
        waiting_j = sum(engine.table.waiting_j(id) for engine in self._engines.values())
        return work.state(waiting_j, drawn_j)
