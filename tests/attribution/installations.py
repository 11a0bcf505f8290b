"""Random installations for the tests of the sum: engines of every layout, and their faults.

An installation is a list of events. It knows every way in which joules reach the books: one engine
or several, alone or on shared devices; tensor, pipeline, data and expert parallel ranks; ranks that
run dummy passes beside others or alone at their meter; devices that come late or go over to another
engine; lost steps, late steps, restarts, resets, and calls that fail.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from meter.model import (
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Experts,
    Gap,
    Layout,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

S = 1_000_000_000
MS = 1_000_000

#: Devices of each rank, and whether ranks are many, pipelined, or run dummies.
LAYOUTS = {
    "single": Layout(),
    "tp2": Layout(tp=2),
    "pp2": Layout(pp=2),
    "dp2": Layout(dp=2),
    "dp2ep": Layout(dp=2, ep=2),
    "dp3ep alone": Layout(dp=3, ep=3),
    "tp2 dp2 ep": Layout(tp=2, dp=2, ep=4),
}


@dataclass
class Installation:
    """What is there from the start, and all that happens, in order of time.

    ``only_dummies``: no rank has work of its own. ``faulty``: steps are lost, counters start over,
    engines restart, and so on.
    """

    layout: str
    seed: int
    seconds: float = 3.0
    only_dummies: bool = False
    shared: bool = False
    late: bool = False
    faulty: bool = False
    devices: list[Device] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = rnd = random.Random(f"{self.layout} {self.seed}")
        layout = LAYOUTS[self.layout]
        ranks = 1 if self.layout.endswith("alone") else layout.dp
        per_rank = layout.tp * layout.pp
        cards = [
            Device(
                f"GPU-{i}",
                "card",
                rnd.choice([Quality.MEASURED, Quality.SIMULATED]),
                str(i),
                refresh_s=rnd.choice([0.0, None]),
            )
            for i in range(ranks * per_rank)
        ]
        experts = Experts(8, 2) if layout.ep > 1 else None
        for rank in range(ranks):
            own = tuple(c.id for c in cards[rank * per_rank : (rank + 1) * per_rank])
            self.engines.append(Engine(str(rank), own, "m", layout=layout, experts=experts))
        if self.shared:
            self.engines.append(Engine("other", (cards[0].id,), "another"))
        end_ns = S + round(self.seconds * S)
        for card in cards:
            late = self.late and rnd.random() < 0.6
            from_ns = S + rnd.randint(0, end_ns // 3) if late else S - 50 * MS
            if late:
                self.events.append(DeviceFound(from_ns, card, self._finders(card.id)))
            else:
                self.devices.append(card)
            self._count(card, from_ns, end_ns + 200 * MS)
        for engine in self.engines:
            self._run(engine, layout, end_ns)
        if self.late:
            self.engines = [replace(e, devices=self._there(e)) for e in self.engines]
        self.events.sort(key=lambda e: e.t_ns)

    def disturb(self) -> None:
        """A few events come later than any window allows, and engines change device and model."""
        rnd = self._random
        lag = {id(e): rnd.randint(0, 400 * MS) for e in self.events if rnd.random() < 0.03}
        self.events.sort(key=lambda e: e.t_ns + lag.get(id(e), 0))
        for _ in range(4):
            place = rnd.randrange(len(self.events))
            engine = rnd.choice(self.engines)
            devices = tuple(f"GPU-{i}" for i in range(4) if rnd.random() < 0.5)
            info = replace(engine, devices=devices, model=rnd.choice(["m", "x", None]))
            what, t_ns = rnd.choice(["up", "ready", "info"]), self.events[place].t_ns
            self.events.insert(place, EngineEvent(engine.id, t_ns, what, info=info))

    def _there(self, engine: Engine) -> tuple[str, ...]:
        known = {device.id for device in self.devices}
        return tuple(id for id in engine.devices if id in known)

    def _finders(self, device: str) -> tuple[str, ...]:
        return tuple(e.id for e in self.engines if device in e.devices)

    def _count(self, card: Device, from_ns: int, end_ns: int) -> None:
        """A counter's readings: at any pace, now and then failing or starting over."""
        rnd, t, uj = self._random, from_ns, 10**9
        every_ms = rnd.choice([20, 100])
        while t < end_ns:
            failed = self.faulty and rnd.random() < 0.05
            missed = "counter_silent" if self.faulty and rnd.random() < 0.02 else None
            self.events.append(Reading(card.id, t, None if failed else uj, missed=missed))
            t += rnd.randint(every_ms // 2, 2 * every_ms) * MS
            uj += rnd.randint(0, 40_000_000)
            if self.faulty and rnd.random() < 0.02:
                uj = rnd.randint(0, 1000)

    def _run(self, engine: Engine, layout: Layout, end_ns: int) -> None:
        """Its steps: work, dummies where its ranks need them, waits, and what goes wrong."""
        rnd, now, seq, epoch, count = self._random, S, 0, 0, 0
        context: dict[str, int] = {}
        waves = layout.ep > 1 and engine.id != "other"
        while now < end_ns:
            if self.faulty and rnd.random() < 0.02:
                self.events.append(EngineEvent(engine.id, now, "down", epoch))
                context.clear()
                epoch, seq = epoch + 1, 0
                self.events.append(EngineEvent(engine.id, now + MS, "up", epoch))
                now += rnd.randint(1, 300) * MS
                self.events.append(EngineEvent(engine.id, now, "ready", epoch))
            if waves and not context and (self.only_dummies or rnd.random() < 0.7):
                for _ in range(rnd.randint(1, 12)):
                    start, now = now, now + rnd.randint(5, 50) * MS
                    step = Step(engine.id, epoch, max(0, seq - 1), start, now, (), dummy=True)
                    self.events.append(step)
                    now += rnd.choice([0, MS])
                continue
            if self.only_dummies and waves:
                now += 20 * MS
                continue
            if not context or rnd.random() < 0.2:
                request = f"{engine.id}-{count}"
                count, context[request] = count + 1, 0
                self.events.append(RequestOpened(engine.id, request, now, prompt_tokens=9))
            start = now + rnd.choice([0, 0, 3 * MS])
            end = start + rnd.randint(2, 60) * MS
            names = [r for r in context if rnd.random() < 0.9] or list(context)
            work = tuple(self._work(r, context[r]) for r in names)
            if not (self.faulty and rnd.random() < 0.05):
                self.events.append(Step(engine.id, epoch, seq, start, end, work))
            elif rnd.random() < 0.5:
                self.events.append(Gap(engine.id, end, epoch, seq, seq))
            seq += 1
            for w in work:
                context[w.request] += w.tokens
            for request in [r for r in names if rnd.random() < 0.15]:
                del context[request]
                self.events.append(RequestClosed(engine.id, request, end, "stop", 9, 0, 2))
            # Stages of a pipeline work on several steps at a time.
            now = end if layout.pp == 1 else start + (end - start) // layout.pp
            if not context and rnd.random() < 0.5:
                now = end + rnd.randint(1, 400) * MS

    def _work(self, request: str, seen: int) -> Work:
        rnd = self._random
        if not seen:
            return Work(request, rnd.randint(1, 900), 0, Phase.PREFILL)
        if rnd.random() < 0.05:
            return Work(request, seen, 0, Phase.RECOMPUTE, 0)
        if rnd.random() < 0.1:
            return Work(request, 4, seen, Phase.DECODE, rnd.randint(1, 4))
        return Work(request, 1, seen, Phase.DECODE)
