"""``joulemeter run`` as a process while its power source misbehaves: the server never notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from processes import ENGINE, UUID, closes, poll

from meter.demo.card import Card, CardSpec, Fault, Function

pytestmark = pytest.mark.slow

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]
ENDED = 128 + signal.SIGTERM


def metric(url: str, name: str) -> float | None:
    """The value of the first sample of that name; ``None`` where there is none."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return float(lines[0].rpartition(" ")[2]) if lines else None


def until(condition, what: str):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.05)
    return found


def test_a_driver_that_hangs_at_the_start_comes_later(metered, card):
    """The server is started without it; when it answers, its GPU is metered and receipts have
    joules."""
    cards = Card.attach(card)
    cards.fault(0, Fault.HANG, 0)
    run = metered("--", *ENGINE, 300, 3)
    url = run.started()
    assert any("driver_does_not_answer" in line for line in run.lines)
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert "the driver has not answered yet" in ready.text
    cards.clear_faults(0)
    summary = poll(url, lambda s: s["measured_j"] > 0 and s["receipts_closed_j"] > 0 and closes(s))
    assert [device["gpu_uuid"] for device in summary["devices"]] == [UUID]
    run.process.terminate()
    assert run.end()[0] == ENDED


def test_a_gpu_that_is_lost_at_the_start_comes_later(metered, card):
    """The server is started with the others; when it is back it is metered too, as its engine's."""
    cards = Card.create(card, [CardSpec(UUID), CardSpec("GPU-other")])
    cards.fault(0, Fault.LOST, 0)
    cards.post(1, 100.0)
    run = metered("--", *ENGINE, 300, 3)
    url = run.started()
    assert any("gpu_left_out" in line for line in run.lines)
    assert "GPU is lost" in httpx.get(f"{url}/readyz", trust_env=False).text
    summary = poll(url, lambda s: s["receipts_closed"] > 0)
    assert [device["gpu_uuid"] for device in summary["devices"]] == ["GPU-other"]
    cards.clear_faults(0)
    summary = poll(
        url, lambda s: all(d["measured_j"] > 0 for d in s["devices"]) and len(s["devices"]) == 2
    )
    assert closes(summary)
    assert summary["engines"][0]["devices"] == ["GPU-other", UUID]
    assert any("device_found" in line for line in run.lines)
    run.process.terminate()
    assert run.end()[0] == ENDED


def test_a_driver_that_is_loaded_later_is_waited_for(metered, card):
    """Alone, with source auto: no figure of the CPU's stands in, it is said, and the GPU's requests
    have joules as soon as it can be read."""
    cards = Card.attach(card)
    cards.fault(0, Fault.UNLOADED, 0)
    run = metered("--", *ENGINE, 300, 3)
    url = run.started()
    assert any("no_energy_yet" in line and "tried again" in line for line in run.lines)
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert ready.status_code == 503
    assert "Driver Not Loaded" in ready.text
    summary = poll(url, lambda s: s["receipts_closed"] > 0)
    assert (summary["measured_j"], summary["devices"]) == (0, [])
    cards.clear_faults(0)
    summary = poll(url, lambda s: s["measured_j"] > 0 and s["receipts_closed_j"] > 0 and closes(s))
    assert [device["gpu_uuid"] for device in summary["devices"]] == [UUID]
    until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 200, "readiness")
    run.process.terminate()
    assert run.end()[0] == ENDED


def test_a_gpu_that_shows_nothing_is_not_ready_on_the_cpu(metered, card):
    """With source auto: the server runs, /readyz says what is wrong and what to do, and no joule of
    the host's CPU is called a request's."""
    cards = Card.attach(card)
    for function in (Function.ENERGY, Function.POWER):
        cards.fault(0, Fault.ERROR, 0, value=3, function=function)
    run = metered("--", *ENGINE, 300, 3)
    url = run.started()
    summary = poll(url, lambda s: s["receipts_closed"] > 0)
    assert (summary["measured_j"], summary["devices"]) == (0, [])
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert ready.status_code == 503
    assert "set power.source to cpu" in ready.text
    run.process.terminate()
    assert run.end()[0] == ENDED


def test_a_driver_that_hangs_holds_up_no_end(metered, card):
    """The GPU's figures grow old, which is shown; the server ends as ever, the meter with it."""
    cards = Card.attach(card)
    run = metered("--", *ENGINE, 8, 4)
    url = run.started()
    poll(url, lambda s: s["measured_j"] > 0)
    cards.fault(0, Fault.HANG, time.monotonic_ns())
    until(lambda: (metric(url, 'joulemeter_source_age_seconds{source="power"}') or 0) > 3, "age")
    until(lambda: any("device_silent" in line for line in run.lines), "the line")
    assert run.end()[0] == 4
    assert run.lines[-1].endswith("requests"), "the sum is told all the same"
    cards.clear_faults(0)


def test_the_second_meter_takes_over(metered, card):
    """It says whose the GPU is and exports nothing of it; when the first one ends it meters it, and
    its own engine's requests have joules."""
    first = metered("--", *SLEEP)
    poll(first.started(), lambda s: s["devices"])
    second = metered("--", *ENGINE, 300, 0)
    url = second.started()
    assert any("device_not_ours" in line for line in second.lines)
    poll(url, lambda s: s["receipts_closed"] > 0)
    assert metric(url, "joulemeter_device_owned") == 0
    assert metric(url, "joulemeter_gpu_energy_joules_total{") is None
    first.process.terminate()
    first.end()
    summary = poll(url, lambda s: s["receipts_closed_j"] > 0 and closes(s))
    assert metric(url, "joulemeter_device_owned") == 1
    assert summary["quality"] == "simulated"
    second.process.terminate()
    assert second.end()[0] == ENDED


def test_nothing_of_a_simulated_card_is_left(metered, card, tmp_path):
    """Its lock lies beside its file, not among the host's."""
    run = metered("--", "true")
    run.started()
    run.end()
    locks = tmp_path / f"joulemeter-{os.geteuid()}"
    assert [path.name for path in locks.iterdir()] == [f"{UUID}-card.lock"]


BURN = "while True: pass"


def test_an_attached_server_on_the_cpu_has_its_share(start, tmp_path, request):
    """Which the meter has not started: what its processes use is claimed all the same."""
    config = tmp_path / "meter.yaml"
    # No idle power: what is claimed is the work's.
    config.write_text("power: {source: cpu, cpu_idle_w: 0, powercap: /none}")
    server = subprocess.Popen([sys.executable, "-c", BURN])
    request.addfinalizer(server.kill)
    words = ("--port", 0, "--config", config, server.pid)
    run = start(*words, environ={"XDG_STATE_HOME": str(tmp_path)}, command="attach")
    url = run.started()
    claimed = 'joulemeter_host_cpu_energy_joules_total{quality="estimated",share="claimed"}'
    until(lambda: (metric(url, claimed) or 0) > 1, "its share")
    server.kill()
    server.wait(30)
    assert run.end()[0] == 0
