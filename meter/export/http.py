"""The meter's own HTTP port. It only reads: published states, and receipts that it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from prometheus_client import make_asgi_app
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meter.export.guard import Guard, Hosts
from meter.export.live import WATCHERS_MAX, Live
from meter.export.plain import JsonAnswer, LeftOut
from meter.export.problem import problem, short
from meter.export.prometheus import make_registry
from meter.export.query import QueryError, only, whole
from meter.export.receipts import GoneError, Priced, receipt_json
from meter.export.running import Query, UnderWay
from meter.export.site import routes as page_routes
from meter.export.state import State
from meter.export.summary import summary_json

RECENT_MAX = 1000
NO_HOSTS = Hosts()
T = TypeVar("T")


class View(Protocol):
    """What the port needs of the running meter."""

    def state(self) -> State | None:
        """The last published state."""

    def receipt(self, request: str) -> Priced | None:
        """A receipt by id; blocks shortly. Raises ``TimeoutError``, ``GoneError``."""

    def recent(self, limit: int) -> list[Priced]:
        """The newest final receipts; blocks shortly. Raises ``TimeoutError``."""

    def running(self) -> UnderWay:
        """The requests under way; blocks shortly. Raises ``TimeoutError``."""

    def problems(self) -> tuple[str, ...]:
        """What keeps the meter from being ready, each with its remedy; empty when it is."""

    def alive(self) -> bool:
        """Whether the meter's own threads run."""


def create_app(
    view: View,
    now_ns: Callable[[], int] = time.monotonic_ns,
    hosts: Hosts = NO_HOSTS,
    watchers_max: int = WATCHERS_MAX,
) -> Starlette:
    """The ASGI application over a view. ``hosts``: the names under which it may be asked;
    ``watchers_max``: how many may follow ``/v1/live``, fewer than there may be connections."""
    left_out = LeftOut()
    api = _Api(view, now_ns, left_out, watchers_max)
    metrics = make_asgi_app(make_registry(view.state, now_ns, left_out))
    return Starlette(
        middleware=[Middleware(Guard, hosts)],
        routes=[
            Route("/metrics", _Asgi(metrics), methods=["GET"]),
            Route("/v1/receipts", api.recent),
            Route("/v1/receipts/{request_id:path}", api.receipt),
            Route("/v1/summary", api.summary),
            Route("/livez", api.livez),
            Route("/readyz", api.readyz),
            Route("/health", api.readyz),
            Route("/v1/live", api.live),
            *page_routes(),
        ],
        exception_handlers={
            HTTPException: _http_problem,
            QueryError: _query_problem,
            Exception: _failure,
        },
    )


class _Asgi:
    """The metrics' application as a route's endpoint (a ``Mount`` would answer ``/metrics/``
    only), without the headers on which it would raise."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [one for one in scope["headers"] if one[0].lower() in _CHOOSING]
        await self._app(
            {**scope, "headers": headers if _can_choose(headers) else []}, receive, send
        )


_CHOOSING = (b"accept", b"accept-encoding")


def _can_choose(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a format can be chosen by these: a version may be any text, a header any bytes."""
    try:
        choose_encoder(b",".join(value for _, value in headers).decode())
    except Exception:
        return False
    return True


class _Api:
    """The JSON endpoints."""

    def __init__(
        self, view: View, now_ns: Callable[[], int], left_out: LeftOut, watchers_max: int
    ) -> None:
        self._view = view
        self._watchers_max = watchers_max
        self._now_ns = now_ns
        self._left_out = left_out
        self._live = Live(view, now_ns, left_out=left_out)

    def _json(self, content: Any) -> Response:
        return JsonAnswer(content, self._left_out)

    async def live(self, request: Request) -> Response:
        """What happens now, a few times a second, until the client hangs up."""
        query = Query.parse(request.query_params)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":  # it would never end
            return Response(headers=headers, media_type="text/event-stream")
        if self._live.watchers >= self._watchers_max:
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._watchers_max} clients watch already",
                remedy="Close a page, or ask /v1/summary now and then.",
            )
        return StreamingResponse(
            self._live.stream(query), media_type="text/event-stream", headers=headers
        )

    async def receipt(self, request: Request) -> Response:
        """One receipt, final or so far."""
        name = request.path_params["request_id"]
        try:
            priced = await _ask(lambda: self._view.receipt(name))
        except GoneError as gone:
            return problem(
                HTTPStatus.GONE,
                f"no receipt for {short(name)!r} any more: {gone}",
                field="request_id",
                remedy="Ask sooner, or keep a record (`joulemeter run --record TRACE`): "
                "`joulemeter replay TRACE --receipts OUT` has them all.",
            )
        if priced is None:
            return problem(
                HTTPStatus.NOT_FOUND,
                f"no receipt for {short(name)!r}",
                field="request_id",
                remedy="Use the id of the server's answer (field id, or header X-Request-Id). "
                "Refused requests have no receipt; only the most recent receipts are kept.",
            )
        return self._json(receipt_json(priced))

    async def recent(self, request: Request) -> Response:
        """The newest final receipts."""
        limit = whole(only(request.query_params, ("limit",)), "limit", 20, 1, RECENT_MAX)
        receipts = await _ask(lambda: self._view.recent(limit))
        return self._json({"receipts": [receipt_json(priced) for priced in receipts]})

    async def summary(self, request: Request) -> Response:
        """All accounts."""
        state = self._view.state()
        if state is None:
            return problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "nothing has been metered yet",
                remedy="Ask again in a second; /readyz says what is missing.",
            )
        return self._json(summary_json(state, self._now_ns()))

    async def livez(self, request: Request) -> Response:
        """200 while the meter's own threads run."""
        if self._view.alive():
            return JSONResponse({"status": "ok"})
        return problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the meter's writer has stopped",
            remedy="See the meter's messages on stderr; the engine is not affected.",
        )

    async def readyz(self, request: Request) -> Response:
        """200 when energy is being read. The engine's readiness never depends on this."""
        problems = self._view.problems()
        if not problems:
            return JSONResponse({"status": "ok"})
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(problems))


async def _ask(question: Callable[[], T]) -> T:
    """Ask the writer from a worker thread, so that no other answer waits for it."""
    try:
        return await run_in_threadpool(question)
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE, "the meter is busy: ask again in a second"
        ) from error


async def _http_problem(request: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", 500))
    detail = getattr(error, "detail", "") or status.phrase
    if status is HTTPStatus.NOT_FOUND:
        return problem(
            status,
            f"no such page: {short(request.url.path)}",
            remedy="There are /metrics, /v1/summary, /v1/live, /v1/receipts, /v1/receipts/{id}, "
            "/livez, /readyz and /.",
        )
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        answer = problem(
            status,
            f"{short(request.method)} is not known here",
            remedy="This port only reads: GET.",
        )
    else:
        answer = problem(status, str(detail))
    answer.headers.update(getattr(error, "headers", None) or {})  # Allow
    return answer


async def _query_problem(request: Request, error: Exception) -> Response:
    field, remedy = getattr(error, "field", None), getattr(error, "remedy", None)
    return problem(HTTPStatus.BAD_REQUEST, str(error), field=field, remedy=remedy)


async def _failure(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__} inside the meter")
