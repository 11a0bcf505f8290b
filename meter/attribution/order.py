"""Puts events of several sources into one order of time.

Sources run in their own threads and hosts; their events arrive up to ``window_ns`` out of order.
Events leave here sorted by time, ties broken by their meaning (a request opens before the step
that computes it, and closes after it) and then by name, never by arrival: so what the core
computes does not depend on how threads interleaved, and a replay gives what was seen live.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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

_RELEASE_EVERY_NS = 50_000_000

#: Time, rank of meaning, owner, epoch, sequence, name.
_Key = tuple[int, int, str, int, int, str]
#: An event with its key, and how many came before it.
_Held = tuple[_Key, int, Event]


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
    """A window of ``window_ns`` in which events are sorted before they are released.

    They are released some at a time, every ``_RELEASE_EVERY_NS``: sorting what has come is much
    cheaper than keeping all in order all the time.
    """

    def __init__(self, window_ns: int = WINDOW_NS) -> None:
        self._window_ns = window_ns
        self._sorted: list[_Held] = []
        self._new: list[_Held] = []
        self._arrivals = 0
        self._due_ns = 0
        self.watermark_ns: int | None = None
        self.late = 0

    def push(self, event: Event) -> Sequence[Event]:
        """Take one event; the events whose turn has come. Late ones (counted) pass at once."""
        key = _KEYS[type(event)](event)
        if self.watermark_ns is not None and key[0] < self.watermark_ns:
            self.late += 1
            return (event,)
        self._arrivals += 1
        self._new.append((key, self._arrivals, event))
        if key[0] < self._due_ns:
            return ()
        self._due_ns = key[0] + _RELEASE_EVERY_NS
        return self._release(key[0] - self._window_ns)

    def flush(self) -> Sequence[Event]:
        """Everything that is still held."""
        newest = max((key for key, _, _ in (*self._sorted, *self._new)), default=None)
        return () if newest is None else self._release(newest[0])

    def _release(self, until_ns: int) -> list[Event]:
        """The events up to ``until_ns``, in order."""
        self.watermark_ns = until_ns
        held, new = self._sorted, self._new
        if new:
            disturbed = bisect_left(held, min(new))
            new += held[disturbed:]
            new.sort()
            held[disturbed:] = new
            new.clear()
        count = bisect_right(held, until_ns, key=_time_of)
        released = [event for _, _, event in held[:count]]
        del held[:count]
        return released


def _time_of(held: _Held) -> int:
    return held[0][0]
