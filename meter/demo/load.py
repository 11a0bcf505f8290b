"""Plays the traffic against an engine, and keeps what each client saw."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from meter.demo.client import ClientError, Reply, post
from meter.demo.traffic import Ask, Clients, Profile

_ANSWERS_KEPT = 20_000


@dataclass(slots=True)
class Answer:
    """What came back. ``id``: the answer's own, by which its receipt is found.

    ``status`` 0: nothing came. ``left``: the client hung up before the end.
    """

    kind: str
    tenant: str
    id: str
    status: int = 0
    usage: dict[str, Any] | None = None
    left: bool = False
    error: str | None = None


class Load:
    """Clients in a thread of their own, from ``start`` until ``stop`` has let them finish."""

    def __init__(self, base_url: str, model: str, profile: Profile, seed: int = 0) -> None:
        self._base_url = base_url
        self._profile = profile
        self._clients = Clients(model, profile, seed)
        self._prefix = f"demo-{seed}-" if seed else "demo-"
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)
        self.answers: deque[Answer] = deque(maxlen=_ANSWERS_KEPT)
        self.sent = 0
        self.open = 0

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def end(self) -> None:
        """No new requests from now on."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)

    def wait(self, seconds: float) -> bool:
        """Wait for the open requests; false where some are left."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        self._ready.set()
        start_s = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        number = 0
        while not stop.is_set():
            rate = self._profile.rate(time.monotonic() - start_s)
            wait_s = self._clients.wait_s(rate) if rate else 0.2
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(wait_s, 1.0))
            if rate and wait_s <= 1.0 and len(tasks) < self._profile.open_max:
                task = asyncio.create_task(self._ask(self._clients.next(), number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
        await asyncio.gather(*tasks)

    async def _ask(self, ask: Ask, number: int) -> None:
        name = f"{self._prefix}{number}"
        kind = "chatcmpl" if ask.path.endswith("chat/completions") else "cmpl"
        answer = Answer(ask.kind, str(ask.body.get("user", "")), f"{kind}-{name}")
        self.sent += 1
        self.open += 1
        try:
            async with post(self._base_url, ask.path, ask.body, {"X-Request-Id": name}) as reply:
                answer.status = reply.status
                await _read(reply, ask, answer)
        except ClientError as error:
            answer.error = str(error)
        finally:
            self.open -= 1
            self.answers.append(answer)


async def _read(reply: Reply, ask: Ask, answer: Answer) -> None:
    if not ask.body.get("stream") or reply.status != 200:
        answer.usage = (await reply.json()).get("usage")
        return
    if ask.leave_after == 0:
        answer.left = True
        return
    seen = 0
    async with contextlib.aclosing(reply.events()) as events:
        async for event in events:
            answer.usage = event.get("usage") or answer.usage
            seen += 1
            if seen == ask.leave_after:
                answer.left = True
                return
