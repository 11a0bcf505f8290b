"""The OpenAI API's shapes: what a body asks for, and what an answer looks like.

Fields that only a real model could honour (temperature, penalties …) are checked where that is
cheap, and have no effect. ``user`` becomes the tenant. ``ignore_eos`` is vLLM's extension.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from meter.demo.announce import MODEL
from meter.demo.words import tokens_of

DEFAULT_MAX_TOKENS = 256
_CHAT_TEMPLATE = "<|{role}|>\n{text}\n"


class RefusedError(Exception):
    """The request is not served; ``status`` is the HTTP status that says so."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> dict[str, Any]:
        kind = "NotFoundError" if self.status is HTTPStatus.NOT_FOUND else "BadRequestError"
        return {
            "error": {"message": str(self), "type": kind, "param": None, "code": self.status.value}
        }


class _StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Common(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    seed: int | None = None
    user: str | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> _Common:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        if any(not stop for stop in self.stops):
            raise ValueError("stop strings must not be empty")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class _Part(BaseModel):
    type: str = "text"
    text: str = ""


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class _Chat(_Common):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


_Token = Annotated[int, Field(ge=0)]


class _Completion(_Common):
    prompt: str | list[_Token] | list[str] | list[list[_Token]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a valid body asks for. ``prompts``: tokens of each, none of them empty;
    ``include_usage``: at a stream's end, and with ``usage_each`` in each event of it."""

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    usage_each: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the client is told; ``cached`` are those of one child of each prompt."""

    prompt: int
    completion: int
    cached: int

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def parse(raw: bytes, chat: bool) -> Ask:
    """Read a body. Raises ``RefusedError`` with what is wrong in it."""
    try:
        return _chat(_Chat.model_validate_json(raw)) if chat else _completion(raw)
    except ValidationError as error:
        raise RefusedError(_explain(error)) from error


def _chat(body: _Chat) -> Ask:
    text = "".join(_CHAT_TEMPLATE.format(role=m.role, text=m.text) for m in body.messages)
    prompt = tuple(tokens_of(f"{text}<|assistant|>"))
    return _ask(body, True, (prompt,), body.max_completion_tokens or body.max_tokens)


def _completion(raw: bytes) -> Ask:
    body = _Completion.model_validate_json(raw)
    prompts = tuple(tuple(prompt) for prompt in _prompts(body.prompt))
    if not prompts or not all(prompts):
        raise RefusedError("prompt must not be empty")
    return _ask(body, False, prompts, body.max_tokens or 16)


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[list[int]]:
    if isinstance(prompt, str):
        return [tokens_of(prompt)]
    found: list[list[int]] = []
    tokens: list[int] = []
    for item in prompt:
        if isinstance(item, int):
            tokens.append(item)
        else:
            found.append(tokens_of(item) if isinstance(item, str) else item)
    return [tokens] if tokens else found


def _ask(
    body: _Common, chat: bool, prompts: tuple[tuple[int, ...], ...], max_tokens: int | None
) -> Ask:
    if body.model not in {None, MODEL}:
        raise RefusedError(f"the model {body.model!r} does not exist", HTTPStatus.NOT_FOUND)
    options = body.stream_options or _StreamOptions()
    return Ask(
        chat=chat,
        prompts=prompts,
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
        n=body.n,
        stop=tuple(body.stops),
        stream=body.stream,
        include_usage=options.include_usage,
        usage_each=options.include_usage and options.continuous_usage_stats,
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        tenant=body.user,
    )


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


# --- answers --------------------------------------------------------------------------------


def envelope(ask: Ask, id: str, streamed: bool) -> dict[str, Any]:
    """What every answer and every chunk of a stream begins with."""
    if not ask.chat:
        kind = "text_completion"
    else:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
    return {"id": id, "object": kind, "created": int(time.time()), "model": MODEL}


def whole_choice(ask: Ask, index: int, text: str, reason: str) -> dict[str, Any]:
    """One choice of an answer in one piece."""
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text}} if ask.chat else {"text": text}
    )
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def chunk_choice(
    ask: Ask, index: int, text: str, reason: str | None, first: bool
) -> dict[str, Any]:
    """One choice's news in a stream."""
    if not ask.chat:
        said: dict[str, Any] = {"text": text}
    else:
        said = {"delta": {**({"role": "assistant"} if first else {}), "content": text}}
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def models() -> dict[str, Any]:
    """``/v1/models``."""
    entry = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "joulemeter"}
    return {"object": "list", "data": [entry]}
