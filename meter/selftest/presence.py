"""In whose company a request ran: its parts of what its steps cost anyone alone.

Of the fixed part of a step with ``n`` requests each pays ``1/n``. The sum of these over a request's
steps is all that its company changes of its joules: requests that asked for the same, took as many
steps and have the same sum ran under the same load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from meter.attribution.batch import Batch, Direct, Joins, Leaves
from meter.model import Event, RequestClosed, Step


class Presence(NamedTuple):
    """``steps`` that a request was in, and the sum of ``1/n`` over them."""

    steps: int
    parts: float


def presence(events: Iterable[Event]) -> Mapping[tuple[str, str], Presence]:
    """By engine and the engine's own id of the request, of those that ended.

    Who was there while steps were lost is left out.
    """
    engines: dict[str, _Engine] = {}
    ours = [event for event in events if isinstance(event, Step | RequestClosed)]
    for event in sorted(ours, key=lambda e: (e.t_ns, isinstance(e, RequestClosed))):
        engine = engines.setdefault(event.engine, _Engine())
        if isinstance(event, RequestClosed):
            engine.closed(event.request)
        elif not event.dummy:
            engine.step(event)
    return {
        (id, request): found for id, engine in engines.items() for request, found in engine.found()
    }


class _Engine:
    """Stretches of passes that each request was in, and how many were in each pass."""

    def __init__(self) -> None:
        self._batch = Batch()
        self._participants: list[int] = []
        self._since: dict[str, int] = {}
        self._stretches: dict[str, list[tuple[int, int]]] = {}
        self._ended: list[str] = []
        self._lost: set[str] = set()
        self._next: tuple[int, int] | None = None

    def step(self, step: Step) -> None:
        if self._next not in (None, (step.epoch, step.seq)):
            self._lost.update(self._batch.forget())
            self._since.clear()
        self._next = (step.epoch, step.seq + 1)
        done = self._batch.apply(step, self._batch.news(step), 0)
        if done is None:
            return
        row, changes = done
        self._participants.append(max(1, row.participants))
        for change in changes:
            if isinstance(change, Leaves):
                self._leave(change.request, change.k)
            elif isinstance(change, Joins):
                self._since[change.request] = change.k
            elif isinstance(change, Direct):
                self._keep(change.work.request, change.k, change.k + 1)

    def closed(self, request: str) -> None:
        self._batch.remove(request)
        self._leave(request, self._batch.passes)
        self._ended.append(request)

    def found(self) -> Iterable[tuple[str, Presence]]:
        sums = np.concatenate(([0.0], np.cumsum(1.0 / np.array(self._participants))))
        for request in self._ended:
            if request in self._lost:
                continue
            stretches = self._stretches.get(request, [])
            parts = sum(float(sums[end] - sums[start]) for start, end in stretches)
            yield request, Presence(sum(end - start for start, end in stretches), parts)

    def _leave(self, request: str, k: int) -> None:
        since = self._since.pop(request, None)
        if since is not None:
            self._keep(request, since, k)

    def _keep(self, request: str, start: int, end: int) -> None:
        self._stretches.setdefault(request, []).append((start, end))
