"""What a line must be to the lines before it: in time, of somebody known, and said once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from meter.model import (
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Gap,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
)
from meter.trace.errors import AheadError, LineError, listed, shown

# Lines may stand so much out of order.
WINDOW_NS = 2 * 10**9
# So far ahead (as the first line is, of nothing) a time is only believed where the next line is not
# far behind it: one wrong time must not make late whatever follows.
LEAP_NS = 3600 * 10**9
_FAR_BEHIND_NS = LEAP_NS // 2
#: So many devices, and as many engines, may a trace name.
KNOWN_MAX = 256
# So many requests may be open on one engine, and so often may one be restarted.
_OPEN_MAX = 1 << 18
_LIVES_MAX = 1 << 16
# Steps that are told late fill holes in the sequence; older holes than these stay lost.
_HOLES_MAX = 64


def time_of(event: Event) -> int:
    """When a line stands in the order: a step at its end."""
    return event.t1_ns if isinstance(event, Step) else event.t_ns


def deny(ahead: Event, following: Event) -> None:
    """Raises ``LineError`` where the line after it speaks against one that is far ahead."""
    lead_ns = time_of(ahead) - time_of(following)
    if lead_ns > _FAR_BEHIND_NS:
        raise LineError(
            f"{_name(ahead)} {_seconds(time_of(ahead))} is {_seconds(lead_ns)} s ahead of the line "
            "after it, and no line before it is near: a wrong clock, or not seconds"
        )


def _name(event: Event) -> str:
    return "t1" if isinstance(event, Step) else "t"


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.12g}"


@dataclass(slots=True)
class _Sequence:
    """The steps of one epoch of an engine: all below ``next``, but for those in ``holes``."""

    epoch: int
    next: int = 0
    holes: list[range] = field(default_factory=list)

    def add(self, seq: int) -> bool:
        """Count ``seq`` in; false where it was there before."""
        if seq >= self.next:
            self._leave_out(self.next, seq)
            self.next = seq + 1
            return True
        for hole in self.holes:
            if seq in hole:
                self.holes.remove(hole)
                self._leave_out(hole.start, seq)
                self._leave_out(seq + 1, hole.stop)
                return True
        return False

    def _leave_out(self, start: int, stop: int) -> None:
        if start < stop:
            self.holes.append(range(start, stop))
            del self.holes[:-_HOLES_MAX]


class Checks:
    """Follows the lines of one trace. A line that is refused leaves no mark.

    ``devices``: the ids known by now; ``newest_ns``: the latest time so far.
    """

    def __init__(self, devices: Iterable[Device], engines: Iterable[Engine]) -> None:
        self.devices = {device.id for device in devices}
        self.newest_ns = 0
        self._newest_line = 0
        self._believed_ns = -1
        self._open: dict[str, dict[str, int]] = {engine.id: {} for engine in engines}
        self._steps: dict[str, _Sequence] = {}
        self._past: dict[tuple[str, int], _Sequence] = {}

    def take(self, event: Event, number: int, leap: bool = False) -> None:
        """Take in the event of line ``number``. Raises ``LineError`` where it may not be used.

        ``AheadError``: where the next line does not ``deny`` it, take it with ``leap``.
        """
        if isinstance(event, Reading):
            t_ns = event.t_ns
            if event.device not in self.devices:
                raise LineError(_stranger("device", event.device, self.devices))
        elif isinstance(event, Step):
            t_ns = event.t1_ns
            if event.engine not in self._open:
                raise LineError(_stranger("engine", event.engine, self._open))
        else:
            t_ns = event.t_ns
            self._meet(event)
        if not self.newest_ns <= t_ns <= self._believed_ns:
            self._check_time(event, leap)
        if isinstance(event, Step):
            if not event.dummy:  # a dummy has the number of the step before it
                self._step(event)
        elif not isinstance(event, Reading):
            self._note(event, number)
        if t_ns >= self.newest_ns:
            self.newest_ns, self._newest_line = t_ns, number
            self._believed_ns = t_ns + LEAP_NS

    def _check_time(self, event: Event, leap: bool) -> None:
        """A time out of order, or far ahead."""
        t_ns = time_of(event)
        behind_ns = self.newest_ns - t_ns
        if behind_ns > WINDOW_NS:
            raise LineError(
                f"{_name(event)} {_seconds(t_ns)} is {_seconds(behind_ns)} s behind line "
                f"{self._newest_line}, and lines may stand {WINDOW_NS // 10**9} s out of order "
                "at most: sort them by time"
            )
        if behind_ns <= 0 and not leap:
            raise AheadError

    def _step(self, step: Step) -> None:
        steps = self._steps.get(step.engine)
        if steps is None or steps.epoch != step.epoch:
            steps = self._turn_to(step.engine, step.epoch)
        if step.seq == steps.next:
            steps.next += 1
        elif not steps.add(step.seq):
            raise LineError(
                f"seq {step.seq} of engine {shown(step.engine)}, epoch {step.epoch}, came before: "
                "a step is told once; a restarted engine counts in a new epoch"
            )

    def _turn_to(self, engine: str, epoch: int) -> _Sequence:
        """Another life of the engine; a later one holds no request of the one before."""
        before = self._steps.get(engine)
        if before is not None and before.epoch < epoch:
            self._open[engine] = {}
        if (engine, epoch) not in self._past and len(self._past) >= _LIVES_MAX:
            raise LineError(f"epoch {epoch}: {_LIVES_MAX} lives of engines came before")
        steps = self._past.setdefault((engine, epoch), _Sequence(epoch))
        self._steps[engine] = steps
        return steps

    def _meet(self, event: Event) -> None:
        """Whom a line makes known, however late it comes; whom else it names must be known."""
        if isinstance(event, DeviceFound):
            _count(self.devices, event.device.id, "devices")
            self.devices.add(event.device.id)
        elif isinstance(event, EngineEvent):
            _count(self._open, event.engine, "engines")
            self._open.setdefault(event.engine, {})
        elif isinstance(event, (RequestOpened, RequestClosed, Gap)) and (
            event.engine not in self._open
        ):
            raise LineError(_stranger("engine", event.engine, self._open))

    def _note(self, event: Event, number: int) -> None:
        if isinstance(event, RequestOpened):
            if len(self._open[event.engine]) >= _OPEN_MAX:
                raise LineError(
                    f"{_OPEN_MAX} requests are open already on engine {shown(event.engine)}: their "
                    "close lines are missing"
                )
            first = self._open[event.engine].setdefault(event.request, number)
            if first != number:
                raise LineError(
                    f"id {shown(event.request)} is open already on engine {shown(event.engine)} "
                    f"(line {first}): every request needs its own id until it closes"
                )
        elif isinstance(event, RequestClosed):
            self._open[event.engine].pop(event.request, None)
        elif isinstance(event, EngineEvent):
            # A meter that reconnects is told of everybody once more; a dead engine holds nobody.
            self._open[event.engine] = {}


def _count(known: set[str] | dict[str, Any], id: str, what: str) -> None:
    """One more, unless there are too many."""
    if len(known) >= KNOWN_MAX and id not in known:
        raise LineError(f"{what}: {KNOWN_MAX} are known already, and {shown(id)} is one too many")


def _stranger(kind: str, id: str, known: Iterable[str]) -> str:
    return (
        f"{kind} {shown(id)} is not known (known: {listed(sorted(known))}): name it in meta's "
        f"{kind}s"
    )
