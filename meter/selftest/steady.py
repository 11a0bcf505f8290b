"""Steady load for the pairs of ``price``: so many streams at once, each token's time noted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from meter.demo.client import ClientError, post
from meter.selftest.load import LoadError, body
from meter.selftest.price import SLOT_S, Run, Slot

_WARM_S = 2.0
_WORDS, _TOKENS = 100, 128


class Streams:
    """So many clients that ask again at once; tokens by their time since the beginning."""

    def __init__(self, base_url: str, model: str, company: int, words: float) -> None:
        self._base_url = base_url
        self._model = model
        self._company = company
        self._words = max(1, round(_WORDS * words))
        self._number = 0
        self._came: list[tuple[float, float | None]] = []

    async def run(self, metered: bool, seconds: float) -> Run:
        """``seconds`` of it, after a warm-up. Raises ``LoadError``."""
        self._came = []
        start_s = time.monotonic() + _WARM_S
        slots = max(1, round(seconds / SLOT_S))
        end_s = start_s + slots * SLOT_S
        await asyncio.gather(*(self._client(end_s) for _ in range(self._company)))
        return Run(metered, cut(self._came, start_s, slots))

    async def _client(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            self._number += 1
            await self._stream(body(self._model, self._number, self._words, _TOKENS), end_s)

    async def _stream(self, ask: dict[str, Any], end_s: float) -> None:
        """One answer; who is still at it in the end hangs up."""
        before_s: float | None = None
        try:
            async with post(
                self._base_url, "/v1/completions", {**ask, "stream": True}, {}
            ) as reply:
                if reply.status != 200:
                    raise LoadError(f"{self._base_url} answered {reply.status} to a stream")
                async for event in reply.events():
                    if not event.get("choices"):
                        continue
                    now_s = time.monotonic()
                    self._came.append((now_s, None if before_s is None else now_s - before_s))
                    before_s = now_s
                    if now_s > end_s:
                        return
        except ClientError as error:
            raise LoadError(str(error)) from error


def cut(came: list[tuple[float, float | None]], start_s: float, slots: int) -> tuple[Slot, ...]:
    """Tokens and gaps by slot; ``came``: each token's time, and its gap where it is not a first."""
    tokens, gaps = [0] * slots, [list[float]() for _ in range(slots)]
    for t_s, gap_s in came:
        number = int((t_s - start_s) // SLOT_S)
        if 0 <= number < slots:
            tokens[number] += 1
            if gap_s is not None:
                gaps[number].append(gap_s)
    return tuple(Slot(n, tuple(each)) for n, each in zip(tokens, gaps, strict=True))
