"""Busy engines for the benchmarks of the core: cheap to make, true to the cost model.

Each engine computes a fixed number of running requests in every step. At a steady pace requests
end, picked at random, and others take their place with a chunk or two of prefill. Its card draws
what the cost model of the demo's card says (with noise a step), scaled so that the mean step takes
``Load.step_s``; the card's counter moves at its own tick and is polled more often. As in the core,
members are never looked at one by one, so that an hour of a big fleet is made in a minute.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meter.attribution import Attributor
from meter.demo.physics import Hardware, Terms
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

START_NS = 1_000_000_000
CHUNK = 512
PROMPTS = (120, 300, 700, 1000)
_PROMPT_MEAN = sum(PROMPTS) / len(PROMPTS)
_PAIRS_MEAN = sum(n * (n + 1) / 2 for n in PROMPTS) / len(PROMPTS)
_CARD = Hardware()
_LATENCY_S = 40e-6
_JITTER_NS = 1_000_000
_TENANTS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What one engine does: ``running`` requests in each step, ``turnover_per_s`` of them replaced
    a second; steps of ``step_s`` on average with ``gap_s`` between them; a counter that moves every
    ``refresh_s`` and is read every ``poll_s``."""

    running: int = 1024
    turnover_per_s: float = 51.2
    step_s: float = 0.025
    gap_s: float = 0.0002
    refresh_s: float = 0.1
    poll_s: float = 0.02
    change_form: bool = True


@dataclass(slots=True)
class _Waiting:
    """A request whose prompt is not computed yet."""

    id: str
    prompt: int
    computed: int = 0


class EngineLoad:
    """One engine and its card, played on and on. ``energy_j``: what the card drew up to now."""

    def __init__(self, name: str, load: Load, seed: int = 0) -> None:
        self.load = load
        self.device = _device(name)
        self.engine = _engine(name, self.device)
        self.energy_j = 0.0
        self.steps = self.opened = self.closed = 0
        self._random = random.Random(f"{name} {seed}")
        self._now_ns = START_NS
        self._events: list[Event] = []
        self._members: list[str] = []
        self._offset: dict[str, int] = {}  # a member's context, less the number of the step
        self._prompt: dict[str, int] = {}
        self._offset_sum = 0
        self._waiting: list[_Waiting] = []
        self._due = 0.0
        self._tick_ns = START_NS + round(self._random.random() * load.refresh_s * 1e9)
        self._poll = 0
        self._poll_ns = START_NS
        self._shown_uj = 10**12
        self._scale = load.step_s - load.gap_s
        self._scale /= self._usual(_CARD.seconds)
        self._begin()

    def until(self, t_ns: int) -> list[Event]:
        """Play to ``t`` and a little beyond; the events, in order but for opens and readings."""
        while self._now_ns < t_ns:
            self._step()
        events, self._events = self._events, []
        return events

    # --- requests

    def _begin(self) -> None:
        """Requests in mid-stream, as old as they are on average at this turnover."""
        load = self.load
        life = load.running / load.turnover_per_s / load.step_s
        for _ in range(load.running):
            self._open(START_NS)
        for request in self._waiting:
            age = int(self._random.expovariate(1 / life))
            self._join(request.id, request.prompt + age)
        self._waiting.clear()

    def _open(self, t_ns: int) -> None:
        id = f"{self.engine.id}-{self.opened}"
        prompt = self._random.choice(PROMPTS)
        tenant = f"tenant-{self.opened % _TENANTS}"
        self.opened += 1
        self._prompt[id] = prompt
        self._waiting.append(_Waiting(id, prompt))
        self._events.append(
            RequestOpened(self.engine.id, id, t_ns, None, tenant, f"cmpl-{id}", prompt)
        )

    def _join(self, id: str, context: int) -> None:
        self._members.append(id)
        self._offset[id] = context - self.steps
        self._offset_sum += context - self.steps

    def _close(self, t_ns: int) -> None:
        """One member, picked at random, is done."""
        members = self._members
        place = int(self._random.random() * len(members))
        members[place], members[-1] = members[-1], members[place]
        id = members.pop()
        offset, prompt = self._offset.pop(id), self._prompt.pop(id)
        self._offset_sum -= offset
        self.closed += 1
        emitted = offset + self.steps - prompt + 1
        self._events.append(RequestClosed(self.engine.id, id, t_ns, "stop", prompt, 0, emitted))

    # --- steps

    def _step(self) -> None:
        load = self.load
        k, start = self.steps, self._now_ns + round(load.gap_s * 1e9)
        work, same = self._work(k)
        seconds = self._priced(_CARD.seconds, work) * self._factor()
        joules = self._priced(_CARD.joules, work) * self._factor()
        end = start + round(seconds * 1e9)
        self._draw(self._now_ns, start, _CARD.static_w)
        self._draw(start, end, _CARD.static_w + joules / seconds)
        told = work if same else [*self._plain(k, {w.request for w in work}), *work]
        self._events.append(Step(self.engine.id, 0, k, start, end, tuple(told), same))
        self._now_ns = end
        self.steps += 1
        self._due += load.turnover_per_s * (end - start) / 1e9 + load.turnover_per_s * load.gap_s
        while self._due >= 1 and self._members:
            self._due -= 1
            self._close(end)
            self._open(round(self._random.uniform(start, end)))

    def _work(self, k: int) -> tuple[list[Work], bool]:
        """The work that no change form implies, and whether there is a step before to imply it."""
        work: list[Work] = []
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            left = request.prompt - request.computed
            if left:
                tokens = min(CHUNK, left)
                work.append(Work(request.id, tokens, request.computed, Phase.PREFILL))
                request.computed += tokens
                self._waiting.append(request)
            else:
                work.append(Work(request.id, 1, request.prompt, Phase.DECODE))
                self._join(request.id, request.prompt)
        return work, self.load.change_form and k > 0

    def _plain(self, k: int, named: set[str]) -> Iterator[Work]:
        for id in self._members:
            if id not in named:
                yield Work(id, 1, self._offset[id] + k, Phase.DECODE)

    # --- the card

    def _usual(self, terms: Terms) -> float:
        """What a step costs on average (unscaled)."""
        load = self.load
        arrivals = load.turnover_per_s * load.step_s
        context = _PROMPT_MEAN + load.running / arrivals
        own = terms.prompt * _PROMPT_MEAN + terms.pair * _PAIRS_MEAN
        each = terms.decode + terms.context * context
        return terms.step + arrivals * own + load.running * each

    def _priced(self, terms: Terms, work: Sequence[Work]) -> float:
        members = len(self._members)
        context = self._offset_sum + self.steps * members
        chunks = sum(terms.own(w) for w in work if w.phase is Phase.PREFILL)
        plain = terms.decode * members + terms.context * context
        return self._scale * (terms.step + chunks + plain)

    def _factor(self) -> float:
        return max(0.5, self._random.gauss(1.0, _CARD.noise))

    def _draw(self, start_ns: int, end_ns: int, power_w: float) -> None:
        """The card draws so much; its counter ticks and is polled meanwhile."""
        load = self.load
        while min(self._tick_ns, self._poll_ns) <= end_ns:
            if self._tick_ns <= self._poll_ns:
                drawn_j = self.energy_j + power_w * (self._tick_ns - start_ns) / 1e9
                self._shown_uj = 10**12 + 1000 * int(1000 * drawn_j)
                self._tick_ns += round(load.refresh_s * 1e9)
            else:
                t_ns, shown_uj = self._poll_ns, self._shown_uj
                self._events.append(
                    Reading(self.device.id, t_ns, shown_uj, power_w, _LATENCY_S, 0.0)
                )
                self._poll += 1
                jitter_ns = round(_JITTER_NS * self._random.random())
                self._poll_ns = START_NS + round(self._poll * load.poll_s * 1e9) + jitter_ns
        self.energy_j += power_w * (end_ns - start_ns) / 1e9


class Fleet:
    """Engines side by side, their events in order of time."""

    def __init__(self, load: Load, engines: int = 1, seed: int = 0) -> None:
        self.engines = [EngineLoad(str(i), load, seed) for i in range(engines)]
        self._until_ns = START_NS
        self._left: list[Event] = []

    @property
    def steps(self) -> int:
        return sum(engine.steps for engine in self.engines)

    @property
    def closed(self) -> int:
        return sum(engine.closed for engine in self.engines)

    def core(self) -> Attributor:
        """A core that meters this fleet."""
        return Attributor([e.device for e in self.engines], [e.engine for e in self.engines])

    def block(self, seconds: float) -> list[Event]:
        """The events of the next seconds."""
        self._until_ns += round(seconds * 1e9)
        events = self._left
        for engine in self.engines:
            events.extend(engine.until(self._until_ns))
        events.sort(key=_t_ns)
        cut = bisect_left(events, self._until_ns, key=_t_ns)
        self._left = events[cut:]
        del events[cut:]
        return events


def _t_ns(event: Event) -> int:
    return event.t_ns


def _device(name: str) -> Device:
    return Device(
        id=f"GPU-{name}",
        name="NVIDIA H100 80GB HBM3",
        quality=Quality.SIMULATED,
        index=name,
        mem_bandwidth=3.35e12,
        power_limit_w=700.0,
    )


def _engine(name: str, device: Device) -> Engine:
    """An 8B model in bf16, with all that its configuration tells."""
    return Engine(
        id=name,
        devices=(device.id,),
        model="llama-8b",
        params=8.0e9,
        active_params=8.0e9,
        weight_bytes=16.0e9,
        kv_bytes_per_token=131072.0,
        layers=32,
        heads=32,
        head_dim=128,
    )
