"""Zeus beside the meter: over the same window, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass

import pytest

from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build
from meter.model import Reading
from meter.selftest import zeus
from meter.selftest.promises import Verdict, _zeus
from meter.selftest.zeus import Beside, Window, compare

pytestmark = pytest.mark.slow

MS = 1_000_000


def readings(watts, device="g", count=500):
    return [Reading(device, i * 20 * MS, round(i * 20_000 * watts)) for i in range(count)]


def test_the_same_window_is_compared():
    """300 W for 5 s beside what Zeus says; half a per cent is the limit."""
    found = compare(Window(1000 * MS, 6000 * MS, 1500.0, 1), readings(300.0), 1)
    assert found == Beside(1500.0, 1500.0, 5.0)
    assert _zeus(found).verdict is Verdict.PASS
    assert _zeus(Beside(1500.0, 1510.0, 5.0)).verdict is Verdict.FAIL
    assert _zeus(None).verdict is Verdict.UNKNOWN


def test_two_gpus_are_a_sum():
    """Zeus sums over its GPUs, and so do we."""
    both = [*readings(300.0), *readings(100.0, "h")]
    assert compare(Window(1000 * MS, 6000 * MS, 2000.0, 2), both, 2).ours_j == 2000.0


@pytest.mark.parametrize(
    ("window", "devices"),
    [
        (None, 1),
        (Window(1000 * MS, 6000 * MS, 1500.0, 2), 1),
        (Window(1000 * MS, 60_000 * MS, 1500.0, 1), 1),
        (Window(-1000 * MS, 6000 * MS, 1500.0, 1), 1),
    ],
)
def test_what_cannot_be_compared_is_not_known(window, devices):
    """No Zeus, other GPUs, a window whose end the trace does not hold, or whose beginning."""
    assert compare(window, readings(300.0), devices) is None


@dataclass
class StandIn:
    """What we call of ``ZeusMonitor``; it takes 10 J in every window."""

    cpu_indices: list[int]
    broken: bool = False

    def begin_window(self, key, sync_execution=True):
        assert not sync_execution

    def end_window(self, key, sync_execution=True):
        if self.broken:
            raise RuntimeError("no GPU any more")
        return types.SimpleNamespace(gpu_energy={0: 4.0, 1: 6.0})


@pytest.mark.parametrize("broken", [False, True])
def test_its_window_lies_around_the_block(monkeypatch, broken):
    """Both ends on our clock; where Zeus breaks, the block does not."""
    stub = types.ModuleType("zeus.monitor")
    stub.ZeusMonitor = lambda cpu_indices: StandIn(cpu_indices, broken)
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", stub)
    before_ns = time.monotonic_ns()
    with zeus.window() as opened:
        time.sleep(0.01)
    if broken:
        assert opened.closed is None
    else:
        assert (opened.closed.energy_j, opened.closed.gpus) == (10.0, 2)
        assert before_ns <= opened.closed.from_ns <= opened.closed.to_ns - 10 * MS


def test_without_zeus_there_is_no_window(monkeypatch):
    """And nothing else changes."""
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with zeus.window() as opened:
        pass
    assert opened.closed is None


#: In a process of its own: one process has one NVML.
REAL = """
import ctypes, json, sys, time
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from meter.selftest import zeus
with zeus.window() as opened:
    time.sleep(2.0)
print(json.dumps(opened.closed))
"""


def test_the_real_zeus_reads_the_simulated_card(tmp_path):
    """Through the fake NVML: what it says of two seconds is what the card drew, to a tick."""
    card = Card.create(tmp_path / "card", [CardSpec()])
    card.post(0, 400.0)
    library = build(tmp_path / "nvml")
    said = subprocess.run(
        [sys.executable, "-c", REAL, str(library)],
        env={**os.environ, "JOULEMETER_FAKE_NVML": str(tmp_path / "card")},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = Window(*json.loads(said.splitlines()[-1]))
    truth_j = card.energy_j(0, found.to_ns) - card.energy_j(0, found.from_ns)
    assert found.gpus == 1
    assert found.energy_j == pytest.approx(truth_j, abs=400.0 * 0.1 + 0.1)
