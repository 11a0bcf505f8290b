"""The HTTP side of the embedded engine: it speaks the OpenAI API, and a hang-up is an abort."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meter.demo.api import (
    Ask,
    RefusedError,
    Usage,
    chunk_choice,
    envelope,
    models,
    parse,
    whole_choice,
)
from meter.demo.engine import EngineRequest, Token, TooLongError
from meter.demo.loop import Job
from meter.demo.words import Writer

_MEAN_TOKENS = 160.0
_CLIENT_CLOSED_REQUEST = 499


class Loop(Protocol):
    """What the server needs of ``meter.demo.loop.EngineLoop``."""

    @property
    def alive(self) -> bool: ...
    def submit(self, jobs: list[Job]) -> None: ...
    def abort(self, jobs: list[Job]) -> None: ...


class Choice:
    """One answer as it is written. ``reason``: why it ended, ``None`` while it is written."""

    def __init__(self, index: int, id: str, parent: str, ask: Ask) -> None:
        prompt = ask.prompts[index // ask.n]
        seed = f"{id} {index}" if ask.seed is None else f"{ask.seed} {index} {hash(prompt)}"
        self.index = index
        self.writer = Writer(seed, None if ask.ignore_eos else _MEAN_TOKENS, ask.stop)
        request = EngineRequest(
            id, list(prompt), ask.max_tokens, self.writer.next_token, self.writer.ends
        )
        self.job = Job(request, parent, ask.tenant)
        self.reason: str | None = None
        self.told = 0

    @property
    def request(self) -> EngineRequest:
        return self.job.request

    def news(self) -> str:
        """Text that was not told before."""
        text = self.writer.safe_text
        told, self.told = self.told, max(self.told, len(text))
        return text[told:]


class Answer:
    """One HTTP request: its choices, and an event that says that there is news."""

    def __init__(self, ask: Ask, id: str) -> None:
        self.ask = ask
        self.id = f"chatcmpl-{id}" if ask.chat else f"cmpl-{id}"
        self.news = asyncio.Event()
        self.choices = [self._choice(i) for i in range(len(ask.prompts) * ask.n)]

    @property
    def done(self) -> bool:
        return all(choice.reason for choice in self.choices)

    @property
    def usage(self) -> Usage:
        firsts = self.choices[:: self.ask.n]
        return Usage(
            prompt=sum(len(choice.request.prompt) for choice in firsts),
            completion=sum(choice.request.emitted for choice in self.choices),
            cached=sum(choice.request.cached or 0 for choice in firsts),
        )

    def _choice(self, index: int) -> Choice:
        """Ids as vLLM gives them: what the client sees, and what the engine calls it."""
        prompt, child = divmod(index, self.ask.n)
        parent = self.id if self.ask.chat else f"{self.id}-{prompt}"
        unique = f"{parent}-{uuid.uuid4().hex[:8]}"
        return Choice(index, f"{child}_{unique}" if self.ask.n > 1 else unique, parent, self.ask)


class Server:
    """Turns HTTP requests into jobs, and emitted tokens into answers.

    ``check`` raises ``TooLongError`` for (prompt tokens, output tokens) that cannot fit.
    """

    def __init__(self, check: Callable[[int, int], None]) -> None:
        self._check = check
        self._loop: Loop | None = None
        self._waiting: dict[int, tuple[Answer, Choice]] = {}  # id(engine request) -> whose it is
        self._events: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: Loop) -> None:
        """The engine that computes."""
        self._loop = loop

    def deliver(self, tokens: list[Token]) -> None:
        """What a pass emitted; called in the engine's thread."""
        waiting = self._waiting
        told = [t for t in tokens if t.finished or self._is_streamed(waiting.get(id(t.request)))]
        if told and self._events is not None and not self._events.is_closed():
            self._events.call_soon_threadsafe(self._notify, told)

    def app(self, lifespan: Callable[[], Any] | None = None) -> Starlette:
        """The ASGI application; ``lifespan`` is a context manager around its life."""

        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            self._events = asyncio.get_running_loop()
            if lifespan is None:
                yield
                return
            with lifespan():
                yield

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.completion, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
            ],
            exception_handlers={RefusedError: _refused},
            lifespan=life,
        )

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._serve(request, chat=True)

    async def completion(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._serve(request, chat=False)

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse(models())

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200 while the engine's thread runs."""
        alive = self._loop is not None and self._loop.alive
        return Response(status_code=HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE)

    # --- one request

    async def _serve(self, request: Request, chat: bool) -> Response:
        if self._loop is None or not self._loop.alive:
            raise RefusedError("the engine is not running", HTTPStatus.SERVICE_UNAVAILABLE)
        ask = parse(await request.body(), chat)
        self._check_fits(ask)
        answer = Answer(ask, request.headers.get("X-Request-Id") or uuid.uuid4().hex)
        for choice in answer.choices:
            self._waiting[id(choice.request)] = (answer, choice)
        self._loop.submit([choice.job for choice in answer.choices])
        if ask.stream:
            return StreamingResponse(self._stream(answer), media_type="text/event-stream")
        return await self._whole(request, answer)

    def _check_fits(self, ask: Ask) -> None:
        try:
            for prompt in ask.prompts:
                self._check(len(prompt), ask.max_tokens)
        except TooLongError as error:
            raise RefusedError(str(error)) from error

    async def _whole(self, request: Request, answer: Answer) -> Response:
        """Wait for the end of the answer, or of the client."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            while not answer.done and not gone.done():
                news = asyncio.ensure_future(answer.news.wait())
                await asyncio.wait((news, gone), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                answer.news.clear()
        finally:
            gone.cancel()
            self._let_go(answer)
        if not answer.done:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        choices = [
            whole_choice(answer.ask, choice.index, choice.writer.text, choice.reason or "")
            for choice in answer.choices
        ]
        body = envelope(answer.ask, answer.id, streamed=False)
        return JSONResponse({**body, "choices": choices, "usage": answer.usage.body()})

    async def _stream(self, answer: Answer) -> AsyncIterator[str]:
        """Server-sent events, as tokens come; several tokens in one where the client is slow."""
        head = envelope(answer.ask, answer.id, streamed=True)
        open_choices = list(answer.choices)
        try:
            while open_choices:
                await answer.news.wait()
                answer.news.clear()
                for choice in list(open_choices):
                    reason = choice.reason
                    first = choice.told == 0
                    text = choice.news()
                    if text or reason:
                        said = chunk_choice(answer.ask, choice.index, text, reason, first)
                        so_far = {"usage": answer.usage.body()} if answer.ask.usage_each else {}
                        yield _event({**head, "choices": [said], **so_far})
                    if reason:
                        open_choices.remove(choice)
            if answer.ask.include_usage:
                yield _event({**head, "choices": [], "usage": answer.usage.body()})
            yield "data: [DONE]\n\n"
        finally:
            self._let_go(answer)

    def _let_go(self, answer: Answer) -> None:
        """Forget an answer; what is still computed for it is aborted."""
        for choice in answer.choices:
            self._waiting.pop(id(choice.request), None)
        left = [choice.job for choice in answer.choices if not choice.reason]
        if left and self._loop is not None:
            self._loop.abort(left)

    def _notify(self, tokens: list[Token]) -> None:
        for token in tokens:
            answer, choice = self._waiting.get(id(token.request), (None, None))
            if answer is None or choice is None:
                continue
            if token.finished:
                choice.writer.finish()
                choice.reason = token.finished
            if answer.ask.stream or answer.done:
                answer.news.set()

    @staticmethod
    def _is_streamed(waiting: tuple[Answer, Choice] | None) -> bool:
        return waiting is not None and waiting[0].ask.stream


async def _disconnected(request: Request) -> None:
    """Returns when the client hangs up."""
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except ClientDisconnect:
        return


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, RefusedError):
        raise error
    return JSONResponse(error.body(), error.status)
