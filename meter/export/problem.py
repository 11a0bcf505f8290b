"""Errors as the port says them: ``application/problem+json`` (RFC 9457), short, with the remedy."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from meter.export.plain import text


def problem(
    status: HTTPStatus, detail: str, *, field: str | None = None, remedy: str | None = None
) -> JSONResponse:
    """An error with its field and remedy."""
    body: dict[str, Any] = {"title": status.phrase, "status": status.value, "detail": text(detail)}
    if field is not None:
        body["field"] = text(field)
    if remedy is not None:
        body["remedy"] = text(remedy)
    return JSONResponse(body, status, media_type="application/problem+json")


def short(text: str, most: int = 200) -> str:
    """What a client sent, as far as an answer repeats it."""
    return text if len(text) <= most else text[:most] + "…"
