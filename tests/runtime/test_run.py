"""``joulemeter run`` as a process: an engine on the wire, the simulated card, the HTTP port."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from processes import ENGINE, UUID, closes, poll

from meter.model import Reading
from meter.trace import read_trace

pytestmark = pytest.mark.slow


def test_a_receipt_says_what_its_request_took_of_the_host(metered):
    """Beside the GPU's joules, not in them. All that is claimed of the CPU is in the host's
    accounts, or pending."""
    run = metered("--", *ENGINE, 300, 0)
    url = run.started()

    def settled(receipt):
        return receipt["final"] and receipt["host"] is not None and receipt["host"]["final"]

    receipt = poll(url, settled, "/v1/receipts/cmpl-e0")
    host = receipt["host"]
    assert (host["boundary"], host["quality"], receipt["quality"]) == (
        "host",
        "estimated",
        "simulated",
    )
    assert host["energy_j"] > 0
    assert receipt["energy_j"] == receipt["prefill_j"] + receipt["decode_j"]
    summary = poll(url, lambda s: closes(s) and s["host"]["attributed_j"] > 0)
    assert closes(summary["host"])
    assert [device["gpu_uuid"] for device in summary["devices"]] == [UUID]
    assert [device["boundary"] for device in summary["host"]["devices"]] == ["host"]
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    in_accounts = sum(float(j) for n, _, j in rows if n.startswith("joulemeter_host_energy_j"))
    (claimed,) = (float(j) for name, _, j in rows if 'share="claimed"' in name)
    assert 0 < in_accounts <= claimed + 1e-6
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM


def test_a_whole_run(metered, tmp_path):
    """Every joule in an account, receipts while it runs, a trace, a last line, its exit code."""
    trace = tmp_path / "trace.jsonl.gz"
    config = tmp_path / "meter.yaml"
    config.write_text("pricing: {electricity_price_per_kwh: 0.3, hardware_price_per_hour: 2}")
    run = metered("--record", trace, "--config", config, "--", *ENGINE, 6, 3)
    url = run.started()
    summary = poll(url, lambda s: s["receipts_closed"] >= 4 and closes(s))
    assert summary["quality"] == "simulated"
    assert summary["attributed_j"] > 0
    receipt = poll(url, lambda r: r["final"], "/v1/receipts/cmpl-e0")
    assert receipt["id"] == "cmpl-e0-0"
    assert (receipt["prompt_tokens"], receipt["cached_tokens"]) == (50, 16)
    assert receipt["completion_tokens"] == 10
    assert receipt["tenant"] == "acme"
    assert receipt["model"] == "tiny"
    assert receipt["energy_j"] > 0
    assert receipt["boundary"] == "gpu"
    assert set(receipt["cost"]["components"]) == {"electricity", "compute"}
    recent = httpx.get(url + "/v1/receipts?limit=2", trust_env=False).json()["receipts"]
    assert len(recent) == 2
    metrics = httpx.get(url + "/metrics", trust_env=False).text
    assert f'joulemeter_gpu_energy_joules_total{{gpu="0",gpu_uuid="{UUID}"' in metrics
    assert 'joulemeter_kwh_per_token{idle="without",model_name="tiny"' in metrics
    poll(url, lambda said: said == {"status": "ok"}, "/readyz")
    live = httpx.get(url + "/v1/receipts?limit=1000", trust_env=False).json()["receipts"]
    code, _ = run.end()
    assert code == 3
    assert re.match(
        r"joulemeter: measured .* J \(simulated\) = .* attributed \+ .* requests", run.lines[-1]
    )
    assert len(run.lines) == 2, run.lines
    events = read_trace(trace)
    assert not events.bad_lines
    assert {e.device for e in events.events if isinstance(e, Reading)} == {UUID}
    assert [device.id for device in events.devices] == [UUID]
    replayed, receipts = replay(trace, tmp_path / "receipts.jsonl")
    assert replayed["conservation_error_j"] == pytest.approx(0, abs=1e-6)
    assert replayed["pending_j"] == 0
    assert len(live) >= 4
    for receipt in live:
        assert receipt["energy_j"] == pytest.approx(receipts[receipt["id"]]["energy_j"], abs=1e-6)


def replay(trace, receipts):
    """The summary of an online replay, and its receipts by id."""
    words = [sys.executable, "-m", "meter.cli", "replay", str(trace), "--calibration", "online"]
    done = subprocess.run(
        [*words, "--json", "--receipts", str(receipts)], capture_output=True, text=True, check=True
    )
    lines = map(json.loads, receipts.read_text().splitlines())
    return json.loads(done.stdout), {line["id"]: line for line in lines}


def test_a_second_run_begins_where_the_first_ended(metered, tmp_path):
    """The trace says with what, so that a replay gives the live receipts."""
    assert metered("--", *ENGINE, 5, 0).end()[0] == 0
    file = tmp_path / "state" / "joulemeter" / f"{UUID}.json"
    (entry,) = json.loads(file.read_text())["entries"]
    assert (entry["device"], entry["model"]) == (UUID, "tiny")
    assert entry["terms"]["driver"] == "simulated"
    trace = tmp_path / "trace.jsonl"
    run = metered("--record", trace, "--", *ENGINE, 6, 0)
    url = run.started()
    live = poll(url, lambda r: len(r["receipts"]) >= 4, "/v1/receipts?limit=1000")["receipts"]
    assert run.end()[0] == 0
    # On a busy machine the simulated card is told late of what it drew, and takes joules back.
    said = [line for line in run.lines if "counter_went_back" not in line]
    assert len(said) == 2, run.lines
    (began,) = read_trace(trace).meta["calibration"]["learned"]
    assert began["coefficients"] == entry["facts"]["coefficients"]
    _, receipts = replay(trace, tmp_path / "receipts.jsonl")
    for receipt in live:
        assert receipt["energy_j"] == pytest.approx(receipts[receipt["id"]]["energy_j"], abs=1e-6)


def test_record_is_run_with_a_trace(metered, tmp_path):
    """``joulemeter record TRACE -- CMD``."""
    trace = tmp_path / "trace.jsonl"
    run = metered(trace, "--", *ENGINE, 0.3, 0, command="record")
    assert run.end()[0] == 0
    kinds = {type(event).__name__ for event in read_trace(trace).events}
    assert {"Reading", "Step", "RequestOpened", "RequestClosed", "EngineEvent"} <= kinds


def test_a_signal_ends_the_engine_and_then_the_meter(metered):
    """The last line still comes, and the code says which signal."""
    run = metered("--", "sleep", 600)
    run.started()
    run.process.send_signal(signal.SIGTERM)
    code, _ = run.end()
    assert code == 128 + signal.SIGTERM
    assert run.lines[-1].startswith("joulemeter: ")


def test_a_taken_port_does_not_stop_the_engine(metered):
    """It is said with its remedy, and metering goes on without the port."""
    first = metered("--", "sleep", 600)
    number = first.started().rsplit(":", 1)[1]
    second = metered("--port", number, "--", "sh", "-c", "echo served; exit 5")
    code, out = second.end()
    assert (code, out) == (5, "served\n")
    assert any("choose another port" in line for line in second.lines)
    assert second.lines[-1].startswith("joulemeter: ")
    first.process.send_signal(signal.SIGTERM)
    first.end()


def test_without_nvml_the_engine_runs_all_the_same(start, tmp_path):
    """A library that is not there is named; ``auto`` falls back on the CPU, loudly."""
    nothing = tmp_path / "libnvidia-ml.so.1"
    words = ("--port", 0, "--nvml-library", nothing)
    run = start(*words, "--source", "nvml", "--", "sh", "-c", "exit 4")
    assert run.end()[0] == 4
    assert any("libnvidia-ml.so.1" in line for line in run.lines)
    run = start(*words, "--", "sh", "-c", "exit 6")
    assert run.end()[0] == 6
    assert any("nvml" in line for line in run.lines)
    assert "metering" in " ".join(run.lines)


def test_a_trace_that_cannot_be_written_does_not_stop_the_engine(metered, tmp_path):
    """It is said once."""
    run = metered("--record", tmp_path / "no" / "trace", "--", "sh", "-c", "exit 7")
    assert run.end()[0] == 7
    assert len([line for line in run.lines if "the record" in line]) == 1


def test_a_meter_that_breaks_does_not_stop_the_engine(metered, tmp_path):
    """Not even where its own code fails at the start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import meter.runtime.writer as w\n"
        "def broken(*a, **k): raise RuntimeError('boom')\n"
        "w.Writer.__init__ = broken\n"
    )
    run = metered("--", "sh", "-c", "exit 8", environ={"PYTHONPATH": str(tmp_path)})
    assert run.end()[0] == 8
    assert any("the engine runs all the same" in line for line in run.lines)


def test_a_command_that_does_not_exist_gives_127(metered):
    """And is named."""
    run = metered("--", "no-such-server")
    assert run.end()[0] == 127
    assert any("no-such-server: command not found" in line for line in run.lines)


def test_the_engines_environment(metered):
    """The plugin's folder before what was on PYTHONPATH, and what vLLM wants of Prometheus."""
    run = metered(
        *("--", sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))"),
        environ={"PYTHONPATH": "/mine", "PROMETHEUS_MULTIPROC_DIR": "/theirs"},
    )
    code, out = run.end()
    environ = json.loads(out)
    first, *others = environ["PYTHONPATH"].split(os.pathsep)
    assert code == 0
    assert others == ["/mine"]
    assert first.endswith("beside")
    assert environ["PROMETHEUS_MULTIPROC_DIR"] == "/theirs"
    assert not Path(environ["JOULEMETER_SOCKET"]).parent.exists()
