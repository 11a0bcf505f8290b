"""The one writer: it takes events from the queue, feeds the core, records, and publishes.

Sources push into one bounded queue from any thread and never wait: what does not fit is counted and
dropped (a dropped step shows as a gap in ``seq`` and becomes ``lost_steps``). Readers take the last
published state, which nobody changes any more. Questions about receipts go through the same queue
and are answered between two events, so that only this thread ever touches the core.

After a stall of the whole process (stopped, swapped out, a host that froze) its threads wake in any
order. A reading of now that came before the steps of the time asleep would close that time without
them: a reading long after the one before it waits, and so do those after it, until the engines have
been heard.

Nothing that an event or a reader brings ends the thread: an error is counted, logged, and costs
that event. ``turned_s`` and ``published_s`` tell others when it turned to the next thing, and when
it published, last.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog

from meter.export.publisher import Publisher
from meter.export.receipts import Priced
from meter.export.running import UnderWay
from meter.export.state import Health, State
from meter.model import (
    Clock,
    DeviceFound,
    Event,
    Fidelity,
    Reading,
    Receipt,
    RequestClosed,
    RequestOpened,
    Running,
    Snapshot,
    Step,
)

T = TypeVar("T")
_FLUSH_EVERY_S = 2.0
_REMEMBER_EVERY_S = 300.0
#: Readings so far apart tell of a stall; within the other engines have said what they kept.
_STALL_NS = 250_000_000
_HOLD_S = 1.0
#: UTC is looked at anew so often; a change of so much is a line in the record.
_CLOCK_EVERY_S = 5.0
_CLOCK_STEP_NS = 50_000_000
_SAY_EVERY_S = 60.0


class Core(Protocol):
    """What the writer needs of the attribution core (``meter.attribution.Boundaries``)."""

    def feed(self, event: Event) -> None: ...
    def finish(self) -> None: ...
    def snapshot(self) -> Snapshot: ...
    def receipt(self, id: str) -> Receipt | None: ...
    def running(self) -> list[Running]: ...
    def drain(self) -> list[Receipt]: ...
    def host_receipt(self, id: str) -> Receipt | None: ...
    def drain_host(self) -> list[Receipt]: ...


class Record(Protocol):
    """Where events are written down (``meter.trace.TraceWriter``)."""

    def write(self, event: Event) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Question:
    """Something to be answered on the writer's thread."""

    answer: Callable[[], Any]
    future: Future[Any]


class _Stop:
    """The end of the queue."""


Item = Event | _Question | _Stop


class Inbox:
    """The bounded queue between the sources and the writer."""

    def __init__(self, size: int = 65_536) -> None:
        self._queue: queue.Queue[Item] = queue.Queue(size)
        self.dropped = 0

    def push(self, event: Event) -> None:
        """Hand over an event; from any thread, never blocking. What does not fit is counted."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def has_room(self) -> bool:
        """Whether a source that can wait should go on: a half is left to those that cannot."""
        return self._queue.qsize() <= self._queue.maxsize // 2

    def ask(self, question: _Question) -> bool:
        """Hand over a question; false where there is no room."""
        try:
            self._queue.put_nowait(question)
        except queue.Full:
            return False
        return True

    def end(self, deadline_s: float) -> None:
        """Nothing comes after this."""
        with contextlib.suppress(queue.Full):
            self._queue.put(_Stop(), timeout=deadline_s)

    def take(self, timeout_s: float) -> Item | None:
        """The next item, or ``None`` after so long."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Writer:
    """Owns the core, the publisher and the record from ``start`` to ``finish``.

    ``heard`` is filled with when each source last said something. ``remember`` puts away what was
    learned, now and then and at the end; ``recall`` says of a device that comes late what is known.
    ``beside`` is the host's device: it is no source of power that a server's GPUs need, and its
    readings are not recorded.
    """

    def __init__(
        self,
        inbox: Inbox,
        core: Core,
        publisher: Publisher,
        health: Callable[[], Health],
        heard: dict[str, int],
        record: Record | None = None,
        publish_s: float = 0.25,
        remember: Callable[[], None] | None = None,
        remember_every_s: float = _REMEMBER_EVERY_S,
        recall: Callable[[DeviceFound], DeviceFound] | None = None,
        beside: str | None = None,
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._inbox = inbox
        self._core = core
        self._publisher = publisher
        self._health = health
        self._heard = heard
        self._publish_s = publish_s
        self._record = record
        self._thread = threading.Thread(target=self._run, name="joulemeter-writer", daemon=True)
        self._state: State | None = None
        self._ended = False
        self._utc_ns = utc_ns
        self._offset_ns = utc_ns() - time.monotonic_ns()
        self._clock_s = time.monotonic() + _CLOCK_EVERY_S
        self._said_s = -_SAY_EVERY_S
        self.errors = 0
        self.turned_s: float | None = None
        self.published_s: float | None = None
        self._flush_s = 0.0
        self._remember = remember
        self._remember_every_s = remember_every_s
        self._remember_s = time.monotonic() + remember_every_s
        self._log = structlog.get_logger("joulemeter.writer")
        self._held: list[Reading] = []
        self._read_ns: dict[str, int] = {}
        self._hold_s = 0.0
        self._leave_note: Callable[[Snapshot], None] | None = None
        self._recall = recall
        self._beside = beside

    def leave_notes(self, write: Callable[[Snapshot], None]) -> None:
        """Have ``write`` called with every published snapshot, for the meter after this one."""
        self._leave_note = write

    def start(self) -> None:
        self._thread.start()

    def state(self) -> State | None:
        """The last published state."""
        return self._state

    def alive(self) -> bool:
        return self._thread.is_alive()

    def receipt(self, request: str, deadline_s: float = 2.0) -> Priced | None:
        """A receipt, final or so far. Raises ``TimeoutError`` when the writer is too busy."""
        core = self._core
        return self._ask(
            lambda: self._publisher.find(request, core.receipt, core.host_receipt), deadline_s
        )

    def recent(self, limit: int, deadline_s: float = 2.0) -> list[Priced]:
        """The newest final receipts. Raises ``TimeoutError`` when the writer is too busy."""
        return self._ask(lambda: self._publisher.recent(limit), deadline_s)

    def running(self, deadline_s: float = 2.0) -> UnderWay:
        """What is under way. Raises ``TimeoutError`` when the writer is too busy."""
        return self._ask(lambda: self._publisher.running(self._core.running()), deadline_s)

    def finish(self, deadline_s: float = 10.0) -> State | None:
        """Take what is in the queue, settle everything, publish; returns the last state."""
        self._inbox.end(deadline_s)
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            self._log.error("writer_stuck", deadline_s=deadline_s, remedy="please report this")
        return self._state

    def _ask(self, answer: Callable[[], T], deadline_s: float) -> T:
        if self._ended:
            raise TimeoutError("the writer has ended")
        future: Future[T] = Future()
        if not self._inbox.ask(_Question(answer, future)):
            raise TimeoutError("the writer's queue is full")
        return future.result(deadline_s)

    # --- on the writer's thread

    def _run(self) -> None:
        while not self._guard(self._write_on):
            time.sleep(self._publish_s)  # it begins again where it stood
        self._guard(self._release)
        self._guard(self._core.finish)
        self._guard(self._publish)
        self._stop_recording()
        if self._remember is not None:
            self._guard(self._remember)
        self._refuse_the_rest()

    def _write_on(self) -> None:
        """Until the end of the queue."""
        due_s = time.monotonic()
        while True:
            self.turned_s = time.monotonic()
            next_s = min(due_s, self._hold_s) if self._held else due_s
            item = self._inbox.take(max(0.0, next_s - self.turned_s))
            if isinstance(item, _Stop):
                return
            if self._held and time.monotonic() >= self._hold_s:
                self._guard(self._release)
            if item is not None:
                self._guard(partial(self._take, item))
            if time.monotonic() >= due_s:
                self._guard(self._publish)
                self._guard(self._look_at_the_clock)
                # Not absolute: after a stall one state is enough.
                due_s = time.monotonic() + self._publish_s
                self._remember_now_and_then()

    def _look_at_the_clock(self) -> None:
        """UTC is corrected now and then; joules go by the monotonic clock alone."""
        now_s = time.monotonic()
        if now_s < self._clock_s:
            return
        self._clock_s = now_s + _CLOCK_EVERY_S
        t_ns, utc_ns = time.monotonic_ns(), self._utc_ns()
        offset_ns = utc_ns - t_ns
        self._publisher.set_clock(offset_ns)
        if abs(offset_ns - self._offset_ns) >= _CLOCK_STEP_NS and utc_ns >= 0:
            step_s = round((offset_ns - self._offset_ns) / 1e9, 3)
            self._log.warning("clock_set", by_s=step_s, note="joules do not depend on it")
            self._offset_ns = offset_ns
            self._write_down(Clock(t_ns, utc_ns))

    def _refuse_the_rest(self) -> None:
        """Nobody waits for an answer that will not come."""
        self._ended = True
        while (item := self._inbox.take(0.0)) is not None:
            if isinstance(item, _Question) and item.future.set_running_or_notify_cancel():
                item.future.set_exception(TimeoutError("the writer has ended"))

    def _guard(self, action: Callable[[], None]) -> bool:
        """Do something, and say whether that went well. A bug there must not end the metering; it
        is counted, and said a few times, and then once a minute."""
        try:
            action()
        except Exception:
            self.errors += 1
            now_s = time.monotonic()
            if self.errors <= 3 or now_s - self._said_s >= _SAY_EVERY_S:
                self._said_s = now_s
                self._log.exception("writer_failed", failures=self.errors)
            return False
        return True

    def _take(self, item: Event | _Question) -> None:
        if isinstance(item, _Question):
            self._answer(item)
            return
        if isinstance(item, Reading) and self._is_held(item):
            self._held.append(item)
        else:
            self._feed(item)

    def _is_held(self, reading: Reading) -> bool:
        if reading.device == self._beside:
            return bool(self._held)
        last_ns = self._read_ns.get(reading.device, reading.t_ns)
        self._read_ns[reading.device] = reading.t_ns
        if not self._held and reading.t_ns - last_ns > _STALL_NS:
            self._hold_s = time.monotonic() + _HOLD_S
            return True
        return bool(self._held)

    def _feed(self, event: Event) -> None:
        if self._is_beside(event):
            self._core.feed(event)
            return
        known = isinstance(event, DeviceFound) and event.device.id in self._read_ns
        if isinstance(event, DeviceFound) and self._recall is not None and not known:
            event = self._recall(event)
        self._note(event)
        self._write_down(event)
        self._core.feed(event)

    def _is_beside(self, event: Event) -> bool:
        if self._beside is None:
            return False
        if isinstance(event, DeviceFound):
            return event.device.id == self._beside
        return isinstance(event, Reading) and event.device == self._beside

    def _release(self) -> None:
        """Feed the readings that were held back."""
        held, self._held = self._held, []
        for reading in held:
            self._feed(reading)

    def _answer(self, question: _Question) -> None:
        if not question.future.set_running_or_notify_cancel():
            return
        try:
            question.future.set_result(question.answer())
        except Exception as error:
            question.future.set_exception(error)

    def _note(self, event: Event) -> None:
        """When each source last said something."""
        if isinstance(event, Reading):
            if event.energy_uj is not None:
                self._heard["power"] = event.t_ns
        elif isinstance(event, Step | RequestOpened | RequestClosed):
            self._heard["engine"] = event.t_ns

    def _write_down(self, event: Event) -> None:
        if self._record is None:
            return
        try:
            self._record.write(event)
        except Exception as error:
            self._record_failed(error)

    def _record_failed(self, error: Exception) -> None:
        """Recording goes off, said once; metering goes on."""
        self._record = None
        self._log.error(
            "recording_stopped", reason=str(error), remedy="free space, or record elsewhere"
        )

    def _stop_recording(self) -> None:
        if self._record is None:
            return
        try:
            self._record.close()
        except Exception as error:
            self._record_failed(error)

    def _publish(self) -> None:
        snapshot = self._core.snapshot()
        final, on_host = (
            [receipt for receipt in drained if receipt.fidelity is not Fidelity.COUNTER]
            for drained in (self._core.drain(), self._core.drain_host())
        )
        self._state = self._publisher.publish(snapshot, final, self._health(), on_host)
        self.published_s = time.monotonic()
        self._flush_now_and_then()
        self._write_note(snapshot)

    def _write_note(self, snapshot: Snapshot) -> None:
        if self._leave_note is None:
            return
        try:
            self._leave_note(snapshot)
        except OSError as error:
            self._leave_note = None
            self._log.warning(
                "no_note", reason=str(error), lost="what a meter after this one calls missed"
            )

    def _remember_now_and_then(self) -> None:
        """So that a killed meter forgets minutes, not months."""
        if self._remember is None or time.monotonic() < self._remember_s:
            return
        self._guard(self._remember)
        self._remember_s = time.monotonic() + self._remember_every_s

    def _flush_now_and_then(self) -> None:
        """So that a killed meter loses seconds; not each time, since it costs compression."""
        now_s = time.monotonic()
        if self._record is None or now_s < self._flush_s:
            return
        self._flush_s = now_s + _FLUSH_EVERY_S
        try:
            self._record.flush()
        except Exception as error:
            self._record_failed(error)
