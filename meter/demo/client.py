"""A small HTTP/1.1 client on asyncio: enough to load an engine and to hang up on it.

The base install has no HTTP client that streams; this one knows one connection a request, bodies of
known length, chunked bodies and bodies that end with the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_LINE_BYTES = 1 << 20


class ClientError(Exception):
    """The other side did not answer, or not in HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is still to be read, once."""

    status: int
    headers: Mapping[str, str]
    _reader: asyncio.StreamReader

    async def json(self) -> Any:
        """The whole body as JSON. Raises ``ClientError`` where it is none."""
        try:
            return json.loads(b"".join([chunk async for chunk in self._chunks()]))
        except ValueError as error:
            raise ClientError(f"expected JSON, got HTTP {self.status} without") from error

    async def events(self) -> AsyncGenerator[Any, None]:
        """The JSON of each server-sent event, up to ``[DONE]``."""
        rest = b""
        async for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    yield json.loads(line[6:])

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await self._reader.readline()).split(b";")[0] or b"0", 16):
                yield await self._reader.readexactly(size)
                await self._reader.readline()
        elif "content-length" in self.headers:
            yield await self._reader.readexactly(int(self.headers["content-length"]))
        else:
            yield await self._reader.read(-1)


@contextlib.asynccontextmanager
async def post(
    base_url: str,
    path: str,
    body: object,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Reply]:
    """Send JSON; leaving the block early hangs up. Raises ``ClientError``."""
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
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if tls else 80), limit=_LINE_BYTES, ssl=tls
        )
    except OSError as error:
        raise ClientError(f"cannot reach {base_url}: {error}") from error
    try:
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        await writer.drain()
        yield await _head(reader)
    except (OSError, EOFError, ValueError) as error:
        raise ClientError(f"{base_url} broke off: {error!r}") from error
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> Reply:
    """Status and headers; header names in lower case."""
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version.startswith("HTTP/1."):
        raise ClientError("expected an HTTP answer, got none")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Reply(int(rest[:3]), headers, reader)
