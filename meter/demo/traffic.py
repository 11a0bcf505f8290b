"""What the demo's clients ask: a mix of what real ones do, from idle to busy.

Everything follows from a seed. Requests are plain OpenAI bodies, so that they suit the embedded
engine and a real vLLM alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from meter.demo.words import VOCABULARY

TENANTS = ("acme", "globex", "initech", "umbrella")
_PROSE = VOCABULARY[3:]


class Stretch(NamedTuple):
    """So many requests a second for so long."""

    seconds: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """How much traffic: its rhythm (repeated), its sizes, and how many requests at once.

    ``words`` and ``tokens`` scale the lengths of prompts and answers.
    """

    rhythm: tuple[Stretch, ...]
    words: float = 1.0
    tokens: float = 1.0
    open_max: int = 128

    def rate(self, t_s: float) -> float:
        """Requests a second at ``t_s`` seconds from the start."""
        left_s = t_s % sum(stretch.seconds for stretch in self.rhythm)
        for stretch in self.rhythm:
            if left_s < stretch.seconds:
                return stretch.requests_per_s
            left_s -= stretch.seconds
        return self.rhythm[-1].requests_per_s


#: For the simulated 8B model on one H100: quiet, nothing, lively, busy, nearly nothing.
H100 = Profile(
    (Stretch(4, 5), Stretch(2.5, 0), Stretch(7, 14), Stretch(6, 34), Stretch(4, 1.5), Stretch(2, 0))
)
#: For a small model on a real GPU, with a context of 4096 tokens.
GPU = Profile(H100.rhythm, words=0.4)
#: For a small model on a few CPU cores.
CPU = Profile(
    (Stretch(14, 0.8), Stretch(6, 0), Stretch(14, 1.6)), words=0.2, tokens=0.2, open_max=6
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``leave_after``: hang up after so many events of the stream (0: at once)."""

    kind: str
    path: str
    body: dict[str, Any]
    leave_after: int | None = None


class Clients:
    """Draws one request after the other."""

    def __init__(self, model: str, profile: Profile, seed: int = 0) -> None:
        self._model = model
        self._profile = profile
        self._random = random.Random(seed)
        self._systems = [self._text(600) for _ in range(3)]

    def wait_s(self, rate: float) -> float:
        """Time to the next arrival at ``rate`` requests a second."""
        return self._random.expovariate(rate)

    def next(self) -> Ask:
        """The next request."""
        makers, weights = zip(*_KINDS, strict=True)
        (make,) = self._random.choices(makers, weights)
        ask: Ask = make(self)
        body = {"model": self._model, "user": self._random.choice(TENANTS), **ask.body}
        if body.get("stream"):
            body["stream_options"] = {"include_usage": True}
        return Ask(ask.kind, ask.path, body, ask.leave_after)

    # --- the kinds

    def _chat(self) -> Ask:
        return self._say("chat", self._text(self._between(10, 250)))

    def _chat_streamed(self) -> Ask:
        return self._say("chat, streamed", self._text(self._between(10, 250)), stream=True)

    def _shared_prefix(self) -> Ask:
        system = self._random.choice(self._systems)
        stream = self._random.random() < 0.5
        text = self._text(self._between(10, 80))
        return self._say("shared prefix", text, system=system, stream=stream)

    def _long_prompt(self) -> Ask:
        return self._say("long prompt", self._text(self._between(1500, 4000)), most=80)

    def _two_choices(self) -> Ask:
        return self._say("n=2", self._text(self._between(30, 300)), n=2)

    def _one_token(self) -> Ask:
        ask = self._say("one token", self._text(self._between(30, 600)))
        return Ask(ask.kind, ask.path, {**ask.body, "max_tokens": 1})

    def _completion(self) -> Ask:
        body = {
            "prompt": self._text(self._between(20, 200)),
            "max_tokens": self._tokens(160),
            "stop": [" proof", "true."],
        }
        return Ask("completion with stop strings", "/v1/completions", body)

    def _leaves(self) -> Ask:
        ask = self._say("client leaves", self._text(self._between(20, 900)), stream=True)
        leave_after = self._random.choice((0, 1, 5, 30))
        return Ask(ask.kind, ask.path, {**ask.body, "max_tokens": 300}, leave_after)

    def _refused(self) -> Ask:
        return Ask("refused", "/v1/completions", {"prompt": "x", "max_tokens": -1})

    def _say(
        self, kind: str, text: str, *, system: str | None = None, most: int = 300, **more: Any
    ) -> Ask:
        head = [{"role": "system", "content": system}] if system else []
        messages = [*head, {"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": self._tokens(most), **more}
        return Ask(kind, "/v1/chat/completions", body)

    def _tokens(self, most: int) -> int:
        return max(4, round(self._profile.tokens * self._random.randint(most // 6, most)))

    def _between(self, least: int, most: int) -> int:
        """Words: many short texts, few long ones."""
        return round(least * math.pow(most / least, self._random.random()))

    def _text(self, words: int) -> str:
        count = max(3, round(words * self._profile.words))
        return " ".join(self._random.choices(_PROSE, k=count))


_KINDS: tuple[tuple[Callable[[Clients], Ask], float], ...] = (
    (Clients._chat, 26),
    (Clients._chat_streamed, 26),
    (Clients._shared_prefix, 18),
    (Clients._long_prompt, 6),
    (Clients._two_choices, 7),
    (Clients._one_token, 5),
    (Clients._completion, 6),
    (Clients._leaves, 5),
    (Clients._refused, 1),
)
