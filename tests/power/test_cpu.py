"""RAPL on a fake powercap tree, the estimate on a fake clock, and playback."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter.model import Device, Quality, Reading
from meter.power.errors import NoDeviceError, NoPermissionError, ReadError
from meter.power.estimate import CpuEstimate
from meter.power.playback import Playback
from meter.power.rapl import RaplSource

RANGE_UJ = 262_143_328_850


def domain(root: Path, path: str, name: str, energy_uj: int) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def test_packages_and_dram_are_summed(tmp_path: Path) -> None:
    """Two sockets and their DRAM count once each; core, uncore and psys not at all."""
    one = domain(tmp_path, "intel-rapl:0", "package-0", 1000)
    two = domain(tmp_path, "intel-rapl:1", "package-1", 5)
    dram = domain(tmp_path, "intel-rapl:0:1", "dram", 70)
    for path, name in (("intel-rapl:0:0", "core"), ("intel-rapl:2", "psys")):
        domain(tmp_path, path, name, 3).write_text("999999\n")
    source = RaplSource(tmp_path)
    (device,) = source.open()
    assert (device.quality, device.boundary) == (Quality.MEASURED, "host")
    one.write_text("1500\n")
    two.write_text("25\n")
    dram.write_text("71\n")
    assert source.read()[0].energy_uj == 500 + 20 + 1


def test_two_interfaces_to_one_package_count_once(tmp_path: Path) -> None:
    """Laptops show a package by MSR and by MMIO: the processor's own interface is taken."""
    msr = domain(tmp_path, "intel-rapl:0", "package-0", 1000)
    mmio = domain(tmp_path, "intel-rapl-mmio:0", "package-0", 7000)
    dram = [domain(tmp_path, f"intel-rapl:{i}:0", "dram", 10) for i in (0, 1)]
    domain(tmp_path, "intel-rapl:1", "package-1", 1000)
    (tmp_path / "intel-rapl").mkdir()
    source = RaplSource(tmp_path)
    source.open()
    msr.write_text("1100\n")
    mmio.write_text("7100\n")
    for counter in dram:
        counter.write_text("20\n")
    assert source.read()[0].energy_uj == 100 + 2 * 10


@settings(deadline=None)
@given(st.lists(st.integers(0, RANGE_UJ - 1), min_size=1, max_size=20))
def test_wrap_around_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, moves: list[int]
) -> None:
    """The total is the sum of all moves, however often the counter wraps."""
    root = tmp_path_factory.mktemp("powercap")
    counter = domain(root, "intel-rapl:0", "package-0", RANGE_UJ - 7)
    source = RaplSource(root)
    source.open()
    value, total = RANGE_UJ - 7, 0
    for move in moves:
        value, total = (value + move) % RANGE_UJ, total + move
        counter.write_text(f"{value}\n")
        assert source.read()[0].energy_uj == total


def test_a_turn_that_may_have_been_missed_is_not_guessed(tmp_path: Path) -> None:
    """Polls so far apart that the counter may have turned more than once: the total starts again
    from zero, as a counter's does that was reset."""
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 1000)
    now = {"ns": 0}
    source = RaplSource(tmp_path, lambda: now["ns"])
    source.open()
    for passed_s, value, total_uj in ((1, 5000, 4000), (500, 9000, 8000), (600, 9100, 0)):
        now["ns"] += passed_s * 10**9
        counter.write_text(f"{value}\n")
        assert source.read()[0].energy_uj == total_uj
    now["ns"] += 10**9
    counter.write_text("9250\n")
    assert source.read()[0].energy_uj == 150


def test_no_rapl_says_so(tmp_path: Path) -> None:
    """A machine without it: no zero, an error that says why."""
    with pytest.raises(NoDeviceError, match="virtual"):
        RaplSource(tmp_path).open()


def test_closed_rapl_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that only root may read says how to open it."""
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refuse(path: Path, *arguments: str) -> str:
        if path == counter:  # root may read any file: the refusal has to be played
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NoPermissionError, match="run as root"):
        RaplSource(tmp_path).open()


def test_a_counter_that_breaks_is_a_reading_with_an_error(tmp_path: Path) -> None:
    """Garbage in the tree costs that reading and no more."""
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    source = RaplSource(tmp_path)
    source.open()
    counter.write_text("what\n")
    (failed,) = source.read()
    assert failed.energy_uj is None
    assert failed.error is not None
    counter.write_text("160\n")
    assert source.read()[0].energy_uj == 60


class FakeCpu:
    """Busy seconds of some CPUs, counted in ticks as the kernel does, and a clock."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.ns, self.busy_s, self._tick_s = 5_000, 123.0, tick_s

    def run(self, seconds: float, busy_cpus: float) -> None:
        self.ns += round(seconds * 1e9)
        self.busy_s += seconds * busy_cpus

    def counted_s(self) -> float:
        return self.busy_s - self.busy_s % self._tick_s if self._tick_s else self.busy_s

    def estimate(self, cpus: int) -> CpuEstimate:
        return CpuEstimate(20.0, 100.0, 0.1, self.counted_s, lambda: self.ns, cpus)


def test_the_estimate_follows_utilisation() -> None:
    """Idle, half and full load give their powers, integrated over real time."""
    cpu = FakeCpu()
    source = cpu.estimate(cpus=2)
    (device,) = source.open()
    assert (device.quality, device.boundary, device.refresh_s) == (Quality.ESTIMATED, "host", 0)
    assert source.read()[0].energy_uj == 0
    joules = 0.0
    for share in (0.0, 0.5, 1.0):
        cpu.run(1.0, 2 * share)
        joules += 20.0 + 80.0 * share
        (reading,) = source.read()
        assert reading.energy_uj == pytest.approx(joules * 1e6)
        assert reading.power_w == pytest.approx(20.0 + 80.0 * share)
        assert reading.t_ns == cpu.ns


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.0, 4.0)), max_size=60))
def test_the_kernels_ticks_cost_one_tick_at_most(steps: list[tuple[float, float]]) -> None:
    """However it is polled: the total is off by the last tick, errors do not add up, and readings
    keep their distance and never go back."""
    cpu = FakeCpu(tick_s=0.01)
    source = cpu.estimate(cpus=4)
    source.open()
    readings, start_s = source.read(), cpu.busy_s
    for seconds, busy in steps:
        cpu.run(seconds, busy)
        readings = [*readings, *source.read()]
    used_s = (readings[-1].t_ns - readings[0].t_ns) / 1e9
    for one, other in pairwise(readings):
        assert other.t_ns - one.t_ns >= 10**8
        assert (other.energy_uj or 0) >= (one.energy_uj or 0)
    if readings[-1].t_ns == cpu.ns:
        truth_j = 20.0 * used_s + 20.0 * (cpu.busy_s - start_s)
        assert (readings[-1].energy_uj or 0) / 1e6 == pytest.approx(truth_j, abs=0.01 * 20 + 1e-5)


def test_the_estimate_of_this_machine_stays_in_its_range() -> None:
    """psutil's own figures: between idle and full power over the time that passed."""
    source = CpuEstimate(20.0, 100.0, every_s=0.0)
    source.open()
    (first,) = source.read()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(10_000))
    (last,) = source.read()
    assert first.energy_uj is not None
    assert last.energy_uj is not None
    moved_j, passed_s = (last.energy_uj - first.energy_uj) / 1e6, (last.t_ns - first.t_ns) / 1e9
    assert 20.0 * passed_s < moved_j <= 100.0 * (passed_s + 0.05)


def test_an_estimate_that_was_not_opened_says_so() -> None:
    """The order of calls is checked."""
    with pytest.raises(ReadError, match="before it was opened"):
        CpuEstimate().read()


def test_playback_keeps_the_pace() -> None:
    """A recording is moved to now, keeps its distances, and counts as simulated."""
    clock = {"ns": 5_000}
    device = Device("GPU-0", "card", Quality.MEASURED)
    recorded = [Reading("GPU-0", 100 + i * 1000, i * 10) for i in range(4)]
    source = Playback([device], recorded, lambda: clock["ns"])
    assert source.open()[0].quality is Quality.SIMULATED
    seen = []
    for _ in range(6):
        (reading,) = source.read()
        assert reading.t_ns == clock["ns"]
        seen.append(reading.energy_uj)
        clock["ns"] += 1000
    assert seen == [0, 10, 20, 30, 30, 30]


def test_playback_of_two_devices_and_a_failure() -> None:
    """Each device has its own pace; a poll that failed in the recording fails again, and it can be
    played from the start once more."""
    clock = {"ns": 0}
    devices = [Device(name, name, Quality.MEASURED) for name in "ab"]
    recorded = [
        Reading("b", 1_500, None, error="GPU is lost"),
        Reading("a", 1_000, 10),
        Reading("b", 1_250, 7),
        Reading("a", 2_000, 20),
    ]
    source = Playback(devices, recorded, lambda: clock["ns"])
    for _ in range(2):
        source.open()
        begun_ns, seen = clock["ns"], []
        for after_ns in (0, 250, 500, 1_000):
            clock["ns"] = begun_ns + after_ns
            seen.append([(r.device, r.energy_uj, r.error) for r in source.read()])
        lost = ("b", None, "GPU is lost")
        assert seen == [
            [("a", 10, None)],
            [("a", 10, None), ("b", 7, None)],
            [("a", 10, None), lost],
            [("a", 20, None), lost],
        ]
        source.close()


def test_an_empty_recording_is_refused() -> None:
    """Nothing to play is said at once."""
    with pytest.raises(NoDeviceError, match="no reading"):
        Playback([], []).open()
