"""One meter owns a device: who comes second says so, shows nothing of it, and takes over."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meter.demo.card import Card
from meter.model import Device, DeviceFound, Event, Quality, Reading
from meter.power.owner import NoLockError, Ownership
from meter.runtime.power import ownership
from tests.power.rig import rig, wait_until

A, B = "GPU-aaaa-0", "GPU-bbbb-1"


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """The second is refused as long as the first has it; taking twice is harmless."""
    first, second = Ownership(A, tmp_path), Ownership(A, tmp_path)
    assert first.take()
    assert first.take()
    assert not second.take()
    assert second.owner() is not None
    assert Ownership(B, tmp_path).take(), "another device is another matter"
    first.release()
    assert second.take()


def test_an_owner_that_is_killed_lets_go(tmp_path: Path) -> None:
    """However it ends: nothing is left behind that keeps the next one out."""
    code = (
        "import sys, pathlib; from meter.power.owner import Ownership\n"
        f"mine = Ownership({A!r}, pathlib.Path({str(tmp_path)!r}))\n"
        "print(mine.take(), flush=True)\n"
        "sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "True\n"
    assert Ownership(A, tmp_path).held_by() == owner.pid
    assert not Ownership(A, tmp_path).take()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert Ownership(A, tmp_path).held_by() is None
    assert Ownership(A, tmp_path).take()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write the directory cannot make us write another file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"{A}.lock").symlink_to(victim)
    with pytest.raises(NoLockError):
        Ownership(A, tmp_path).take()
    assert victim.read_text() == "precious"


def test_a_linked_directory_is_refused(tmp_path: Path) -> None:
    """Whoever came first may have led us elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoLockError, match="is a link"):
        Ownership(A, tmp_path / "locks").take()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_directory_is_for_all_users(tmp_path: Path) -> None:
    """As ``/tmp`` is: everybody may add a lock, nobody may take another's away."""
    directory = tmp_path / "locks"
    assert Ownership(A, directory).take()
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert (directory / f"{A}.lock").stat().st_mode & 0o777 == 0o666


def test_the_lock_is_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is for all meters of a host; simulated cards of two files are two cards."""
    cpu = Device("cpu", "CPU", Quality.MEASURED, "cpu", "host")
    real = Device(A, "card", Quality.MEASURED)
    simulated = Device(A, "card", Quality.SIMULATED)
    assert ownership(tmp_path, cpu) is None
    held = []
    for path, device in (("x", simulated), ("y", simulated), ("x", real)):
        monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(tmp_path / path))
        mine = ownership(tmp_path, device)
        assert mine is not None
        assert mine.take()
        held.append(mine)


def locks(directory: Path) -> Callable[[Device], Ownership]:
    return lambda device: Ownership(device.id, directory)


def test_the_second_meter_takes_over(
    library: str, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It meters what is free, says what is not and whose it is, exports nothing of that, and has
    it within a moment of the first one's end."""
    monkeypatch.setattr("meter.power.lane._ASK_AGAIN_S", 0.02)
    directory = tmp_path / "locks"
    first = Ownership(A, directory)
    assert first.take()
    with rig(library, card, ownership=locks(directory)) as second:
        assert [device.id for device in second.sampler.devices] == [B]
        assert [device.id for device in second.sampler.found] == [A, B]
        second.more(B)
        metrics = second.metrics()
        assert metrics["joulemeter_device_owned", A] == 0
        assert metrics["joulemeter_device_owned", B] == 1
        assert {name for name, gpu in metrics if gpu == A} == {"joulemeter_device_owned"}
        assert second.said("device_not_ours") == ["device_not_ours"]
        assert any(A in said and "metered by pid" in said for said in second.gauges.problems())
        first.release()
        seen: list[Event] = []

        def taken_over() -> bool:
            seen.extend(second.pump())
            return any(isinstance(event, Reading) and event.device == A for event in seen)

        wait_until(taken_over, "the device")
        found = next(i for i, event in enumerate(seen) if isinstance(event, DeviceFound))
        read = next(i for i, e in enumerate(seen) if isinstance(e, Reading) and e.device == A)
        assert found < read, "the core hears of the device before its readings"
        second.more(A, 5)
        assert second.said("device_taken_over") == ["device_taken_over"]
        assert second.metrics()["joulemeter_device_owned", A] == 1
        assert second.gauges.problems() == ()


def test_without_locks_nobody_is_kept_out(library: str, card: Card, tmp_path: Path) -> None:
    """Where the directory cannot be used it is said, and metering goes on."""
    (tmp_path / "file").write_text("in the way")
    with rig(library, card, (A,), ownership=locks(tmp_path / "file")) as running:
        running.more(A)
        assert running.said("no_lock") == ["no_lock"]
