"""The embedded engine's scheduler: what holds after every pass, whatever comes and goes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.demo.engine import Engine, EngineRequest, Limits, TooLongError
from meter.model import Phase, Work

SMALL = Limits(running=6, step_tokens=24, block_tokens=4, blocks=24, context=64)


def request(
    id: str, prompt: list[int], max_tokens: int = 8, ends_at: int | None = None
) -> EngineRequest:
    return EngineRequest(
        id, prompt, max_tokens, lambda n: 1000 + n, lambda count, token: count == ends_at
    )


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(50), k=length)


def run(engine: Engine) -> list[list[Work]]:
    """All passes until the engine is empty."""
    passes = []
    while not engine.empty:
        passes.append(engine.schedule())
        engine.complete()
        engine.pool.check()
    return passes


class Watched:
    """Drives an engine at random and checks it from outside."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self.random = random.Random(seed)
        self.limits = limits
        self.engine = Engine(limits)
        self.all: dict[str, EngineRequest] = {}
        self.reach: dict[str, int] = {}  # tokens computed, by id, as the passes tell it
        self.ended: dict[str, str] = {}

    def arrive(self) -> None:
        id = f"r{len(self.all)}"
        prompt = prompt_of(self.random.randrange(3), self.random.randint(1, 48))
        new = request(id, prompt, self.random.randint(1, 16), self.random.choice([None, 3, 9]))
        self.all[id] = new
        self.engine.add(new)

    def leave(self) -> None:
        open_ids = [id for id in self.all if id not in self.ended]
        if open_ids:
            id = self.random.choice(open_ids)
            assert self.engine.abort(self.all[id])
            self.ended[id] = "abort"

    def one_pass(self, abort_in_flight: bool) -> None:
        work = self.engine.schedule()
        self._check_work(work)
        if abort_in_flight:
            self.leave()
        for token in self.engine.complete():
            assert token.request.id not in self.ended
            if token.finished:
                self.ended[token.request.id] = token.finished
        self.engine.pool.check()

    def _check_work(self, work: list[Work]) -> None:
        assert sum(row.tokens for row in work) <= self.limits.step_tokens
        assert len({row.request for row in work}) == len(work) <= self.limits.running
        for row in work:
            one = self.all[row.request]
            assert row.tokens >= 1
            assert row.context == one.computed
            assert len(one.held.blocks) * self.limits.block_tokens >= row.context + row.tokens
            if row.phase is Phase.DECODE:
                assert row.tokens == 1
                assert row.context >= len(one.prompt)
            elif row.phase is Phase.PREFILL:
                assert row.context + row.tokens <= len(one.prompt)
            else:
                assert one.preemptions > 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), blocks=st.integers(16, 60), abort_rate=st.floats(0, 0.3))
def test_every_request_ends_and_every_block_comes_back(
    seed: int, blocks: int, abort_rate: float
) -> None:
    """Whatever arrives, aborts and is preempted: budgets hold, all end, nothing leaks."""
    limits = Limits(running=6, step_tokens=24, block_tokens=4, blocks=blocks, context=64)
    watched = Watched(seed, limits)
    for _ in range(60):
        for _ in range(watched.random.choice([0, 0, 1, 2])):
            watched.arrive()
        watched.one_pass(abort_in_flight=watched.random.random() < abort_rate)
    for _ in range(3000):
        if watched.engine.empty:
            break
        watched.one_pass(abort_in_flight=False)
    assert watched.engine.empty
    assert set(watched.ended) == set(watched.all)
    assert watched.engine.pool.used == 0


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 60), budget=st.integers(1, 24))
def test_chunks_add_up_to_the_prompt_exactly(length: int, budget: int) -> None:
    """A prompt longer than the budget comes in chunks: in order, without overlap, all of it."""
    limits = Limits(running=6, step_tokens=budget, block_tokens=4, blocks=32, context=128)
    engine = Engine(limits)
    engine.add(request("r", prompt_of(1, length), max_tokens=3))
    rows = [row for work in run(engine) for row in work]
    prefill = [row for row in rows if row.phase is Phase.PREFILL]
    assert [row.tokens for row in prefill[:-1]] == [budget] * (len(prefill) - 1)
    assert sum(row.tokens for row in prefill) == length
    decode = [(row.tokens, row.context) for row in rows if row.phase is Phase.DECODE]
    assert decode == [(1, length), (1, length + 1)]


@settings(max_examples=60, deadline=None)
@given(shared=st.integers(0, 40), rest=st.integers(1, 10))
def test_prefixes_are_hit_by_full_blocks_and_one_token_is_always_computed(
    shared: int, rest: int
) -> None:
    """The second of two alike finds the full blocks of what they share, no more and no less."""
    engine = Engine(Limits(running=6, step_tokens=64, block_tokens=4, blocks=40, context=64))
    common = prompt_of(7, shared)
    engine.add(request("first", [*common, *([1] * rest)], max_tokens=1))
    run(engine)
    second = request("second", [*common, *([2] * rest)], max_tokens=1)
    engine.add(second)
    work = engine.schedule()
    assert second.cached == shared // 4 * 4
    assert work == [Work("second", shared + rest - second.cached, second.cached, Phase.PREFILL)]


def test_an_equal_prompt_is_computed_but_for_its_last_block() -> None:
    """What follows is only known by computing: the last token is never taken from the cache."""
    engine = Engine(SMALL)
    for name in ("first", "second"):
        engine.add(request(name, prompt_of(1, 16), max_tokens=1))
    work = engine.schedule()
    assert [(row.tokens, row.context) for row in work] == [(16, 0), (4, 12)]


def test_outputs_are_cached_too() -> None:
    """A follow-up that repeats prompt and answer finds both."""
    engine = Engine(SMALL)
    engine.add(request("turn-1", prompt_of(1, 8), max_tokens=9))
    run(engine)
    again = request("turn-2", [*prompt_of(1, 8), *(1000 + n for n in range(9)), 5], max_tokens=1)
    engine.add(again)
    engine.schedule()
    assert again.cached == 16


def test_preemption_recomputes_prompt_and_output_and_says_so() -> None:
    """Where the cache is full the newest gives way, and is computed again as ``recompute``."""
    engine = Engine(Limits(running=4, step_tokens=64, block_tokens=4, blocks=8, context=32))
    old = request("old", prompt_of(1, 12), max_tokens=12)
    new = request("new", prompt_of(2, 12), max_tokens=12)
    engine.add(old)
    engine.add(new)
    rows = [row for work in run(engine) for row in work]
    assert (old.preemptions, new.preemptions) == (0, 1)
    again = [row for row in rows if row.phase is Phase.RECOMPUTE]
    assert {row.request for row in again} == {"new"}
    assert old.emitted == new.emitted == 12
    computed = max(row.context + row.tokens for row in rows if row.request == "new")
    assert computed == 12 + 12 - 1  # the last token is emitted and never computed
    assert new.cached == 0  # its own blocks, found again, are no hits of the client's


def test_an_abort_in_flight_drops_the_token_and_frees_the_blocks() -> None:
    """Who leaves during a pass emits nothing in it."""
    engine = Engine(SMALL)
    leaving, staying = request("a", prompt_of(1, 8)), request("b", prompt_of(2, 8))
    engine.add(leaving)
    engine.add(staying)
    engine.schedule()
    assert engine.abort(leaving)
    assert [token.request.id for token in engine.complete()] == ["b"]
    assert leaving.emitted == 0
    assert engine.pool.used == len(staying.held.blocks)
    assert not engine.abort(leaving)


def test_the_end_is_told_with_its_reason() -> None:
    """``stop`` where the answer ends by itself, ``length`` where it is cut."""
    engine = Engine(SMALL)
    engine.add(request("stops", prompt_of(1, 4), max_tokens=8, ends_at=2))
    engine.add(request("cut", prompt_of(2, 4), max_tokens=3))
    ended = {}
    while not engine.empty:
        engine.schedule()
        ended |= {t.request.id: (t.finished, t.request.emitted) for t in engine.complete()}
    assert ended == {"stops": ("stop", 2), "cut": ("length", 3)}


def test_what_can_never_fit_is_refused() -> None:
    """Neither more than the context nor more than the whole cache."""
    with pytest.raises(TooLongError, match="64 tokens"):
        Engine(SMALL).add(request("r", prompt_of(1, 60), max_tokens=5))
    tiny = Limits(running=2, step_tokens=8, block_tokens=4, blocks=4, context=64)
    with pytest.raises(TooLongError, match="16 tokens"):
        Engine(tiny).add(request("r", prompt_of(1, 16), max_tokens=1))


def test_passes_alternate_with_their_completion() -> None:
    """A second ``schedule`` before ``complete`` is a mistake and is named."""
    engine = Engine(SMALL)
    engine.add(request("r", [1, 2, 3]))
    engine.schedule()
    with pytest.raises(RuntimeError, match="not completed"):
        engine.schedule()


def test_an_empty_request_is_refused() -> None:
    """There is nothing to compute for an empty prompt, and nothing to emit for no tokens."""
    for prompt, max_tokens in (([], 1), ([1], 0)):
        with pytest.raises(ValueError, match="expected a prompt"):
            request("r", prompt, max_tokens)
