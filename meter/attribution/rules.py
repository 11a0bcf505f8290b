"""How others split energy, for comparison in ``replay`` and nowhere else.

* ``tokens``: a window's joules per output token, times the request's output tokens in the window.
* ``time``: a step's joules (its time's share of the counter) in equal parts to who took part.
* ``inflight``: every moment's joules in equal parts to the requests in flight.

Each is given the same readings and steps as the core, and joules between readings by a straight
line. ``reference/peers.md`` says who uses which.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from itertools import accumulate

from meter.attribution.order import Reorder
from meter.model import Event, Phase, Reading, RequestClosed, RequestOpened, Step

_WINDOW_NS = 30_000_000_000


class Rule(StrEnum):
    """A rule in use elsewhere."""

    TOKENS = "tokens"
    TIME = "time"
    INFLIGHT = "inflight"


def split(events: Iterable[Event], rule: Rule) -> dict[str, float]:
    """Joules by engine request under ``rule``. ``events``: a trace's, in any order within 2 s."""
    reorder = Reorder()
    ordered = [e for event in events for e in reorder.push(event)]
    ordered += reorder.flush()
    moved = _Moved([e for e in ordered if isinstance(e, Reading)])
    splitters: dict[Rule, Callable[[Sequence[Event], _Moved], dict[str, float]]] = {
        Rule.TOKENS: _by_tokens,
        Rule.TIME: _by_time,
        Rule.INFLIGHT: _by_inflight,
    }
    return splitters[rule](ordered, moved)


class _Moved:
    """All devices' energy as one function of time, straight between the counters' changes."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        last: dict[str, int] = {}
        for reading in readings:
            if reading.energy_uj is None:
                continue
            times, joules = self._curves.setdefault(reading.device, ([], []))
            before = last.get(reading.device, reading.energy_uj)
            last[reading.device] = reading.energy_uj
            if not times or reading.energy_uj > before:
                gain = max(0, reading.energy_uj - before) / 1e6
                times.append(reading.t_ns)
                joules.append((joules[-1] if joules else 0.0) + gain)

    def between_j(self, start_ns: int, end_ns: int) -> float:
        return sum(
            _at(times, joules, end_ns) - _at(times, joules, start_ns)
            for times, joules in self._curves.values()
        )


def _at(times: list[int], joules: list[float], t_ns: int) -> float:
    i = bisect_right(times, t_ns)
    if i == 0:
        return joules[0]
    if i == len(times):
        return joules[-1]
    share = (t_ns - times[i - 1]) / (times[i] - times[i - 1])
    return joules[i - 1] + share * (joules[i] - joules[i - 1])


def _members(ordered: Sequence[Event]) -> Iterable[tuple[Step, dict[str, int]]]:
    """Each step with its participants and the tokens that each of them emits."""
    decoding: dict[str, set[str]] = defaultdict(set)
    for event in ordered:
        if isinstance(event, RequestClosed):
            decoding[event.engine].discard(event.request)
        if not isinstance(event, Step):
            continue
        before = decoding[event.engine] if event.same else set()
        emits = dict.fromkeys(before - set(event.drop), 1)
        still = set(emits)
        for work in event.work:
            decode = work.phase is Phase.DECODE
            emits[work.request] = (work.kept or 1) if decode else 0
            (still.add if decode and work.tokens == 1 else still.discard)(work.request)
        decoding[event.engine] = still
        yield event, emits


def _by_time(ordered: Sequence[Event], moved: _Moved) -> dict[str, float]:
    joules: dict[str, float] = defaultdict(float)
    for step, emits in _members(ordered):
        if emits:
            part = moved.between_j(step.t0_ns, step.t1_ns) / len(emits)
            for request in emits:
                joules[request] += part
    return joules


def _by_tokens(ordered: Sequence[Event], moved: _Moved) -> dict[str, float]:
    windows: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    started: set[str] = set()
    for step, emits in _members(ordered):
        window = windows[step.t1_ns // _WINDOW_NS]
        for request, tokens in emits.items():
            if tokens:  # the prompt's last chunk gave the first token, at latest just before
                window[request] += tokens + (request not in started)
                started.add(request)
    joules: dict[str, float] = defaultdict(float)
    for number, tokens_of in windows.items():
        start = number * _WINDOW_NS
        energy_j = moved.between_j(start, start + _WINDOW_NS)
        total = sum(tokens_of.values())
        for request, tokens in tokens_of.items():
            joules[request] += energy_j * tokens / total
    return joules


def _by_inflight(ordered: Sequence[Event], moved: _Moved) -> dict[str, float]:
    changes = [
        (e.t_ns, e.request, isinstance(e, RequestOpened))
        for e in ordered
        if isinstance(e, RequestOpened | RequestClosed)
    ]
    times = [t for t, _, _ in changes]
    flying = list(accumulate(1 if opened else -1 for _, _, opened in changes))
    owed = [0.0]
    for start, end, count in zip(times, times[1:], flying, strict=False):
        owed.append(owed[-1] + (moved.between_j(start, end) / count if count > 0 else 0.0))
    joules: dict[str, float] = defaultdict(float)
    for (_, request, opened), total in zip(changes, owed, strict=True):
        joules[request] += -total if opened else total
    return joules
