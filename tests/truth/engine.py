"""A continuous-batching engine's scheduler: which tokens each step computes, and for whom.

As vLLM's: those who decode come first, then chunks of prompts as the token budget allows, first
come first served. Where the KV cache is full, the youngest is preempted and later computed again.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tests.truth.costs import DECODE, KEPT, PHASE, PREFILL, RECOMPUTE, WHO, Ints
from tests.truth.workload import Requests


@dataclass(frozen=True, slots=True)
class Limits:
    """``budget``: tokens a step; ``drafts``: tokens guessed ahead each step, each accepted with
    probability ``accept``; ``overrun``: share of requests whose end is seen one step late;
    ``prefill_only``: every request is done with its prompt (and hands over, or is an embedding).
    """

    budget: int = 1024
    seqs: int = 256
    kv_tokens: int = 380_000
    drafts: int = 0
    accept: float = 0.7
    overrun: float = 0.0
    prefill_only: bool = False


class Closing(NamedTuple):
    """The end of a request on an engine."""

    t_s: float
    who: int
    reason: str
    completion: int


class Scheduler:
    """Holds the requests of one engine; ``batch`` and ``finish`` take turns.

    ``opened`` and ``closed`` are what happened, in order of time. ``computed``, ``emitted``: tokens
    so far, by request.
    """

    def __init__(self, requests: Requests, limits: Limits, rng: np.random.Generator) -> None:
        count = len(requests)
        self.requests = requests
        self.limits = limits
        self.opened: list[tuple[float, int]] = []
        self.closed: list[Closing] = []
        self.preemptions = 0
        self.computed = np.zeros(count, dtype=np.int64)
        self.emitted = np.zeros(count, dtype=np.int64)
        self._rng = rng
        self._redo = np.zeros(count, dtype=np.int64)
        self._arrivals: list[tuple[float, int]] = []
        self._aborts: list[tuple[float, int]] = []
        self._waiting: deque[int] = deque()
        self._started: list[int] = []
        self._decoding: list[int] = []
        self._ghosts: list[int] = []
        self._ghosts_now = 0

    @property
    def holds(self) -> bool:
        """Whether there is anything to compute but for those still to come."""
        return bool(self._waiting or self._started or self._decoding or self._ghosts)

    @property
    def next_arrival_s(self) -> float:
        return self._arrivals[0][0] if self._arrivals else math.inf

    def submit(self, t_s: float, who: int, computed: int = 0) -> None:
        """A request will arrive; ``computed``: tokens whose KV comes with it."""
        self.computed[who] = computed
        self.emitted[who] = 1 if computed else 0
        heapq.heappush(self._arrivals, (t_s, who))

    # --- a step begins

    def batch(self, now_s: float) -> Ints:
        """The rows of the step that is scheduled now; none where nobody is left."""
        self._admit(now_s)
        self._abort(now_s)
        evicted = self._make_room()
        decodes = self._decode_rows()
        budget = self.limits.budget - int(decodes[:, 1].sum())
        rows = self._chunks(budget, new=not evicted)
        rows += [(who, 1, int(self.computed[who]), DECODE, -1) for who in self._ghosts]
        self._ghosts_now = len(self._ghosts)
        self._ghosts = []
        if not rows:
            return decodes
        return np.concatenate((decodes, np.array(rows, dtype=np.int64)))

    def _admit(self, now_s: float) -> None:
        while self._arrivals and self._arrivals[0][0] <= now_s:
            t_s, who = heapq.heappop(self._arrivals)
            self.opened.append((t_s, who))
            if self.computed[who]:
                self._decoding.append(who)
            else:
                self._waiting.append(who)
            if math.isfinite(self.requests.abort_s[who]):
                heapq.heappush(self._aborts, (float(self.requests.abort_s[who]), who))

    def _abort(self, now_s: float) -> None:
        while self._aborts and self._aborts[0][0] <= now_s:
            _, who = heapq.heappop(self._aborts)
            held = next((q for q in self._queues() if who in q), None)
            if held is not None:
                held.remove(who)
                self._close(now_s, who, "abort")

    def _queues(self) -> tuple[deque[int] | list[int], ...]:
        return (self._waiting, self._started, self._decoding)

    def _room(self) -> int:
        held = np.array(self._decoding + self._started, dtype=np.int64)
        return self.limits.kv_tokens - int(self.computed[held].sum())

    def _make_room(self) -> bool:
        """Preempt the youngest until everybody's next token has a place."""
        grows = 1 + self.limits.drafts
        evicted = False
        while len(self._decoding) > 1 and self._room() < grows * len(self._decoding):
            who = self._decoding.pop()
            self._redo[who] = max(self._redo[who], self.computed[who])
            self.computed[who] = 0
            self._waiting.appendleft(who)
            self.preemptions += 1
            evicted = True
        return evicted

    def _decode_rows(self) -> Ints:
        who = np.array(self._decoding, dtype=np.int64)
        rows = np.empty((len(who), 5), dtype=np.int64)
        rows[:, WHO] = who
        rows[:, 1] = 1 + self.limits.drafts
        rows[:, 2] = self.computed[who]
        rows[:, PHASE] = DECODE
        rows[:, KEPT] = self._kept(who) if self.limits.drafts else -1
        return rows

    def _kept(self, who: Ints) -> Ints:
        """One token and the drafts accepted before the first that is not; never beyond the end."""
        taken = self._rng.random((len(who), self.limits.drafts)) < self.limits.accept
        kept = 1 + np.cumprod(taken, axis=1).sum(axis=1)
        return np.asarray(np.minimum(kept, self.requests.wanted[who] - self.emitted[who]))

    def _chunks(self, budget: int, new: bool) -> list[tuple[int, int, int, int, int]]:
        room = self._room() - (1 + self.limits.drafts) * len(self._decoding)
        rows = []
        for who in self._prompts(new):
            tokens = min(budget, room, self._goal(who) - int(self.computed[who]))
            if tokens <= 0:
                break
            context = int(self.computed[who])
            phase = RECOMPUTE if context < self._redo[who] else PREFILL
            rows.append((who, tokens, context, phase, -1))
            budget, room = budget - tokens, room - tokens
            if who not in self._started:
                self._waiting.popleft()
                self._started.append(who)
        return rows

    def _prompts(self, new: bool) -> list[int]:
        """Whose prompt comes next, in order. A fresh one begins behind what the cache holds."""
        free = self.limits.seqs - len(self._decoding) - len(self._started)
        waiting = [self._waiting[i] for i in range(min(free, len(self._waiting), 64))]
        for who in waiting:
            if not self._redo[who]:
                self.computed[who] = self.requests.cached[who]
        return self._started + (waiting if new else [])

    def _goal(self, who: int) -> int:
        return int(self.requests.prompt[who] + self.emitted[who])

    # --- a step ends

    def finish(self, rows: Ints, t_s: float) -> None:
        """The step with these rows is done."""
        rows = rows[: len(rows) - self._ghosts_now]
        decodes = rows[rows[:, PHASE] == DECODE]
        who = decodes[:, WHO]
        kept = np.maximum(decodes[:, KEPT], 1)
        self.computed[who] += kept
        self.emitted[who] += kept
        for done in who[self.emitted[who] >= self.requests.wanted[who]].tolist():
            self._decoding.remove(done)
            self._end(t_s, done)
        for row in rows[rows[:, PHASE] != DECODE].tolist():
            self._chunk_done(row, t_s)

    def _chunk_done(self, row: list[int], t_s: float) -> None:
        who = row[WHO]
        self.computed[who] += row[1]
        if self.computed[who] < self._goal(who):
            return
        self._started.remove(who)
        self.emitted[who] += int(self.requests.wanted[who] > 0)
        if self.limits.prefill_only or self.emitted[who] >= self.requests.wanted[who]:
            self._close(t_s, who, "stop")
        else:
            self._decoding.append(who)

    def _end(self, t_s: float, who: int) -> None:
        self._close(t_s, who, "stop")
        if self._rng.random() < self.limits.overrun:
            self._ghosts.append(who)

    def _close(self, t_s: float, who: int, reason: str) -> None:
        self.closed.append(Closing(t_s, who, reason, int(self.emitted[who])))
