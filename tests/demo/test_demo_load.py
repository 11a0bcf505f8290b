"""The demo's clients: what they ask, by their own small HTTP client, of a real port."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from served import Running

from meter.demo.announce import MODEL
from meter.demo.api import RefusedError, parse
from meter.demo.client import ClientError, post
from meter.demo.load import Load
from meter.demo.traffic import H100, Clients, Profile, Stretch


def test_equal_seeds_ask_equally() -> None:
    """Traffic can be repeated to the letter."""
    first, second, other = (Clients("m", H100, seed) for seed in (1, 1, 2))
    asked = [first.next() for _ in range(50)]
    assert asked == [second.next() for _ in range(50)]
    assert asked != [other.next() for _ in range(50)]


def test_the_mix_has_everything_and_only_refused_ones_are_bad() -> None:
    """All that issue 3 names is asked for, and is what the API takes."""
    clients = Clients(MODEL, H100)
    asks = [clients.next() for _ in range(600)]
    kinds = Counter(ask.kind for ask in asks)
    assert len(kinds) == 9
    assert kinds["chat"] > 10 * kinds["refused"] > 0
    for ask in asks:
        raw, chat = json.dumps(ask.body).encode(), ask.path.endswith("chat/completions")
        if ask.kind == "refused":
            with pytest.raises(RefusedError):
                parse(raw, chat)
        else:
            assert parse(raw, chat).tenant == ask.body["user"]
        assert ask.leave_after is None or ask.body["stream"]


def test_shared_prefixes_are_shared() -> None:
    """A few system prompts, each used by many."""
    clients = Clients(MODEL, H100)
    asks = [clients.next() for _ in range(400)]
    systems = [a.body["messages"][0]["content"] for a in asks if a.kind == "shared prefix"]
    assert len(set(systems)) == 3
    assert len(systems) > 30


def test_the_rhythm_repeats() -> None:
    """From quiet to busy, and again."""
    profile = Profile((Stretch(2, 5.0), Stretch(1, 0.0)))
    assert [profile.rate(t) for t in (0, 1.9, 2.0, 2.9, 3.0, 5.5)] == [5, 5, 0, 0, 5, 0]


@pytest.fixture(scope="module")
def engine() -> Running:
    return Running()


def test_all_that_is_sent_is_answered_and_known(engine: Running) -> None:
    """Every client gets a usage, a refusal or leaves; the engine knows each by the same id."""
    load = Load(engine.url, MODEL, Profile((Stretch(1, 60.0),)), seed=4)
    load.start()
    seen: set[str] = set()
    while len(seen) < 9 and len(load.answers) < 400:
        load.wait(0.05)
        seen = {answer.kind for answer in load.answers}
    load.end()
    assert load.wait(30)
    assert load.open == 0
    parents = {row[2] for row in engine.wire.of("opened")}
    for answer in load.answers:
        assert answer.error is None
        if answer.kind == "refused":
            assert (answer.status, answer.usage) == (400, None)
            assert not any(parent.startswith(answer.id) for parent in parents)
        elif not answer.left:
            assert answer.status == 200
            assert answer.usage is not None
            assert answer.id in parents or f"{answer.id}-0" in parents
    assert any(answer.left for answer in load.answers)
    engine.stop()


async def _answering(text: bytes, body: Callable[[str], Awaitable[None]]) -> None:
    """A server that reads one request and answers ``text``."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await body(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "framing",
    [
        b'Content-Length: 9\r\n\r\n{"a": 12}',
        b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n5;x=y\r\n: 12}\r\n0\r\n\r\n',
        b'\r\n{"a": 12}',
    ],
)
def test_bodies_come_in_three_ways(framing: bytes) -> None:
    """With their length, in chunks, or up to the end of the connection."""

    async def check(url: str) -> None:
        async with post(url, "/x", {}, {}) as reply:
            assert (reply.status, await reply.json()) == (200, {"a": 12})

    asyncio.run(_answering(b"HTTP/1.1 200 OK\r\n" + framing, check))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n<",
    ],
)
def test_what_is_no_answer_is_an_error_of_one_kind(text: bytes) -> None:
    """Cut off, another protocol, no JSON: never an exception of the inner parts."""

    async def check(url: str) -> None:
        with pytest.raises(ClientError):
            async with post(url, "/x", {}, {}) as reply:
                await reply.json()

    asyncio.run(_answering(text, check))


def test_nobody_there_is_an_error_too() -> None:
    """A port where nothing listens."""

    async def check() -> None:
        with pytest.raises(ClientError, match="cannot reach"):
            async with post("http://127.0.0.1:9", "/x", {}, {}):
                pass

    asyncio.run(check())
