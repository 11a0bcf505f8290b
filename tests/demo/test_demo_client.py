"""The small HTTP client: what a server answers is bounded in size and time."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from meter.demo import client
from meter.demo.client import ClientError, post

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"x" * 65536


async def ask(first: bytes, then: bytes = b"", events: bool = False, hang: bool = False) -> object:
    """The answer of a server that says ``first``, then ``then`` without end or nothing at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            await writer.drain()
            while then:
                writer.write(then)
                await writer.drain()
                await asyncio.sleep(0.02 if len(then) == 1 else 0.0)
            while hang and await reader.read(1024):
                pass
        except OSError:
            pass  # hung up on
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with post(f"http://127.0.0.1:{port}", "/", {}, {}, silent_s=0.2) as reply:
            if events:
                return [event async for event in reply.events()]
            return await reply.json()


def test_an_answer_in_any_form_is_read() -> None:
    """Of a known length, in chunks, up to the end of the connection; as events."""
    assert asyncio.run(ask(OK + b"Content-Length: 2\r\n\r\n{}")) == {}
    assert asyncio.run(ask(CHUNKED + b"1\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n")) == {}
    assert asyncio.run(ask(OK + b"\r\n{}")) == {}
    told = OK + b'\r\ndata: {"a": 1}\n\ndata: [DONE]\n\n'
    assert asyncio.run(ask(told, events=True)) == [{"a": 1}]


@pytest.mark.parametrize(
    ("first", "then", "events"),
    [
        (OK + b"\r\n", ENDLESS, False),
        (OK + b"\r\n", ENDLESS, True),
        (OK + b"\r\n", b"data: 1\n" * 8192, True),
        (CHUNKED, b"10000\r\n" + ENDLESS + b"\r\n", False),
        (CHUNKED + b"fffffffffff\r\n", ENDLESS, False),
        (CHUNKED + b"-5\r\n", ENDLESS, False),
        (CHUNKED + b"no\r\n", b"", False),
        (OK + b"Content-Length: 99999999999\r\n\r\n", ENDLESS, False),
        (OK + b"Content-Length: -9\r\n\r\n", b"", False),
        (OK + b"Content-Length: x\r\n\r\n", b"", False),
        (OK, b"".join(b"h%d: x\r\n" % n for n in range(1000)), False),
        (OK + b"h: ", ENDLESS, False),
        (b"", ENDLESS, False),
        (OK + b"\r\ndata: {\n", b"", True),
        (OK + b"\r\ndata: " + b"[" * 100_000 + b"\n", b"", True),
        (OK + b"\r\n" + b"[" * 100_000, b"", False),
    ],
)
def test_an_answer_without_end_or_sense_is_a_short_error(
    monkeypatch: pytest.MonkeyPatch, first: bytes, then: bytes, events: bool
) -> None:
    """Of whatever server the load is played on; and it takes little memory."""
    monkeypatch.setattr(client, "_BODY_BYTES", 4 << 20)
    tracemalloc.start()
    with pytest.raises(ClientError) as error:
        asyncio.run(ask(first, then, events))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(error.value)) < 300
    assert most_bytes < 32 << 20


@pytest.mark.parametrize("first", [b"", OK, OK + b"\r\n", CHUNKED + b"5\r\n"])
def test_a_server_that_says_no_more_is_not_waited_for_without_end(first: bytes) -> None:
    with pytest.raises(ClientError, match=r"said nothing for 0.2 s"):
        asyncio.run(ask(first, hang=True))


def test_a_server_that_drips_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is never silent, and never done."""
    monkeypatch.setattr(client, "_WHOLE_S", 0.3)
    with pytest.raises(ClientError, match=r"took more than 0.3 s"):
        asyncio.run(ask(OK + b"\r\n", b"x"))
