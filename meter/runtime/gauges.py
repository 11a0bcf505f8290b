"""The meter's own condition, and the view of it all that the HTTP port gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from meter.export.receipts import Priced
from meter.export.running import Shown
from meter.export.state import Health, State
from meter.power.sampler import Sampler
from meter.runtime.writer import Inbox, Writer
from meter.work.listener import Listener

_SILENT_S = 3.0


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
    ) -> None:
        self._inbox = inbox
        self._sampler = sampler
        self._listener = listener
        self._heard = heard
        self._problems_at_start = problems_at_start
        self._now_ns = now_ns

    def health(self) -> Health:
        """All counters now."""
        power = self._sampler.counters if self._sampler is not None else None
        wire = self._listener.counters if self._listener is not None else None
        return Health(
            samples=power.samples if power is not None else 0,
            sample_errors=dict(power.errors) if power is not None else {},
            datagrams=wire.datagrams if wire is not None else 0,
            datagrams_lost=wire.lost if wire is not None else 0,
            events_dropped=self._inbox.dropped,
            source_last_ns=dict(self._heard),
            problems=self.problems(),
        )

    def problems(self) -> tuple[str, ...]:
        """What is missing now: what failed at the start, and silent energy counters."""
        if self._sampler is None:
            return self._problems_at_start
        last_ns = self._heard.get("power")
        if last_ns is None:
            return (*self._problems_at_start, "energy: no reading yet")
        silent_s = (self._now_ns() - last_ns) / 1e9
        if silent_s > _SILENT_S:
            said = f"energy: no reading for {silent_s:.0f} s: see joulemeter_sample_errors_total"
            return (*self._problems_at_start, said)
        return self._problems_at_start


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

    def running(self) -> list[Shown]:
        return self._writer.running()

    def problems(self) -> tuple[str, ...]:
        return self._gauges.problems()

    def alive(self) -> bool:
        return self._writer.alive()
