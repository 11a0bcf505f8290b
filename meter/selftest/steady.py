"""Steady load for the pairs of ``price``: so many streams at once, each token's time noted.

An event of a stream may hold several tokens, so the server is asked how many it has given out so
far (``continuous_usage_stats``). One that says so only at a stream's end has them spread over its
events; one that never does has its events counted, and the result says that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from meter.demo.client import ClientError
from meter.selftest.access import Access
from meter.selftest.load import LoadError, body
from meter.selftest.price import SLOT_S, Counted, Run, Slot

_WARM_S = 2.0
_WORDS, _TOKENS = 100, 128
_USAGE = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


class Event(NamedTuple):
    """When it came, and how many tokens the stream had given out by then (``None``: not said)."""

    t_s: float
    so_far: int | None


class Came(NamedTuple):
    """So many tokens at once, ``gap_s`` after those before them (``None``: the first)."""

    t_s: float
    gap_s: float | None
    tokens: int


class Stream(NamedTuple):
    """One answer; ``total``: its tokens, where the server said them at its end."""

    events: tuple[Event, ...]
    total: int | None


class Streams:
    """So many clients that ask again at once; tokens by their time since the beginning."""

    def __init__(self, server: Access, model: str, company: int, words: float) -> None:
        self._server = server
        self._model = model
        self._company = company
        self._words = max(1, round(_WORDS * words))
        self._number = 0
        self._streams: list[Stream] = []

    async def run(self, metered: bool, seconds: float) -> Run:
        """``seconds`` of it, after a warm-up. Raises ``LoadError``."""
        self._streams = []
        start_s = time.monotonic() + _WARM_S
        slots = max(1, round(seconds / SLOT_S))
        end_s = start_s + slots * SLOT_S
        await asyncio.gather(*(self._client(end_s) for _ in range(self._company)))
        came, counted = tokens_of(self._streams)
        return Run(metered, cut(came, start_s, slots), counted)

    async def _client(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            self._number += 1
            await self._stream(body(self._model, self._number, self._words, _TOKENS), end_s)

    async def _stream(self, ask: dict[str, Any], end_s: float) -> None:
        """One answer; who is still at it in the end hangs up."""
        events: list[Event] = []
        total: int | None = None
        try:
            async with self._server.post("/v1/completions", {**ask, **_USAGE}) as reply:
                if reply.status != 200:
                    raise LoadError(f"{self._server.url} answered {reply.status} to a stream")
                async for event in reply.events():
                    if not isinstance(event, dict):
                        continue
                    so_far = completion_of(event)
                    if not event.get("choices"):
                        total = so_far
                        continue
                    events.append(Event(time.monotonic(), so_far))
                    if events[-1].t_s > end_s:
                        break
        except ClientError as error:
            raise LoadError(str(error)) from error
        self._streams.append(Stream(tuple(events), total))


def completion_of(event: dict[str, Any]) -> int | None:
    """Output tokens so far, where an event says them."""
    usage = event.get("usage")
    value = usage.get("completion_tokens") if isinstance(usage, dict) else None
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if known else None


def tokens_of(streams: Sequence[Stream]) -> tuple[list[Came], Counted]:
    """The tokens of all streams, and how they were counted: all of them in one way."""
    events = [event for stream in streams for event in stream.events]
    if all(event.so_far is not None for event in events):
        return [one for stream in streams for one in _told(stream)], Counted.EACH
    ended = [stream for stream in streams if stream.total is not None and stream.events]
    if not ended:
        return [one for stream in streams for one in _spread(stream, 1.0)], Counted.EVENTS
    given = sum(stream.total or 0 for stream in ended)
    each = given / sum(len(stream.events) for stream in ended)
    found: list[Came] = []
    for stream in streams:  # who hung up heard no total: an event of it is like the others
        own = None if stream.total is None else stream.total / max(1, len(stream.events))
        found += _spread(stream, each if own is None else own)
    return found, Counted.ENDS


def _told(stream: Stream) -> list[Came]:
    """By what each event says; one that brings no token is none."""
    found: list[Came] = []
    before, before_s = 0, None
    for event in stream.events:
        so_far = event.so_far or 0
        if so_far <= before:
            continue
        gap_s = None if before_s is None else event.t_s - before_s
        found.append(Came(event.t_s, gap_s, so_far - before))
        before, before_s = so_far, event.t_s
    return found


def _spread(stream: Stream, each: float) -> list[Came]:
    """``each`` tokens an event, rounded so that their sum is."""
    found: list[Came] = []
    before, before_s = 0, None
    for number, event in enumerate(stream.events, 1):
        so_far = round(number * each)
        gap_s = None if before_s is None else event.t_s - before_s
        found.append(Came(event.t_s, gap_s, so_far - before))
        before, before_s = so_far, event.t_s
    return found


def cut(came: Sequence[Came], start_s: float, slots: int) -> tuple[Slot, ...]:
    """Tokens and gaps by slot. Between tokens that come at once there is no time."""
    tokens, gaps = [0] * slots, [list[float]() for _ in range(slots)]
    for t_s, gap_s, count in came:
        number = int((t_s - start_s) // SLOT_S)
        if 0 <= number < slots:
            tokens[number] += count
            if gap_s is not None:
                gaps[number].append(gap_s)
            gaps[number].extend([0.0] * (count - 1))
    return tuple(Slot(n, tuple(each)) for n, each in zip(tokens, gaps, strict=True))
