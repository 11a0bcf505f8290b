"""The lines that a trace is full of, decoded in C straight into the model's types.

What this refuses, for whatever reason, ``parse`` reads with care. Numbers are exact (``exact``):
decoded as floats, which tell the integer that was meant up to some size. At the first number
beyond that a reader turns to the numbers' own texts, and stays there: times and counters go on.
Texts that may hold what no text may hold (an escape, another character than ASCII's) are not looked
at here: a reader gives only ``plain`` lines to ``decode``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, field
from msgspec.json import Decoder

from meter.model import Event, Reading, RequestClosed, RequestOpened, Step, Work, unfrozen
from meter.trace.errors import LineError
from meter.trace.exact import (
    TooLargeError,
    ns_of_float,
    ns_of_text,
    uj_of_float,
    uj_of_text,
)
from meter.trace.fields import (
    BESIDE_MAX,
    NUMBER_MAX,
    ROWS_MAX,
    STEP_NS_MAX,
    TEXT_MAX,
    TOKENS_MAX,
    together,
)

N = TypeVar("N", float, Raw)
_Count = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
_Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
_Text = Annotated[str, Meta(max_length=TEXT_MAX)]


class RefusedError(Exception):
    """Not a line for this module."""


# What decoding raises: text that is not UTF-8 and deep nesting come as Python's own errors.
REFUSED = (
    *(RefusedError, LineError, DecodeError),
    *(UnicodeDecodeError, RecursionError, ArithmeticError),
)


def plain(line: bytes) -> bool:
    """Whether no text in the line can hold more than ASCII's printable characters."""
    return b"\\" not in line and line.isascii() and b"\x7f" not in line


class _Work(Work):
    """``Work`` with the bounds of its numbers."""

    __slots__ = ()

    request: _Text
    tokens: Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
    context: _Count
    kept: _Count | None


_Beside = Annotated[float, Meta(ge=-BESIDE_MAX, le=BESIDE_MAX)]
_AllWork = Annotated[tuple[_Work, ...], Meta(max_length=ROWS_MAX)]
_OpenStep, _OpenReading = unfrozen(Step), unfrozen(Reading)
_OpenOpened, _OpenClosed = unfrozen(RequestOpened), unfrozen(RequestClosed)
_request_of, _tokens_of = itemgetter(0), itemgetter(1)


class Quick:
    """Turns lines into events. ``engine`` is the one that lines may leave out, if any.

    ``quick.decode(line).event(quick)`` is the event of a ``plain`` line; raises one of ``REFUSED``.
    """

    __slots__ = ("decode", "engine", "ns", "uj")

    def __init__(self, engine: str | None) -> None:
        self.engine = engine
        self.decode: Callable[[bytes], _Line] = _FLOATS.decode
        self.ns: Callable[[Any], int] = ns_of_float
        self.uj: Callable[[Any], int] = uj_of_float

    def again(self, line: bytes) -> Event:
        """A line that was refused. Where a number was too large for a float, no more floats."""
        if not plain(line):
            raise RefusedError
        try:
            return self.decode(line).event(self)
        except TooLargeError:
            self.decode, self.ns, self.uj = _TEXTS.decode, ns_of_text, uj_of_text
        event: Event = self.decode(line).event(self)
        return event


class _Line(Protocol):
    def event(self, by: Quick) -> Event: ...


class _Step(Struct, Generic[N], tag="step", gc=False):
    t0: N
    t1: N
    seq: _Number
    engine: _Text | None = None
    epoch: _Number = 0
    work: _AllWork | None = None
    same: bool = False
    add: _AllWork | None = None
    drop: tuple[_Text, ...] = ()
    kind: _Text | None = None

    def event(self, by: Quick) -> Step:
        t0_ns, t1_ns = by.ns(self.t0), by.ns(self.t1)
        engine = by.engine if self.engine is None else self.engine
        if engine is None or not 0 <= t0_ns <= t1_ns <= t0_ns + STEP_NS_MAX:
            raise RefusedError
        same, work, dummy = self.same, self.work, self.kind == "dummy"
        if same:
            if work is not None:
                raise RefusedError
            work = self.add
        if work is None:
            if not (same or dummy):
                raise RefusedError
            work = ()
        elif work and (
            len(set(map(_request_of, work))) < len(work) or sum(map(_tokens_of, work)) > TOKENS_MAX
        ):
            together(work, "work")
        step = _OpenStep(engine, self.epoch, self.seq, t0_ns, t1_ns, work, same, self.drop, dummy)
        step.__class__ = Step
        return step


class _Reading(Struct, Generic[N], tag="reading", gc=False):
    t: N
    device: _Text
    energy_j: N | UnsetType = UNSET
    power_w: _Beside | None = None
    latency_s: _Beside | None = None
    late_s: _Beside | None = None
    error: _Text | None = None
    missed: object = None
    missed_j: object = None

    def event(self, by: Quick) -> Reading:
        if self.missed is not None or self.missed_j is not None:
            raise RefusedError  # one in a trace
        t_ns, energy_uj = by.ns(self.t), None
        if self.error is None:
            if self.energy_j is UNSET:
                raise RefusedError
            energy_uj = by.uj(self.energy_j)
            if energy_uj < 0:
                raise RefusedError
        if t_ns < 0:
            raise RefusedError
        more = (self.power_w, self.latency_s, self.late_s, self.error, None, None)
        reading = _OpenReading(self.device, t_ns, energy_uj, *more)
        reading.__class__ = Reading
        return reading


class _Request(Struct, Generic[N], tag="request", gc=False):
    event_: Literal["open", "close"] = field(name="event")
    id: _Text
    t: N
    engine: _Text | None = None
    model: _Text | None = None
    tenant: _Text | None = None
    parent: _Text | None = None
    prompt_tokens: _Count | None = None
    reason: _Text | None = None
    cached_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    missed: object = None

    def event(self, by: Quick) -> RequestOpened | RequestClosed:
        t_ns = by.ns(self.t)
        engine = by.engine if self.engine is None else self.engine
        if engine is None or t_ns < 0 or self.missed is not None:
            raise RefusedError
        if self.event_ == "open":
            told = (self.model, self.tenant, self.parent, self.prompt_tokens, None)
            opened = _OpenOpened(engine, self.id, t_ns, *told)
            opened.__class__ = RequestOpened
            return opened
        closed = _OpenClosed(
            engine,
            self.id,
            t_ns,
            self.reason,
            self.prompt_tokens,
            self.cached_tokens,
            self.completion_tokens,
        )
        closed.__class__ = RequestClosed
        return closed


_FLOATS = Decoder(_Step[float] | _Reading[float] | _Request[float])
_TEXTS = Decoder(_Step[Raw] | _Reading[Raw] | _Request[Raw])
