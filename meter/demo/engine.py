"""The scheduler of a small inference engine: what each forward pass computes, and for whom.

It batches as the big engines do, and computes no model: an ``EngineRequest`` brings its own next
token.

* **Continuous batching**: every pass serves all running requests, one token each for those that
  decode; requests join and leave between passes.
* **A token budget a pass, and chunked prefill**: decoding comes first, prompts take what is left,
  a long one in several passes.
* **A prefix cache** (``blocks.py``): full blocks that are known are not computed again.
* **Preemption**: where the KV cache is full the newest running request gives its blocks back and
  is computed again later, prompt and output alike.
* **Aborts** free everything at once; tokens of the pass in flight are dropped.

No clock, no I/O: ``schedule`` says what the next pass computes, ``complete`` that it was computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from meter.demo.blocks import BlockPool, Held
from meter.model import Phase, Work

NextToken = Callable[[int], int]
"""The token that a request emits at position ``n`` of its output."""
Ends = Callable[[int, int], bool]
"""Whether the output ends with its ``n``-th token (an end token, a stop string). Asked once each,
in order."""


class TooLongError(ValueError):
    """The request can never fit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine holds: requests, tokens a pass, KV blocks, tokens a request."""

    running: int = 64
    step_tokens: int = 2048
    block_tokens: int = 16
    blocks: int = 640
    context: int = 8192


@dataclass(slots=True, eq=False)
class EngineRequest:
    """One request as the engine sees it. ``max_tokens`` is at least 1, the prompt not empty."""

    id: str
    prompt: list[int]
    max_tokens: int
    next_token: NextToken
    ends: Ends
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    recompute_until: int = 0
    cached: int | None = None
    preemptions: int = 0
    held: Held = field(default_factory=Held)

    def __post_init__(self) -> None:
        if not self.prompt or self.max_tokens < 1:
            raise ValueError("expected a prompt and at least one token to emit")
        self.tokens = list(self.prompt)

    @property
    def emitted(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def phase(self) -> Phase:
        """What computing the next tokens is. Recomputing counts as such up to where it was."""
        if self.computed < self.recompute_until:
            return Phase.RECOMPUTE
        return Phase.PREFILL if self.computed < len(self.prompt) else Phase.DECODE


@dataclass(frozen=True, slots=True)
class Token:
    """A request emitted a token; ``finished`` is why it ended with it (stop, length)."""

    request: EngineRequest
    token: int
    finished: str | None


class Engine:
    """The state between two passes. Not thread safe."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.pool = BlockPool(self.limits.blocks, self.limits.block_tokens)
        self.waiting: deque[EngineRequest] = deque()
        self.running: list[EngineRequest] = []
        self._in_flight: list[tuple[EngineRequest, Work]] = []

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.running

    def check(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise ``TooLongError`` where such a request can never fit."""
        most = min(self.limits.context, self.limits.blocks * self.limits.block_tokens)
        if prompt_tokens + max_tokens > most:
            raise TooLongError(
                f"this model's context is {most} tokens, but {prompt_tokens} in the prompt and "
                f"{max_tokens} to be generated were asked for; reduce one of them"
            )

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises ``TooLongError``."""
        self.check(len(request.prompt), request.max_tokens)
        self.waiting.append(request)

    def abort(self, request: EngineRequest) -> bool:
        """Forget a request at once; false where the engine does not hold it."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.running:
            self.running.remove(request)
        else:
            return False
        self.pool.release(request.held)
        return True

    # --- one pass

    def schedule(self) -> list[Work]:
        """What the next pass computes; empty where there is nothing to do."""
        if self._in_flight:
            raise RuntimeError("the pass before is not completed")
        budget, preempted = self._schedule_running(self.limits.step_tokens)
        if not preempted:
            self._schedule_waiting(budget)
        return [work for _, work in self._in_flight]

    def complete(self) -> list[Token]:
        """The pass is computed: who has all tokens computed emits the next one."""
        done, self._in_flight = self._in_flight, []
        held = set(map(id, self.running))
        emitted = []
        for request, work in done:
            if id(request) not in held:
                continue
            request.computed += work.tokens
            if request.computed == len(request.tokens):
                emitted.append(self._emit(request))
        if any(token.finished for token in emitted):
            self._leave({id(token.request) for token in emitted if token.finished})
        return emitted

    def _schedule_running(self, budget: int) -> tuple[int, bool]:
        """Give everyone who runs their tokens; where blocks lack, the newest is preempted."""
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = min(len(request.tokens) - request.computed, budget)
            while not self.pool.grow(request.held, request.computed + tokens):
                preempted = True
                if self._preempt_newest() is request:
                    return budget, True
            self._take(request, tokens)
            budget -= tokens
            index += 1
        return budget, preempted

    def _schedule_waiting(self, budget: int) -> None:
        """Let waiting requests in, in order, as far as budget, places and blocks go."""
        while self.waiting and budget > 0 and len(self.running) < self.limits.running:
            request = self.waiting[0]
            found = self.pool.take_cached(request.held, request.tokens)
            tokens = min(len(request.tokens) - found, budget)
            if not self.pool.grow(request.held, found + tokens):
                self.pool.release(request.held)
                return
            self.waiting.popleft()
            self.running.append(request)
            request.computed = found
            if request.cached is None:
                request.cached = found
            self._take(request, tokens)
            budget -= tokens

    def _take(self, request: EngineRequest, tokens: int) -> None:
        work = Work(request.id, tokens, request.computed, request.phase)
        self._in_flight.append((request, work))
        # Findable from now on: who shares them reads them in this same pass, layer by layer.
        self.pool.publish(request.held, request.tokens, request.computed + tokens)

    def _preempt_newest(self) -> EngineRequest:
        """The newest gives way. It is never in this pass yet: the pass goes from old to new."""
        newest = self.running.pop()
        self.pool.release(newest.held)
        newest.recompute_until = max(newest.recompute_until, newest.computed)
        newest.computed = 0
        newest.preemptions += 1
        self.waiting.appendleft(newest)
        return newest

    def _emit(self, request: EngineRequest) -> Token:
        token = request.next_token(request.emitted)
        request.tokens.append(token)
        if request.ends(request.emitted, token):
            return Token(request, token, "stop")
        return Token(request, token, "length" if request.emitted >= request.max_tokens else None)

    def _leave(self, done: set[int]) -> None:
        for request in self.running:
            if id(request) in done:
                self.pool.release(request.held)
        self.running = [request for request in self.running if id(request) not in done]
