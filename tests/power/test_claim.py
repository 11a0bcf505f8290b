"""The host's CPU is split: what the engine claims and other are what was measured, always."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.config import PowerSettings
from meter.demo.card import Card
from meter.model import Device, Event, Quality, Reading
from meter.power.claim import CpuClaim
from meter.power.cpu_time import TreeTime
from meter.power.owner import Ownership, count
from meter.power.rapl import CPU
from meter.runtime.devices import Wanted
from meter.runtime.host import HostCpu
from meter.runtime.power import start_power
from tests.power.rig import wait_until
from tests.power.test_cpu import domain

NS = 1_000_000_000


class Host:
    """A host whose CPUs draw power and are used by the engine and by others."""

    name = "host"

    def __init__(self) -> None:
        self.t_ns, self.energy_uj, self.engine_s, self.busy_s = 0, 777, 5.0, 50.0
        self.error: str | None = None
        self.idle_share = 1.0
        self.claim = CpuClaim(
            self,
            lambda: self.engine_s,
            lambda: self.busy_s,
            lambda: self.idle_share,
            clock=lambda: self.t_ns,
        )
        self.claim.open()
        self.shown: list[Reading] = []

    def open(self) -> Sequence[Device]:
        return [Device(CPU, "CPU", Quality.MEASURED, CPU, "host", refresh_s=0.0)]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        return [Reading(CPU, self.t_ns, None if self.error else self.energy_uj, error=self.error)]

    def close(self) -> None:
        pass

    def run(self, seconds: float, power_w: float, engine: float, others: float) -> None:
        """``engine``, ``others``: CPUs that they use; read every 100 ms."""
        for _ in range(round(seconds * 10)):
            self.t_ns += NS // 10
            self.energy_uj += round(power_w * 1e5)
            self.engine_s += engine / 10
            self.busy_s += (engine + others) / 10
            self.shown += self.claim.read()


def test_idle_is_the_engines_and_work_goes_by_cpu_time() -> None:
    """40 W idle, 100 W at work, a quarter of the CPU time: 40 + 60 / 4 watts."""
    host = Host()
    host.run(3, 40.0, 0.0, 0.0)
    assert host.claim.totals is not None
    assert host.claim.totals.idle_w == pytest.approx(40.0)
    before = host.claim.totals
    host.run(2, 100.0, 1.0, 3.0)
    after = host.claim.totals
    assert (after.claimed_uj - before.claimed_uj) / 1e6 == pytest.approx(2 * 55.0)
    assert (after.other_uj - before.other_uj) / 1e6 == pytest.approx(2 * 45.0)
    assert host.shown[-1].power_w == pytest.approx(55.0)


def test_idle_power_is_shared_by_the_engines() -> None:
    """Of two engines on a host each claims half of it; the GPUs' share does the same."""
    host = Host()
    host.idle_share = 0.5
    host.run(3, 40.0, 0.0, 0.1)
    assert host.claim.totals is not None
    assert host.claim.totals.claimed_uj == pytest.approx(host.claim.totals.other_uj)


def test_a_known_idle_power_is_not_learned() -> None:
    """The estimate's is a setting: a host that is busy from the start hides nothing."""
    host = Host()
    host.claim = CpuClaim(
        host, lambda: host.engine_s, lambda: host.busy_s, idle_w=40.0, clock=lambda: host.t_ns
    )
    host.claim.open()
    host.run(4, 100.0, 1.0, 3.0)
    assert host.claim.totals is not None
    assert host.claim.totals.idle_w == 40.0
    assert host.claim.totals.claimed_uj / 1e6 == pytest.approx(3.9 * 55.0)


moves = st.lists(
    st.tuples(st.integers(1, 3 * 10**8), st.integers(0, 10**7), st.floats(0, 2), st.floats(0, 2)),
    max_size=60,
)


@given(moves, st.floats(0, 1))
def test_measured_is_claimed_plus_other(
    steps: list[tuple[int, int, float, float]], idle_share: float
) -> None:
    """To the microjoule, whatever is drawn and used; neither ever falls."""
    host = Host()
    host.idle_share = idle_share
    host.shown += host.claim.read()
    before = host.claim.totals
    assert before is not None
    for passed_ns, moved_uj, engine_s, others_s in steps:
        host.t_ns += passed_ns
        host.energy_uj += min(moved_uj, 10 * passed_ns)  # at most 10 kW
        host.engine_s += engine_s
        host.busy_s += engine_s + others_s
        shown = host.claim.read()
        now = host.claim.totals
        assert now is not None
        assert now.claimed_uj >= before.claimed_uj
        assert now.other_uj >= before.other_uj
        if shown:
            assert now.claimed_uj + now.other_uj == host.energy_uj - 777
            assert shown[0].energy_uj == now.claimed_uj
        before = now


def test_what_cannot_be_is_not_claimed() -> None:
    """A counter that was set back or leaps: the claim is a counter that starts again, and nothing
    of the leap is anybody's."""
    host = Host()
    host.run(3, 50.0, 1.0, 1.0)
    before = host.claim.totals
    for leap_uj in (-140_000_000, 10**12):
        host.energy_uj += leap_uj
        host.run(0.1, 50.0, 1.0, 1.0)
        assert host.claim.totals == before
        assert host.shown[-1].energy_uj == 0
    host.run(1, 50.0, 1.0, 0.0)
    assert host.claim.totals is not None
    assert before is not None
    assert host.shown[-1].energy_uj == host.claim.totals.claimed_uj - before.claimed_uj


def test_a_failed_reading_is_passed_on() -> None:
    """And what it missed is claimed at the next."""
    host = Host()
    host.run(2, 50.0, 1.0, 1.0)
    host.error = "no"
    host.run(0.5, 50.0, 1.0, 1.0)
    assert host.shown[-1].error == "no"
    host.error = None
    host.run(0.5, 50.0, 1.0, 1.0)
    assert host.claim.totals is not None
    assert (
        host.claim.totals.claimed_uj + host.claim.totals.other_uj
        == host.energy_uj - 777 - 5 * 10**6
    )


BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def test_the_tree_is_what_the_meter_started() -> None:
    """Children and theirs, also those that ended; not the meter itself."""
    now = {"s": 0.0}
    tree = TreeTime(clock=lambda: now["s"])
    begun_s = tree()
    for _ in range(200_000):
        pass
    assert tree() == pytest.approx(begun_s, abs=0.02)
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\ninput()"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE)
    now["s"] = 10.0

    def burned() -> bool:
        now["s"] += 10.0
        return tree() - begun_s >= 0.29

    wait_until(burned, "the child's CPU time")
    child.communicate(b"\n")
    now["s"] += 10.0
    assert tree() - begun_s >= 0.29, "it does not forget who has ended"


def test_a_server_that_was_there_is_counted_itself(tmp_path: Path) -> None:
    """By its pid, with its children."""
    child = subprocess.Popen([sys.executable, "-c", f"{BURN}\ninput()"], stdin=subprocess.PIPE)
    tree = TreeTime(child.pid)
    wait_until(lambda: tree() >= 0.29, "its CPU time")
    child.communicate(b"\n")
    assert tree() >= 0.29


def test_a_server_that_has_ended_uses_nothing() -> None:
    """And is no reason to meter nothing."""
    assert TreeTime(2**22 + 1)() == 0.0


def test_meters_of_a_host_count_one_another(tmp_path: Path) -> None:
    """By their locks; who has ended is cleared away."""
    settings = PowerSettings(source="cpu", lock_directory=tmp_path, powercap=tmp_path / "none")
    host = HostCpu(settings)
    assert host._idle_share() == 1.0
    other = Ownership("cpu-meter-1", tmp_path)
    assert other.take()
    assert count("cpu-meter-", tmp_path) == 2
    other.release()
    assert count("cpu-meter-", tmp_path) == 1
    names = {path.name for path in tmp_path.rglob("cpu-meter-*")}
    assert names == {f"cpu-meter-{os.getpid()}.{kind}" for kind in ("lock", "owner")}


def test_an_engine_on_the_cpu_is_metered_on_its_claim(tmp_path: Path) -> None:
    """Two sockets and their DRAM by RAPL; the device's joules are what is claimed."""
    tree = tmp_path / "powercap"
    counters = [
        domain(tree, "intel-rapl:0", "package-0", 1000),
        domain(tree, "intel-rapl:1", "package-1", 1000),
        domain(tree, "intel-rapl:1:0", "dram", 1000),
    ]
    events: queue.Queue[Event] = queue.Queue()
    settings = PowerSettings(source="cpu", powercap=tree, lock_directory=tmp_path / "locks")
    power = start_power(settings, Wanted(), events.put)
    (device,) = power.sampler.devices
    assert (device.id, device.quality, device.boundary) == (CPU, Quality.MEASURED, "host")
    assert device.note is not None
    first = events.get(timeout=10)
    assert isinstance(first, Reading)
    assert first.energy_uj == 0
    for counter in counters:
        counter.write_text("401000\n")  # 0.4 J each

    def moved() -> bool:
        assert power.host.totals is not None
        return power.host.totals.claimed_uj + power.host.totals.other_uj == 1_200_000

    wait_until(moved, "the joules")
    power.sampler.stop()


def test_beside_gpus_the_cpu_is_another_boundary(library: str, card: Card, tmp_path: Path) -> None:
    """None of the devices to meter; what is read of it is the claim. One GPU of two: half of the
    idle power."""
    tree = tmp_path / "powercap"
    counter = domain(tree, "intel-rapl:0", "package-0", 1000)
    card.post(0, 100.0, time.monotonic_ns() - NS)
    events: queue.Queue[Event] = queue.Queue()
    settings = PowerSettings(
        source="nvml", nvml_library=Path(library), powercap=tree, lock_directory=tmp_path / "locks"
    )
    power = start_power(settings, Wanted(("0",)), events.put)
    assert [device.id for device in power.sampler.devices] == ["GPU-aaaa-0"]
    assert [device.id for device in power.sampler.found] == ["GPU-aaaa-0"]
    wait_until(lambda: any(s.beside and s.samples for s in power.sampler.states()), "a reading")
    counter.write_text("1001000\n")  # 1 J

    def split() -> bool:
        totals = power.host.totals
        return totals is not None and totals.claimed_uj + totals.other_uj == 1_000_000

    wait_until(split, "the joules")
    power.sampler.stop()
    totals = power.host.totals
    assert totals is not None
    assert 400_000 < totals.other_uj <= 500_000
    assert power.beside
    assert power.sampler.beside is not None
    assert power.sampler.beside.boundary == "host"
    readings = [e for e in (events.get() for _ in range(events.qsize())) if isinstance(e, Reading)]
    assert {reading.device for reading in readings} == {"GPU-aaaa-0", "cpu"}
    last = [reading for reading in readings if reading.device == "cpu"][-1]
    assert last.energy_uj == totals.claimed_uj


def test_a_claim_is_nobody_elses() -> None:
    """The core may not find a stranger among joules that are the engine's by what they are."""
    (device,) = Host().claim.open()
    assert device.claimed
