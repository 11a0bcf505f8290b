"""The load on a real engine under a real meter, on the simulated card; and what is refused."""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from meter.demo import process, stage
from meter.selftest.load import Size
from meter.selftest.promises import Verdict, promises
from meter.selftest.run import SelftestError, of_command, of_demo, of_server, show
from meter.selftest.server import Server, url_of

pytestmark = pytest.mark.slow

SMALL = Size(rounds=1, repeats=1, company=4, held=9000, times=1, pulses=2)


def kept(found):
    """What must hold on the busiest machine."""
    verdicts = {one.id: one.verdict for one in promises(found)}
    assert verdicts["conservation"] is verdicts["receipts"] is Verdict.PASS
    assert verdicts["resolution"] is Verdict.PASS
    assert verdicts["floor"] is not Verdict.FAIL
    assert found.quality == "simulated"
    assert found.devices[0].counter.refresh_s == pytest.approx(0.1, rel=0.01)
    assert found.devices[0].counter.call_s is not None


def test_the_demo_is_judged_and_marked_simulated(tmp_path: Path, capsys) -> None:
    """The whole way, with its files; text, JSON and page tell the same promises."""
    found = of_demo(1.0, 0, SMALL)
    kept(found)
    code = show(found, tmp_path / "out.json", tmp_path / "out.html")
    told = json.loads((tmp_path / "out.json").read_text())
    page, text = (tmp_path / "out.html").read_text(), capsys.readouterr().out
    assert told["exit_code"] == code
    assert "simulated" in page and "simulated" in text
    for promise in told["promises"]:
        assert promise["says"] in text
        assert promise["says"].replace("'", "&#x27;") in page
    # Alone and in company; ladders of 1, 2 and 4, and of 1 and 4; 4 clients twice; short loads.
    assert told["requests"] >= 4 + 7 + 5 + 8 + SMALL.pulses


def test_a_running_server_is_judged_by_what_its_meter_records(tmp_path: Path) -> None:
    """Nothing is started or stopped: only asked, and the trace is read while it is written."""
    made = stage.simulated(tmp_path, process.free_port())
    metered = process.Metered.start(made, tmp_path, process.free_port())
    try:
        up = f"{made.base_url}/health"
        assert process.wait_until(lambda: process.answers(up), made.start_s)
        kept(of_server(made.base_url + "/", metered.url, None, 1.0, metered.trace, SMALL))
        metered.check()
    finally:
        metered.stop()


def test_a_server_is_started_judged_and_ended(tmp_path: Path, monkeypatch) -> None:
    """One command: it starts the server, finds where it serves, keeps the record, ends it."""
    port = process.free_port()
    made = stage.simulated(tmp_path, port)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JOULEMETER_POWER__SOURCE", "nvml")
    monkeypatch.setenv("JOULEMETER_POWER__NVML_LIBRARY", made.options[-1])
    trace = tmp_path / "kept.jsonl.gz"
    kept(of_command(made.command, None, None, 1.0, trace, 0, SMALL))
    assert trace.stat().st_size > 1000
    assert not process.answers(f"{made.base_url}/health")


def test_the_server_is_started_with_and_without_the_meter_in_turn(
    tmp_path: Path, monkeypatch
) -> None:
    """Four pairs in five lives; the bare ones know nothing of a meter, and all streams count."""
    monkeypatch.setattr("meter.selftest.stage._PAIR_S", 1.0)
    monkeypatch.setattr("meter.selftest.stage._COLD_S", 0.5)
    monkeypatch.setattr("meter.selftest.steady._WARM_S", 0.2)
    lives: list[str] = []
    for kind in ("metered", "bare"):
        real = getattr(Server, kind)
        monkeypatch.setattr(
            Server, kind, lambda self, *o, k=kind, r=real: (lives.append(k), r(self, *o))[1]
        )
    found = of_demo(1.0, 4, SMALL)
    assert lives[1:] == ["metered", "bare", "metered", "bare", "metered"]
    assert found.price is not None and found.price.pairs == 4
    assert 0.5 < found.price.throughput.value < 2
    assert found.price.bare_tokens_per_s > 50
    assert found.meter_cpu_share is not None and 0 < found.meter_cpu_share < 1


@pytest.mark.parametrize("stubborn", [False, True])
def test_what_a_server_leaves_behind_is_ended_with_it(tmp_path: Path, stubborn: bool) -> None:
    """A worker that outlives its server would hold the card's memory in the next life."""
    deaf = "trap '' TERM; " if stubborn else ""
    script = f"({deaf}sleep 60; :) & echo $! > {tmp_path}/worker; sleep 60"
    life = process.tethered(("/bin/sh", "-c", script), {}, 2)
    assert process.wait_until((tmp_path / "worker").exists, 10)
    time.sleep(0.2)
    worker = int((tmp_path / "worker").read_text())
    process.end(life, 1.0)
    assert life.returncode is not None
    gone = process.wait_until(
        lambda: (
            not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
        ),
        10,
    )
    assert gone


def test_a_command_is_found_as_a_shell_finds_it() -> None:
    """``vllm serve``, bare, is no path."""
    life = process.tethered(("sh", "-c", "exit 3"), os.environ, 2)
    assert life.wait(10) == 3


def test_another_server_is_not_judged_in_its_place() -> None:
    """Who answers before the command has started is somebody else."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = str(other.server_address[1])
        with pytest.raises(SelftestError, match="something else answers"):
            of_command(["sh", "-c", "exit 3", "--port", port], None, None, 1.0, None, 0, SMALL)
        other.shutdown()


def test_a_server_that_does_not_come_up_is_said(tmp_path: Path) -> None:
    """With its code; nothing is judged."""
    with pytest.raises(SelftestError, match="ended with code 3 before it served"):
        of_command(["sh", "-c", "exit 3"], "http://127.0.0.1:9", None, 1.0, None, 0, SMALL)


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("vllm serve m", "http://127.0.0.1:8000"),
        ("vllm serve m --port 8001 --host 0.0.0.0", "http://127.0.0.1:8001"),
        ("vllm serve m --host=10.0.0.7 --port=9000", "http://10.0.0.7:9000"),
        ("vllm serve m --port", "http://127.0.0.1:8000"),
        ("vllm serve m --host ::1", "http://[::1]:8000"),
    ],
)
def test_where_a_command_serves_is_read_off_it(command: str, url: str) -> None:
    """By its port and host, as vLLM takes them."""
    assert url_of(command.split()) == url


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(SelftestError, match="--port abc is no number"):
        url_of(["vllm", "serve", "m", "--port", "abc"])


def test_without_a_meter_nothing_is_asked(tmp_path: Path) -> None:
    """The message says how to start the server."""
    nobody = f"http://127.0.0.1:{process.free_port()}"
    with pytest.raises(SelftestError, match="joulemeter run --record"):
        of_server(nobody, nobody, None, 1.0, tmp_path / "trace.jsonl")
