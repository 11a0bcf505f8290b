"""One engine as the core sees it: its life, its open requests, its passes in order.

Beside the passes runs a queue of changes: who joins, leaves or works directly in which pass, and
between which passes requests end. Both wait until every device of the engine has closed the
intervals that a pass lies in; then they settle together, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from meter.attribution.accumulator import Accumulator
from meter.attribution.batch import Batch, Change, Dispersed, Ended, Leaves, PassRow
from meter.attribution.passes import PassTable
from meter.attribution.plausible import plausible_work
from meter.model import Engine, Gap, RequestClosed, RequestOpened, Step

LOST_STEPS = "lost_steps"
#: So many requests may be open, of all engines together: as many as the wire lets in.
OPEN_MAX = 1 << 18
_LINGER_NS = 1_000_000_000
#: Idle spans since the last step, of an engine whose requests come and go without one.
_IDLE_MAX = 1024
_STEP_NS_MAX = 30_000_000_000
#: A step that is told to have taken longer is not believed.
_TOLD_NS_MAX = 3_600_000_000_000
#: Shorter than any step: requests close so long after the step that ended them.
_PAUSE_NS = 500_000


class Lost(NamedTuple):
    """Time of an engine in which steps were lost; the known passes before and after it."""

    start_ns: int
    end_ns: int
    before: PassRow | None
    after: PassRow | None


@dataclass(slots=True)
class Request:
    """An open request: how it came, and how it went; why work of it may be unknown."""

    opened: RequestOpened
    closed: RequestClosed | None = None
    missed: str | None = None


@dataclass(slots=True, eq=False)
class EngineState:
    """Everything the core holds of one engine; each is only like itself.

    ``has_room``: whether one more request may be open.
    """

    info: Engine
    has_room: Callable[[], bool] = lambda: True
    batch: Batch = field(default_factory=Batch)
    accumulator: Accumulator = field(default_factory=Accumulator)
    requests: dict[str, Request] = field(default_factory=dict)
    table: PassTable = field(default_factory=PassTable)
    changes: deque[Change] = field(default_factory=deque)
    lost: deque[Lost] = field(default_factory=deque)
    startups: list[tuple[int, int | None]] = field(default_factory=list)
    lost_steps: int = 0
    late_steps: int = 0
    unfinished: int = 0
    dummies: bool = False
    last: PassRow | None = None
    _busy_since_ns: int | None = None
    _idle_since_ns: int | None = None
    _idle: list[tuple[int, int]] = field(default_factory=list)
    _last_seq: tuple[int, int] | None = None
    _lost_from_ns: int | None = None
    _refused_ns: int = 0
    _closing: dict[str, RequestClosed] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.info.model or ""

    # --- its life

    def up(self, t_ns: int) -> None:
        if not self.startups or self.startups[-1][1] is not None:
            self.startups.append((t_ns, None))

    def ready(self, t_ns: int) -> None:
        if self.startups and self.startups[-1][1] is None:
            self.startups[-1] = (self.startups[-1][0], t_ns)

    def down(self, t_ns: int) -> None:
        """The engine is gone: what it still held is closed as ``lost``.

        Where it held requests it died in mid-step: that step is lost.
        """
        self.ready(t_ns)
        if self.unfinished and self.last is not None and self._lost_from_ns is None:
            self._lost_from_ns = self._gap_start(t_ns)
        self._lost_until(t_ns)
        for request in [r for r, held in self.requests.items() if held.closed is None]:
            self.close(RequestClosed(self.info.id, request, t_ns, reason="lost"))
        self.end_closing(None)
        self._forget_batch()
        self._last_seq = None

    # --- its requests

    def open(self, event: RequestOpened) -> bool:
        """Take a request in; false where it is there already, or there is no room."""
        if event.request in self.requests or not self.has_room():
            return False
        lost = LOST_STEPS if self._lost_from_ns is not None else None
        self.requests[event.request] = Request(event, missed=event.missed or lost)
        if self.unfinished == 0:
            self._busy_since_ns = event.t_ns
            if self._idle_since_ns is not None:
                self._idle.append((self._idle_since_ns, event.t_ns))
                del self._idle[:-_IDLE_MAX]
        self.unfinished += 1
        return True

    def close(self, event: RequestClosed) -> None:
        held = self.requests.get(event.request)
        if held is None or held.closed is not None:
            return
        held.closed = event
        self._closing[event.request] = event
        self.unfinished -= 1
        if self.unfinished == 0:
            self._idle_since_ns = event.t_ns
            self._lost_until(event.t_ns)
            self.batch.everybody_is_gone()

    def end_closing(self, older_than_ns: int | None, named: frozenset[str] = frozenset()) -> None:
        """Put the ends of closed requests among the changes, but for those a step still names.

        A closed request is never implied by a step's change form; but a step may still name it
        (asynchronous scheduling computes it once more): then it lingers, and pays.
        """
        for request, event in list(self._closing.items()):
            if request in named or (older_than_ns is not None and event.t_ns > older_than_ns):
                continue
            del self._closing[request]
            self.batch.remove(request)
            self.changes.append(Ended(self.batch.passes, request))

    def _put_off_end(self, request: str, event: RequestClosed) -> None:
        """A step names a request whose end is among the changes already: it comes after that step.

        Else the work would stand on a bill that is taken out before it, and be nobody's.
        """
        for place, change in enumerate(self.changes):
            if isinstance(change, Ended) and change.request == request:
                self.changes[place] = Leaves(change.k, request)
        self._closing[request] = event

    def linger(self, watermark_ns: int) -> None:
        """Time goes on without a step: requests closed long enough are at their end."""
        if self._closing:
            self.end_closing(watermark_ns - _LINGER_NS)

    # --- its steps

    def gap(self, event: Gap) -> None:
        """Steps are known to be lost."""
        if event.last_seq < event.first_seq:
            return
        self.lost_steps += event.last_seq - event.first_seq + 1
        self._lose(event.t_ns)
        self._last_seq = (event.epoch, event.last_seq)

    def step(self, step: Step) -> None:
        """Take a step in. One that comes after its successors is too late: its time is lost."""
        if not 0 < step.t1_ns - step.t0_ns <= _TOLD_NS_MAX:
            return
        number = (step.epoch, step.seq)
        if self._last_seq is None or number > self._last_seq:
            self._follow(number, step.t0_ns)
        elif not step.dummy:  # an engine may or may not count its dummy steps
            self.late_steps += 1
            return
        if step.dummy:
            self._run_along(step)
            return
        applied = self._apply(step)
        if applied is None:
            self.lost_steps += 1
            self._lose(step.t0_ns)
            return
        row, changes = applied
        if self._lost_from_ns is not None:
            row = self._end_loss(row)
        if self.startups:
            self.ready(row.gap_ns)
        if changes:
            self.changes += changes
        self.table.append(row)
        if row.participants:
            self.last = row
            self._idle.clear()

    def _apply(self, step: Step) -> tuple[PassRow, list[Change]] | None:
        """The pass that ``step`` was; who has closed may end, and whom it names is open.

        ``None`` where it cannot be used: also where there is no room for all whom it names.
        """
        if self._closing:
            self.end_closing(None, frozenset(work.request for work in step.work))
        news = self.batch.news(step)
        if news and not plausible_work(news):
            return None
        for work in news:
            held = self.requests.get(work.request)
            if held is None:
                if not self.open(RequestOpened(self.info.id, work.request, step.t0_ns)):
                    self._refuse(step)
                    return None
            elif held.closed is not None and work.request not in self._closing:
                self._put_off_end(work.request, held.closed)
        return self.batch.apply(step, news, self._gap_start(step.t0_ns))

    def _run_along(self, step: Step) -> None:
        """A dummy step: the batch is empty, and stays so."""
        self.dummies = True
        self._forget_batch()
        self._lost_from_ns = None
        self.table.append(self.batch.dummy(step))

    def known_until(self, watermark_ns: int) -> int:
        """Until when it is known what the engine did.

        With unfinished requests a step may be under way that is only told at its end; but no step
        is believed to take longer than ``_STEP_NS_MAX``.
        """
        if self.unfinished == 0:
            return watermark_ns
        known = max(self._gap_start(watermark_ns), self._refused_ns)
        return known if watermark_ns - known < _STEP_NS_MAX else watermark_ns

    def forget_before(self, t_ns: int) -> None:
        """Drop the losses and start-ups that no open interval can touch any more."""
        while self.lost and self.lost[0].end_ns <= t_ns:
            self.lost.popleft()
        while len(self.startups) > 1 and (self.startups[0][1] or t_ns + 1) <= t_ns:
            del self.startups[0]

    def _gap_start(self, t0_ns: int) -> int:
        """Since when, before ``t0``, the engine has had work to do but no step."""
        since = self._busy_since_ns if self._busy_since_ns is not None else t0_ns
        if self.last is not None:
            since = max(since, self.last.t1_ns)
        return min(since, t0_ns)

    def _follow(self, number: tuple[int, int], t0_ns: int) -> None:
        """Notice lost steps and new lives by epoch and sequence number."""
        if self._last_seq is not None:
            epoch, seq = self._last_seq
            if number[0] != epoch:
                self._forget_batch()
            elif number[1] > seq + 1:
                self.lost_steps += number[1] - seq - 1
                self._lose(t0_ns)
        self._last_seq = number

    def _lose(self, t_ns: int) -> None:
        """From the last known pass (or ``t``) on it is unknown who was computed."""
        self._forget_batch()
        if self._lost_from_ns is None:
            self._lost_from_ns = self.last.t1_ns if self.last is not None else t_ns
            for request in self.requests.values():
                if request.closed is None or request.closed.t_ns > self._lost_from_ns:
                    request.missed = request.missed or LOST_STEPS

    def _refuse(self, step: Step) -> None:
        """There is no room for whom the step names, nor may there be for a long time: until its
        end all is lost, and that is known."""
        self._lose(step.t0_ns)
        start_ns, self._refused_ns = self._lost_from_ns or 0, step.t1_ns
        if start_ns >= step.t1_ns:
            return
        self._lost_from_ns = step.t1_ns
        before = self.lost[-1] if self.lost else None
        if before is not None and before[1:] == (start_ns, self.last, None):
            self.lost[-1] = before._replace(end_ns=step.t1_ns)
        else:
            self._note_lost(start_ns, step.t1_ns, None)

    def _lost_until(self, t_ns: int) -> None:
        """A loss, if there is one, ends here: nobody runs any more."""
        if self._lost_from_ns is not None:
            self._note_lost(self._lost_from_ns, t_ns, None)
            self._lost_from_ns = None

    def _end_loss(self, row: PassRow) -> PassRow:
        """The first known pass after a loss; no gap is charged to it."""
        assert self._lost_from_ns is not None
        gap_ns = self._note_lost(self._lost_from_ns, row.t0_ns, row)
        self._lost_from_ns = None
        return row._replace(gap_ns=gap_ns)

    def _note_lost(self, start_ns: int, end_ns: int, after: PassRow | None) -> int:
        """Note the time of lost steps, but for the idle spans in it.

        Returns where the gap before ``after`` begins: where the engine was idle in between, what
        was lost came before that, and the wait for the next step is a gap as ever.
        """
        spans = []
        for idle_from, idle_to in self._idle:
            if start_ns + _PAUSE_NS < idle_from < end_ns:
                spans.append((start_ns, idle_from))
            start_ns = max(start_ns, idle_to)
        if not spans and start_ns < end_ns:
            spans, start_ns = [(start_ns, end_ns)], end_ns
        self.lost.extend(Lost(start, end, self.last, after) for start, end in spans)
        return min(start_ns, end_ns)

    def _forget_batch(self) -> None:
        """Nobody is known to run: open segments end with the last known pass."""
        members = self.batch.forget()
        if members:
            self.changes.append(Dispersed(self.batch.passes, members))
