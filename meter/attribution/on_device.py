"""One device as the core sees it: from readings to intervals whose joules are handed out.

Readings become intervals (``intervals``); those of which all is known are closed in blocks
(``settle``), and each teaches the calibration. With hindsight all of them teach before any is
closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from meter.attribution.calibration import Calibration, Kind
from meter.attribution.coefficients import roofline_prior
from meter.attribution.engine import EngineState
from meter.attribution.intervals import Counter, Interval
from meter.attribution.load import Owner
from meter.attribution.settle import (
    Block,
    Past,
    Shares,
    distribute,
    evaluate,
    foreign,
    remember,
)
from meter.model import Account, Device, DeviceState, Engine, Reading

#: A counter may be silent so long (NVML calls can hang for 30 s) and its steps wait for its joules.
_SILENT_NS = 45_000_000_000
_BLOCK = 256
_HINDSIGHT_ROUNDS = 3


class Closed(NamedTuple):
    """The first ``closed`` intervals of ``block`` are closed; ``shares``: beside passes."""

    block: Block
    closed: int
    shares: Shares


@dataclass(slots=True)
class OnDevice:
    """A device's counter, its calibration, and its intervals on the way to settlement.

    ``settled_ns``, ``settled_uj``: until when intervals are closed, and what they have moved.
    """

    counter: Counter
    calibration: Calibration
    waiting: deque[Interval] = field(default_factory=deque)
    settled_ns: int | None = None
    settled_uj: int = 0
    intervals: int = 0
    _past: Past = field(default_factory=Past)

    @property
    def device(self) -> Device:
        return self.counter.device

    def become(self, device: Device) -> None:
        """The same device; more, or something else, is known of it now."""
        self.waiting.extend(self.counter.become(device))

    def believe(self, engines: Sequence[Engine]) -> None:
        """These engines use it: begin with what data sheets say of them."""
        device = self.device
        priors = {kind_of(e): roofline_prior(e, device, shards=len(e.devices)) for e in engines}
        self.calibration.believe(priors, shared=len(engines) > 1)

    # --- readings

    def read(self, reading: Reading) -> None:
        """Take a reading; the intervals that it ends wait to be closed."""
        closed = self.counter.add(reading)
        if closed is None:
            return
        self.waiting.extend(closed)
        shift_s = self.counter.take_shift_s()
        if shift_s:
            self.calibration.shift(shift_s)

    def miss(self, reading: Reading) -> int:
        """Nobody watched before this reading: what moved meanwhile, in µJ, is nobody's."""
        missed_uj = reading.missed_uj or 0
        if self.counter.last is None:
            self.counter.begin_after(missed_uj)
        elif reading.missed_uj is None:
            self.waiting.extend(self.counter.flush())
            missed_uj = self.counter.skip(reading)
        else:
            return 0  # the counter itself has told what moved
        self.settled_uj += missed_uj
        return missed_uj

    # --- intervals

    def learn(self, engines: Sequence[EngineState]) -> None:
        """With hindsight: learn from all intervals before any of them is closed.

        The first round prices with the prior; a later one that leaves the counter's window where it
        was has nothing more to tell.
        """
        calibration, owners = self.calibration, self._owners(engines)
        for round in range(_HINDSIGHT_ROUNDS):
            before = calibration.fit.window
            calibration.forget()
            past = Past()
            for block in _blocks(self.waiting):
                evaluated = evaluate(block, owners, calibration.fit, self.device.claimed)
                strange, _ = foreign(evaluated, past, finishing=True)
                calibration.add(evaluated, len(block), strange)
                past = remember(evaluated, past, len(block))
            calibration.search()
            if round and calibration.fit.window[:2] == before[:2]:
                break

    def close(
        self, engines: Sequence[EngineState], known_ns: int, finishing: bool
    ) -> Iterator[Closed]:
        """Close every interval of which all is known; an excess waits until it is judged.

        ``known_ns``: until when it is known what the engines did; ``finishing``: all is known. What
        passes pay is booked on them.
        """
        while self.waiting:
            fit = self.calibration.fit
            until_ns = known_ns + round((fit.window.delay_s - fit.window.width_s / 2) * 1e9)
            known = (i for i in self.waiting if i.end_ns <= until_ns or finishing)
            block = next(_blocks(known), None)
            if block is None:
                return
            cut = len(block) < len(self.waiting) and (
                self.waiting[len(block)].start_ns != block[-1].end_ns
            )
            evaluated = evaluate(block, self._owners(engines), fit, self.device.claimed)
            ends = (finishing and len(block) == len(self.waiting)) or cut
            strange, closed = foreign(evaluated, self._past, ends)
            if not closed:
                return
            shares = distribute(evaluated, strange, closed, self.intervals, self.device.id)
            yield Closed(evaluated, closed, shares)
            for interval in block[:closed]:
                self.settled_uj += interval.energy_uj
                self.waiting.popleft()
            self.settled_ns = block[closed - 1].end_ns
            self.intervals += closed
            self._past = remember(evaluated, self._past, closed)
            self.calibration.add(evaluated, closed, strange)

    def covered_ns(self, now_ns: int) -> int:
        """Until when it has said all that it will ever say."""
        window = self.calibration.fit.window
        covered = [0]
        if self.settled_ns is not None:
            covered.append(self.settled_ns - round((window.delay_s + window.width_s / 2) * 1e9))
        elif self.counter.first_ns is not None:
            covered.append(self.counter.first_ns)
        heard_ns = self.counter.last.t_ns if self.counter.last is not None else 0
        if now_ns - heard_ns > _SILENT_NS and not self.waiting:
            covered.append(now_ns - _SILENT_NS)
        return max(covered)

    def state(self, on_passes_j: float, drawn_j: Mapping[Account, float]) -> DeviceState:
        """As it stands; ``on_passes_j``: booked on passes that are not settled; ``drawn_j``: as in
        ``DeviceState``."""
        counter, window = self.counter, self.calibration.fit.window
        last, told, found = counter.last, self.calibration.told(), window.doubt_s is not None
        return DeviceState(
            device=counter.device,
            measured_j=counter.moved_uj / 1e6,
            pending_j=(counter.moved_uj - self.settled_uj) / 1e6 + on_passes_j,
            power_w=last.power_w if last else None,
            refresh_s=counter.refresh_s,
            latency_s=last.latency_s if last else None,
            coefficients=told.coefficients,
            coefficient_sd=told.sd,
            intervals=self.intervals,
            resets=counter.resets,
            last_reading_ns=last.t_ns if last else None,
            delay_s=window.delay_s if found else None,
            smear_s=window.width_s if found else None,
            delay_sd_s=window.doubt_s,
            jumps=counter.jumps,
            counter_uj=last.energy_uj if last else None,
            by_model=told.by_model,
            settled_ns=counter.first_ns if self.settled_ns is None else self.settled_ns,
            drawn_j=drawn_j,
        )

    def _owners(self, engines: Sequence[EngineState]) -> list[Owner]:
        """``engines``, and which of the device's models each of them serves."""
        return [Owner(engine, self.calibration.place(kind_of(engine.info))) for engine in engines]


def kind_of(engine: Engine) -> Kind:
    """Engines of a kind have coefficients in common."""
    return Kind(engine.model or "", len(engine.devices))


def _blocks(waiting: Iterable[Interval]) -> Iterator[list[Interval]]:
    """Neighbouring intervals, in blocks of limited length."""
    block: list[Interval] = []
    for interval in waiting:
        if block and (len(block) >= _BLOCK or block[-1].end_ns != interval.start_ns):
            yield block
            block = []
        block.append(interval)
    if block:
        yield block
