"""Real vLLMs under ``joulemeter run``, whose meter is killed in mid-run and followed by another.

    make test-vllm        (it sets the environments up; pytest alone does not collect this file)

For each version: requests of every kind, their receipts against the server's own ``usage``; then
``kill -9`` of the meter while requests run, ``joulemeter attach`` to the server, and the same
again.
Needs a C compiler for the simulated card.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import END_S, START_S, Metered, answers, check_receipts, until
from smoke import chat, load, says

pytestmark = pytest.mark.timeout(1800)

VERSIONS = os.environ.get("VLLM_VERSIONS", "0.20.0 0.26.0 0.32.0").split()


@pytest.fixture(params=VERSIONS)
def metered(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Metered]:
    made = Metered(request.param, tmp_path)
    try:
        yield made
    finally:
        made.kill_all()
        made.meter.wait(30)


def test_tokens_and_sums_hold_through_a_kill_of_the_meter(metered: Metered) -> None:
    """The engine serves on; the next meter says what was missed and nothing else; every receipt
    has the server's own counts, before, across and after; at the end nothing is left."""
    metered.await_up()
    usages = load(metered.url)
    check_receipts(metered, usages)
    assert metered.summary()["unattributed_by_reason"] == {}

    server = metered.server()
    metered.family = [server, *server.children(recursive=True)]
    across: dict[str, dict[str, Any] | None] = {}

    def long_request(number: int) -> None:
        said = says(f"Tell a long story, number {number}.")
        name, usage = chat(metered.url, messages=said, max_tokens=400, ignore_eos=True)
        across[name] = usage

    threads = [threading.Thread(target=long_request, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: metered.summary()["requests_running"] >= 6, 60, metered)
    os.kill(metered.meter.pid, signal.SIGKILL)
    metered.meter.wait(30)
    assert server.is_running()
    metered.meter, metered.meter_url = metered.start("attach", server.pid)
    until(lambda: answers(f"{metered.meter_url}/readyz"), 60, metered)
    for thread in threads:
        thread.join()
    assert len(across) == 6, "the server noticed nothing"
    assert all(usage and usage["completion_tokens"] == 400 for usage in across.values())
    usages = load(metered.url)
    check_receipts(metered, {**across, **usages})
    assert {(metered.receipt(name) or {})["missed"] for name in across} == {"meter_down"}
    assert {(metered.receipt(name) or {})["missed"] for name in usages} == {None}
    reasons = metered.summary()["unattributed_by_reason"]
    assert reasons["meter_down"] > 0
    assert set(reasons) <= {"meter_down", "lost_steps"}
    print("unattributed", reasons, "of", metered.summary()["measured_j"])
    assert re.search(r"joulemeter meters this engine", metered.log)
    assert "untested_version" not in metered.log

    server.send_signal(signal.SIGTERM)
    assert metered.meter.wait(END_S) == 0, "the server has ended, and so has its meter"
    _, left = psutil.wait_procs(metered.family, timeout=30)
    assert left == []


def test_ended_while_it_starts_it_leaves_nothing(metered: Metered) -> None:
    """SIGTERM while it loads: the code is the server's, and none of its processes is left. vLLM
    0.32 may not heed the first one, with a meter or without: a second one ends it."""
    until(lambda: len(psutil.Process(metered.meter.pid).children()) > 1, 60, metered)
    server = metered.server()
    until(lambda: server.children(recursive=True), START_S, metered)
    metered.family = [server, *server.children(recursive=True)]
    metered.meter.send_signal(signal.SIGTERM)
    try:
        assert metered.meter.wait(30) != 0
    except subprocess.TimeoutExpired:
        metered.family = [server, *server.children(recursive=True)]
        metered.meter.send_signal(signal.SIGTERM)
        metered.meter.wait(END_S)
    _, left = psutil.wait_procs(metered.family, timeout=5)
    assert left == []
