"""Small engines with known costs, for the tests of the core: truth is computed beside them.

``Scene`` plays a continuous-batching engine on a card whose energy follows the very cost model of
``meter.attribution.coefficients`` (plus seeded noise a step), and keeps each request's true share:
what the core may only infer. Steps can be told in full or in change form.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field

from meter.attribution.coefficients import Coefficients, prefill_pairs
from meter.model import (
    Device,
    Engine,
    Event,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

GPU = Device("GPU-0", "card", Quality.SIMULATED)
ENGINE = Engine("0", ("GPU-0",), model="m")

#: Joules (the time each term adds is in them) and the seconds that the same work takes.
COST = Coefficients(115.0, 2.76, 19.8e-3, 0.88e-6, 35.8e-3, 29e-6)
TIME = Coefficients(0.0, 6.6e-3, 29e-6, 1.1e-9, 50e-6, 45e-9)


@dataclass
class _Running:
    id: str
    prompt: int
    wanted: int
    computed: int = 0
    emitted: int = 0


@dataclass
class Scene:
    """One run of the engine; build it, then read ``events`` and ``truth_j``."""

    seed: int = 0
    seconds: float = 20.0
    arrivals_per_s: float = 12.0
    noise: float = 0.03
    refresh_s: float = 0.1
    poll_s: float = 0.02
    budget: int = 1024
    change_form: bool = False
    tenants: tuple[str, ...] = ()
    events: list[Event] = field(default_factory=list)
    truth_j: dict[str, float] = field(default_factory=dict)
    idle_j: float = 0.0
    costs = COST

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._segments: list[tuple[float, float, float]] = []
        self._run()
        self._read_counter()
        self.events.sort(key=lambda e: e.t_ns)

    def power_between_j(self, start_s: float, end_s: float) -> float:
        return self._energy(end_s) - self._energy(start_s)

    def _run(self) -> None:
        now, next_arrival, count, seq = 1.0, 1.05, 0, 0
        waiting: list[_Running] = []
        running: list[_Running] = []
        before: set[str] = set()
        while now < self.seconds:
            while next_arrival <= now:
                request = _Running(
                    f"r{count}",
                    self._random.choice([20, 200, 800, 3000]),
                    self._random.randint(1, 200),
                )
                count += 1
                waiting.append(request)
                self.truth_j[request.id] = 0.0
                tenant = self.tenants[count % len(self.tenants)] if self.tenants else None
                self.events.append(
                    RequestOpened(
                        "0",
                        request.id,
                        _ns(next_arrival),
                        tenant=tenant,
                        prompt_tokens=request.prompt,
                    )
                )
                quiet = (next_arrival % 10) > 7
                next_arrival += self._random.expovariate(0.3 if quiet else self.arrivals_per_s)
            if not waiting and not running:
                self._draw(now, next_arrival, COST.static_w)
                self.idle_j += COST.static_w * (next_arrival - now)
                now = next_arrival
                continue
            work = self._schedule(waiting, running)
            now = self._step(now, work, seq, before)
            before = {w.request for w in work if w.phase is Phase.DECODE}
            seq += 1
            self._finish_step(now, work, waiting, running)

    def _schedule(self, waiting: list[_Running], running: list[_Running]) -> list[Work]:
        work = [Work(r.id, 1, r.computed, Phase.DECODE) for r in running]
        budget = self.budget - len(work)
        for request in waiting:
            if budget <= 0:
                break
            tokens = min(budget, request.prompt - request.computed)
            work.append(Work(request.id, tokens, request.computed, Phase.PREFILL))
            budget -= tokens
        return work

    def _step(self, now: float, work: list[Work], seq: int, before: set[str]) -> float:
        energy_j, duration_s = price(work, self.costs), price(work, TIME)
        factor = 1 + self.noise * self._random.gauss(0, 1)
        start, gap = now + 0.0005, 0.0005
        end = start + duration_s
        self._draw(now, start, COST.static_w)
        self._draw(start, end, factor * energy_j / duration_s)
        for w in work:
            own = price([w], self.costs) - self.costs.step_j
            fixed = self.costs.step_j / len(work)
            self.truth_j[w.request] += factor * (own + fixed) + gap * COST.static_w / len(work)
        self.events.append(self._told(work, seq, before, start, end))
        return end

    def _told(self, work: list[Work], seq: int, before: set[str], start: float, end: float) -> Step:
        if not self.change_form or seq == 0:
            return Step("0", 0, seq, _ns(start), _ns(end), tuple(work))
        plain = {w.request for w in work if w.phase is Phase.DECODE} & before
        add = tuple(w for w in work if w.request not in plain)
        return Step("0", 0, seq, _ns(start), _ns(end), add, same=True)

    def _finish_step(
        self, now: float, work: list[Work], waiting: list[_Running], running: list[_Running]
    ) -> None:
        done = {w.request: w for w in work}
        for request in list(running):
            request.computed += 1
            request.emitted += 1
        for request in list(waiting):
            if request.id in done:
                request.computed += done[request.id].tokens
                if request.computed >= request.prompt:
                    waiting.remove(request)
                    request.emitted = 1
                    running.append(request)
        for request in [r for r in running if r.emitted >= r.wanted]:
            running.remove(request)
            self.events.append(
                RequestClosed("0", request.id, _ns(now), "stop", request.prompt, 0, request.emitted)
            )

    def _draw(self, start: float, end: float, power_w: float) -> None:
        self._segments.append((start, end, power_w))

    def _energy(self, t: float) -> float:
        i = bisect_right(self._starts, t) - 1
        if i < 0:
            return 0.0
        start, end, power_w = self._segments[i]
        return self._joules[i] + power_w * (min(t, end) - start)

    def _read_counter(self) -> None:
        self._starts = [s for s, _, _ in self._segments]
        self._joules = [0.0]
        for start, end, power_w in self._segments:
            self._joules.append(self._joules[-1] + power_w * (end - start))
        phase = self._random.random() * self.refresh_s
        t, end = 1.0, self._segments[-1][1]
        while t < end:
            ticks = (t - phase) // self.refresh_s
            tick = phase + ticks * self.refresh_s
            self.events.append(Reading("GPU-0", _ns(t), round(1e6 * (100 + self._energy(tick)))))
            t += self.poll_s * self._random.uniform(0.9, 1.1)


def price(work: list[Work], unit: Coefficients) -> float:
    """What a step with this work costs (or takes), written out once more and on its own."""
    total = unit.step_j
    for w in work:
        if w.phase is Phase.DECODE:
            total += unit.decode_j * w.tokens + unit.context_j * w.context
        else:
            total += unit.prefill_j * w.tokens + unit.pair_j * prefill_pairs(w.tokens, w.context)
    return total


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
