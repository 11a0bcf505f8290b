"""How others split energy, for comparison in ``replay`` and nowhere else.

* ``tokens``: a window's joules per output token, times the request's output tokens in the window.
* ``time``: a step's joules (its time's share of the counter) in equal parts to who took part.
* ``inflight``: every moment's joules in equal parts to the requests in flight.

Each is given the same readings and steps as the core, and joules between readings by a straight
line. None hands out a joule twice, so what it charges is never more than what the counters moved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from meter.attribution.intervals import Counter
from meter.attribution.order import Reorder
from meter.model import (
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
)

_WINDOW_NS = 30_000_000_000


class Rule(StrEnum):
    """A rule in use elsewhere."""

    TOKENS = "tokens"
    TIME = "time"
    INFLIGHT = "inflight"


class Charge(NamedTuple):
    """Joules of one request by phase: what it was in when the rule charged it.

    ``tokens`` charges for output tokens: the first one is the prefill's, the others are decoded.
    ``inflight``: a request is in prefill until the last step that prefills it before it decodes.
    """

    prefill_j: float = 0.0
    decode_j: float = 0.0
    recompute_j: float = 0.0

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j

    def plus(self, phase: Phase, energy_j: float) -> Charge:
        if phase is Phase.DECODE:
            return self._replace(decode_j=self.decode_j + energy_j)
        if phase is Phase.RECOMPUTE:
            return self._replace(recompute_j=self.recompute_j + energy_j)
        return self._replace(prefill_j=self.prefill_j + energy_j)


Charges = Mapping[str, Charge]


def split(events: Iterable[Event], rule: Rule) -> dict[str, float]:
    """Joules by engine request under ``rule``, as ``charges`` gives them."""
    return {request: charge.energy_j for request, charge in charges(events, rule).items()}


def charges(
    events: Iterable[Event],
    rule: Rule,
    devices: Iterable[Device] = (),
    engines: Iterable[Engine] = (),
) -> Charges:
    """What each engine request pays under ``rule``.

    ``events``: a trace's, in any order within 2 s; ``devices``, ``engines``: those that it begins
    with. An engine whose devices nobody tells is on all of them.
    """
    reorder = Reorder()
    ordered = [e for event in events for e in reorder.push(event)]
    ordered += reorder.flush()
    moved = _Moved(ordered, devices)
    found: defaultdict[str, Charge] = defaultdict(Charge)
    if rule is Rule.TOKENS:
        parts = _by_tokens(ordered, moved)
    elif rule is Rule.TIME:
        parts = _by_time(ordered, moved, _owners(ordered, engines))
    else:
        parts = _by_inflight(ordered, moved)
    for request, phase, energy_j in parts:
        found[request] = found[request].plus(phase, energy_j)
    return found


#: A request, the phase that it was in, and joules.
_Part = tuple[str, Phase, float]


class _Moved:
    """Each device's energy as a function of time, straight between the counter's changes.

    What the core does not count (a leap, a counter that starts over) is not here; what it counts as
    nobody's, since nobody watched, is at no time.
    """

    def __init__(self, ordered: Sequence[Event], devices: Iterable[Device]) -> None:
        counters = {device.id: Counter(device) for device in devices}
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        for event in ordered:
            if isinstance(event, DeviceFound):
                id = event.device.id
                counters.setdefault(id, Counter(event.device)).become(event.device)
            elif isinstance(event, Reading):
                unknown = Device(event.device, event.device, Quality.ESTIMATED)
                self._read(counters.setdefault(event.device, Counter(unknown)), event)

    def _read(self, counter: Counter, reading: Reading) -> None:
        if reading.energy_uj is None:
            return
        begun = counter.resets + counter.jumps
        unwatched = reading.missed is not None and reading.missed_uj is None
        if unwatched and counter.last is not None:
            counter.flush()
            counter.skip(reading)
        before_uj = counter.moved_uj
        counter.add(reading)
        gain_j = (counter.moved_uj - before_uj) / 1e6
        begins = unwatched or counter.resets + counter.jumps > begun
        times, joules = self._curves.setdefault(reading.device, ([], []))
        if not times or (reading.t_ns > times[-1] and (gain_j or begins)):
            times.append(reading.t_ns)
            joules.append((joules[-1] if joules else 0.0) + gain_j)

    @property
    def devices(self) -> Iterable[str]:
        return self._curves

    def end_ns(self) -> int:
        return max((times[-1] for times, _ in self._curves.values()), default=0)

    def between_j(self, start_ns: int, end_ns: int) -> float:
        return sum(self.of_j(device, start_ns, end_ns) for device in self._curves)

    def of_j(self, device: str, start_ns: int, end_ns: int) -> float:
        times, joules = self._curves[device]
        return _at(times, joules, end_ns) - _at(times, joules, start_ns)


def _at(times: list[int], joules: list[float], t_ns: int) -> float:
    i = bisect_right(times, t_ns)
    if i == 0:
        return joules[0]
    if i == len(times):
        return joules[-1]
    share = (t_ns - times[i - 1]) / (times[i] - times[i - 1])
    return joules[i - 1] + share * (joules[i] - joules[i - 1])


def _owners(ordered: Sequence[Event], engines: Iterable[Engine]) -> dict[str, set[str]]:
    """The devices that each engine ever had; nothing of an engine of which nobody told."""
    owned: dict[str, set[str]] = {}
    told = [event.info for event in ordered if isinstance(event, EngineEvent) and event.info]
    for engine in (*engines, *told):
        if engine.devices or engine.owns_none:
            owned.setdefault(engine.id, set()).update(engine.devices)
    for event in ordered:
        if isinstance(event, DeviceFound):
            for id in event.engines or ():
                owned.setdefault(id, set()).add(event.device.id)
    return owned


class _Took(NamedTuple):
    """Who took part in a step: the phase of each, and how many tokens it emits."""

    step: Step
    phases: Mapping[str, Phase]
    emits: Mapping[str, int]


def _members(ordered: Sequence[Event]) -> Iterator[_Took]:
    """Each step with its participants."""
    decoding: dict[str, set[str]] = defaultdict(set)
    for event in ordered:
        if isinstance(event, RequestClosed):
            decoding[event.engine].discard(event.request)
        if not isinstance(event, Step):
            continue
        before = decoding[event.engine] if event.same else set()
        emits = dict.fromkeys(sorted(before - set(event.drop)), 1)
        phases = dict.fromkeys(emits, Phase.DECODE)
        still = set(emits)
        for work in event.work:
            decode = work.phase is Phase.DECODE
            phases[work.request] = work.phase
            emits[work.request] = (work.kept or 1) if decode else 0
            (still.add if decode and work.tokens == 1 else still.discard)(work.request)
        decoding[event.engine] = still
        yield _Took(event, phases, emits)


def _by_time(
    ordered: Sequence[Event], moved: _Moved, owned: Mapping[str, set[str]]
) -> Iterator[_Part]:
    """Where several steps run on a device at once, a moment's joules are theirs in equal parts."""
    took = [found for found in _members(ordered) if found.phases]
    joules = [0.0] * len(took)
    for device in moved.devices:
        edges = []
        for i, (step, _, _) in enumerate(took):
            devices = owned.get(step.engine)
            if (devices is None or device in devices) and step.t1_ns > step.t0_ns:
                edges += [(step.t0_ns, i), (step.t1_ns, i)]
        running: set[int] = set()
        last_ns = 0
        for t_ns, i in sorted(edges):
            if running and t_ns > last_ns:
                part_j = moved.of_j(device, last_ns, t_ns) / len(running)
                for one in running:
                    joules[one] += part_j
            last_ns = t_ns
            running ^= {i}
    for (_, phases, _), step_j in zip(took, joules, strict=True):
        for request, phase in phases.items():
            yield request, phase, step_j / len(phases)


def _by_tokens(ordered: Sequence[Event], moved: _Moved) -> Iterator[_Part]:
    windows: dict[int, dict[tuple[str, Phase], int]] = defaultdict(lambda: defaultdict(int))
    started: set[str] = set()
    for step, _, emits in _members(ordered):
        for request, tokens in emits.items():
            if tokens:
                window = windows[step.t1_ns // _WINDOW_NS]
                window[request, Phase.DECODE] += tokens
                if request not in started:
                    # The prompt's last chunk gave the first token, at latest just before.
                    window[request, Phase.PREFILL] += 1
                    started.add(request)
    for number, tokens_of in windows.items():
        start = number * _WINDOW_NS
        per_token_j = moved.between_j(start, start + _WINDOW_NS) / sum(tokens_of.values())
        for (request, phase), tokens in tokens_of.items():
            yield request, phase, per_token_j * tokens


class _Flight(NamedTuple):
    """A request in flight: what each one owed when it opened, and when its prefill was over."""

    opened_j: float
    prefilled_j: float | None = None
    decodes: bool = False


def _by_inflight(ordered: Sequence[Event], moved: _Moved) -> Iterator[_Part]:
    flying: dict[tuple[str, str], _Flight] = {}
    emitting = {id(took.step): took for took in _members(ordered)}
    owed_j, last_ns = 0.0, 0

    def advance(t_ns: int) -> None:
        nonlocal owed_j, last_ns
        if flying and t_ns > last_ns:
            owed_j += moved.between_j(last_ns, t_ns) / len(flying)
        last_ns = max(last_ns, t_ns)

    for event in ordered:
        if isinstance(event, RequestOpened):
            advance(event.t_ns)
            flying.setdefault((event.engine, event.request), _Flight(owed_j))
        elif isinstance(event, RequestClosed):
            advance(event.t_ns)
            flight = flying.pop((event.engine, event.request), None)
            if flight is not None:
                yield from _flown(event.request, flight, owed_j)
        elif isinstance(event, Step):
            for request, phase in emitting[id(event)].phases.items():
                flight = flying.get((event.engine, request))
                if flight is None or flight.decodes:
                    continue
                if phase is Phase.DECODE:
                    flying[event.engine, request] = flight._replace(decodes=True)
                else:
                    advance(event.t1_ns)
                    flying[event.engine, request] = flight._replace(prefilled_j=owed_j)
    advance(moved.end_ns())
    for (_, request), flight in flying.items():
        yield from _flown(request, flight, owed_j)


def _flown(request: str, flight: _Flight, owed_j: float) -> Iterator[_Part]:
    until_j = owed_j
    if flight.decodes:
        until_j = flight.opened_j if flight.prefilled_j is None else flight.prefilled_j
    yield request, Phase.PREFILL, until_j - flight.opened_j
    yield request, Phase.DECODE, owed_j - until_j
