"""The designed load: what is asked of the server so that its costs can be told apart.

A round holds requests alone (short and long prompts, short and long answers); ladders of company
that start together and decode together, at a short context and at a long one; clients that ask the
same again and again beside others who do (the same load each time); a mix under changing company;
and short loads swept against the counter's tick, with idle between. Rounds are alike but for their
random mix: what the first half teaches is tried on the second. Bodies are plain OpenAI completions
of fixed length; a number at its beginning keeps each prompt out of the prefix cache without
changing its length.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from meter.demo.client import ClientError
from meter.selftest.access import Access

_WORDS = "the energy of each answer is read from the card while many others are served beside it"
_IDLE_S = 2.0
_BETWEEN_S = 0.4
_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RUNG = (100, 128)
_LONG_LADDER = (1, 4, 16, 64)
_LONG_RUNG = (1500, 128)
#: A server that needs longer for a rung is not asked for more at once.
_RUNG_S_MAX = 12.0
_SOLO = ((20, 16), (20, 96), (700, 16), (700, 96))
_SAME = (150, 48)
_SAME_COMPANY = (4, 16, 64)
_SAME_TIMES = 8
_MIXED_COMPANY = (1, 3, 8, 24, 64, 256)
_MIXED_S = 2.5
_PULSE = (10, 12)
_PULSE_GAP_S = 0.45
#: Pauses grow by a quarter of a tick of 100 ms: four pulses sweep it.
_PULSE_SHIFT_S = 0.025


class LoadError(Exception):
    """The server did not take the load; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. ``rounds``: at least; ``words``: of prompts, relative; ``company``:
    the most requests at once; ``held``: words and tokens that the server holds at once, all
    requests together; ``times``: how often the same is asked; ``pulses``: short loads a round."""

    rounds: int = 2
    repeats: int = 2
    words: float = 1.0
    company: int = 256
    held: int = 1_000_000
    times: int = _SAME_TIMES
    pulses: int = 16


class Load:
    """Rounds against one server."""

    def __init__(self, server: Access, model: str, size: Size, seed: int = 0) -> None:
        self._server = server
        self._model = model
        self._size = size
        self._company = size.company
        self._random = random.Random(seed)
        self._numbers = count(100_000 + 1000 * seed)
        self.rounds = 0

    async def play(self, seconds: float) -> None:
        """Whole rounds for about so long. Raises ``LoadError``."""
        until_s = time.monotonic() + seconds
        took_s = 0.0
        while self.rounds < self._size.rounds or time.monotonic() + took_s / 2 < until_s:
            start_s = time.monotonic()
            await self._round()
            self.rounds += 1
            took_s = time.monotonic() - start_s

    async def _round(self) -> None:
        await asyncio.sleep(_IDLE_S)
        for _ in range(self._size.repeats):
            for words, tokens in _SOLO:
                await self._ask(words, tokens)
                await asyncio.sleep(_BETWEEN_S)
        await self._climb(_LADDER, *_RUNG)
        await self._climb(_LONG_LADDER, *_LONG_RUNG)
        for company in _SAME_COMPANY:
            if self._fits(company, *_SAME):
                await self._again(company)
        for company in sorted({min(company, self._company) for company in _MIXED_COMPANY}):
            await self._mix(company, _MIXED_S * self._size.repeats / 2)
        await asyncio.sleep(_IDLE_S)
        for number in range(self._size.pulses):
            await self._ask(*_PULSE)
            await asyncio.sleep(_PULSE_GAP_S + _PULSE_SHIFT_S * (number % 4))

    async def _climb(self, ladder: Sequence[int], words: int, tokens: int) -> None:
        """More and more at once, all starting together."""
        for company in ladder:
            if not self._fits(company, words, tokens):
                return
            start_s = time.monotonic()
            await asyncio.gather(*(self._ask(words, tokens) for _ in range(company)))
            if time.monotonic() - start_s > _RUNG_S_MAX:
                self._company = company
            await asyncio.sleep(_BETWEEN_S)

    def _fits(self, company: int, words: int, tokens: int) -> bool:
        """Whether so many such requests run beside each other."""
        held = company * (words * self._size.words + tokens)
        return company <= self._company and held <= self._size.held

    async def _again(self, company: int) -> None:
        """So many clients, each asking for the same again at once; their first answers are of
        different length, so that from then on they end, and begin, one after the other."""
        words, tokens = _SAME

        async def client(number: int) -> None:
            await self._ask(words, max(1, tokens * (number + 1) // company))
            for _ in range(self._size.times):
                await self._ask(words, tokens)

        await asyncio.gather(*(client(number) for number in range(company)))

    async def _mix(self, company: int, seconds: float) -> None:
        """So many clients, each asking again at once, each time for something else."""
        until_s = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until_s:
                words = round(10 ** self._random.uniform(1.0, 3.0))
                await self._ask(words, round(10 ** self._random.uniform(0.5, 2.2)))

        await asyncio.gather(*(client() for _ in range(company)))

    async def _ask(self, words: int, tokens: int) -> None:
        wanted = max(1, round(words * self._size.words))
        ask = body(self._model, next(self._numbers), wanted, tokens)
        try:
            async with self._server.post("/v1/completions", ask) as reply:
                answer = await reply.json()
        except ClientError as error:
            raise LoadError(str(error)) from error
        if reply.status != 200:
            raise LoadError(f"{self._server.url} answered {reply.status}: {str(answer)[:300]}")


def body(model: str, number: int, words: int, tokens: int) -> dict[str, Any]:
    """Of a completion of fixed length; ``number`` keeps it out of the prefix cache."""
    text = _WORDS.split()
    prompt = " ".join((text * (words // len(text) + 1))[:words])
    return {
        "model": model,
        "prompt": f"{number} {prompt}",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
