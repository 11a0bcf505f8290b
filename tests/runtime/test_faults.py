"""Faults of the meter and of the engine in mid-run: what is lost is said, the rest is whole."""

import re
import signal
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from processes import ENGINE, closes, family_of, poll, the_command

pytestmark = pytest.mark.slow

MANY = [sys.executable, str(Path(__file__).with_name("many_engines.py"))]
STEPS = 160


def figures(url, name):
    """The samples of one metric: labels and value."""
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(url + "/metrics", trust_env=False).text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def test_a_meter_that_stops_for_two_seconds_loses_nothing(metered, tmp_path):
    """Eight engines at 40 steps/s: the queue holds ten datagrams, the engines keep the rest."""
    run = metered("--", *MANY, STEPS, tmp_path)
    url = run.started()
    pause = threading.Event()
    while not (tmp_path / "half").exists():
        pause.wait(0.05)
        assert run.process.poll() is None, run.lines
    run.process.send_signal(signal.SIGSTOP)
    pause.wait(2.0)
    run.process.send_signal(signal.SIGCONT)
    summary = poll(url, lambda s: s["receipts_closed"] >= 8 and closes(s))
    output = sum(
        v
        for labels, v in figures(url, "joulemeter_tokens_total")
        if labels["token_type"] == "output"
    )
    (tmp_path / "enough").touch()
    code, out = run.end()
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()] == ["0"] * 8, "the engines lost none"
    assert output == 8 * STEPS
    assert summary["unattributed_j"] == 0
    assert summary["attributed_j"] > 0


def test_a_killed_engine_ends_the_meter_with_its_code(metered):
    """Its requests are closed as lost; their joules stay theirs; the sum holds."""
    run = metered("--", *ENGINE, 60, 0)
    url = run.started()
    poll(url, lambda s: s["receipts_closed"] >= 2 and closes(s))
    the_command(run.process.pid).kill()
    code, _ = run.end()
    assert code == 128 + signal.SIGKILL
    assert re.search(r"attributed \+ .*; \d+ requests$", run.lines[-1]), run.lines[-1]


@pytest.mark.parametrize("models", [("tiny", "tiny"), ("tiny", "other")])
def test_an_engine_that_is_restarted_is_metered_again(metered, models):
    """With the same model or another one: a script starts it twice, the first one is killed. What
    it held is closed as lost, the next life is a new one, and the sum holds."""
    one, two = (" ".join([*ENGINE, "12", "0", model]) for model in models)
    run = metered("--", "sh", "-c", f"{one} & echo $!; wait $!; {two}")
    url = run.started()
    pid = int(run.process.stdout.readline())
    poll(url, lambda s: s["receipts_closed"] >= 2)
    psutil.Process(pid).kill()
    seen = poll(url, lambda s: s["receipts_closed"] >= 2)["receipts_closed"]
    poll(url, lambda s: s["receipts_closed"] >= seen + 60 and closes(s))
    requests = figures(url, "joulemeter_requests_total")
    lost = sum(v for labels, v in requests if labels["finished_reason"] == "lost")
    assert lost == 2, "both that it served when it was killed"
    assert {labels["model_name"] for labels, _ in requests} == set(models)
    assert run.end()[0] == 0


def test_a_command_that_is_ended_while_it_starts_leaves_nothing(metered):
    """SIGTERM before any engine speaks: its code is ours, none of its processes is left."""
    script = "sleep 600 & sleep 600 & echo started; wait"
    run = metered("--", "sh", "-c", script)
    run.started()
    assert run.process.stdout.readline() == "started\n"
    family = family_of(run.process.pid)
    assert len(family) == 3
    run.process.send_signal(signal.SIGTERM)
    code, _ = run.end()
    assert code == 128 + signal.SIGTERM
    assert not any(process.is_running() for process in family)
