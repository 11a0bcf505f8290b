"""The engine's thread: pass after pass in real time, on the simulated card.

A pass begins when it is scheduled. The card then draws the step's power for the step's duration and
static power from there on, both posted at once: a card does not wait for its host. The thread
sleeps to that absolute deadline, and the step ends when it wakes, as an engine's step ends when its
output is on the host. Requests arrive and leave between passes only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meter.demo.announce import Announcer
from meter.demo.engine import Engine, EngineRequest, Token
from meter.demo.physics import NS, Physics
from meter.demo.truth import Truth
from meter.model import Work


class Card(Protocol):
    """The simulated card (``meter.demo.card.Card``): from ``t_ns`` on it draws ``power_w``."""

    def post(self, device: int, power_w: float, t_ns: int | None = None) -> None: ...


class NoCard:
    """For an engine that nobody meters."""

    def post(self, device: int, power_w: float, t_ns: int | None = None) -> None:
        """Nothing draws power."""


class Time(Protocol):
    """``CLOCK_MONOTONIC`` in ns, and sleep up to a time on it."""

    def now_ns(self) -> int: ...
    def sleep_until(self, t_ns: int) -> None: ...


class RealTime:
    """The machine's."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, t_ns: int) -> None:
        while (left_ns := t_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / NS)


@dataclass(slots=True, eq=False)
class Job:
    """A request, and who asked for it. ``parent``: the id that the client sees."""

    request: EngineRequest
    parent: str
    tenant: str | None = None
    cancelled: bool = False


Deliver = Callable[[list[Token]], None]


class EngineLoop:
    """Owns the engine. ``deliver`` is called in its thread, once after each pass."""

    def __init__(
        self,
        engine: Engine,
        physics: Physics,
        card: Card,
        announcer: Announcer,
        truth: Truth,
        deliver: Deliver,
        clock: Time | None = None,
    ) -> None:
        self._engine = engine
        self._physics = physics
        self._card = card
        self._announcer = announcer
        self._truth = truth
        self._deliver = deliver
        self._clock = clock or RealTime()
        self._jobs: dict[int, Job] = {}  # id(request) -> job
        self._held_since_ns: int | None = None
        self._added: list[Job] = []
        self._aborted: list[Job] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.failure: BaseException | None = None

    # --- any thread

    @property
    def running(self) -> int:
        return len(self._engine.running)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def submit(self, jobs: Iterable[Job]) -> None:
        """Take jobs, all between the same two passes. They were checked (``Engine.check``)."""
        with self._changed:
            self._added.extend(jobs)
            self._changed.notify()

    def abort(self, jobs: Iterable[Job]) -> None:
        """Give up jobs; those that have ended stay ended."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                self._aborted.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Abort everything and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # --- the engine's thread

    def run(self) -> None:
        """Until ``stop``."""
        try:
            while not self._stopping:
                self._wait()
                if not self._engine.empty:
                    self._pass()
        except BaseException as failure:
            self.failure = failure
            raise
        finally:
            self._end()

    def _wait(self) -> None:
        """Wait for work where there is none, and let in what came."""
        with self._changed:
            while self._engine.empty and not self._added and not self._stopping:
                self._aborted.clear()
                self._changed.wait()
        self._admit()

    def _pass(self) -> None:
        work = self._engine.schedule()
        cost = self._physics.cost(work)
        requests = [row.request for row in work]
        t0_ns = self._clock.now_ns()
        planned_ns = t0_ns + cost.duration_ns
        self._card.post(0, cost.power_w, t0_ns)
        self._card.post(0, self._physics.hardware.static_w, planned_ns)
        self._clock.sleep_until(planned_ns)
        t1_ns = self._clock.now_ns()
        self._truth.step(requests, cost.shares_j)
        self._wait_time(requests, t0_ns - (self._held_since_ns or t0_ns))
        self._wait_time(requests, t1_ns - planned_ns)
        self._finish_pass(t0_ns, t1_ns, work)

    def _wait_time(self, requests: list[str], waited_ns: int) -> None:
        static_w = self._physics.hardware.static_w
        self._truth.waited(requests, static_w * waited_ns / NS)

    def _finish_pass(self, t0_ns: int, t1_ns: int, work: Sequence[Work]) -> None:
        """The output is there: tell it, let go of who ended, let in who came."""
        self._announcer.step(t0_ns, t1_ns, work)
        self._drop_aborted(t1_ns)
        tokens = self._engine.complete()
        for token in tokens:
            if token.finished:
                self._close(token.request, t1_ns, token.finished)
        self._held_since_ns = None if self._engine.empty else t1_ns
        self._announcer.wire.flush()
        self._deliver(tokens)

    def _admit(self) -> None:
        with self._changed:
            added, self._added = self._added, []
        for job in added:
            if not job.cancelled:
                self._open(job)
        if added:
            self._announcer.wire.flush()

    def _open(self, job: Job) -> None:
        now_ns = self._clock.now_ns()
        if self._held_since_ns is None:
            self._held_since_ns = now_ns
        request = job.request
        self._jobs[id(request)] = job
        self._truth.opened(request.id, job.parent)
        self._announcer.wire.opened(
            now_ns, request.id, job.parent, len(request.prompt), None, job.tenant
        )
        self._engine.add(request)

    def _drop_aborted(self, t_ns: int) -> None:
        with self._changed:
            aborted, self._aborted = self._aborted, []
        for job in aborted:
            if self._engine.abort(job.request):
                self._close(job.request, t_ns, "abort")

    def _close(self, request: EngineRequest, t_ns: int, reason: str) -> None:
        del self._jobs[id(request)]
        self._truth.closed(request.id)
        self._announcer.closed(
            t_ns, request.id, reason, len(request.prompt), request.cached, request.emitted
        )

    def _end(self) -> None:
        now_ns = self._clock.now_ns()
        for job in list(self._jobs.values()):
            self._engine.abort(job.request)
            self._close(job.request, now_ns, "abort")
        self._announcer.wire.close()
