"""``/v1/live``: what happens now, as server-sent events, a few times a second.

Each message is whole (a client may miss any), but for ``moments``: the first message has the last
minutes, later ones what came since. The requests under way are asked of the writer, once for all
watchers, only while somebody watches, and for at most a fiftieth of its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool

from meter.export.moments import ACCOUNTS, Moment
from meter.export.plain import LeftOut, dumps
from meter.export.receipts import Priced, receipt_json
from meter.export.running import Query, UnderWay, running_json
from meter.export.state import State
from meter.export.summary import summary_json

TICK_S = 0.25
WATCHERS_MAX = 64
_FINISHED = 12
_WRITER_SHARE = 50


class LiveView(Protocol):
    """What the stream needs of the running meter."""

    def state(self) -> State | None: ...
    def running(self) -> UnderWay: ...
    def recent(self, limit: int) -> list[Priced]: ...
    def problems(self) -> tuple[str, ...]: ...
    def alive(self) -> bool: ...


class Live:
    """The stream's messages, for any number of watchers; lives on the port's event loop."""

    def __init__(
        self,
        view: LiveView,
        now_ns: Callable[[], int],
        tick_s: float = TICK_S,
        left_out: LeftOut | None = None,
    ) -> None:
        self._view = view
        self._left_out = left_out or LeftOut()
        self._now_ns = now_ns
        self._tick_s = tick_s
        self._asking = asyncio.Lock()
        self._due_s = 0.0
        self._running = UnderWay()
        self._told: dict[Query, dict[str, Any]] = {}
        self._finished: list[dict[str, Any]] = []
        self._closed = -1
        self.watchers = 0

    async def stream(self, query: Query) -> AsyncIterator[bytes]:
        """Messages until the meter ends, or nobody reads any more."""
        self.watchers += 1
        sent_ns = -1
        try:
            yield b"retry: 1000\n\n"
            while self._view.alive():
                state = self._view.state()
                message = await self._message(state, query, sent_ns)
                yield b"data: " + dumps(message, self._left_out) + b"\n\n"
                if state is not None and state.moments:
                    sent_ns = state.moments[-1].t_ns
                await asyncio.sleep(self._tick_s)
            yield b"event: end\ndata: {}\n\n"
        finally:
            self.watchers -= 1

    async def _message(self, state: State | None, query: Query, sent_ns: int) -> dict[str, Any]:
        if state is None:
            return {"now_s": self._now_ns() / 1e9, "problems": list(self._view.problems())}
        await self._look(state)
        now_ns = self._now_ns()
        new = [moment for moment in state.moments if moment.t_ns > sent_ns]
        return {
            "now_s": round(now_ns / 1e9, 3),
            "problems": list(self._view.problems()),
            "summary": summary_json(state, now_ns),
            "accounts": ACCOUNTS,
            "moments": moments_json(new),
            "running": self._tell(query, now_ns),
            "finished": self._finished,
        }

    def _tell(self, query: Query, now_ns: int) -> dict[str, Any]:
        """Worked out once an answer of the writer and query, whoever asks and however often."""
        if query not in self._told:
            self._told[query] = running_json(self._running, query, now_ns)
        return self._told[query]

    async def _look(self, state: State) -> None:
        """Ask the writer what is under way, unless that was just asked; busy, the old stands."""
        async with self._asking:
            if time.monotonic() < self._due_s:
                return
            try:
                asked_s = time.monotonic()
                self._running = await run_in_threadpool(self._view.running)
                self._told.clear()
                took_s = time.monotonic() - asked_s
                if state.snapshot.receipts_closed != self._closed:
                    recent = await run_in_threadpool(self._view.recent, _FINISHED)
                    self._finished = [receipt_json(priced) for priced in recent]
                    self._closed = state.snapshot.receipts_closed
            except TimeoutError:
                took_s = self._tick_s
            # Just under a tick, so that each tick finds it due.
            self._due_s = time.monotonic() + max(0.8 * self._tick_s, _WRITER_SHARE * took_s)


def moments_json(moments: Sequence[Moment]) -> list[list[Any]]:
    """Rows of ``t_s, settled_s, measured_j, accounts_j, running, output_tokens``."""
    return [
        [
            round(moment.t_ns / 1e9, 3),
            None if moment.settled_ns is None else round(moment.settled_ns / 1e9, 3),
            [round(energy_j, 3) for energy_j in moment.measured_j],
            [round(energy_j, 3) for energy_j in moment.accounts_j],
            moment.running,
            moment.output_tokens,
        ]
        for moment in moments
    ]
