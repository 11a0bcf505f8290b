"""Puts events of several sources into one order of time.

Sources run in their own threads and hosts; their events arrive up to ``window_ns`` out of order.
Events leave here sorted by time, ties broken by their meaning (a request opens before the step
that computes it, and closes after it) and then by name, never by arrival: so what the core
computes does not depend on how threads interleaved, and a replay gives what was seen live.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

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
    match event:
        case DeviceFound():
            return (event.t_ns, 0, event.device.id, 0, 0, "")
        case EngineEvent():
            rank = 8 if event.event == "down" else 1
            return (event.t_ns, rank, event.engine, event.epoch, 0, event.event)
        case Clock():
            return (event.t_ns, 2, "", 0, event.utc_ns, "")
        case RequestOpened():
            return (event.t_ns, 3, event.engine, 0, 0, event.request)
        case Gap():
            return (event.t_ns, 4, event.engine, event.epoch, event.first_seq, "")
        case Step():
            return (event.t1_ns, 5, event.engine, event.epoch, event.seq, "")
        case RequestClosed():
            return (event.t_ns, 6, event.engine, 0, 0, event.request)
        case Reading():
            return (event.t_ns, 7, event.device, 0, 0, "")


class Reorder:
    """A window of ``window_ns`` in which events are sorted before they are released."""

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._heap: list[tuple[_Key, int, Event]] = []
        self._arrivals = 0
        self._newest_ns: int | None = None
        self.watermark_ns: int | None = None
        self.late = 0

    def push(self, event: Event) -> Iterator[Event]:
        """Take one event; yield those whose turn has come. Late ones (counted) pass at once."""
        key = _key(event)
        if self.watermark_ns is not None and key[0] < self.watermark_ns:
            self.late += 1
            yield event
            return
        self._arrivals += 1
        heapq.heappush(self._heap, (key, self._arrivals, event))
        if self._newest_ns is None or key[0] > self._newest_ns:
            self._newest_ns = key[0]
            self.watermark_ns = key[0] - self._window_ns
            yield from self._release(self.watermark_ns)

    def flush(self) -> Iterator[Event]:
        """Yield everything that is still held."""
        if self._newest_ns is not None:
            self.watermark_ns = self._newest_ns
            yield from self._release(self._newest_ns)

    def _release(self, until_ns: int) -> Iterator[Event]:
        while self._heap and self._heap[0][0][0] <= until_ns:
            yield heapq.heappop(self._heap)[2]
