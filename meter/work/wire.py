"""Turns the datagrams of ``meter.work.vllm.sender`` into events.

The wire is described there. One ``Decoder`` serves many engines: every datagram names its source
(one life of one engine). The first source that calls itself engine ``0`` is epoch 0 of engine
``0``, its next life epoch 1, and so on.

**Input is not trusted.** A field may hold what it may hold in a trace (``meter.trace.fields``), and
no time is ahead of now. A record that is not so costs itself, is counted, and never raises. Texts
that clients choose are made clean instead, since a step names many. A step of long ago is refused,
and shows as a gap before the next one. A beginning or an end of long ago is not, but counts as an
hour old at most, and an end ahead of now, though counted as bad, is one: it is told but once.
Nothing of an engine comes before it is met: the core would not know whose devices it uses.

**Who speaks.** A source is its name and the process that wrote, as the kernel says: nobody else can
go on in its name, or end it, but a process that it has forked. A source that was taken for gone
(its label was wanted, or it was silent) is back with its next word, as a new life that holds the
same requests.

**Bounds.** So many engines at once and of one process, labels, open requests, rows of a step, and
names in the accounts; what is beyond is refused and counted (``refusals``).
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from meter.model import (
    EngineEvent,
    Event,
    Gap,
    Phase,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.system.processes import began, comes_of, lives
from meter.trace import fields
from meter.trace.errors import LineError, shown
from meter.work.hello import DevicesOf, Hello, read_hello, text_of
from meter.work.peer import Peer
from meter.work.refusals import Refusals

VERSION = "jm1"
_STATES = ("up", "ready")
_PHASES: Mapping[str, Phase] = {phase.value: phase for phase in Phase}
# What a damaged record raises when it is taken apart.
_BAD = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)

#: Sources heard at once; of one process; labels in the life of a meter.
SOURCES_MAX, OF_PROCESS_MAX, LABELS_MAX = 64, 16, 100
#: Open requests of all sources; however many others hold, each may have its part of them.
OPEN_MAX = 1 << 18
#: Rows of one step.
ROWS_MAX = fields.ROWS_MAX
#: Different models, pairs of tenant and model, and reasons in the accounts; later ones are OTHER.
MODELS_MAX, TENANTS_MAX, REASONS_MAX = 10_000, 100_000, 100
OTHER = "other"
#: Sources that were taken for gone, and ids of closed requests, that are remembered.
_PARTED_MAX, _CLOSED_MAX = 256, 1024
#: An event has happened when it is told; a meter that was stopped hears it late.
_AHEAD_NS = 100_000_000
_BEHIND_NS = fields.STEP_NS_MAX
_ONE_CLOCK = "times are CLOCK_MONOTONIC of the meter's host"
#: From ready on an engine says something twice a second.
_SILENT_NS = 10_000_000_000


@dataclass(slots=True)
class Source:
    """One life of one engine, as far as it is known.

    ``peer``: who speaks for it, ``None`` where the kernel does not say; ``began``: since when that
    process runs; ``first_pid``: which process said the hello, and may have forked; ``heard_ns``:
    when it last said something; ``since_ns``: nothing of it is older. ``open``: its requests that
    have not ended, as they were told, and in which hello's time; ``None`` where only a step named
    them.
    """

    name: str
    hello: Hello
    label: str
    epoch: int
    peer: Peer | None = None
    began: str | None = None
    first_pid: int | None = None
    heard_ns: int = 0
    since_ns: int = 0
    state: str = "up"
    hellos: int = 0
    number: int | None = None
    seq: int | None = None
    unheard_ns: int | None = None  # joined in mid-life: since when it could have been heard
    # (until its first step is; what it opened before counts as opened then)
    parts_seq: int | None = None
    parts: list[Work] | None = None  # None: some of them were refused
    open: dict[str, tuple[int, RequestOpened | None]] = field(default_factory=dict)
    closed: OrderedDict[str, None] = field(default_factory=OrderedDict)

    @property
    def key(self) -> _Key:
        return _key(self.name, self.peer)

    @property
    def pid(self) -> int | None:
        """Its process, as it is seen here; ``None`` where it is not."""
        return self.peer.pid if self.peer is not None else None

    def lives(self) -> bool | None:
        """Whether its process runs; ``None`` where it cannot be seen from here."""
        return None if self.pid is None else lives(self.pid, self.began)


#: A name, and its process; of a process that is not visible here, the user.
_Key = tuple[str, int | None, int | None]


def _key(name: str, peer: Peer | None) -> _Key:
    if peer is None:
        return (name, None, None)
    return (name, None, peer.uid) if peer.pid is None else (name, peer.pid, None)


@dataclass(slots=True)
class Counters:
    """What came over the wire. ``lost``: datagrams known to be missing; ``bad``: unreadable ones,
    or unreadable records in them; ``stray``: from a source that never said hello; ``gone`` and
    ``back``: how often a source was taken for gone, and spoke again. ``refused``: by reason."""

    datagrams: int = 0
    bad: int = 0
    lost: int = 0
    stray: int = 0
    lost_steps: int = 0
    gone: int = 0
    back: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class _Names:
    """Admits so many different names of a kind."""

    def __init__(self, most: int, refusals: Refusals) -> None:
        self._most = most
        self._refusals = refusals
        self._known: set[tuple[str | None, ...]] = set()

    def admit(self, *name: str | None) -> bool:
        if name in self._known:
            return True
        if len(self._known) >= self._most:
            self._refusals.add("names", f"more than {self._most} names of a kind")
            return False
        self._known.add(name)
        return True


class Decoder:
    """Datagrams in, events out. ``devices_of`` finds the devices that an engine owns.

    ``is_alive`` tells whether a source still lives, where two claim one label: the second of two
    that live is labelled ``0-2``. ``since_ns``: since when the meter hears; an engine that has
    worked before may have worked unheard since then. ``now_ns``: the clock of the events, where
    they are live: then a time far from now is refused.
    """

    def __init__(
        self,
        devices_of: DevicesOf | None = None,
        is_alive: Callable[[Source], bool] = lambda source: False,
        since_ns: int | None = None,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        self._devices_of = devices_of
        self._is_alive = is_alive
        self._since_ns = since_ns
        self._clock = now_ns
        self._now_ns = 0
        self._sources: dict[_Key, Source] = {}
        self._labels: dict[str, Source] = {}
        self._parted: OrderedDict[_Key, Source] = OrderedDict()
        self._epochs: dict[str, int] = {}
        self._open = 0
        self.refusals = Refusals()
        self.counters = Counters(refused=self.refusals.counts)
        self._models = _Names(MODELS_MAX, self.refusals)
        self._tenants = _Names(TENANTS_MAX, self.refusals)
        self._reasons = _Names(REASONS_MAX, self.refusals)
        self._log = structlog.get_logger("joulemeter.engine")

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(self._sources.values())

    def decode(self, data: bytes | bytearray | memoryview, peer: Peer | None = None) -> list[Event]:
        """The events of one datagram, in order; none where it cannot be read.

        ``peer``: who wrote it, where the kernel says.
        """
        self.counters.datagrams += 1
        if self._clock is not None:
            self._now_ns = self._clock()
        try:
            version, name, number, records = json.loads(bytes(data))
            if version != VERSION or type(records) is not list:
                raise LineError(f"no datagram of {VERSION}")
            name, number = text_of(name), fields.as_whole(number, "number")
        except _BAD as error:
            self._bad("unreadable", error, peer)
            return []
        events: list[Event] = []
        source = self._source(name, peer, records, events)
        if source is None:
            self.counters.stray += 1
            self.refusals.add("stray", f"source {shown(name)}", pid=peer.pid if peer else None)
            return events
        if source.number is not None and number > source.number + 1:
            self.counters.lost += number - source.number - 1
        source.number, source.heard_ns = number, self._now_ns
        for record in records:
            try:
                if source.key not in self._sources:
                    raise LineError("something is said after the engine's end")
                if not source.hellos and record[0] != "H":
                    raise LineError("something is said before the engine's hello")
                events.extend(self._record(source, record))
            except _BAD as error:
                self._bad("record", error, peer, engine=source.label)
        return events

    def gone(self, source: Source, t_ns: int, why: str = "its process has ended") -> EngineEvent:
        """``source`` ended without saying so. Its next word, if there is one, undoes that."""
        self._forget(source)
        self._parted[source.key] = source
        if len(self._parted) > _PARTED_MAX:
            self._parted.popitem(last=False)
        self.counters.gone += 1
        say = self._log.warning if source.open else self._log.info
        say("engine_gone", engine=source.label, pid=source.pid, why=why, requests=len(source.open))
        return EngineEvent(source.label, t_ns, "down", source.epoch)

    def _bad(self, reason: str, error: Exception, peer: Peer | None, **words: object) -> None:
        self.counters.bad += 1
        told = str(error) if isinstance(error, LineError) else f"not of its form ({error!r:.60})"
        self.refusals.add(reason, told, pid=peer.pid if peer is not None else None, **words)

    # --- who speaks

    def _source(
        self, name: str, peer: Peer | None, records: list[Any], events: list[Event]
    ) -> Source | None:
        """The source of a datagram: known, new, or back; ``None`` where nobody knows it."""
        key = _key(name, peer)
        source = self._sources.get(key) or self._of_kin(name, peer)
        if source is not None:
            return source
        for record in records:
            match record:
                case ["H", t, event, dict(facts)] if event in _STATES:
                    try:
                        return self._begin(name, peer, self._time(t, "t"), facts, events)
                    except _BAD:
                        continue
        return self._return(key, events)

    def _of_kin(self, name: str, peer: Peer | None) -> Source | None:
        """The source of that name, where a process that said its hello has forked this one, or is
        this one."""
        if peer is None or peer.pid is None:
            return None
        for source in self._sources.values():
            theirs, first = source.peer, source.first_pid
            if source.name != name or theirs is None or theirs.uid != peer.uid or first is None:
                continue
            if peer.pid != first and not comes_of(peer.pid, first):
                continue
            del self._sources[source.key]
            source.peer, source.began = peer, began(peer.pid)
            self._sources[source.key] = source
            return source
        return None

    def _begin(
        self,
        name: str,
        peer: Peer | None,
        t_ns: int,
        facts: Mapping[str, object],
        events: list[Event],
    ) -> Source | None:
        """A new life. Who held its label is over, unless it lives; ``None`` where all are taken."""
        hello = self._hello(name, facts, peer)
        found = self._place(hello.engine, peer, t_ns, events)
        if found is None:
            return None
        pid = peer.pid if peer is not None else None
        source = Source(name, hello, *found, peer, began(pid), pid, self._now_ns, t_ns)
        self._parted.pop(source.key, None)
        self._enter(source)
        return source

    def _return(self, key: _Key, events: list[Event]) -> Source | None:
        """A source that was taken for gone speaks: it lives once more, with what it holds."""
        source = self._parted.get(key)
        if source is None:
            return None
        t_ns = max(self._now_ns, source.heard_ns)
        found = self._place(source.hello.engine, source.peer, t_ns, events, back=True)
        if found is None:
            return None
        del self._parted[key]
        source.label, source.epoch = found
        self._enter(source)
        self.counters.back += 1
        held = [told for _, told in source.open.values() if told is not None]
        self._log.warning(
            "engine_back", engine=source.label, pid=source.pid, requests=len(source.open)
        )
        info = source.hello.info(source.label, self._devices(source.hello))
        events.append(EngineEvent(source.label, t_ns, source.state, source.epoch, info))
        events.extend(
            replace(told, engine=source.label, t_ns=t_ns, missed="lost_steps") for told in held
        )
        return source

    def _enter(self, source: Source) -> None:
        self._sources[source.key] = source
        self._labels[source.label] = source
        self._epochs[source.label] = source.epoch
        self._open += len(source.open)

    def _forget(self, source: Source) -> None:
        if self._sources.pop(source.key, None) is not None:
            self._open -= len(source.open)
        if self._labels.get(source.label) is source:
            del self._labels[source.label]

    def _place(
        self,
        wanted: str,
        peer: Peer | None,
        t_ns: int,
        events: list[Event],
        back: bool = False,
    ) -> tuple[str, int] | None:
        """A label and its next epoch, for one more source; ``None`` where there is no room.

        ``back``: it takes nobody's label.
        """
        why = self._crowded(peer, t_ns, events)
        label, number = wanted, 1
        while why is None and (holder := self._labels.get(label)) is not None:
            if not back and not self._is_alive(holder):
                events.append(self.gone(holder, t_ns, "another engine has its label"))
                break
            number += 1
            label = f"{wanted}-{number}"
        if label not in self._epochs and len(self._epochs) >= LABELS_MAX:
            why = why or f"{LABELS_MAX} labels were given"
        if why is not None:
            pid = peer.pid if peer is not None else None
            self.refusals.add("engines", why, engine=wanted, pid=pid)
            return None
        return label, self._epochs.get(label, -1) + 1

    def _crowded(self, peer: Peer | None, t_ns: int, events: list[Event]) -> str | None:
        """Why there is no room for one more source, if so; who is silent has made room."""
        pid = peer.pid if peer is not None else None
        if pid is not None:
            crowd = [source for source in self.sources if source.pid == pid]
            if len(crowd) >= OF_PROCESS_MAX:
                self._part_the_silent(crowd, t_ns, events)
            if sum(source.pid == pid for source in self.sources) >= OF_PROCESS_MAX:
                return f"{OF_PROCESS_MAX} of one process are heard"
        if len(self._sources) >= SOURCES_MAX:
            self._part_the_silent(self.sources, t_ns, events)
        return f"{SOURCES_MAX} are heard" if len(self._sources) >= SOURCES_MAX else None

    def _part_the_silent(self, sources: Sequence[Source], t_ns: int, events: list[Event]) -> None:
        """Who has said nothing for long is taken for gone, be its process there or not."""
        for source in sources:
            if t_ns - source.heard_ns > _SILENT_NS or source.lives() is False:
                events.append(self.gone(source, t_ns, "it is silent, and others speak"))

    # --- what is said

    def _join(self, source: Source) -> Iterator[Event]:
        """Take up an engine in mid-life: what it did while it could not be heard is a gap."""
        hello, since_ns = source.hello, source.since_ns
        source.seq = (hello.next_seq or 0) - 1
        source.unheard_ns = since_ns
        missed = min(hello.missed_steps or 0, source.seq + 1)
        self.counters.lost_steps += missed
        if missed and hello.open_requests:
            first, last = source.seq + 1 - missed, source.seq
            yield Gap(source.label, since_ns, source.epoch, first, last)

    def _record(self, source: Source, record: Any) -> Iterator[Event]:
        match record:
            case ["S", seq, t0, t1, rows, drop]:
                yield from self._step(source, self._read_step(source, seq, t0, t1, rows, drop))
            case ["F", seq, t0, t1, rows]:
                yield from self._step(source, self._read_step(source, seq, t0, t1, rows, None))
            case ["O", t, request, parent, prompt, model, tenant]:
                yield self._opened(source, t, request, parent, prompt, model, tenant)
            case ["C", t, request, reason, prompt, cached, completion]:
                yield self._closed(source, t, request, reason, (prompt, cached, completion))
            case ["P", seq, rows]:
                self._parts(source, seq, rows)
            case ["D", seq, t0, t1]:
                times = self._span(source, t0, t1)
                seq = fields.as_whole(seq, "seq")
                yield Step(source.label, source.epoch, seq, *times, (), dummy=True)
            case ["H", t, event, dict(facts)] if event in _STATES:
                yield from self._greet(source, self._time(t, "t"), event, facts)
            case ["E", t, "down"]:
                t_ns = self._end_time(source, t)
                self._forget(source)
                yield EngineEvent(source.label, t_ns, "down", source.epoch)
            case _:
                raise LineError(f"a record {shown(record)} is none of {VERSION}")

    def _greet(
        self, source: Source, t_ns: int, event: str, facts: Mapping[str, object]
    ) -> Iterator[Event]:
        source.hello = self._hello(source.name, facts, source.peer)
        source.hellos += 1
        if source.state != "ready":  # an engine starts once in a life
            source.state = event
        info = source.hello.info(source.label, self._devices(source.hello))
        joins = source.seq is None and bool(source.hello.next_seq)
        if joins and self._since_ns is not None:
            t_ns = source.since_ns = min(self._since_ns, t_ns)
        yield EngineEvent(source.label, t_ns, source.state, source.epoch, info)
        if joins:
            yield from self._join(source)

    def _hello(self, name: str, facts: Mapping[str, object], peer: Peer | None) -> Hello:
        hello = read_hello(name, facts)
        if hello.model is not None and not self._models.admit(hello.model):
            hello = replace(hello, model=OTHER)
        return hello if peer is None else replace(hello, pid=peer.pid)

    def _devices(self, hello: Hello) -> tuple[str, ...] | None:
        try:
            return self._devices_of(hello) if self._devices_of is not None else None
        except Exception as error:  # the engine is heard all the same
            self.counters.bad += 1
            self.refusals.add("defect", f"no devices of {shown(hello.engine)}: {error!r:.200}")
            return None

    def _opened(
        self, source: Source, t: Any, id: Any, parent: Any, prompt: Any, model: Any, tenant: Any
    ) -> RequestOpened:
        request, since_ns = text_of(id), source.unheard_ns or 0
        t_ns = self._time(t, "t")
        known = source.open.get(request)
        if known is not None and known[0] == source.hellos and known[1] is not None:
            raise LineError(f"id {shown(request)} is open already")
        model, tenant = _text_or_none(model), _text_or_none(tenant)
        if model is not None and not self._models.admit(model):
            model = OTHER
        if tenant is not None and not self._tenants.admit(tenant, model or source.hello.model):
            tenant = OTHER
        opened = RequestOpened(
            engine=source.label,
            request=request,
            t_ns=max(t_ns, source.since_ns),
            model=model,
            tenant=tenant,
            parent=_text_or_none(parent),
            prompt_tokens=_count_or_none(prompt, "prompt_tokens"),
            missed="meter_down" if t_ns < since_ns else None,
        )
        if known is None:
            self._take_up(source, request)
        source.open[request] = (source.hellos, opened)
        return opened

    def _closed(
        self, source: Source, t: Any, id: Any, reason: Any, tokens: tuple[Any, Any, Any]
    ) -> RequestClosed:
        request, reason = text_of(id), _text_or_none(reason)
        if reason is not None and not self._reasons.admit(reason):
            reason = OTHER
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        prompt, cached, completion = map(_count_or_none, tokens, names)
        t_ns = self._end_time(source, t)
        if source.open.pop(request, None) is not None:
            self._open -= 1
        source.closed[request] = None
        if len(source.closed) > _CLOSED_MAX:
            source.closed.popitem(last=False)
        return RequestClosed(source.label, request, t_ns, reason, prompt, cached, completion)

    def _take_up(self, source: Source, request: str) -> None:
        """One more request is open."""
        if self._open >= OPEN_MAX and len(source.open) >= OPEN_MAX // SOURCES_MAX:
            self.refusals.add("requests", f"{OPEN_MAX} are open", engine=source.label)
            raise LineError(f"id {shown(request)} is one request too many")
        source.closed.pop(request, None)
        source.open[request] = (source.hellos, None)
        self._open += 1

    def _parts(self, source: Source, seq: Any, rows: Any) -> None:
        """More work of a step. Where some of it is bad the step is."""
        seq = fields.as_whole(seq, "seq")
        if source.parts_seq != seq:
            source.parts_seq, source.parts = seq, []
        parts, source.parts = source.parts, None
        if parts is None:
            raise LineError(f"more of the work of step {seq}, whose rows were refused")
        if len(parts) + len(rows) > ROWS_MAX:
            raise LineError(f"step {seq} has more than {ROWS_MAX} rows")
        parts.extend(map(_work, rows))
        source.parts = parts

    def _read_step(self, source: Source, seq: Any, t0: Any, t1: Any, rows: Any, drop: Any) -> Step:
        seq = fields.as_whole(seq, "seq")
        work = tuple(map(_work, rows))
        if source.parts_seq is not None:
            parts, mine = source.parts, source.parts_seq == seq
            source.parts_seq, source.parts = None, None
            if mine and parts is None:
                raise LineError(f"step {seq}: some of its rows were refused")
            if mine and parts is not None:
                work += tuple(parts)
        if len(work) > ROWS_MAX:
            raise LineError(f"step {seq} has more than {ROWS_MAX} rows")
        if work:
            fields.together(work, "work")
        same = drop is not None
        dropped = tuple(map(text_of, drop)) if drop else ()
        times = self._span(source, t0, t1)
        if source.seq is not None and seq <= source.seq:
            raise LineError(f"seq {seq} of engine {shown(source.label)} came before")
        for request, *_ in work:
            if request not in source.open and request not in source.closed:
                self._take_up(source, request)
        return Step(source.label, source.epoch, seq, *times, work, same, dropped)

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

    # --- times

    def _latest_ns(self) -> int:
        return 2**63 - 1 if self._clock is None else self._now_ns + _AHEAD_NS

    def _earliest_ns(self) -> int:
        return 0 if self._clock is None else max(0, self._now_ns - _BEHIND_NS)

    def _time(self, value: Any, name: str) -> int:
        """A time that a live engine may tell; one of long ago is not let grow older."""
        t_ns = fields.as_whole(value, name, most=2**63 - 1)
        if t_ns > self._latest_ns():
            raise LineError(f"{name} is {self._off_s(t_ns)} s ahead of now: {_ONE_CLOCK}")
        return max(t_ns, self._earliest_ns())

    def _end_time(self, source: Source, value: Any) -> int:
        """The time of an end: what cannot be is now."""
        try:
            return max(self._time(value, "t"), source.since_ns)
        except LineError as error:
            if type(value) is not int:
                raise
            self._bad("record", error, source.peer, engine=source.label)
            return max(self._now_ns, source.heard_ns)

    def _off_s(self, t_ns: int) -> str:
        return f"{abs(t_ns - self._now_ns) / 1e9:.3g}"

    def _span(self, source: Source, t0: Any, t1: Any) -> tuple[int, int]:
        t0_ns = fields.as_whole(t0, "t0", most=2**63 - 1)
        t1_ns = fields.as_whole(t1, "t1", most=2**63 - 1)
        self._time(t1_ns, "t1")
        if self._clock is not None and t1_ns < source.since_ns - _AHEAD_NS:
            raise LineError(f"t1 is before the engine's hello: {_ONE_CLOCK}")
        if t1_ns < self._earliest_ns():
            raise LineError(f"t1 is {self._off_s(t1_ns)} s ago: {_ONE_CLOCK}")
        fields.span(t0_ns, t1_ns)
        return t0_ns, t1_ns


def _work(row: list[Any]) -> Work:
    request, tokens, context, phase, *kept = row
    count = None
    if kept:
        (count,) = kept
        count = _count_or_none(count, "kept")
    if type(tokens) is not int or not 1 <= tokens <= fields.TOKENS_MAX:
        raise LineError(f"tokens {shown(tokens)} is not from 1 to {fields.TOKENS_MAX}")
    if type(context) is not int or not 0 <= context <= fields.TOKENS_MAX:
        raise LineError(f"context {shown(context)} is not from 0 to {fields.TOKENS_MAX}")
    return Work(text_of(request), tokens, context, _PHASES[phase], count)


def _count_or_none(value: Any, name: str) -> int | None:
    return None if value is None else fields.as_whole(value, name, most=fields.TOKENS_MAX)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else text_of(value)
