"""What stands at the engine's edges in tests: a wire, a card and a clock that only remember."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ListWire:
    """A wire that keeps what it is told, in order: ``(what, *arguments)``."""

    wants_full: bool = False
    told: list[tuple[Any, ...]] = field(default_factory=list)
    flushes: int = 0

    def hello(self, facts: Mapping[str, object], event: str = "ready") -> None:
        self.told.append(("hello", event))

    def opened(
        self,
        t_ns: int,
        request: str,
        parent: str | None = None,
        prompt_tokens: int | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> None:
        self.told.append(("opened", t_ns, request, parent, prompt_tokens, tenant))

    def step(
        self,
        seq: int,
        t0_ns: int,
        t1_ns: int,
        work: Sequence[Sequence[object]],
        same: bool = False,
        drop: Sequence[str] = (),
    ) -> None:
        self.told.append(("step", seq, t0_ns, t1_ns, list(work), same, list(drop)))

    def closed(
        self,
        t_ns: int,
        request: str,
        reason: str | None,
        prompt: int | None = None,
        cached: int | None = None,
        completion: int | None = None,
    ) -> None:
        self.told.append(("closed", t_ns, request, reason, prompt, cached, completion))

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        self.told.append(("down",))

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [row[1:] for row in self.told if row[0] == what]


class MemoryCard:
    """Remembers what was posted; its energy is the integral of that."""

    def __init__(self) -> None:
        self.posts: list[tuple[int, float]] = []

    def post(self, device: int, power_w: float, t_ns: int | None = None) -> None:
        assert device == 0
        assert t_ns is not None
        assert not self.posts or t_ns >= self.posts[-1][0]
        self.posts.append((t_ns, power_w))

    def energy_j(self, end_ns: int) -> float:
        ends = [t for t, _ in self.posts[1:]] + [end_ns]
        return sum(w * (end - t) / 1e9 for (t, w), end in zip(self.posts, ends, strict=True))


class StepClock:
    """Time that only passes when somebody sleeps, and a little at every look.

    ``late_ns``: how long after the deadline a sleeper wakes.
    """

    def __init__(self, look_ns: int = 20_000, late_ns: int = 150_000) -> None:
        self.t_ns = 10**9
        self._look_ns = look_ns
        self._late_ns = late_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        with self._lock:
            self.t_ns += self._look_ns
            return self.t_ns

    def sleep_until(self, t_ns: int) -> None:
        with self._lock:
            self.t_ns = max(self.t_ns, t_ns) + self._late_ns
