"""Puts events of several sources into one order of time.

Sources run in their own threads and hosts; their events arrive up to ``window_ns`` out of order.
Events leave here sorted by time, ties broken by their meaning (a request opens before the step
that computes it, and closes after it) and then by name, never by arrival: so what the core
computes does not depend on how threads interleaved, and a replay gives what was seen live.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from meter.model import (
    Clock,
    DeviceFound,
    EngineEvent,
    Event,
    Gap,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
)

WINDOW_NS = 2_000_000_000

_Key = tuple[int, int, str, int, int, str]


def _key(event: Event) -> _Key:
    """Time, rank of meaning, owner, epoch, sequence, name."""
    return _KEYS[type(event)](event)


def _engine_key(event: EngineEvent) -> _Key:
    rank = 8 if event.event == "down" else 1
    return (event.t_ns, rank, event.engine, event.epoch, 0, event.event)


_KEYS: dict[type[Event], Callable[[Any], _Key]] = {
    DeviceFound: lambda e: (e.t_ns, 0, e.device.id, 0, 0, ""),
    EngineEvent: _engine_key,
    Clock: lambda e: (e.t_ns, 2, "", 0, e.utc_ns, ""),
    RequestOpened: lambda e: (e.t_ns, 3, e.engine, 0, 0, e.request),
    Gap: lambda e: (e.t_ns, 4, e.engine, e.epoch, e.first_seq, ""),
    Step: lambda e: (e.t1_ns, 5, e.engine, e.epoch, e.seq, ""),
    RequestClosed: lambda e: (e.t_ns, 6, e.engine, 0, 0, e.request),
    Reading: lambda e: (e.t_ns, 7, e.device, 0, 0, ""),
}


class Reorder:
    """A window of ``window_ns`` in which events are sorted before they are released."""

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._heap: list[tuple[_Key, int, Event]] = []
        self._arrivals = 0
        self._newest_ns: int | None = None
        self.watermark_ns: int | None = None
        self.late = 0

    def push(self, event: Event) -> Sequence[Event]:
        """Take one event; the events whose turn has come. Late ones (counted) pass at once."""
        key = _key(event)
        if self.watermark_ns is not None and key[0] < self.watermark_ns:
            self.late += 1
            return (event,)
        self._arrivals += 1
        heapq.heappush(self._heap, (key, self._arrivals, event))
        if self._newest_ns is not None and key[0] <= self._newest_ns:
            return ()
        self._newest_ns = key[0]
        self.watermark_ns = key[0] - self._window_ns
        return self._release(self.watermark_ns)

    def flush(self) -> Sequence[Event]:
        """Everything that is still held."""
        if self._newest_ns is None:
            return ()
        self.watermark_ns = self._newest_ns
        return self._release(self._newest_ns)

    def _release(self, until_ns: int) -> list[Event]:
        heap, pop = self._heap, heapq.heappop
        released = []
        while heap and heap[0][0][0] <= until_ns:
            released.append(pop(heap)[2])
        return released
