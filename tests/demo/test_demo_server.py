"""The embedded engine's OpenAI API, by a real HTTP client on a real port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import Running

from meter.demo.announce import MODEL


@pytest.fixture(scope="module")
def engine() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def chat(text: str = "How much energy does an answer take?", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of a whole stream, which must end as the API says."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_chat_is_answered_with_usage(engine: Running) -> None:
    """One choice, as many tokens as were asked for, and an answer of words."""
    response = engine.client.post("/v1/chat/completions", json=chat(max_tokens=5, ignore_eos=True))
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].replace(".", " .").replace(",", " ,").split()) == 5
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_stream_says_the_same_as_the_whole(engine: Running, is_chat: bool) -> None:
    """Chunks put together give the text of the answer in one piece, with the same usage."""
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    asked = chat() if is_chat else {"model": MODEL, "prompt": "Once upon a time"}
    asked |= {"max_tokens": 40, "seed": 7}
    whole = engine.client.post(path, json=asked).json()
    more = {"stream": True, "stream_options": {"include_usage": True}}
    with engine.client.stream("POST", path, json={**asked, **more}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, last = events(response)
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(p["delta"].get("content", "") if is_chat else p["text"] for p in pieces)
    said = whole["choices"][0]
    assert text == (said["message"]["content"] if is_chat else said["text"])
    assert [p["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1]["finish_reason"] == said["finish_reason"]
    assert last["choices"] == []
    for count in ("prompt_tokens", "completion_tokens"):
        assert last["usage"][count] == whole["usage"][count]


def test_each_event_says_what_was_given_out_so_far_if_asked(engine: Running) -> None:
    """An event may hold several tokens; without the wish none says it."""
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20, "stream": True}
    for each in (True, False):
        options = {"include_usage": True, "continuous_usage_stats": each}
        body = {**asked, "stream_options": options}
        with engine.client.stream("POST", "/v1/completions", json=body) as response:
            *chunks, last = events(response)
        assert all(("usage" in chunk) is each for chunk in chunks)
        if each:
            so_far = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert so_far == sorted(so_far)
            assert so_far[0] >= 1
            assert so_far[-1] == last["usage"]["completion_tokens"]


def test_the_meter_hears_what_the_client_is_told(engine: Running) -> None:
    """For every kind of request the closing record has the counts of ``usage``."""
    shared = "You are a careful meter reader. " * 30
    for number, asked in enumerate(
        [
            chat(shared + "One.", max_tokens=9),
            chat(shared + "Two.", max_tokens=9),
            chat("x " * 900, max_tokens=3),
            chat("hello", max_tokens=1),
        ]
    ):
        id = f"told-{number}"
        answer = engine.client.post(
            "/v1/chat/completions", json=asked, headers={"X-Request-Id": id}
        ).json()
        assert answer["id"] == f"chatcmpl-{id}"
        usage = answer["usage"]
        ((_, engine_id, reason, prompt, cached, completion),) = engine.closed(f"chatcmpl-{id}-")
        assert engine_id != answer["id"]
        assert reason == answer["choices"][0]["finish_reason"]
        assert (prompt, completion) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert cached == usage["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 0) == (number == 1)


def test_several_choices_are_children_of_one_request(engine: Running) -> None:
    """``n = 3``: the prompt counts once, completions add up, one id for the client."""
    asked = chat(max_tokens=6, n=3, user="acme")
    headers = {"X-Request-Id": "trio"}
    body = engine.client.post("/v1/chat/completions", json=asked, headers=headers).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    closed = engine.closed("chatcmpl-trio-")
    assert body["usage"]["completion_tokens"] == sum(row[5] for row in closed)
    assert {row[3] for row in closed} == {body["usage"]["prompt_tokens"]}
    opened = [row for row in engine.wire.of("opened") if "trio" in row[1]]
    assert {(row[2], row[4]) for row in opened} == {("chatcmpl-trio", "acme")}
    assert sorted(row[1][:2] for row in opened) == ["0_", "1_", "2_"]


def test_several_prompts_are_requests_of_their_own(engine: Running) -> None:
    """As with vLLM: ``cmpl-x-0`` and ``cmpl-x-1`` for the two prompts of ``cmpl-x``."""
    asked = {
        "prompt": ["one two three", "four five six seven"],
        "max_tokens": 2,
        "ignore_eos": True,
    }
    headers = {"X-Request-Id": "two"}
    body = engine.client.post("/v1/completions", json=asked, headers=headers).json()
    assert (body["id"], len(body["choices"])) == ("cmpl-two", 2)
    assert body["usage"]["prompt_tokens"] == 3 + 4
    assert body["usage"]["completion_tokens"] == 4
    engine.closed("cmpl-two-")
    opened = [row[2] for row in engine.wire.of("opened") if "cmpl-two" in row[1]]
    assert sorted(opened) == ["cmpl-two-0", "cmpl-two-1"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(engine: Running, stream: bool) -> None:
    """What was already streamed is never taken back: a part of a stop string is held back."""
    asked = {
        "prompt": "Tell",
        "max_tokens": 400,
        "seed": 3,
        "ignore_eos": True,
        "stop": ["ge", "."],
    }
    if not stream:
        body = engine.client.post("/v1/completions", json=asked).json()
        text, reason = body["choices"][0]["text"], body["choices"][0]["finish_reason"]
    else:
        with engine.client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as got:
            pieces = [choice for event in events(got) for choice in event["choices"]]
        text, reason = "".join(p["text"] for p in pieces), pieces[-1]["finish_reason"]
    assert reason == "stop"
    assert text
    assert "ge" not in text
    assert "." not in text


def test_a_client_that_hangs_up_ends_its_stream(engine: Running) -> None:
    """The engine stops computing for it, and says ``abort``."""
    asked = chat(max_tokens=4000, ignore_eos=True, stream=True)
    headers = {"X-Request-Id": "left"}
    with engine.client.stream(
        "POST", "/v1/chat/completions", json=asked, headers=headers
    ) as response:
        next(response.iter_lines())
    ((_, _, reason, _, _, completion),) = engine.closed("chatcmpl-left-")
    assert reason == "abort"
    assert completion < 4000


def test_a_client_that_hangs_up_while_it_waits_ends_its_request(engine: Running) -> None:
    """Also where the answer was to come in one piece, and for all of its choices."""
    asked = chat(max_tokens=4000, ignore_eos=True, n=2)
    headers = {"X-Request-Id": "gone"}
    with pytest.raises(httpx.ReadTimeout):
        engine.client.post("/v1/chat/completions", json=asked, headers=headers, timeout=0.2)
    assert [row[2] for row in engine.closed("chatcmpl-gone-")] == ["abort", "abort"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"prompt": "x"}, 400, "messages"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": [3, -1]}, 400, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": -3}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 0}, 400, "n:"),
        ("/v1/completions", {"prompt": "x", "temperature": -1.0}, 400, "temperature"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, 400, "stop"),
        ("/v1/completions", {"prompt": "x", "stream_options": {}}, 400, "stream_options"),
        ("/v1/completions", {"prompt": [7] * 5000, "max_tokens": 4}, 400, "context"),
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404, "other"),
    ],
)
def test_bad_input_is_refused_and_never_opened(
    engine: Running, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    """An error object that names the field, a 4xx, and nothing for the meter."""
    before = len(engine.wire.of("opened"))
    response = engine.client.post(path, json=body)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    assert len(engine.wire.of("opened")) == before


def test_what_is_no_json_is_refused(engine: Running) -> None:
    """Also a body that cannot be read at all."""
    assert engine.client.post("/v1/completions", content=b"{").status_code == 400


def test_models_and_health(engine: Running) -> None:
    """What a client asks first."""
    assert [m["id"] for m in engine.client.get("/v1/models").json()["data"]] == [MODEL]
    assert engine.client.get("/health").status_code == 200


def test_an_engine_that_stopped_is_not_healthy() -> None:
    """Its requests are refused with 503, and none hangs."""
    running = Running()
    running.loop.stop()
    try:
        assert running.client.get("/health").status_code == 503
        assert running.client.post("/v1/chat/completions", json=chat()).status_code == 503
    finally:
        running.stop()
