"""The designed load: what is asked of the server so that its costs can be told apart.

A round holds requests alone (short and long prompts, short and long answers), the same request in a
ladder of company (1, 2, 4, 8 … at once), a mix under changing company, and short loads swept
against the counter's tick, with idle between. Rounds are alike but for their random mix: what the
first half teaches is tried on the second. Bodies are plain OpenAI completions of fixed length; a
number at its beginning keeps each prompt out of the prefix cache without changing its length.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from itertools import count

from meter.demo.client import ClientError, post

_WORDS = "the energy of each answer is read from the card while many others are served beside it"
_IDLE_S = 2.0
_BETWEEN_S = 0.4
_LADDER = (1, 2, 4, 8, 16, 32)
_SOLO = ((20, 16), (20, 96), (700, 16), (700, 96))
_BURST = (150, 48)
_MIXED_COMPANY = (3, 12, 24, 6)
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
    the most requests at once; ``pulses``: short loads a round."""

    rounds: int = 2
    repeats: int = 2
    words: float = 1.0
    company: int = 32
    pulses: int = 16


class Load:
    """Rounds against one server. ``asked``: how many requests were answered."""

    def __init__(self, base_url: str, model: str, size: Size, seed: int = 0) -> None:
        self._base_url = base_url
        self._model = model
        self._size = size
        self._random = random.Random(seed)
        self._numbers = count(100_000 + 1000 * seed)
        self.asked = 0
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
        for company in _LADDER:
            for _ in range(self._size.repeats if company <= self._size.company else 0):
                await asyncio.gather(*(self._ask(*_BURST) for _ in range(company)))
                await asyncio.sleep(_BETWEEN_S)
        for company in _MIXED_COMPANY:
            await self._mix(min(company, self._size.company), _MIXED_S * self._size.repeats / 2)
        await asyncio.sleep(_IDLE_S)
        for number in range(self._size.pulses):
            await self._ask(*_PULSE)
            await asyncio.sleep(_PULSE_GAP_S + _PULSE_SHIFT_S * (number % 4))

    async def _mix(self, company: int, seconds: float) -> None:
        """So many clients, each asking again at once, each time for something else."""
        until_s = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until_s:
                words = round(10 ** self._random.uniform(1.0, 3.0))
                await self._ask(words, round(10 ** self._random.uniform(0.5, 2.2)))

        await asyncio.gather(*(client() for _ in range(company)))

    async def _ask(self, words: int, tokens: int) -> None:
        text = _WORDS.split()
        wanted = max(1, round(words * self._size.words))
        prompt = " ".join((text * (wanted // len(text) + 1))[:wanted])
        body = {
            "model": self._model,
            "prompt": f"{next(self._numbers)} {prompt}",
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        try:
            async with post(self._base_url, "/v1/completions", body, {}) as reply:
                answer = await reply.json()
        except ClientError as error:
            raise LoadError(str(error)) from error
        if reply.status != 200:
            raise LoadError(f"{self._base_url} answered {reply.status}: {str(answer)[:300]}")
        self.asked += 1
