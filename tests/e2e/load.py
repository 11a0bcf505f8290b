"""The load of the end-to-end run: mixed requests to an OpenAI-compatible server, their answers.

Seeded and closed-loop: a few users take requests from a list in waves, with idle stretches between
the waves, so that the same list suits slow machines and fast ones. ``seed`` is never sent: it kills
vLLM 0.32's CPU engine.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_WORDS = (
    *("river", "stone", "engine", "lamp", "winter", "copper", "garden", "signal", "harbour"),
    *("paper", "mountain", "silver", "kitchen", "window", "cloud", "market", "bridge", "forest"),
    *("letter", "ocean", "music", "number", "planet", "school", "summer", "travel", "yellow"),
)
_VOCABULARY = range(1000, 40000)
SHARED_PREFIX_WORDS = 420


@dataclass(frozen=True)
class Ask:
    """One request: where it goes, what it says, and how its client behaves.

    ``leave_after`` is the number of chunks after which the client hangs up; 0 leaves before the
    first, and so may meet the request in the queue, in its prefill or in its decoding.
    """

    kind: str
    chat: bool
    body: dict[str, Any]
    leave_after: int | None = None

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass
class Answer:
    """What the client saw. Times: ``CLOCK_MONOTONIC`` ns. ``id`` is how the meter knows it."""

    ask: Ask
    id: str
    sent_ns: int
    done_ns: int = 0
    status: int | None = None
    usage: dict[str, Any] | None = None
    finish_reasons: list[str] = field(default_factory=list)
    left: bool = False
    error: str | None = None

    @property
    def refused(self) -> bool:
        return self.status is not None and 400 <= self.status < 500

    @property
    def completed(self) -> bool:
        return self.status == 200 and not self.left and self.error is None


def asks(count: int, model: str, seed: int) -> list[Ask]:
    """``count`` mixed requests; each kind is there in its proportion, shuffled."""
    rng = random.Random(seed)
    makers: list[tuple[Callable[[random.Random], Ask], int]] = [
        (_chat_stream, 22),
        (_chat_whole, 18),
        (_tokens, 16),
        (_long, 10),
        (_shared_prefix, 12),
        (_pair, 7),
        (_one_token, 6),
        (_stop_string, 5),
        (_leaves, 6),
        (_refused, 4),
    ]
    total = sum(weight for _, weight in makers)
    found = [make(rng) for make, weight in makers for _ in range(round(count * weight / total))]
    rng.shuffle(found)
    return [_for_model(ask, model) for ask in found]


def warm_up(count: int, model: str, seed: int) -> list[Ask]:
    """Varied plain requests that teach the hook's clock (and the meter) this machine."""
    rng = random.Random(seed)
    makers = (_tokens, _shared_prefix, _long, _chat_stream, _shared_prefix, _chat_whole)
    return [_for_model(makers[i % len(makers)](rng), model) for i in range(count)]


async def drive(base_url: str, waves: Sequence[Sequence[Ask]], seed: int) -> list[Answer]:
    """Send the waves one after the other; each has its own number of users and a pause after it."""
    rng = random.Random(seed)
    answers: list[Answer] = []
    timeout = httpx.Timeout(300.0)
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=base_url, timeout=timeout, limits=limits) as client:
        number = iter(range(10**9))
        for wave in waves:
            queue = iter(wave)
            users = rng.choice((3, 5, 7))
            await asyncio.gather(
                *(
                    _user(client, queue, number, answers, random.Random(rng.random()))
                    for _ in range(users)
                )
            )
            await asyncio.sleep(rng.uniform(1.0, 3.0))
    return answers


def waves_of(found: Sequence[Ask], size: int) -> Iterator[Sequence[Ask]]:
    for start in range(0, len(found), size):
        yield found[start : start + size]


async def _user(
    client: httpx.AsyncClient,
    queue: Iterator[Ask],
    number: Iterator[int],
    answers: list[Answer],
    rng: random.Random,
) -> None:
    """Take the next request, wait for its answer, think, go on."""
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    for ask in queue:
        answers.append(await _send(client, ask, f"e2e-{next(number)}"))
        await asyncio.sleep(rng.choice((0.0, 0.05, 0.4)))


async def _send(client: httpx.AsyncClient, ask: Ask, request_id: str) -> Answer:
    path = "/v1/chat/completions" if ask.chat else "/v1/completions"
    ours = f"chatcmpl-{request_id}" if ask.chat else f"cmpl-{request_id}-0"
    answer = Answer(ask, ours, time.monotonic_ns())
    try:
        async with client.stream(
            "POST", path, json=ask.body, headers={"X-Request-Id": request_id}
        ) as response:
            answer.status = response.status_code
            if ask.stream and response.status_code == 200:
                await _read_stream(response, answer)
            else:
                _read_whole(json.loads(await response.aread()), answer)
    except _LeftError:
        answer.left = True
    except httpx.HTTPError as error:
        answer.error = repr(error)
    answer.done_ns = time.monotonic_ns()
    return answer


class _LeftError(Exception):
    """The client hung up."""


async def _read_stream(response: httpx.Response, answer: Answer) -> None:
    leave_after = answer.ask.leave_after
    seen = 0
    if leave_after == 0:
        raise _LeftError
    async for event in _events(response):
        _read_choices(event, answer)
        answer.usage = event.get("usage") or answer.usage
        seen += 1
        if seen == leave_after:
            raise _LeftError


def _read_whole(body: dict[str, Any], answer: Answer) -> None:
    _read_choices(body, answer)
    answer.usage = body.get("usage")


def _read_choices(event: dict[str, Any], answer: Answer) -> None:
    reasons = (choice.get("finish_reason") for choice in event.get("choices", ()))
    answer.finish_reasons += [reason for reason in reasons if reason]


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: ") :])


# --- the kinds of requests ------------------------------------------------------------------


def _for_model(ask: Ask, model: str) -> Ask:
    body = {"model": model, "temperature": 0.8, **ask.body}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return Ask(ask.kind, ask.chat, body, ask.leave_after)


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def _say(text: str, system: str | None = None) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def _chat_stream(rng: random.Random) -> Ask:
    body = {"messages": _say(_text(rng, rng.randint(5, 120))), "max_tokens": rng.randint(8, 60)}
    return Ask("chat, streamed", True, {**body, "stream": True})


def _chat_whole(rng: random.Random) -> Ask:
    body = {"messages": _say(_text(rng, rng.randint(5, 120))), "max_tokens": rng.randint(8, 60)}
    return Ask("chat", True, body)


def _tokens(rng: random.Random) -> Ask:
    prompt = [rng.choice(_VOCABULARY) for _ in range(rng.randint(4, 200))]
    body = {"prompt": prompt, "max_tokens": rng.randint(4, 80), "ignore_eos": True}
    return Ask("completion", False, {**body, "stream": rng.random() < 0.5})


def _long(rng: random.Random) -> Ask:
    prompt = [rng.choice(_VOCABULARY) for _ in range(rng.randint(280, 700))]
    body = {"prompt": prompt, "max_tokens": rng.randint(4, 40), "ignore_eos": True}
    return Ask("longer than the budget", False, {**body, "stream": rng.random() < 0.5})


def _shared_prefix(rng: random.Random) -> Ask:
    shared = _text(random.Random(f"shared {rng.randint(0, 1)}"), SHARED_PREFIX_WORDS)
    body = {
        "messages": _say(_text(rng, rng.randint(4, 30)), system=shared),
        "max_tokens": rng.randint(6, 40),
        "stream": rng.random() < 0.5,
    }
    return Ask("shared prefix", True, body)


def _pair(rng: random.Random) -> Ask:
    more = {"n": 2, "max_tokens": rng.randint(6, 40), "stream": rng.random() < 0.5}
    if rng.random() < 0.5:
        return Ask("n=2", True, {"messages": _say(_text(rng, rng.randint(10, 80))), **more})
    prompt = [rng.choice(_VOCABULARY) for _ in range(rng.randint(20, 150))]
    return Ask("n=2", False, {"prompt": prompt, "ignore_eos": True, **more})


def _one_token(rng: random.Random) -> Ask:
    body = {"messages": _say(_text(rng, rng.randint(5, 80))), "max_tokens": 1}
    return Ask("one token", True, {**body, "stream": rng.random() < 0.5})


def _stop_string(rng: random.Random) -> Ask:
    body = {
        "messages": _say("Count from one to one hundred in words."),
        "max_tokens": 60,
        "stop": ["e", "o"] if rng.random() < 0.5 else [" the", "three", "."],
        "stream": rng.random() < 0.5,
    }
    return Ask("stop string", True, body)


def _leaves(rng: random.Random) -> Ask:
    body = {"messages": _say(_text(rng, rng.randint(20, 300))), "max_tokens": 200}
    return Ask("client leaves", True, {**body, "stream": True}, rng.choice((0, 1, 3, 8)))


def _refused(rng: random.Random) -> Ask:
    too_long = [7] * 9000
    bad = rng.choice(
        (
            {"prompt": too_long, "max_tokens": 4},
            {"prompt": "hello", "max_tokens": 4, "temperature": -1.0},
            {"prompt": "hello", "max_tokens": 4, "n": 0},
            {"prompt": "hello", "max_tokens": -3},
        )
    )
    return Ask("refused", False, bad)
