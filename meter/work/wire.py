"""Turns the datagrams of ``meter.work.vllm.sender`` into events.

The wire is described there. One ``Decoder`` serves any number of engines: every datagram names its
source (one life of one engine). Input is not trusted: whatever cannot be read is counted, and never
raises. The first source that calls itself engine ``0`` is epoch 0 of engine ``0``, its next life
epoch 1, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meter.model import (
    Engine,
    EngineEvent,
    Event,
    Experts,
    Fidelity,
    Gap,
    Layout,
    Phase,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

VERSION = "jm1"
_STATES = ("up", "ready")
_PHASES: Mapping[str, Phase] = {phase.value: phase for phase in Phase}
# What a damaged record raises when it is taken apart.
_BAD = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Hello:
    """What an engine says of itself.

    ``pid`` is the scheduler's process in the engine's own PID namespace; ``cuda_visible_devices``
    is that environment variable as the engine saw it (``None``: not set). Where it speaks in
    mid-life to one who has not heard it before, ``next_seq`` is the step that comes next,
    ``missed_steps`` how many nobody heard just before, ``open_requests`` how many it holds.
    """

    source: str
    engine: str = "0"
    model: str | None = None
    engine_version: str | None = None
    params: float | None = None
    active_params: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    ep: int | None = None
    experts_total: int | None = None
    experts_active: int | None = None
    pid: int | None = None
    cuda_visible_devices: str | None = None
    next_seq: int | None = None
    missed_steps: int | None = None
    open_requests: int | None = None

    def info(self, label: str, devices: tuple[str, ...]) -> Engine:
        return Engine(
            id=label,
            devices=devices,
            model=self.model,
            fidelity=Fidelity.STEP,
            params=self.params,
            active_params=self.active_params,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            engine_version=self.engine_version,
            experts=self._experts(),
            layout=self._layout(),
        )

    def _experts(self) -> Experts | None:
        total, active = self.experts_total, self.experts_active
        if total is None or active is None or not 1 <= active <= total:
            return None
        return Experts(total, active)

    def _layout(self) -> Layout | None:
        """Ranks that are not told apart count as one, as in a trace; none told: not known."""
        told = (self.tp, self.pp, self.dp, self.ep)
        if all(ranks is None for ranks in told) or any(r is not None and r < 1 for r in told):
            return None
        return Layout(*(1 if ranks is None else ranks for ranks in told))


DevicesOf = Callable[[Hello], tuple[str, ...]]

_TEXTS = ("engine", "model", "engine_version", "dtype", "cuda_visible_devices")
_RANKS = ("tp", "pp", "dp", "ep")
_JOINING = ("next_seq", "missed_steps", "open_requests")
_INTEGERS = (
    *("layers", "heads", "head_dim", "experts_total", "experts_active", "pid"),
    *(*_RANKS, *_JOINING),
)
_NUMBERS = ("params", "active_params", "weight_bytes", "kv_bytes_per_token")


def read_hello(source: str, facts: Mapping[str, object]) -> Hello:
    """The facts that have the right type; the others count as not known."""
    known: dict[str, Any] = {}
    for names, types in ((_TEXTS, str), (_INTEGERS, int), (_NUMBERS, (int, float))):
        for name in names:
            value = facts.get(name)
            if isinstance(value, types) and not isinstance(value, bool):
                known[name] = value
    return Hello(source, **known)


@dataclass(slots=True)
class Source:
    """One life of one engine, as far as it is known."""

    name: str
    hello: Hello
    label: str
    epoch: int
    number: int | None = None
    seq: int | None = None
    unheard_ns: int | None = None  # joined in mid-life: since when it could have been heard
    # (until its first step is; what it opened before counts as opened then)
    parts_seq: int | None = None
    parts: list[Work] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """What came over the wire. ``lost``: datagrams known to be missing; ``bad``: unreadable ones,
    or unreadable records in them; ``stray``: from a source that never said hello."""

    datagrams: int = 0
    bad: int = 0
    lost: int = 0
    stray: int = 0
    lost_steps: int = 0


class Decoder:
    """Datagrams in, events out. ``devices_of`` finds the devices that an engine owns.

    ``is_alive`` tells whether a source still lives, where two claim one label: the second of two
    that live is labelled ``0-2``. ``since_ns``: since when the meter hears; an engine that has
    worked before may have worked unheard since then.
    """

    def __init__(
        self,
        devices_of: DevicesOf | None = None,
        is_alive: Callable[[Source], bool] = lambda source: False,
        since_ns: int | None = None,
    ) -> None:
        self._devices_of = devices_of
        self._is_alive = is_alive
        self._since_ns = since_ns
        self._sources: dict[str, Source] = {}
        self._epochs: dict[str, int] = {}
        self.counters = Counters()

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(self._sources.values())

    def decode(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The events of one datagram, in order; none where it cannot be read."""
        self.counters.datagrams += 1
        try:
            version, name, number, records = json.loads(bytes(data))
            if version != VERSION or not isinstance(name, str) or not isinstance(number, int):
                raise ValueError
            records = list(records)
        except _BAD:
            self.counters.bad += 1
            return []
        events: list[Event] = []
        source = self._sources.get(name) or self._begin(name, records, events)
        if source is None:
            self.counters.stray += 1
            return []
        if source.number is not None and number > source.number + 1:
            self.counters.lost += number - source.number - 1
        source.number = number
        for record in records:
            try:
                events.extend(self._record(source, record))
            except _BAD:
                self.counters.bad += 1
        return events

    def gone(self, source: Source, t_ns: int) -> EngineEvent:
        """``source`` ended without saying so (its process is gone)."""
        self._sources.pop(source.name, None)
        return EngineEvent(source.label, t_ns, "down", source.epoch)

    def _begin(self, name: str, records: list[Any], events: list[Event]) -> Source | None:
        """A new life, where a datagram says hello. Who held its label is over, unless it lives."""
        for record in records:
            match record:
                case ["H", int(t_ns), _, dict(facts)]:
                    break
        else:
            return None
        hello = read_hello(name, facts)
        label = self._free_label(hello.engine, t_ns, events)
        epoch = self._epochs.get(label, -1) + 1
        self._epochs[label] = epoch
        source = Source(name, hello, label, epoch)
        self._sources[name] = source
        return source

    def _free_label(self, wanted: str, t_ns: int, events: list[Event]) -> str:
        label, number = wanted, 1
        while (holder := next((s for s in self.sources if s.label == label), None)) is not None:
            if not self._is_alive(holder):
                events.append(self.gone(holder, t_ns))
                break
            number += 1
            label = f"{wanted}-{number}"
        return label

    def _join(self, source: Source, t_ns: int) -> Iterator[Event]:
        """Take up an engine in mid-life: what it did while it could not be heard is a gap."""
        hello = source.hello
        if not hello.next_seq:
            return
        source.seq = hello.next_seq - 1
        source.unheard_ns = t_ns if self._since_ns is None else min(self._since_ns, t_ns)
        missed = min(hello.missed_steps or 0, hello.next_seq)
        self.counters.lost_steps += missed
        if missed and hello.open_requests:
            first, last = hello.next_seq - missed, hello.next_seq - 1
            yield Gap(source.label, source.unheard_ns, source.epoch, first, last)

    def _record(self, source: Source, record: Any) -> Iterator[Event]:
        match record:
            case ["S", seq, t0, t1, rows, drop]:
                yield from self._step(source, _step(source, seq, t0, t1, rows, drop))
            case ["F", seq, t0, t1, rows]:
                yield from self._step(source, _step(source, seq, t0, t1, rows, None))
            case ["O", t, request, parent, prompt, model, tenant]:
                since_ns = source.unheard_ns or 0
                yield RequestOpened(
                    engine=source.label,
                    request=_text(request),
                    t_ns=max(_integer(t), since_ns),
                    model=_text_or_none(model),
                    tenant=_text_or_none(tenant),
                    parent=_text_or_none(parent),
                    prompt_tokens=_count_or_none(prompt),
                    missed="meter_down" if t < since_ns else None,
                )
            case ["C", t, request, reason, prompt, cached, completion]:
                yield RequestClosed(
                    engine=source.label,
                    request=_text(request),
                    t_ns=_integer(t),
                    reason=_text_or_none(reason),
                    prompt_tokens=_count_or_none(prompt),
                    cached_tokens=_count_or_none(cached),
                    completion_tokens=_count_or_none(completion),
                )
            case ["P", seq, rows]:
                if source.parts_seq != _integer(seq):
                    source.parts_seq, source.parts = seq, []
                source.parts.extend(map(_work, rows))
            case ["D", seq, t0, t1]:
                times = (_integer(t0), _integer(t1))
                yield Step(source.label, source.epoch, _integer(seq), *times, (), dummy=True)
            case ["H", t, event, dict(facts)] if event in _STATES:
                source.hello = read_hello(source.name, facts)
                info = source.hello.info(source.label, self._devices(source.hello))
                yield EngineEvent(source.label, _integer(t), event, source.epoch, info)
                if source.seq is None:
                    yield from self._join(source, t)
            case ["E", t, "down"]:
                yield self.gone(source, _integer(t))
            case _:
                raise ValueError

    def _devices(self, hello: Hello) -> tuple[str, ...]:
        try:
            return self._devices_of(hello) if self._devices_of is not None else ()
        except Exception:
            self.counters.bad += 1
            return ()

    def _step(self, source: Source, step: Step) -> Iterator[Event]:
        """``step``, and before it the gap that a jump in ``seq`` tells of."""
        if source.seq is not None and step.seq > source.seq + 1:
            first, last = source.seq + 1, step.seq - 1
            self.counters.lost_steps += last - first + 1
            # Events of one time are ordered by meaning: a gap comes before the step after it.
            t_ns = step.t1_ns if source.unheard_ns is None else source.unheard_ns
            yield Gap(source.label, t_ns, source.epoch, first, last)
        source.seq, source.unheard_ns = step.seq, None
        yield step


def _step(source: Source, seq: Any, t0: Any, t1: Any, rows: Any, drop: Any) -> Step:
    work = tuple(map(_work, rows))
    if source.parts_seq is not None:
        if source.parts_seq == seq:
            work += tuple(source.parts)
        source.parts_seq, source.parts = None, []
    same = drop is not None
    dropped = tuple(map(_text, drop)) if drop else ()
    start, end = _integer(t0), _integer(t1)
    return Step(source.label, source.epoch, _count(seq), start, end, work, same, dropped)


def _work(row: list[Any]) -> Work:
    request, tokens, context, phase, *kept = row
    if kept:
        (count,) = kept
        return Work(
            _text(request), _count(tokens), _count(context), _PHASES[phase], _count_or_none(count)
        )
    return Work(_text(request), _count(tokens), _count(context), _PHASES[phase])


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)
