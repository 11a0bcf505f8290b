"""The live page's files, as they lie in ``page/``: they need nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Nothing is ever loaded, or sent, beyond the meter's own port.
POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'self'"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
FILES = (
    "index.html",
    "page.css",
    "app.js",
    "chart.js",
    "format.js",
    "requests.js",
    "words.js",
    "icon.svg",
)


def routes() -> list[Route]:
    """``/`` and the files that it names."""
    named = [Route(f"/page/{name}", _endpoint(name)) for name in FILES if name != "index.html"]
    return [Route("/", _endpoint("index.html")), *named]


def _endpoint(name: str) -> Callable[[Request], Awaitable[Response]]:
    """Answers with one file; small, and never kept, so that a newer meter shows its own page."""

    async def file(request: Request) -> Response:
        content = files("meter.export").joinpath("page", name).read_bytes()
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])

    return file
