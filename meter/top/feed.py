"""Listens to a meter's stream on a thread of its own: a slow network never blocks a key."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from meter.top.series import Series

_SILENT_S = 5.0
_RETRY_S = 1.0


class FeedError(Exception):
    """There is no stream to listen to; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which running requests are asked for (``meter.export.running.Query``)."""

    order: str = "energy"
    match: str = ""
    rows: int = 200

    def path(self, prefix: str) -> str:
        words = {"rows": self.rows, "sort": self.order, "match": self.match}
        return f"{prefix}/v1/live?{urlencode(words)}"


@dataclass(frozen=True, slots=True)
class Heard:
    """The last message, when it came (``time.monotonic``), and the minutes before it.

    ``trouble``: why nothing comes now; ``ended``: the meter said that it ends.
    """

    message: dict[str, Any] | None = None
    at_s: float | None = None
    series: Series | None = None
    trouble: str | None = None
    ended: bool = False


def listen(url: str, query: Query, sockets: list[Any] | None = None) -> Iterator[dict[str, Any]]:
    """The messages of one connection; an empty one says that the meter ends.

    Raises ``FeedError`` where there is none, or it breaks. ``sockets`` gets the open connection, so
    that another thread can end the wait.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=_SILENT_S)
        with contextlib.closing(connection):
            connection.request("GET", query.path(parts.path.rstrip("/")))
            if sockets is not None:
                sockets.append(connection.sock)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise FeedError(
                    f"{url} answers {response.status} {response.reason}: {_why(response)}"
                )
            yield from _events(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise FeedError(
            f"no meter answers at {url} ({why}): "
            "start one (joulemeter run -- …), or name its address with --url"
        ) from error


def _why(response: http.client.HTTPResponse) -> str:
    """What a problem+json says, if it is one."""
    with contextlib.suppress(ValueError, AttributeError):
        problem = json.loads(response.read(10_000))
        return str(problem.get("remedy") or problem.get("detail"))
    return "is it a joulemeter of this version?"


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


class Feed:
    """Follows the stream, and takes it up again where it breaks, until ``stop``."""

    def __init__(self, url: str, query: Query) -> None:
        self._url = url
        self._query = query
        self._changed = threading.Event()
        self._stopping = False
        self._sockets: list[Any] = []
        self._series = Series()
        self._heard = Heard()
        self._thread = threading.Thread(target=self._run, name="joulemeter-top", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def heard(self) -> Heard:
        """The newest, immutable; from any thread."""
        return self._heard

    def ask(self, query: Query) -> None:
        """Ask for other rows from now on."""
        if query != self._query:
            self._query = query
            self._interrupt()

    def stop(self) -> None:
        self._stopping = True
        self._interrupt()
        self._thread.join(1.0)

    def _interrupt(self) -> None:
        self._changed.set()
        for socket in list(self._sockets):
            with contextlib.suppress(OSError, AttributeError):
                socket.shutdown(2)

    def _run(self) -> None:
        while not self._stopping:
            self._changed.clear()
            self._sockets.clear()
            trouble = None
            try:
                self._follow()
            except FeedError as error:
                trouble = str(error)
            if self._stopping:
                return
            if not self._changed.is_set():
                heard = self._heard
                self._heard = Heard(heard.message, heard.at_s, heard.series, trouble, heard.ended)
                self._changed.wait(_RETRY_S)

    def _follow(self) -> None:
        fresh = True
        for message in listen(self._url, self._query, self._sockets):
            if self._changed.is_set():
                return
            if not message:
                heard = self._heard
                self._heard = Heard(heard.message, heard.at_s, heard.series, None, ended=True)
                return
            if fresh:
                self._series.clear()
                fresh = False
            self._series.add(message.get("moments", ()), message.get("accounts", ()))
            self._heard = Heard(message, time.monotonic(), self._series.copy())
