"""A small HTTP/1.1 client on asyncio: enough to load an engine and to hang up on it.

The base install has no HTTP client that streams; this one knows one connection a request, bodies of
known length, chunked bodies and bodies that end with the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

_LINE_BYTES = 1 << 20
#: No answer is longer, with so many headers; and no server is silent for so long within one.
_BODY_BYTES = 64 << 20
_HEADERS = 200
_SILENT_S = 600.0
_WHOLE_S = 3600.0


_T = TypeVar("_T")


class ClientError(Exception):
    """The other side did not answer, or not in HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is still to be read, once."""

    status: int
    headers: Mapping[str, str]
    _reader: asyncio.StreamReader
    _silent_s: float
    _until_s: float

    async def json(self) -> Any:
        """The whole body as JSON. Raises ``ClientError`` where it is none."""
        try:
            return json.loads(b"".join([chunk async for chunk in self._chunks()]))
        except (ValueError, RecursionError) as error:
            raise ClientError(f"expected JSON, got HTTP {self.status} without") from error

    async def events(self) -> AsyncGenerator[Any, None]:
        """The JSON of each server-sent event, up to ``[DONE]``."""
        rest = b""
        async for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_BYTES:
                raise ClientError(f"a line of the answer is longer than {_LINE_BYTES >> 20} MiB")
            for line in lines:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    try:
                        yield json.loads(line[6:])
                    except (ValueError, RecursionError) as error:
                        raise ClientError("an event of the answer is no JSON") from error

    async def _chunks(self) -> AsyncIterator[bytes]:
        reader, left = self._reader, _BODY_BYTES
        if self.headers.get("transfer-encoding") == "chunked":
            while size := _size(await self._wait(reader.readline()), 16, left):
                left -= size
                yield await self._wait(reader.readexactly(size))
                await self._wait(reader.readline())
        elif "content-length" in self.headers:
            size = _size(self.headers["content-length"].encode(), 10, left)
            yield await self._wait(reader.readexactly(size))
        else:
            while data := await self._wait(reader.read(_LINE_BYTES)):
                left -= len(data)
                _size(b"0", 10, left)
                yield data

    async def _wait(self, reading: Awaitable[bytes]) -> bytes:
        """Raises ``ClientError`` where nothing comes, or the whole takes too long."""
        left_s = self._until_s - asyncio.get_running_loop().time()
        if left_s < self._silent_s:
            return await _within(max(0.0, left_s), reading, f"took more than {_WHOLE_S:g} s")
        return await _within(self._silent_s, reading)


async def _within(within_s: float, reading: Awaitable[_T], why: str | None = None) -> _T:
    try:
        return await asyncio.wait_for(reading, within_s)
    except TimeoutError as error:
        raise ClientError(f"the server {why or f'has said nothing for {within_s:g} s'}") from error


def _size(text: bytes, base: int, most: int) -> int:
    """Bytes that follow. Raises ``ClientError`` where they are more than ``most``, or no number."""
    try:
        size = int(text.split(b";")[0] or b"0", base)
    except ValueError as error:
        raise ClientError("the answer tells no length that is a number") from error
    if size < 0 or size > most or most < 0:
        raise ClientError(f"the answer is longer than {_BODY_BYTES >> 20} MiB")
    return size


@contextlib.asynccontextmanager
async def post(
    base_url: str,
    path: str,
    body: object,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
    silent_s: float = _SILENT_S,
) -> AsyncIterator[Reply]:
    """Send JSON; leaving the block early hangs up. Raises ``ClientError``.

    ``silent_s``: so long a server may say nothing; what it says is bounded too.
    """
    data = json.dumps(body).encode()
    parts = urlsplit(base_url)
    all_headers = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        "Connection": "close",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    try:
        reader, writer = await _within(
            silent_s,
            asyncio.open_connection(
                parts.hostname, parts.port or (443 if tls else 80), limit=_LINE_BYTES, ssl=tls
            ),
        )
    except OSError as error:
        raise ClientError(f"cannot reach {base_url}: {error}") from error
    try:
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        await _within(silent_s, writer.drain())
        yield await _within(silent_s, _head(reader, silent_s))
    except (OSError, EOFError, ValueError) as error:
        raise ClientError(f"{base_url} broke off: {error!r}") from error
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader, silent_s: float) -> Reply:
    """Status and headers; header names in lower case."""
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise ClientError("expected an HTTP answer, got none")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        if len(headers) >= _HEADERS:
            raise ClientError(f"the answer has more than {_HEADERS} headers")
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    until_s = asyncio.get_running_loop().time() + _WHOLE_S
    return Reply(int(rest[:3]), headers, reader, silent_s, until_s)
