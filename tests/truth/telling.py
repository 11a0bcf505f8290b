"""What the meter is told of a run: events of engines and requests, in full or in change form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meter.model import Event, Phase, RequestClosed, RequestOpened, Step, Work
from tests.truth.costs import DECODE, KEPT, PHASE, TOKENS, WHO, Ints
from tests.truth.engine import Scheduler
from tests.truth.settle import Passes
from tests.truth.workload import Requests

PHASES = (Phase.PREFILL, Phase.DECODE, Phase.RECOMPUTE)


@dataclass(frozen=True, slots=True)
class Telling:
    """``full_every``: every so many steps one is told in full (1: all of them); ``lost``: share of
    the steps' lines that never arrive, in runs of ``lost_run`` on average."""

    full_every: int = 200
    lost: float = 0.0
    lost_run: float = 3.0


@dataclass(frozen=True, slots=True)
class Origin:
    """The clock's reading at the run's second 0."""

    ns: int

    def at(self, seconds: float) -> int:
        return self.ns + round(seconds * 1e9)


class Teller:
    """Turns one engine's passes into steps."""

    def __init__(
        self, name: str, origin: Origin, telling: Telling, closed_s: Mapping[int, float]
    ) -> None:
        self._name, self._origin, self._telling = name, origin, telling
        self._closed_s = closed_s
        self._plain: Ints = np.zeros(0, dtype=np.int64)
        self._seq = 0

    def step(self, rows: Ints, start_s: float, end_s: float) -> Step:
        """The next step of the engine; without rows it is a dummy."""
        times = (self._origin.at(start_s), self._origin.at(end_s))
        if not len(rows):
            self._plain = self._plain[:0]
            return Step(self._name, 0, max(0, self._seq - 1), *times, (), dummy=True)
        seq, self._seq = self._seq, self._seq + 1
        plain = (rows[:, PHASE] == DECODE) & (rows[:, TOKENS] == 1) & (rows[:, KEPT] < 0)
        before, self._plain = self._plain, rows[plain, WHO]
        if seq % self._telling.full_every == 0:
            return Step(self._name, 0, seq, *times, _work(rows))
        implied = plain & np.isin(rows[:, WHO], before)
        implied[implied] = [self._still_open(w, end_s) for w in rows[implied, WHO].tolist()]
        return Step(
            self._name,
            0,
            seq,
            *times,
            _work(rows[~implied]),
            same=True,
            drop=self._dropped(before, rows[:, WHO], end_s),
        )

    def _dropped(self, before: Ints, now: Ints, end_s: float) -> tuple[str, ...]:
        gone = before[~np.isin(before, now)].tolist()
        return tuple(f"r{who}" for who in gone if self._still_open(who, end_s))

    def _still_open(self, who: int, end_s: float) -> bool:
        return self._closed_s.get(who, end_s) >= end_s


def _work(rows: Ints) -> tuple[Work, ...]:
    return tuple(
        Work(f"r{who}", tokens, context, PHASES[phase], kept if kept >= 0 else None)
        for who, tokens, context, phase, kept in rows.tolist()
    )


def losses(telling: Telling, count: int, rng: np.random.Generator) -> Ints:
    """Which of an engine's ``count`` steps never arrive (the first ones do)."""
    lost = np.zeros(count, dtype=bool)
    for first in np.flatnonzero(rng.random(count) < telling.lost / telling.lost_run).tolist():
        lost[first : first + rng.geometric(1.0 / telling.lost_run)] = True
    lost[:20] = False
    return np.flatnonzero(lost)


def steps(
    name: str,
    passes: Passes,
    number: int,
    origin: Origin,
    telling: Telling,
    schedulers: Sequence[Scheduler],
) -> list[Step]:
    """All steps of engine ``number``, in order."""
    closed_s = {c.who: c.t_s for s in schedulers for c in s.closed}
    teller = Teller(name, origin, telling, closed_s)
    ends = np.cumsum(passes.members)
    told = []
    for i in np.flatnonzero(passes.engine == number).tolist():
        rows = passes.rows[ends[i] - passes.members[i] : ends[i]]
        told.append(teller.step(rows, float(passes.start_s[i]), float(passes.end_s[i])))
    return told


def lives(
    name: str, model: str, scheduler: Scheduler, origin: Origin
) -> list[RequestOpened | RequestClosed]:
    """Requests as one engine opens and closes them."""
    requests: Requests = scheduler.requests
    opened = [
        RequestOpened(
            name,
            requests.id(who),
            origin.at(t_s),
            model=model,
            tenant=requests.tenant[who],
            prompt_tokens=int(requests.prompt[who]),
        )
        for t_s, who in scheduler.opened
    ]
    closed = [
        RequestClosed(
            name,
            requests.id(c.who),
            origin.at(c.t_s),
            c.reason,
            int(requests.prompt[c.who]),
            int(min(requests.cached[c.who], scheduler.computed[c.who])),
            c.completion,
        )
        for c in scheduler.closed
    ]
    return [*opened, *closed]


def understood(told: Sequence[Step], lost: Sequence[int]) -> list[bool]:
    """Which steps a reader can follow: after a loss, none before the next full one."""
    gone = set(lost)
    follows, result = True, []
    for place, step in enumerate(told):
        follows = place not in gone and (follows or not step.same)
        result.append(follows)
    return result


_RANK = {RequestOpened: 0, Step: 1, RequestClosed: 2}


def in_order(events: list[Event], arrives_ns: Mapping[int, int]) -> list[Event]:
    """Events as they arrive; ``arrives_ns``: by place, of those that come after their time."""

    def key(place: int) -> tuple[int, int]:
        event = events[place]
        t_ns = event.t1_ns if isinstance(event, Step) else event.t_ns
        return arrives_ns.get(place, t_ns), _RANK.get(type(event), 3)

    return [events[place] for place in sorted(range(len(events)), key=key)]
