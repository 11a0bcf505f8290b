"""The meter's own condition, and the view of it all that the HTTP port gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from meter.export.receipts import Priced
from meter.export.running import UnderWay
from meter.export.state import Health, State
from meter.power.claim import CpuClaim
from meter.power.lane import LaneState
from meter.power.sampler import SILENT_S, Sampler
from meter.runtime.writer import Inbox, Writer
from meter.work.listener import Listener


class Gauges:
    """Reads the counters of the sources. ``heard``: when each source last said something."""

    def __init__(
        self,
        inbox: Inbox,
        sampler: Sampler | None,
        listener: Listener | None,
        heard: Mapping[str, int],
        problems_at_start: tuple[str, ...],
        now_ns: Callable[[], int] = time.monotonic_ns,
        host: CpuClaim | None = None,
    ) -> None:
        self._inbox = inbox
        self._sampler = sampler
        self._listener = listener
        self._heard = heard
        self._problems_at_start = problems_at_start
        self._now_ns = now_ns
        self._host = host

    def health(self) -> Health:
        """All counters now."""
        power = self._sampler.counters if self._sampler is not None else None
        lanes = self._sampler.states() if self._sampler is not None else ()
        wire = self._listener.counters if self._listener is not None else None
        return Health(
            samples=power.samples if power is not None else 0,
            sample_errors=dict(power.errors) if power is not None else {},
            datagrams=wire.datagrams if wire is not None else 0,
            datagrams_lost=wire.lost if wire is not None else 0,
            events_dropped=self._inbox.dropped,
            source_last_ns=self._source_last_ns(lanes),
            lanes=lanes,
            host=self._host.totals if self._host is not None else None,
            problems=self.problems(),
        )

    def _source_last_ns(self, lanes: tuple[LaneState, ...]) -> dict[str, int]:
        """``power`` is as old as the device that has been silent longest."""
        good_ns = [
            lane.good_ns
            for lane in lanes
            if lane.owned and not lane.beside and lane.good_ns is not None
        ]
        return {**self._heard, **({"power": min(good_ns)} if good_ns else {})}

    def problems(self) -> tuple[str, ...]:
        """What is missing now: what failed at the start, and what is wrong with a device."""
        return (*self._problems_at_start, *(f"energy: {said}" for said in self._energy_problems()))

    def _energy_problems(self) -> Iterator[str]:
        sampler = self._sampler
        if sampler is None:
            return
        if sampler.opening:
            yield "the driver has not answered yet: does `nvidia-smi` answer?"
        elif sampler.failure is not None:
            yield str(sampler.failure)
        for reason in sampler.left_out:
            yield f"left out, and tried again: {reason}"
        for reason in sampler.never:
            yield f"left out until the meter is started anew: {reason}"
        for lane in sampler.states():
            if lane.beside:
                continue
            said = self._problem(lane)
            if said is not None:
                yield f"{lane.device.id}: {said}"

    def _problem(self, lane: LaneState) -> str | None:
        if not lane.owned:
            who = f"pid {lane.owner}" if lane.owner else "another meter"
            return f"metered by {who}, so not here; it is taken over when that one ends"
        if lane.good_ns is None:
            return "no reading yet"
        silent_s = (self._now_ns() - lane.good_ns) / 1e9
        if silent_s > SILENT_S:
            return f"no reading for {silent_s:.0f} s: see joulemeter_sample_errors_total"
        if lane.still_s and not lane.given_up:
            return f"its counter has stood still for {lane.still_s:.0f} s while it draws power"
        return None


class Readers:
    """What the HTTP port asks of the running meter (``meter.export.http.View``)."""

    def __init__(self, writer: Writer, gauges: Gauges) -> None:
        self._writer = writer
        self._gauges = gauges

    def state(self) -> State | None:
        return self._writer.state()

    def receipt(self, request: str) -> Priced | None:
        return self._writer.receipt(request)

    def recent(self, limit: int) -> list[Priced]:
        return self._writer.recent(limit)

    def running(self) -> UnderWay:
        return self._writer.running()

    def problems(self) -> tuple[str, ...]:
        return self._gauges.problems()

    def alive(self) -> bool:
        return self._writer.alive()
