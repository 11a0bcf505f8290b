"""Who asks for what, and when: lengths, mixes, and a rate of arrivals that changes over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tests.truth.costs import Array, Ints

_BLOCK = 16


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, rng: np.random.Generator, count: int) -> Ints: ...


@dataclass(frozen=True, slots=True)
class Uniform:
    low: int
    high: int

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return rng.integers(self.low, self.high + 1, count)


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[int, ...]

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return rng.choice(np.array(self.values, dtype=np.int64), count)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """``median`` tokens, ``sigma`` in natural logarithms, cut at ``low`` and ``high``."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(count))
        return np.clip(drawn, self.low, self.high).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Either:
    """``rare`` with probability ``share``, else ``usual``."""

    usual: Lengths
    rare: Lengths
    share: float

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        is_rare = rng.random(count) < self.share
        return np.where(is_rare, self.rare.draw(rng, count), self.usual.draw(rng, count))


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests are like.

    ``cached``: share of requests that find part of their prompt in the prefix cache; ``aborted``:
    share that goes away; ``adapters``: what a request costs more, by adapter (1: none).
    """

    prompt: Lengths = field(default=LogNormal(400, 1.1, 8, 8000))
    output: Lengths = field(default=LogNormal(110, 0.8, 1, 800))
    cached: float = 0.0
    aborted: float = 0.0
    adapters: tuple[float, ...] = (1.0,)
    tenants: tuple[str, ...] = ("acme", "blue", "cobalt", "delta")


@dataclass(frozen=True, slots=True)
class Profile:
    """A rate of arrivals (per second) over time: spells of ``(seconds, rate)``, again and again."""

    spells: tuple[tuple[float, float], ...]

    def times(self, rng: np.random.Generator, start_s: float, end_s: float) -> Array:
        """When requests arrive between ``start_s`` and ``end_s``."""
        edges, expected = self._expected(start_s, end_s)
        arrivals = np.cumsum(rng.exponential(size=round(2 * expected[-1]) + 50))
        return np.asarray(np.interp(arrivals[arrivals < expected[-1]], expected, edges))

    def _expected(self, start_s: float, end_s: float) -> tuple[Array, Array]:
        """How many are expected by each change of the rate."""
        edges, expected = [start_s], [0.0]
        while edges[-1] < end_s:
            for seconds, rate in self.spells:
                length = min(seconds, end_s - edges[-1])
                edges.append(edges[-1] + length)
                expected.append(expected[-1] + length * max(rate, 1e-9))
        return np.array(edges), np.array(expected)


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests of a run, as columns. ``abort_s``: when one goes away (infinite: never).

    ``weight``: how much more its own work costs than plain work (its adapter).
    """

    arrival_s: Array
    prompt: Ints
    cached: Ints
    wanted: Ints
    abort_s: Array
    weight: Array
    tenant: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrival_s)

    def id(self, who: int) -> str:
        return f"r{who}"


def ask(rng: np.random.Generator, mix: Mix, arrival_s: Array) -> Requests:
    """Requests of this mix, arriving at these times."""
    count = len(arrival_s)
    prompt = mix.prompt.draw(rng, count)
    part = np.where(rng.random(count) < mix.cached, rng.uniform(0.2, 0.95, count), 0.0)
    gone = rng.random(count) < mix.aborted
    stays_s = np.where(gone, rng.exponential(1.5, count), np.inf)
    return Requests(
        arrival_s=arrival_s,
        prompt=prompt,
        cached=np.minimum((part * prompt).astype(np.int64) // _BLOCK * _BLOCK, prompt - 1),
        wanted=mix.output.draw(rng, count),
        abort_s=arrival_s + stays_s,
        weight=rng.choice(np.array(mix.adapters), count),
        tenant=tuple(rng.choice(np.array(mix.tenants), count).tolist()),
    )
