"""Puts events of several sources into one order of time.

Sources run in their own threads and hosts; their events arrive up to ``window_ns`` out of order.
Events leave here sorted by time, ties broken by their meaning (a request opens before the step
that computes it, and closes after it) and then by name, never by arrival: so what the core
computes does not depend on how threads interleaved, and a replay gives what was seen live.
"""

from __future__ import annotations

from bisect import bisect_left
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
#: So many events wait at most; a hundred engines tell a tenth of that in a window.
HELD_MAX = 1 << 18

_RELEASE_EVERY_NS = 50_000_000

#: Time, rank of meaning, owner, epoch, sequence, name, number of arrival; and the event itself.
_Held = tuple[int, int, str, int, int, str, int, Event]


def _engine_event(e: EngineEvent, n: int) -> _Held:
    return (e.t_ns, 8 if e.event == "down" else 1, e.engine, e.epoch, 0, e.event, n, e)


_HELD: dict[type[Event], Callable[[Any, int], _Held]] = {
    DeviceFound: lambda e, n: (e.t_ns, 0, e.device.id, 0, 0, "", n, e),
    EngineEvent: _engine_event,
    Clock: lambda e, n: (e.t_ns, 2, "", 0, e.utc_ns, "", n, e),
    RequestOpened: lambda e, n: (e.t_ns, 3, e.engine, 0, 0, e.request, n, e),
    Gap: lambda e, n: (e.t_ns, 4, e.engine, e.epoch, e.first_seq, "", n, e),
    Step: lambda e, n: (e.t1_ns, 5, e.engine, e.epoch, e.seq, "", n, e),
    RequestClosed: lambda e, n: (e.t_ns, 6, e.engine, 0, 0, e.request, n, e),
    Reading: lambda e, n: (e.t_ns, 7, e.device, 0, 0, "", n, e),
}


class Reorder:
    """A window of ``window_ns`` in which events are sorted before they are released.

    They are released some at a time: sorting what has come is much cheaper than keeping all in
    order all the time, and the cheaper, the more come ``at_leisure``. Where ``held_max`` wait, for
    time does not go on, all are released: what comes for that time later is late.
    """

    def __init__(
        self, window_ns: int = WINDOW_NS, at_leisure: bool = False, held_max: int = HELD_MAX
    ) -> None:
        self._window_ns = window_ns
        self._held_max = held_max
        self._every_ns = window_ns // 2 if at_leisure else _RELEASE_EVERY_NS
        self._sorted: list[_Held] = []
        self._new: list[_Held] = []
        self._arrivals = 0
        self._due_ns = 0
        self.watermark_ns: int | None = None
        self.late = 0

    def push(self, event: Event) -> Sequence[Event]:
        """Take one event; the events whose turn has come. Late ones (counted) pass at once."""
        held = _HELD[type(event)](event, self._arrivals)
        t_ns = held[0]
        if self.watermark_ns is not None and t_ns < self.watermark_ns:
            self.late += 1
            return (event,)
        self._arrivals += 1
        self._new.append(held)
        if t_ns < self._due_ns:
            return self.flush() if len(self._new) >= self._held_max else ()
        self._due_ns = t_ns + self._every_ns
        return self._release(t_ns - self._window_ns)

    def flush(self) -> Sequence[Event]:
        """Everything that is still held."""
        newest = max((held[0] for held in (*self._sorted, *self._new)), default=None)
        return () if newest is None else self._release(newest)

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
        count = bisect_left(held, (until_ns + 1,))
        released = [one[-1] for one in held[:count]]
        del held[:count]
        return released
