"""The plugin in a fake vLLM: it never changes what the engine does, and leaves at its first error.

The fake has just the names that the plugin touches; ``test_vllm_scheduler`` has the real one.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from work_reference import expand

import meter.work.vllm as plugin
from meter.model import EngineEvent, Event, Gap, RequestClosed, RequestOpened, Step
from meter.work.listener import Listener
from meter.work.vllm import adapter

METHODS = ("add_request", "schedule", "update_from_output")


@dataclass
class FakeRequest:
    request_id: str
    num_prompt_tokens: int = 4
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_tokens: int = 4
    max_tokens: int = 8
    lora_request: Any = None
    sampling_params: Any = field(default_factory=lambda: SimpleNamespace(stop=[]))
    status: Any = field(default_factory=lambda: SimpleNamespace(name="RUNNING"))

    @classmethod
    def from_engine_core_request(cls, request: Any, hasher: Any) -> FakeRequest:
        return cls(request.request_id)


@dataclass
class FakeOutput:
    """As ``SchedulerOutput``."""

    num_scheduled_tokens: dict[str, int]
    new: list[str] = field(default_factory=list)
    finished_req_ids: set[str] = field(default_factory=set)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    preempted_req_ids: set[str] | None = None

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())

    @property
    def scheduled_new_reqs(self) -> list[Any]:
        return [SimpleNamespace(req_id=name) for name in self.new]

    @property
    def scheduled_cached_reqs(self) -> Any:
        return SimpleNamespace(resumed_req_ids=set())


class FakeScheduler:
    """Prefills what is new, then decodes everybody one token a step."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.requests: dict[str, FakeRequest] = {}
        self.finished_req_ids: set[str] = set()
        self.fails = False

    @property
    def running(self) -> list[FakeRequest]:
        return [r for r in self.requests.values() if r.num_computed_tokens]

    def add_request(self, request: FakeRequest) -> str:
        if self.fails:
            raise RuntimeError("the engine's own")
        self.requests[request.request_id] = request
        return "added"

    def schedule(self, throttle_prefills: bool = False) -> FakeOutput:
        if self.fails:
            raise RuntimeError("the engine's own")
        output = FakeOutput({}, finished_req_ids=self.finished_req_ids)
        self.finished_req_ids = set()
        for name, request in self.requests.items():
            tokens = 1 if request.num_computed_tokens else request.num_prompt_tokens
            if not request.num_computed_tokens:
                output.new.append(name)
            output.num_scheduled_tokens[name] = tokens
            request.num_computed_tokens += tokens
        return output

    def update_from_output(self, scheduler_output: FakeOutput, model_runner_output: Any) -> str:
        if self.fails:
            raise RuntimeError("the engine's own")
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(name)
            if request is not None:
                request.num_output_tokens += 1
                request.num_tokens += 1
                if request.num_output_tokens == request.max_tokens:
                    self.finish(name, "FINISHED_LENGTH_CAPPED")
        return "updated"

    def finish(self, name: str, status: str) -> None:
        self.requests.pop(name).status = SimpleNamespace(name=status)
        self.finished_req_ids.add(name)

    def shutdown(self) -> str:
        return "shut down"


class FakeSchedulerConfig:
    def get_scheduler_cls(self) -> type[FakeScheduler]:
        return FakeScheduler


class FakeEngineCore:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def execute_dummy_batch(self) -> str:
        return "dummy"


CONFIG = SimpleNamespace(
    parallel_config=SimpleNamespace(
        data_parallel_index=2,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        data_parallel_size=4,
    )
)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fresh fake of the modules that the plugin looks into."""
    names = SimpleNamespace(
        config=type("SchedulerConfig", (FakeSchedulerConfig,), dict(vars(FakeSchedulerConfig))),
        request=type("Request", (FakeRequest,), dict(vars(FakeRequest))),
        core=type("EngineCore", (FakeEngineCore,), dict(vars(FakeEngineCore))),
    )
    for module, members in {
        "vllm": {"__version__": "0.0"},
        "vllm.config": {"SchedulerConfig": names.config},
        "vllm.v1": {},
        "vllm.v1.request": {"Request": names.request},
        "vllm.v1.engine": {},
        "vllm.v1.engine.core": {"EngineCore": names.core},
    }.items():
        made = ModuleType(module)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, module, made)
    return names


@dataclass
class Engine:
    """A fake engine with the plugin on it, and the listener that hears it."""

    scheduler: Any
    listener: Listener
    events: list[Event]
    vllm: SimpleNamespace

    def step(self) -> Any:
        output = self.scheduler.schedule()
        assert self.scheduler.update_from_output(output, None) == "updated"
        return output

    def add(self, *names: str, **more: Any) -> None:
        for name in names:
            assert self.scheduler.add_request(FakeRequest(name, **more)) == "added"

    def heard(self) -> list[Event]:
        """All events; ends the listening. The next ``schedule`` would send what is left."""
        self.scheduler._joulemeter_hook._tap._sender.flush()
        self.listener.stop()
        return self.events

    @property
    def tapped(self) -> bool:
        return any(name in vars(self.scheduler) for name in METHODS)


@pytest.fixture
def engine(
    vllm: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    events: list[Event] = []
    listener = Listener(tmp_path / "s", events.append)
    listener.start()
    monkeypatch.setenv(plugin.SOCKET, str(listener.path))
    plugin.register()
    scheduler = vllm.config().get_scheduler_cls()(vllm_config=CONFIG)
    yield Engine(scheduler, listener, events, vllm)
    release(scheduler)
    listener.stop()


def release(scheduler: Any) -> None:
    """What the end of its process does for a scheduler."""
    scheduler._joulemeter_hook._tap.release()


def test_it_tells_requests_and_steps(engine: Engine) -> None:
    """A whole short life: opened, prefilled, decoded, closed."""
    engine.add("chatcmpl-a-0123abcd", max_tokens=3)
    for _ in range(3):
        engine.step()
    events = engine.heard()
    [hello, opened, *steps, closed] = events
    assert isinstance(hello, EngineEvent) and hello.engine == "2"
    assert isinstance(opened, RequestOpened) and opened.parent == "chatcmpl-a"
    assert [[tuple(w)[1:4] for w in step.values()] for step in expand(steps)] == [
        [(4, 0, "p")],
        [(1, 4, "d")],
        [(1, 5, "d")],
    ]
    assert isinstance(closed, RequestClosed)
    assert (closed.reason, closed.completion_tokens) == ("length", 3)


def test_a_step_is_one_datagram_and_the_last_words_do_not_wait(engine: Engine) -> None:
    """While somebody runs, a step's result goes with the next schedule; then it goes at once."""
    engine.add("r", max_tokens=5)
    for _ in range(5):
        engine.step()
    assert not engine.scheduler._joulemeter_hook._tap._sender.pending
    # hello, what was open at the first schedule, one each for the other four, the last words
    assert engine.scheduler._joulemeter_hook._tap._sender.datagrams == 1 + 1 + 4 + 1


def test_without_the_meters_socket_nothing_is_touched(
    vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vLLM that merely has joulemeter installed is left alone."""
    monkeypatch.delenv(plugin.SOCKET, raising=False)
    before = vllm.config.get_scheduler_cls
    plugin.register()
    assert vllm.config.get_scheduler_cls is before


def test_registering_twice_taps_once(engine: Engine) -> None:
    """Two copies of the plugin, or two calls, do no harm."""
    plugin.register()
    scheduler = engine.vllm.config().get_scheduler_cls()(vllm_config=CONFIG)
    assert scheduler.schedule.__qualname__.count("tapped_schedule") == 1
    closure = scheduler.schedule.__closure__ or ()
    assert any(cell.cell_contents == FakeScheduler.schedule.__get__(scheduler) for cell in closure)
    release(scheduler)


def test_a_vllm_of_another_shape_starts_unmetered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that the plugin expects is there: one error in the log, and no exception."""
    monkeypatch.setenv(plugin.SOCKET, "nowhere")
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.config", ModuleType("vllm.config"))
    plugin.register()
    assert "not metered" in caplog.text


BREAKS = {
    "add_request": lambda tap: setattr(tap, "added", explode),
    "schedule": lambda tap: setattr(tap, "scheduled", explode),
    "update_from_output": lambda tap: setattr(tap, "updated", explode),
}


def explode(*args: object) -> None:
    raise ZeroDivisionError("ours")


def test_an_engine_that_is_shut_down_says_so(engine: Engine, vllm: SimpleNamespace) -> None:
    """Its label is free then, also where its process lives on and makes another engine."""
    second = vllm.config()
    third = second.get_scheduler_cls()(vllm_config=CONFIG)
    assert third.shutdown() == "shut down"
    fourth = second.get_scheduler_cls()(vllm_config=CONFIG)
    events = [(e.engine, e.event, e.epoch) for e in engine.heard() if isinstance(e, EngineEvent)]
    assert events == [
        ("2", "ready", 0),
        ("2-2", "ready", 0),
        ("2-2", "down", 0),
        ("2-2", "ready", 1),
    ]
    release(fourth)


@pytest.mark.parametrize("where", BREAKS)
def test_it_removes_itself_at_its_first_error(
    engine: Engine, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The call that failed still answers, the engine is as it was, and the log says so once."""
    engine.add("r1")
    engine.step()
    BREAKS[where](engine.scheduler._joulemeter_hook._tap)
    with caplog.at_level(logging.ERROR):
        engine.add("r2")
        for _ in range(3):
            engine.step()
    assert not engine.tapped
    assert caplog.text.count("has removed itself") == 1
    assert "ZeroDivisionError: ours" in caplog.text
    last = engine.heard()[-1]
    assert isinstance(last, EngineEvent) and last.event == "down"


def test_a_broken_object_of_vllm_is_an_error_of_ours(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A version without a field that the tap reads: removed, and the engine runs on."""
    engine.add("r1")
    del engine.scheduler.requests["r1"].num_preemptions
    FakeRequest.num_preemptions, saved = property(), FakeRequest.num_preemptions  # type: ignore
    try:
        assert engine.step().num_scheduled_tokens == {"r1": 4}
    finally:
        FakeRequest.num_preemptions = saved
    assert not engine.tapped
    assert "AttributeError" in caplog.text


def test_the_engines_own_exceptions_pass_through(engine: Engine) -> None:
    """They are not ours to catch, and no reason to leave."""
    output = engine.scheduler.schedule()
    engine.scheduler.fails = True
    with pytest.raises(RuntimeError, match="the engine's own"):
        engine.scheduler.add_request(FakeRequest("r"))
    with pytest.raises(RuntimeError, match="the engine's own"):
        engine.scheduler.schedule()
    with pytest.raises(RuntimeError, match="the engine's own"):
        engine.scheduler.update_from_output(output, None)
    assert engine.tapped


def test_who_wraps_after_us_is_left_in_place(engine: Engine) -> None:
    """Another plugin's wrapper keeps working when ours goes."""
    ours = engine.scheduler.schedule
    calls: list[int] = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ours(*args, **kwargs)

    engine.scheduler.schedule = theirs
    BREAKS["update_from_output"](engine.scheduler._joulemeter_hook._tap)
    engine.add("r")
    engine.step()
    assert engine.scheduler.schedule is theirs
    assert engine.step().num_scheduled_tokens == {"r": 1}
    assert len(calls) == 2


def test_arguments_pass_as_they_came(engine: Engine) -> None:
    """By position or by name, with what newer versions add."""
    engine.scheduler.add_request(request=FakeRequest("r"))
    output = engine.scheduler.schedule(throttle_prefills=True)
    engine.scheduler.update_from_output(scheduler_output=output, model_runner_output=None)
    assert engine.tapped
    assert [type(event) for event in engine.heard()] == [EngineEvent, RequestOpened, Step]


def test_dummy_passes_are_told(engine: Engine) -> None:
    """A data-parallel rank without requests keeps pace: energy with nobody to pay it."""
    core = engine.vllm.core(engine.scheduler)
    engine.add("r")
    engine.step()
    assert core.execute_dummy_batch() == "dummy"
    engine.step()
    steps = [event for event in engine.heard() if isinstance(event, Step)]
    assert [(step.seq, step.dummy) for step in steps] == [(0, False), (0, True), (1, False)]
    assert all(a.t1_ns <= b.t0_ns for a, b in itertools.pairwise(steps))


def test_a_step_that_the_engine_gave_up_is_a_gap(engine: Engine) -> None:
    """Scheduled and never updated: the next step is told in full, and says that one is missing."""
    engine.add("r")
    engine.step()
    engine.scheduler.schedule()
    engine.step()
    engine.step()
    events = engine.heard()
    [gap] = [event for event in events if isinstance(event, Gap)]
    assert (gap.first_seq, gap.last_seq) == (1, 1)
    assert [s.same for s in events if isinstance(s, Step)] == [False, True, False]


def test_parents_keep_the_id_that_the_client_saw(engine: Engine) -> None:
    """vLLM's request lacks it, so it is copied; without it the engine's own id is cut."""
    core = SimpleNamespace(request_id="1_chatcmpl-x-aaaabbbb", external_req_id="chatcmpl-mine")
    made = engine.vllm.request.from_engine_core_request(core, None)
    assert adapter.parent_of(made) == "chatcmpl-mine"
    assert adapter.parent_of(FakeRequest("1_chatcmpl-x-aaaabbbb")) == "chatcmpl-x"
    assert adapter.parent_of(FakeRequest("cmpl-x-0-aaaabbbb")) == "cmpl-x-0"
    assert adapter.parent_of(FakeRequest("plain")) == "plain"


@pytest.mark.parametrize(
    ("status", "stop", "reason"),
    [
        ("FINISHED_STOPPED", [], "stop"),
        ("FINISHED_LENGTH_CAPPED", ["x"], "length"),
        ("FINISHED_ABORTED", [], "abort"),
        ("FINISHED_ABORTED", ["x"], "stop_or_abort"),
        ("FINISHED_REPETITION", [], "repetition"),
        ("FINISHED_SOMEHOW", [], "somehow"),
    ],
)
def test_reasons_go_by_name(status: str, stop: list[str], reason: str) -> None:
    """Only the front-end tells a stop string from an abort."""
    request = FakeRequest("r", sampling_params=SimpleNamespace(stop=stop))
    request.status = SimpleNamespace(name=status)
    assert adapter.reason_of(request) == reason


def test_no_text_leaves_the_engine(engine: Engine) -> None:
    """Prompts, outputs and stop strings are not on the wire."""
    sampling = SimpleNamespace(stop=["SECRET"], bad_words=["SECRET"])
    request = FakeRequest("r", max_tokens=1, sampling_params=sampling)
    request.prompt_token_ids = ["SECRET"]  # type: ignore[attr-defined]
    request.trace_headers = {"SECRET": "SECRET"}  # type: ignore[attr-defined]
    engine.scheduler.add_request(request)
    engine.step()
    events = engine.heard()
    assert len(events) == 4
    assert "SECRET" not in repr(events)
