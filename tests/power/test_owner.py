"""One meter owns a device: who comes second says so, shows nothing of it, and takes over."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from meter.demo.card import Card
from meter.model import Device, DeviceFound, Event, Quality, Reading
from meter.power.owner import Holder, NoLockError, Ownership, _started
from meter.runtime.power import ownership
from tests.power.rig import closes, rig, wait_until

A, B = "GPU-aaaa-0", "GPU-bbbb-1"


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """The second is refused as long as the first has it; taking twice is harmless."""
    first, second = Ownership(A, tmp_path), Ownership(A, tmp_path)
    assert first.take()
    assert first.take()
    assert not second.take()
    assert second.owner() == os.getpid()
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
        [sys.executable, "-c", code, "joulemeter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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
    """Whoever may write the folder cannot make us write another file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    mine = tmp_path / f"joulemeter-{ME}"
    mine.mkdir()
    (mine / f"{A}.lock").symlink_to(victim)
    with pytest.raises(NoLockError):
        Ownership(A, tmp_path).take()
    (mine / f"{B}.owner").symlink_to(victim)
    assert Ownership(B, tmp_path).take(), "what is written down replaces the link"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("link", ["locks", f"locks/joulemeter-{os.geteuid()}"])
def test_a_linked_folder_is_refused(
    tmp_path: Path, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came first may have led us elsewhere."""
    monkeypatch.setattr("meter.power.place.uid_of", strangers(tmp_path / "locks", only_links=True))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoLockError):
        Ownership(A, tmp_path / "locks").take()
    assert list((tmp_path / "elsewhere").iterdir()) == []


ME = os.geteuid()


def strangers(*paths: Path, only_links: bool = False) -> Callable[[os.stat_result], int]:
    """Makes these files another user's: what a test that is not root cannot do."""

    def uid_of(status: os.stat_result) -> int:
        for path in paths:
            if not os.path.lexists(path):
                continue
            known = path.lstat()
            is_link = stat.S_ISLNK(status.st_mode)
            if (known.st_dev, known.st_ino) == (status.st_dev, status.st_ino):
                return status.st_uid if only_links and not is_link else 4321
        return status.st_uid

    return uid_of


def test_nobody_else_can_open_a_lock(tmp_path: Path) -> None:
    """Who can open a file can hold its lock for ever: only its user can, in a folder that nobody
    else can write; the folder of all is as ``/tmp``."""
    base = tmp_path / "locks"
    own = Ownership(A, base)
    assert own.take()
    mine = base / f"joulemeter-{ME}"
    assert base.stat().st_mode & 0o7777 == 0o1777
    assert mine.stat().st_mode & 0o022 == 0
    assert (mine / f"{A}.lock").stat().st_mode & 0o777 == 0o600
    assert (mine / f"{A}.owner").stat().st_mode & 0o777 == 0o644
    own.release()
    assert [path.name for path in mine.iterdir()] == [f"{A}.lock"]


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """They could put another lock in the place of ours."""
    mine = tmp_path / f"joulemeter-{ME}"
    mine.mkdir()
    mine.chmod(mode)
    with pytest.raises(NoLockError, match=r"power\.lock_directory"):
        Ownership(A, tmp_path).take()


def test_a_base_that_anybody_may_rename_in_is_refused(tmp_path: Path) -> None:
    """Without the sticky bit the folder in it is not safe, whoever's it is."""
    base = tmp_path / "locks"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(NoLockError, match="rename"):
        Ownership(A, base).take()
    base.chmod(0o1777)
    assert Ownership(A, base).take()


@pytest.mark.parametrize("whose", ["locks", f"locks/joulemeter-{os.geteuid()}", "lock"])
def test_what_a_stranger_made_under_our_name_is_not_used(
    tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base, our folder or the lock itself: it is said, with the setting that helps."""
    base = tmp_path / "locks"
    mine = base / f"joulemeter-{ME}"
    mine.mkdir(parents=True)
    (mine / f"{A}.lock").touch()
    made = mine / f"{A}.lock" if whose == "lock" else tmp_path / whose
    monkeypatch.setattr("meter.power.place.uid_of", strangers(made))
    own = Ownership(A, base)
    with pytest.raises(NoLockError, match=r"power\.lock_directory"):
        own.take()
    assert own.held_by() is None, "nor believed"


def test_a_lock_that_another_user_holds_does_not_stop_us(tmp_path: Path) -> None:
    """A stranger's folder may hold a lock of the same name: it is not ours to wait for."""
    theirs = tmp_path / "joulemeter-4321"
    theirs.mkdir()
    lock = theirs / f"{A}.lock"
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert Ownership(A, tmp_path).take()


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> int:
    """Whoever runs the tests is a user beside another one, who is root."""
    monkeypatch.setattr("meter.power.owner.ROOT", 4321)
    return ME


def of_root(monkeypatch: pytest.MonkeyPatch, base: Path, pid: int, started: int) -> Path:
    """Root's folder in ``base``, and what its meter wrote down."""
    folder = base / "joulemeter-4321"
    folder.mkdir(exist_ok=True)
    note = folder / f"{A}.owner"
    note.write_text(f"{pid} {started}\n")
    monkeypatch.setattr("meter.power.place.uid_of", strangers(folder, note))
    return note


def meter_process() -> subprocess.Popen[str]:
    """A process that looks like a meter, until its input ends."""
    words = [sys.executable, "-c", "input()", "joulemeter", "run"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, text=True)


def test_roots_meter_comes_before_a_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_user: int
) -> None:
    """As long as it lives: also where the user's was first, which then gives way."""
    mine = Ownership(A, tmp_path)
    assert mine.take()
    assert mine.is_kept()
    process = meter_process()
    try:
        of_root(monkeypatch, tmp_path, process.pid, _started(process.pid))
        monkeypatch.setattr("meter.power.owner._PROC", PROC_OF_ROOT(tmp_path, process.pid))
        assert not mine.is_kept()
        mine.release()
        assert not mine.take()
        assert mine.owner() == mine.held_by() == process.pid
        assert Ownership(B, tmp_path).take(), "another device is another matter"
    finally:
        process.communicate("\n")
    assert mine.take()


class PROC_OF_ROOT:  # noqa: N801
    """``/proc`` that hides the processes of others, as with ``hidepid``."""

    def __init__(self, empty: Path, pid: int) -> None:
        self._empty, self._pid = empty, pid

    def __truediv__(self, name: str) -> Path:
        return (self._empty if name == str(self._pid) else Path("/proc")) / name


@pytest.mark.parametrize("what", ["ended", "another", "no meter", "nonsense", "endless"])
def test_a_note_that_is_not_a_living_meters_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_user: int, what: str
) -> None:
    """Its process has ended, or is another one of that number, or no meter; or it is no note."""
    words = {"no meter": ["sleep", "60"]}.get(
        what, [sys.executable, "-c", "input()", "joulemeter", "run"]
    )
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    started = _started(process.pid) + (what == "another")
    note = of_root(monkeypatch, tmp_path, process.pid, started)
    if what in ("nonsense", "endless"):
        note.write_text({"nonsense": "-1 x\n", "endless": "9" * 10_000}[what])
    if what == "ended":
        process.communicate(b"\n")
    try:
        assert Ownership(A, tmp_path).take()
    finally:
        process.kill()
        process.communicate()


def test_a_note_does_not_name_who_has_ended(tmp_path: Path) -> None:
    """The pid of the meter before is not shown as the holder's."""
    mine = tmp_path / f"joulemeter-{ME}"
    mine.mkdir()
    (mine / f"{A}.owner").write_text("4194303 1\n")
    (mine / f"{A}.lock").touch(mode=0o600)
    with (mine / f"{A}.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        own = Ownership(A, tmp_path)
        assert not own.take()
        assert own.owner() is None
        assert own.held_by() == 0


def test_another_users_meter_is_named_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both count the joules: that is said, for neither can be sure of the other."""
    process = meter_process()
    try:
        note = of_root(monkeypatch, tmp_path, process.pid, _started(process.pid))
        real = Path.stat

        def others(path: Path, **more: bool) -> os.stat_result:
            status = real(path, **more)
            if path == Path("/proc") / str(process.pid):
                return os.stat_result((*status[:4], 4321, *status[5:10]))
            return status

        monkeypatch.setattr(Path, "stat", others)
        own = Ownership(A, tmp_path)
        assert own.take()
        assert own.rivals() == (Holder(4321, process.pid),)
        note.unlink()
        assert own.rivals() == ()
    finally:
        process.communicate("\n")


def test_a_folder_of_all_that_is_full_is_not_read_for_ever(tmp_path: Path) -> None:
    """Somebody may make any number of folders there."""
    for number in range(2000):
        (tmp_path / f"joulemeter-{5000 + number}").mkdir()
    begun = time.monotonic()
    own = Ownership(A, tmp_path)
    assert own.take()
    assert own.rivals() == ()
    assert time.monotonic() - begun < 5


def test_a_users_lane_gives_way_to_roots(
    library: str, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said whose the device is now, nothing more of it is exported, and it is taken over when
    that meter ends; the sum holds."""
    monkeypatch.setattr("meter.power.lane._ASK_AGAIN_S", 0.02)
    roots: list[int] = []
    monkeypatch.setattr(Ownership, "_roots", lambda own: Holder(0, roots[0]) if roots else None)
    with rig(library, card, (A,), ownership=locks(tmp_path / "locks")) as running:
        running.more(A)
        roots.append(77)
        wait_until(lambda: running.sampler.devices == (), "its giving way")
        assert any("metered by pid 77" in said for said in running.gauges.problems())
        roots.clear()
        wait_until(lambda: running.sampler.devices != (), "its coming back")
        running.more(A)
        lines = ("device_not_ours", "device_taken_over")
        assert running.said(*lines) == list(lines)
        assert closes(running.end())


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
