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
from meter.runtime.threads import Deaths
from meter.runtime.writer import Inbox, Writer
from meter.trace.fields import clean
from meter.work.listener import Listener

#: A thread that has not turned to the next thing for so long is stuck.
_STUCK_S = 5.0
#: An engine's step and a driver's call may take 45 s; then what they hold up is let go.
_LAG_S = 75.0


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
        deaths: Deaths | None = None,
    ) -> None:
        self._inbox = inbox
        self._sampler = sampler
        self._listener = listener
        self._heard = heard
        self._problems_at_start = problems_at_start
        self._now_ns = now_ns
        self._host = host
        self._deaths = deaths
        self.writer: Writer | None = None

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
            refused=dict(wire.refused) if wire is not None else {},
            engines_gone=wire.gone if wire is not None else 0,
            engines_back=wire.back if wire is not None else 0,
            thread_errors=self._thread_errors(),
        )

    def _thread_errors(self) -> dict[str, int]:
        """Of each thread, the errors that it has survived; of others, those that ended one."""
        errors = dict(self._deaths.counts) if self._deaths is not None else {}
        if self._listener is not None and self._listener.errors:
            errors["joulemeter-listener"] = self._listener.errors
        if self.writer is not None and self.writer.errors:
            errors["joulemeter-writer"] = self.writer.errors
        return errors

    def _source_last_ns(self, lanes: tuple[LaneState, ...]) -> dict[str, int]:
        """``power`` is as old as the device that has been silent longest."""
        good_ns = [
            lane.good_ns
            for lane in lanes
            if lane.owned and not lane.beside and lane.good_ns is not None
        ]
        return {**self._heard, **({"power": min(good_ns)} if good_ns else {})}

    def problems(self) -> tuple[str, ...]:
        """What is missing now: what failed at the start, what is wrong with a device, and what
        of the meter itself stands still."""
        return (
            *self._problems_at_start,
            *(f"energy: {said}" for said in self._energy_problems()),
            *self._stalls(),
        )

    def _stalls(self) -> Iterator[str]:
        now_s = self._now_ns() / 1e9
        if self._listener is not None:
            yield from _stall("the engine's steps", "listener", self._listener.alive(),
                              self._listener.looked_s, now_s)  # fmt: skip
        writer = self.writer
        if writer is not None:
            yield from _stall("the accounts", "writer", writer.alive(), writer.turned_s, now_s)
            if writer.published_s is not None and now_s - writer.published_s > 2 * _STUCK_S:
                yield (
                    f"the accounts: nothing has been published for {now_s - writer.published_s:.0f}"
                    " s: see the meter's messages on stderr"
                )
            state = writer.state()
            settled_ns = state.snapshot.settled_ns if state is not None else None
            if settled_ns is not None and self._now_ns() - settled_ns > _LAG_S * 1e9:
                lag_s = (self._now_ns() - settled_ns) / 1e9
                yield (
                    f"the accounts: nothing has been settled for {lag_s:.0f} s, so no receipt "
                    "becomes final: see joulemeter_settled_lag_seconds and the devices' ages"
                )
        for name, count in (self._deaths.counts if self._deaths is not None else {}).items():
            yield f"a thread of the meter ({name}) has ended by an error, {count} times: see stderr"

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


def _stall(
    what: str, thread: str, alive: bool, turned_s: float | None, now_s: float
) -> Iterator[str]:
    """What is to be said of a thread that should turn to something many times a second."""
    if turned_s is None:
        return  # it has not begun
    if not alive:
        yield f"{what}: the {thread}'s thread has ended: see the meter's messages on stderr"
    elif now_s - turned_s > _STUCK_S:
        yield f"{what}: the {thread}'s thread has been stuck for {now_s - turned_s:.0f} s"


class Readers:
    """What the HTTP port asks of the running meter (``meter.export.http.View``)."""

    def __init__(self, writer: Writer, gauges: Gauges) -> None:
        self._writer = writer
        self._gauges = gauges

    def state(self) -> State | None:
        return self._writer.state()

    def receipt(self, request: str) -> Priced | None:
        return self._writer.receipt(clean(request))

    def recent(self, limit: int) -> list[Priced]:
        return self._writer.recent(limit)

    def running(self) -> UnderWay:
        return self._writer.running()

    def problems(self) -> tuple[str, ...]:
        return self._gauges.problems()

    def alive(self) -> bool:
        return self._writer.alive()
