"""RAPL on a fake powercap tree, the estimate on a fake clock, and playback."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.model import Device, Quality, Reading
from meter.power.errors import NoDeviceError, NoPermissionError
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


def test_the_estimate_follows_utilisation() -> None:
    """Idle, half and full load give their powers, integrated over real time."""
    now = {"ns": 0, "busy": 0.0, "total": 0.0}
    source = CpuEstimate(
        20.0, 100.0, lambda: (now["busy"], now["total"]), clock=lambda: int(now["ns"])
    )
    (device,) = source.open()
    assert device.quality is Quality.ESTIMATED
    joules = 0.0
    for share in (0.0, 0.5, 1.0):
        now["ns"] += 10**9
        now["total"] += 2.0
        now["busy"] += 2.0 * share
        joules += 20.0 + 80.0 * share
        (reading,) = source.read()
        assert reading.energy_uj == pytest.approx(joules * 1e6)
        assert reading.power_w == pytest.approx(20.0 + 80.0 * share)


def test_the_estimate_on_this_machine_only_grows() -> None:
    """psutil's own figures, read fast: energy never goes back."""
    source = CpuEstimate(20.0, 100.0)
    source.open()
    values = [source.read()[0].energy_uj for _ in range(200)]
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(values))


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


def test_an_empty_recording_is_refused() -> None:
    """Nothing to play is said at once."""
    with pytest.raises(NoDeviceError, match="no reading"):
        Playback([], []).open()
