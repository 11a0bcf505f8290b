"""``joulemeter attach``: by pid or URL, with the plugin in the server or without it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from processes import ENGINE, closes, poll

from meter.demo.card import Card

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("metrics_server.py")
CERTIFICATE = str(Path(__file__).parents[1] / "localhost.pem")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}


@pytest.fixture
def plain():
    """A server that was started without joulemeter: its process and port."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JOULEMETER_")}
    command = [sys.executable, str(SERVER), "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        yield process, int(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize("by", ["pid", "url"])
def test_without_the_plugin_there_are_totals_and_it_says_so(metered, card, plain, by):
    """Joules and tokens by model; no receipts; ``counter``, and how to get more."""
    process, port = plain
    Card.attach(card).post(0, 200.0)
    target = process.pid if by == "pid" else f"http://127.0.0.1:{port}"
    run = metered(target, command="attach")
    url = run.started()
    summary = poll(url, lambda s: s["attributed_j"] > 100 and closes(s))
    assert not any("calibration_not_kept" in line for line in run.lines), "it has a place"
    assert summary["unattributed_j"] == 0
    text = httpx.get(url + "/metrics", trust_env=False).text
    assert re.search(
        r'joulemeter_energy_joules_total\{[^}]*model_name="plain",phase="decode"', text
    )
    assert re.search(r'joulemeter_engine_info\{[^}]*fidelity="counter"', text)
    assert httpx.get(url + "/v1/receipts", trust_env=False).json()["receipts"] == []
    process.kill()
    assert run.end()[0] == 0, "the server has ended, and so does the meter"
    (line,) = [line for line in run.lines if "counters alone" in line]
    assert "no receipts" in line and "JOULEMETER_SOCKET" in line and "joulemeter run" in line


@pytest.mark.parametrize(
    ("words", "url"),
    [(["127.0.0.3"], "http://127.0.0.3"), (["127.0.0.1", CERTIFICATE], "https://127.0.0.1")],
)
def test_a_server_is_asked_where_it_listens(metered, card, words, url):
    """On one address alone, or over TLS with a certificate of its own: its sockets say where."""
    Card.attach(card).post(0, 200.0)
    command = [sys.executable, str(SERVER), "0", *words]
    with subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        run = metered(process.pid, command="attach")
        poll(run.started(), lambda s: s["attributed_j"] > 10)
        process.kill()
    assert run.end()[0] == 0
    assert any(f"counters alone ({url}:{port}/metrics)" in line for line in run.lines), run.lines


def test_a_certificate_that_is_not_trusted_is_said_with_the_remedy(metered):
    """Of a URL it is asked for: whoever gave it means that host. It is not waited for."""
    command = [sys.executable, str(SERVER), "0", "127.0.0.1", CERTIFICATE]
    with subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, text=True) as process:
        url = f"https://localhost:{process.stdout.readline().strip()}"
        run = metered(url, command="attach")
        assert run.end()[0] == 2
        assert any("SSL_CERT_FILE" in line for line in run.lines), run.lines
        os.environ["SSL_CERT_FILE"] = CERTIFICATE
        try:
            run = metered(url, command="attach")
            run.started()
            while not any("counters alone" in line for line in run.lines):
                assert run.process.poll() is None, run.lines
                time.sleep(0.02)
        finally:
            del os.environ["SSL_CERT_FILE"]
        process.kill()
    run.end()


def test_an_engine_that_somebody_put_the_plugin_beside_is_joined(metered, start, tmp_path):
    """``joulemeter plugin`` prints what its environment needs; attach listens where it says."""
    socket = tmp_path / "run" / "meter.sock"
    plugin = start("--socket", socket, tmp_path / "beside", command="plugin")
    code, out = plugin.end()
    assert code == 0
    environ = dict(line.split("=", 1) for line in out.splitlines())
    assert (Path(environ["PYTHONPATH"]) / "joulemeter_vllm" / "__init__.py").exists()
    environ = {
        **os.environ,
        "JOULEMETER_SOCKET": environ["JOULEMETER_SOCKET"],
        "JOULEMETER_FAKE_NVML": str(tmp_path / "card"),
    }
    run = metered("--socket", socket, command="attach")
    url = run.started()
    with subprocess.Popen([*ENGINE, "60", "0"], env=environ) as engine:
        summary = poll(url, lambda s: s["receipts_closed"] >= 2 and closes(s))
        assert "meter_down" not in summary["unattributed_by_reason"]
        engine.kill()
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 0


def test_a_plugin_that_is_left_out_is_named(metered, card, plain, tmp_path):
    """The socket is in the server's environment, and VLLM_PLUGINS keeps the plugin from loading:
    counters, and what to change."""
    Card.attach(card).post(0, 200.0)
    environ = {
        **os.environ,
        "JOULEMETER_SOCKET": str(tmp_path / "meter.sock"),
        "VLLM_PLUGINS": "theirs",
    }
    command = [sys.executable, str(SERVER), "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        run = metered(process.pid, command="attach")
        poll(run.started(), lambda s: s["attributed_j"] > 100)
        process.kill()
    assert run.end()[0] == 0
    assert any("VLLM_PLUGINS=theirs leaves joulemeter out" in line for line in run.lines), run.lines


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("4194305", "no process"),
        ("nonsense", "neither a pid nor a URL"),
        (None, "by its pid or URL"),
    ],
)
def test_a_target_that_is_none_is_refused(start, target, said):
    run = start(*([target] if target else []), command="attach")
    assert run.end()[0] == 2
    assert any(said in line for line in run.lines)


def test_run_adds_the_plugin_where_vllm_plugins_would_leave_it_out(metered):
    """vLLM would load the named ones alone."""
    show = ("--", sys.executable, "-c", "import os; print(os.environ.get('VLLM_PLUGINS'))")
    for given, expected in (("theirs", "theirs,joulemeter"), ("joulemeter,x", "joulemeter,x")):
        assert metered(*show, environ={"VLLM_PLUGINS": given}).end() == (0, expected + "\n")
