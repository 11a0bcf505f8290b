"""The true joules of each request, from what the worker's hook posted and when.

Nothing of the meter is used here: the hook's log says at which power the card ran and how its own
models split each step; of the recorded trace only the lines are read that say from when to when
the engine held each request (and whose child it is).

* **Dynamic energy** of a step, ``(power - static) * real seconds``: its fixed part in equal parts
  among those in the step, the rest in proportion to the model's own joules of each.
* **Static power over a step**: in the proportion of the expected seconds, the fixed ones in equal
  parts, each its own.
* **Gaps**, while the engine holds unfinished requests: in equal parts among those in the next step.
  What remains after the last step before the engine is empty is that step's.
* Everything else is **idle**.

Joules, seconds, watts; times in ns of ``CLOCK_MONOTONIC``.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """One request in a step, with the hook's own terms for it."""

    request: str
    tokens: int
    context: int
    prefill: int
    own_j: float
    own_s: float


@dataclass(frozen=True)
class LoggedStep:
    """One line of the hook's log."""

    t0_ns: int
    t1_ns: int
    power_w: float
    static_w: float
    after_w: float
    fixed_j: float
    fixed_s: float
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return (self.t1_ns - self.t0_ns) / 1e9


class Life(NamedTuple):
    """From when to when the engine held a request; ``parent`` is the id its client knows."""

    request: str
    parent: str
    opened_ns: int
    closed_ns: int


@dataclass
class Truth:
    """True joules by the client's id (and their part in prefill), of idle, and in all."""

    requests_j: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    prefill_j: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gaps_j: float = 0.0
    idle_j: float = 0.0
    total_j: float = 0.0

    def as_json(self) -> dict[str, object]:
        return {
            "requests": dict(self.requests_j),
            "prefill": dict(self.prefill_j),
            "gaps_j": self.gaps_j,
            "idle_j": self.idle_j,
            "total_j": self.total_j,
        }


def read_log(path: Path) -> list[LoggedStep]:
    """The hook's log, in order of time. A last line cut short by the engine's end is left out."""
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            parts = tuple(Part(*part) for part in row.pop("work"))
            steps.append(LoggedStep(parts=parts, **row))
    return sorted(steps, key=lambda step: step.t0_ns)


def read_lives(trace: Path) -> list[Life]:
    """When the engine held each request, from the request lines of a trace (plain or gzip)."""
    opener = gzip.open if trace.suffix == ".gz" else open
    opened: dict[str, tuple[str, int]] = {}
    lives = []
    with opener(trace, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["type"] != "request":
                continue
            t_ns = round(row["t"] * 1e9)
            if row["event"] == "open":
                opened[row["id"]] = (row.get("parent") or row["id"], t_ns)
            elif row["id"] in opened:
                parent, opened_ns = opened.pop(row["id"])
                lives.append(Life(row["id"], parent, opened_ns, t_ns))
    end_ns = max((life.closed_ns for life in lives), default=0)
    left = (Life(r, parent, t_ns, max(t_ns, end_ns)) for r, (parent, t_ns) in opened.items())
    return [*lives, *left]


def true_joules(
    steps: Sequence[LoggedStep],
    lives: Iterable[Life],
    start_ns: int,
    end_ns: int,
    before_w: float,
) -> Truth:
    """Split all that the card drew from ``start_ns`` to ``end_ns``.

    ``before_w`` is its power before the first step. Steps lie within the two times.
    """
    lives = list(lives)
    split = _Split(
        {life.request: life.parent for life in lives},
        list(_union((life.opened_ns, life.closed_ns) for life in lives)),
    )
    since_ns, gap_w, previous = start_ns, before_w, None
    for step in steps:
        split.gap((since_ns, step.t0_ns), gap_w, previous, step)
        split.step(step)
        since_ns, gap_w, previous = step.t1_ns, step.after_w, step
    split.gap((since_ns, end_ns), gap_w, previous, None)
    return split.truth


@dataclass
class _Split:
    """Gives each stretch of time to whose it is. ``held``: when the engine was not empty."""

    parents: dict[str, str]
    held: Sequence[tuple[int, int]]
    truth: Truth = field(default_factory=Truth)

    def step(self, step: LoggedStep) -> None:
        for part, joules in _step_shares(step):
            self._give(part, joules)
        self.truth.total_j += step.power_w * step.seconds

    def gap(
        self,
        span: tuple[int, int],
        power_w: float,
        before: LoggedStep | None,
        after: LoggedStep | None,
    ) -> None:
        """The time between two steps: to the requests that it belongs to; the rest is idle."""
        start_ns, end_ns = span
        busy_s = 0.0
        for from_ns, to_ns in self.held:
            overlap_s = (min(to_ns, end_ns) - max(from_ns, start_ns)) / 1e9
            is_tail = from_ns <= start_ns and to_ns < end_ns
            owner = before if is_tail or after is None else after
            if overlap_s <= 0 or owner is None:
                continue
            busy_s += overlap_s
            for part in owner.parts:
                self._give(part, power_w * overlap_s / len(owner.parts))
        all_s = (end_ns - start_ns) / 1e9
        self.truth.gaps_j += power_w * busy_s
        self.truth.idle_j += power_w * (all_s - busy_s)
        self.truth.total_j += power_w * all_s

    def _give(self, part: Part, joules: float) -> None:
        client = self.parents.get(part.request, part.request)
        self.truth.requests_j[client] += joules
        self.truth.prefill_j[client] += joules if part.prefill else 0.0


def _step_shares(step: LoggedStep) -> Iterator[tuple[Part, float]]:
    """What each part took within the step, gaps aside. The shares sum to power x time."""
    count = len(step.parts)
    dynamic_j = (step.power_w - step.static_w) * step.seconds
    static_j = step.static_w * step.seconds
    model_j = step.fixed_j + sum(part.own_j for part in step.parts)
    model_s = step.fixed_s + sum(part.own_s for part in step.parts)
    for part in step.parts:
        of_dynamic = (step.fixed_j / count + part.own_j) / model_j
        of_static = (step.fixed_s / count + part.own_s) / model_s
        yield part, dynamic_j * of_dynamic + static_j * of_static


def _union(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The times that at least one span covers, as disjoint spans in order."""
    current: tuple[int, int] | None = None
    for start_ns, end_ns in sorted(spans):
        if current is None or start_ns > current[1]:
            if current is not None:
                yield current
            current = (start_ns, end_ns)
        else:
            current = (current[0], max(current[1], end_ns))
    if current is not None:
        yield current


def main(log: str, trace: str, out: str) -> None:
    """Write the truth of a run: ``python truth.py HOOK_LOG TRACE OUT``."""
    steps = read_log(Path(log))
    truth = true_joules(
        steps, read_lives(Path(trace)), steps[0].t0_ns, steps[-1].t1_ns, steps[0].static_w
    )
    Path(out).write_text(json.dumps(truth.as_json(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
