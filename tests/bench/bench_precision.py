"""Does the core hold its digits over thirty days?

One engine in steps of a second, none left out. Every coefficient is a whole number of microjoules,
and so is each step's cost: the counter is exact, every interval's factor is 1, and whatever differs
from the closed form is the core's own rounding. The same request comes at the start and at the end
of the month; another decodes from the first step to the last.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from bench_figure import Figure

from meter.attribution import Attributor, Fit
from meter.attribution.coefficients import Coefficients, Features
from meter.model import (
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Snapshot,
    Step,
    Work,
)

DAY_STEPS = 86_400
TARGET = 1e-9
#: No whole seconds, on a machine that has been up for a year: times in floats would show.
_STEP_NS = 999_999_937
_START_NS = 31_536_000_123_456_789
_READ_EVERY = 8
_SEATS = 14
_LIFE = 1000
EVERLASTING, FIRST, LAST = "everlasting", "first", "last"

#: Microjoules of a step, a prefill token, a pair, a decoded token, a context token. Fifteen and
#: sixteen participants (with a probe) divide the first.
_STEP, _PREFILL, _PAIR, _DECODE, _CONTEXT = 2_760_000, 19_800, 1, 35_800, 29
_DEVICE = Device("GPU-0", "card", Quality.SIMULATED, refresh_s=0.0)
_ENGINE = Engine("0", ("GPU-0",), model="m")


def fixed_fit() -> Fit:
    """The true coefficients, known from the start."""
    coefficients = Coefficients(
        static_w=115.0,
        step_j=_STEP / 1e6,
        prefill_j=_PREFILL / 1e6,
        pair_j=_PAIR / 1e6,
        decode_j=_DECODE / 1e6,
        context_j=_CONTEXT / 1e6,
    )
    size = len(Features._fields)
    return Fit((coefficients,), np.zeros((size, size)), 0.03, 1000, converged=False)


def metering() -> Attributor:
    return Attributor([_DEVICE], [_ENGINE], fits={_DEVICE.id: fixed_fit()})


class _Life(NamedTuple):
    """A request: its prompt in chunks from step ``start`` on, then so many decoded tokens."""

    name: str
    start: int
    chunks: tuple[int, ...]
    decodes: int


class Month:
    """What the engine does in ``steps`` steps, at least some 5000. Exact, after ``events``:
    ``energy_uj`` is what the card drew, ``owed_uj`` what each watched request owes of it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.energy_uj = 0
        self.owed_uj = dict.fromkeys((EVERLASTING, FIRST, LAST), 0)
        self._now_ns = _START_NS
        self._agenda: defaultdict[int, list[_Life]] = defaultdict(list)
        self._offset: dict[str, int] = {}  # a member's context, less the number of the step
        self._offset_sum = 0

    def events(self) -> Iterator[Event]:
        """All that the sources say, in order of time."""
        yield Reading(_DEVICE.id, self._now_ns, 0)
        yield from self._opened(_Life(EVERLASTING, 0, (), self.steps))
        for seat in range(_SEATS):
            age = _LIFE * (seat + 1) // _SEATS
            yield from self._opened(_Life(f"{seat}-0", 0, (300,), age))
        for k in range(self.steps):
            yield from self._changes(k)
            step = self._step(k)
            self._now_ns = step.t1_ns
            yield step
            if (k + 1) % _READ_EVERY == 0:
                yield Reading(_DEVICE.id, self._now_ns, self.energy_uj)
        yield RequestClosed(_ENGINE.id, EVERLASTING, self._now_ns, "stop")
        yield Reading(_DEVICE.id, self._now_ns + 1, self.energy_uj)

    def _opened(self, life: _Life) -> Iterator[Event]:
        self._agenda[life.start].append(life)
        yield RequestOpened(_ENGINE.id, life.name, self._now_ns)

    def _changes(self, k: int) -> Iterator[Event]:
        """Who ends before step ``k`` makes room for the next."""
        for life in list(self._agenda.get(k, ())):
            if k - life.start <= len(life.chunks):
                continue
            self._agenda[k].remove(life)
            self._offset_sum -= self._offset.pop(life.name)
            yield RequestClosed(_ENGINE.id, life.name, self._now_ns, "stop")
            seat, _, generation = life.name.partition("-")
            if generation:
                yield from self._opened(_Life(f"{seat}-{int(generation) + 1}", k, (300,), _LIFE))
        for name, start in ((FIRST, _LIFE), (LAST, self.steps - 3 * _LIFE)):
            if k == start:
                yield from self._opened(_Life(name, k, (512, 188), 2 * _LIFE))

    def _step(self, k: int) -> Step:
        add: list[Work] = []
        chunks_uj = 0
        for life in self._agenda.pop(k, ()):
            place = k - life.start
            context = sum(life.chunks[:place])
            if place < len(life.chunks):
                tokens = life.chunks[place]
                add.append(Work(life.name, tokens, context, Phase.PREFILL))
                self._agenda[k + 1].append(life)
                pairs = tokens * context + tokens * (tokens + 1) // 2
                own_uj = _PREFILL * tokens + _PAIR * pairs
                chunks_uj += own_uj
                if life.name in self.owed_uj:
                    self.owed_uj[life.name] += own_uj
            else:
                add.append(Work(life.name, 1, context, Phase.DECODE))
                self._offset[life.name] = context - k
                self._offset_sum += context - k
                self._agenda[k + life.decodes].append(life)
        self._charge(k, chunks_uj, [w.request for w in add if w.phase is Phase.PREFILL])
        return Step(_ENGINE.id, 0, k, self._now_ns, self._now_ns + _STEP_NS, tuple(add), k > 0)

    def _charge(self, k: int, chunks_uj: int, prefilling: list[str]) -> None:
        members = len(self._offset)
        fixed_uj, rest = divmod(_STEP, members + len(prefilling))
        assert rest == 0, "the fixed part must divide by the participants"
        context = self._offset_sum + k * members
        self.energy_uj += _STEP + chunks_uj + _DECODE * members + _CONTEXT * context
        for name in self.owed_uj:
            offset = self._offset.get(name)
            if offset is not None:
                self.owed_uj[name] += fixed_uj + _DECODE + _CONTEXT * (offset + k)
            elif name in prefilling:
                self.owed_uj[name] += fixed_uj


class Held(NamedTuple):
    """How far the core was off, all relative: the last probe from the first, each from the truth
    (the worst of them), the everlasting request from the truth, and conservation at its worst."""

    drift: float
    probes: float
    everlasting: float
    conservation: float


def hold(steps: int) -> Held:
    """Meter a month of so many steps."""
    month, core = Month(steps), metering()
    got: dict[str, float] = {}
    worst = 0.0
    for n, event in enumerate(month.events()):
        core.feed(event)
        if n % (DAY_STEPS // 4) == 0:
            got |= {r.id: r.energy_j for r in core.drain() if r.id in month.owed_uj}
            worst = max(worst, _imbalance(core.snapshot()))
    core.finish()
    got |= {r.id: r.energy_j for r in core.drain() if r.id in month.owed_uj}
    off = {name: abs(got[name] / (uj / 1e6) - 1) for name, uj in month.owed_uj.items()}
    return Held(
        drift=abs(got[LAST] / got[FIRST] - 1),
        probes=max(off[FIRST], off[LAST]),
        everlasting=off[EVERLASTING],
        conservation=max(worst, _imbalance(core.snapshot())),
    )


def _imbalance(s: Snapshot) -> float:
    """What is in no account, and what receipts and accounts differ by, as a part of the whole."""
    receipts_j = s.receipts_open_j + s.receipts_closed_j
    error_j = max(abs(s.conservation_error_j), abs(receipts_j - s.attributed_j))
    return error_j / max(s.measured_j, 1.0)


def precision(days: float) -> Iterator[Figure]:
    """Thirty simulated days in steps of a second."""
    steps = round(days * DAY_STEPS)
    start = time.process_time()
    held = hold(steps)
    spent_s = time.process_time() - start
    yield Figure("precision", "steps", steps)
    yield Figure("precision", "the same request first and last", held.drift, "", TARGET)
    yield Figure("precision", "these two against the truth", held.probes, "", TARGET)
    yield Figure("precision", "one that ran all the time", held.everlasting, "", TARGET)
    yield Figure("precision", "conservation at its worst", held.conservation, "", TARGET)
    yield Figure("precision", "CPU time, events included", 1e6 * spent_s / steps, "µs a step")
