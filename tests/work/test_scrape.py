"""A server's own counters become totals by model: what grew, when, and where nothing ran."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.attribution import Attributor
from meter.model import (
    Account,
    Device,
    Engine,
    EngineEvent,
    Event,
    Fidelity,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)
from meter.replay import CalibrationMode, replay_trace
from meter.trace import TraceWriter, read_trace
from meter.work.scrape import Counted, RefusedError, ScrapeError, Scraper, fetch, read

TEXT = """# HELP vllm:prompt_tokens_total Prefilled.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1500.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 7.0
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 300.0
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1.0
vllm:iteration_tokens_total_bucket{le="1.0"} 9.0
python_gc_objects_collected_total{generation="0"} 1.0
"""


def text(prompt: int, cached: int, output: int, running: int, stopped: int) -> str:
    return (
        f'vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}\n'
        f'vllm:prompt_tokens_cached_total{{engine="0",model_name="m"}} {cached}\n'
        f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {output}\n'
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}\n'
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} '
        f"{stopped}\n"
    )


def told(*texts: str) -> list[Event]:
    """What readings of these, a second apart, tell of engine 0."""
    engine = Counted("0", ("GPU-0",))
    return [
        event
        for second, now in enumerate(texts)
        for event in engine.take(read(now)["0"], second * 10**9)
    ]


def test_totals_are_read_by_engine() -> None:
    """Other metrics are left alone."""
    found = read(TEXT)
    assert sorted(found) == ["0", "1"]
    zero = found["0"]
    assert (zero.model, zero.requests) == ("m", 3)
    assert zero.tokens == {"prompt": 1500, "cached": 300, "output": 40}
    assert zero.finished == {"stop": 3, "length": 1}


@pytest.mark.parametrize("bad", ["", "up 1\n", "vllm:prompt_tokens_total{engine= 3\n"])
def test_a_server_without_such_counters_is_refused(bad: str) -> None:
    with pytest.raises(ScrapeError):
        read(bad)


@pytest.mark.parametrize(
    "line",
    [
        'vllm:prompt_tokens_total{engine="0"} NaN',
        'vllm:prompt_tokens_total{engine="0"} +Inf',
        'vllm:prompt_tokens_total{engine="0"} -1',
        'vllm:num_requests_running{engine="0"} 1e300',
        'vllm:request_success_total{engine="0"} NaN',
        *("\n".join(f'vllm:num_requests_running{{engine="{i}"}} 1' for i in range(65)),),
        *("\n".join(f'vllm:request_success_total{{finished_reason="{i}"}} 1' for i in range(101)),),
    ],
)
def test_counters_that_no_server_has_are_refused(line: str) -> None:
    """A number that is none, or names without end: said, not believed, and no thread ends."""
    with pytest.raises(ScrapeError):
        read(text(1, 0, 1, 0, 0) + line + "\n")


def test_a_leap_of_the_counters_is_no_work() -> None:
    """Billions of tokens in a second are another server's counters: a new life, and no step of a
    million rows."""
    events = told(text(1, 0, 0, 0, 0), text(10**15, 0, 0, 0, 0), text(10**15 + 7, 0, 0, 0, 0))
    assert [len(e.work) for e in events if isinstance(e, Step)] == [1]
    events = told(text(1, 0, 0, 0, 0), text(1, 0, 0, 0, 10**15))
    assert not [e for e in events if isinstance(e, RequestClosed)]


def test_what_grew_is_one_step() -> None:
    """Tokens computed are those of the prompts less the cached ones; what ran before counts not."""
    ready, opened, step, *_ = told(text(900, 100, 50, 1, 0), text(1900, 300, 90, 1, 0))
    assert isinstance(ready, EngineEvent) and ready.info is not None
    assert ready.info.fidelity is Fidelity.COUNTER
    assert isinstance(opened, RequestOpened) and opened.t_ns == 0
    assert isinstance(step, Step)
    assert (step.t0_ns, step.t1_ns) == (0, 10**9)
    sums = {phase: sum(w.tokens for w in step.work if w.phase is phase) for phase in Phase}
    assert (sums[Phase.PREFILL], sums[Phase.DECODE]) == (800, 40)
    assert step.work[-1].kept == 40


def test_where_nothing_runs_nothing_is_told() -> None:
    assert len(told(text(9, 0, 9, 0, 1), text(9, 0, 9, 0, 1), text(9, 0, 9, 0, 1))) == 1


def test_finished_requests_are_counted_as_the_server_counts_them() -> None:
    """However many end between two readings; and at rest nothing is left open."""
    events = told(text(0, 0, 0, 0, 0), text(50, 0, 9, 2, 0), text(80, 0, 40, 0, 5))
    opened = [e.request for e in events if isinstance(e, RequestOpened)]
    closed = [e.request for e in events if isinstance(e, RequestClosed)]
    assert len(closed) == 5 and sorted(opened) == sorted(closed)
    assert {e.reason for e in events if isinstance(e, RequestClosed)} == {"stop"}


def test_a_server_that_starts_anew_is_a_new_life() -> None:
    """Counters that fall are nobody's negative work."""
    events = told(text(100, 0, 50, 1, 1), text(5, 0, 1, 1, 0), text(9, 0, 3, 1, 0))
    lives = [(e.event, e.epoch) for e in events if isinstance(e, EngineEvent)]
    assert lives == [("ready", 0), ("down", 0), ("ready", 1)]
    assert [e.epoch for e in events if isinstance(e, Step)] == [1]


def test_joules_go_to_the_models_tokens_and_to_idle() -> None:
    """Ten seconds of work at 300 W and ten of rest at 100 W: the sum holds, prefill and decode
    have theirs, and rest is idle."""
    device = Device("GPU-0", "card", Quality.SIMULATED)
    core = Attributor((device,), (Engine("0", ("GPU-0",)),))
    engine = Counted("0", ("GPU-0",))
    energy_uj = 0
    for tick in range(400):
        t_ns = tick * 50_000_000
        busy = tick < 200
        core.feed(Reading("GPU-0", t_ns, energy_uj))
        energy_uj += 50_000 * (300 if busy else 100)
        if tick % 10 == 0:
            grown = min(tick, 200)
            now = text(100 * grown, 0, 10 * grown, 1 if busy else 0, 0 if busy else 1)
            for event in engine.take(read(now)["0"], t_ns):
                core.feed(event)
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.conservation_error_j == pytest.approx(0, abs=1e-6)
    assert snapshot.attributed_j == pytest.approx(3000, rel=0.1)
    assert snapshot.total_j(Account.IDLE) == pytest.approx(1000, rel=0.2)
    assert snapshot.total_j(Account.PREFILL) > 0 and snapshot.total_j(Account.DECODE) > 0
    counted = {key.token_type: count for key, count in snapshot.tokens.items()}
    assert (counted["input"], counted["output"]) == (20_000, 2_000)
    assert sum(snapshot.requests.values()) == 1


#: How much counters grew until the next reading, and how long that took to come.
_GROWN = st.tuples(
    st.integers(0, 10**8) | st.integers(0, 5000),  # tokens of prompts
    st.integers(0, 5000),  # cached
    st.integers(0, 10**8) | st.integers(0, 5000),  # output
    st.integers(0, 3),  # running
    st.integers(0, 4),  # ended
    st.sampled_from((1, 2, 9, 60, 100_000)),  # half seconds
    st.booleans(),  # the server starts anew
)


@given(st.lists(_GROWN, max_size=8))
@settings(max_examples=20, deadline=None)
def test_what_is_recorded_of_counters_is_read_and_gives_the_same_totals(
    tmp_path_factory: pytest.TempPathFactory, grown: list[tuple[int, ...]]
) -> None:
    """Whatever the counters did, and however long the server was silent: no line is refused, each
    event is the same, and a replay's accounts are those of the live core."""
    device = Device("GPU-0", "card", Quality.SIMULATED)
    engine, nameless = Counted("0", ("GPU-0",)), Engine("0", ("GPU-0",))
    path = tmp_path_factory.mktemp("counted") / "t.jsonl"
    writer, live = TraceWriter(path, (device,), (nameless,)), Attributor((device,), (nameless,))
    events: list[Event] = []

    def push(event: Event) -> None:
        events.append(event)
        writer.write(event)
        live.feed(event)

    sums, t_ns = [0] * 4, 10**9
    for prompt, cached, output, running, ended, halves, anew in grown:
        for _ in range(min(halves, 20)):
            push(Reading("GPU-0", t_ns, t_ns // 5000))
            t_ns += 500_000_000 * halves // min(halves, 20)
        old = [0] * 4 if anew else sums
        sums = [old[0] + prompt, old[1] + cached, old[2] + output, old[3] + ended]
        now = read(text(sums[0], sums[1], sums[2], running, sums[3]))
        for event in engine.take(now["0"], t_ns):
            push(event)
    for event in engine.end(t_ns):
        push(event)
    push(Reading("GPU-0", t_ns, t_ns // 5000))
    writer.close()
    live.finish()
    trace = read_trace(path)
    assert trace.bad_lines == []
    assert trace.events == events
    assert live.out_of_order == 0
    replayed = replay_trace(trace, calibration=CalibrationMode.ONLINE)
    assert replayed.snapshot.accounts == live.snapshot().accounts
    assert replayed.snapshot.tokens == live.snapshot().tokens


def test_what_counters_tell_is_refused_of_engines_that_tell_steps(tmp_path: Path) -> None:
    """Two rows of one request are one step's only where its counters are all that is seen; also
    where meta says so."""
    rows = (Work("r", 512, 0, Phase.PREFILL), Work("r", 9, 0, Phase.DECODE, 9))
    for fidelity, bad in ((Fidelity.STEP, 1), (Fidelity.COUNTER, 0)):
        path = tmp_path / f"{fidelity}.jsonl"
        engine = Engine("0", ("d",), fidelity=fidelity)
        writer = TraceWriter(path, (Device("d", "d", Quality.SIMULATED),), (engine,))
        writer.write(Step("0", 0, 0, 1, 2, rows))
        writer.close()
        assert len(read_trace(path).bad_lines) == bad


class Serving(BaseHTTPRequestHandler):
    """A server's ``/metrics``."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_scraper_reads_in_its_own_thread_and_ends_what_it_told() -> None:
    """A server that cannot be read at the start is an error with its address."""
    server = HTTPServer(("127.0.0.1", 0), Serving)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    events: list[Event] = []
    scraper = Scraper(url, events.append, ("GPU-0",), every_s=0.01)
    try:
        assert "vllm:prompt_tokens_total" in fetch(url + "/")
        scraper.start()
        for _ in range(1000):
            if any(isinstance(event, Step) for event in list(events)):
                break
            threading.Event().wait(0.01)
    finally:
        scraper.stop()
        server.shutdown()
        thread.join()
        server.server_close()
    ends = [e.engine for e in events if isinstance(e, EngineEvent) and e.event == "down"]
    assert sorted(ends) == ["0", "1"]
    with pytest.raises(ScrapeError, match="metrics"):
        Scraper(url, events.append, ()).start()


def test_a_port_that_speaks_no_http_is_no_server(ssh_url: str) -> None:
    """``attach`` looks at whatever a process listens on."""
    with pytest.raises(ScrapeError, match="SSH"):
        fetch(ssh_url)


class _Guarded(BaseHTTPRequestHandler):
    """Wants a key, or sends elsewhere; keeps what it was told."""

    told: ClassVar[list[str | None]] = []
    elsewhere = ""

    def do_GET(self) -> None:
        self.told.append(self.headers.get("Authorization"))
        if self.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.elsewhere)
        elif self.headers.get("Authorization") == "Bearer right":
            self.send_response(200)
        else:
            self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_key_is_asked_for_and_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """401: the variable is named; with it the server lets us in. Who sends us on gets it alone."""
    first, second = (type("Guarded", (_Guarded,), {"told": []}) for _ in range(2))
    with (
        HTTPServer(("127.0.0.1", 0), first) as one,
        HTTPServer(("127.0.0.1", 0), second) as two,
    ):
        for server in (one, two):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{one.server_port}"
        monkeypatch.delenv("VLLM_API_KEY", raising=False)
        with pytest.raises(RefusedError, match="it wants a key: set VLLM_API_KEY"):
            fetch(url)
        monkeypatch.setenv("VLLM_API_KEY", "right")
        assert fetch(url) == ""
        first.elsewhere = f"http://127.0.0.1:{two.server_port}/metrics"
        with pytest.raises(RefusedError):
            fetch(url)
        for server in (one, two):
            server.shutdown()
    assert first.told == [None, "Bearer right", "Bearer right"]
    assert second.told == [None]
