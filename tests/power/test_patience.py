"""What cannot be opened now is tried again, alone or beside others; a counter that is not ready is
stood in for by its power until it is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing

from meter.config import PowerSettings
from meter.demo.card import Card, CardSpec, Fault, Function
from meter.model import DeviceFound, Event, Quality, Reading
from meter.power.errors import PowerError, UnsupportedError
from meter.power.nvml import NvmlSource
from meter.power.sampler import Sampler
from meter.runtime.devices import Wanted
from meter.runtime.power import start_power
from tests.power.rig import REFRESH_S, closes, moved_j, rig, wait_until

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, TIMEOUT, LOST = 3, 4, 9, 10, 15
NOT_READY, NOT_THERE, UNKNOWN = 27, 28, 999
POWER_W = 400.0


@pytest.fixture
def card(tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Two boards that draw 400 W; nobody waits for long."""
    monkeypatch.setattr("meter.power.sampler._LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr("meter.power.nvml_gpu._AGAIN_NS", 20_000_000)
    made = Card.create(
        tmp_path / "card", [CardSpec(uuid=id, refresh_s=REFRESH_S, seed=5) for id in (A, B)]
    )
    for device in (0, 1):
        made.post(device, POWER_W, time.monotonic_ns() - 10**9)
    yield made
    made.close()


class Waiting:
    """A patient sampler, and what it pushes."""

    def __init__(self, source: NvmlSource) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.sampler = Sampler([source], self.events.put, 200.0, patient=True)
        self.sampler.start()

    def seen(self, id: str) -> bool:
        return any(
            isinstance(event, Reading) and event.device == id and event.energy_uj is not None
            for event in list(self.events.queue)
        )


FAULTS = {
    "the driver is loading": (Fault.UNLOADED, 0, Function.ANY),
    "NVML does not start": (Fault.ERROR, UNKNOWN, Function.INIT),
    "NVML starts too early": (Fault.ERROR, NOT_LOADED, Function.INIT),
    "no permission yet": (Fault.ERROR, NO_PERMISSION, Function.INIT),
    "the count fails": (Fault.ERROR, TIMEOUT, Function.COUNT),
    "lost": (Fault.LOST, 0, Function.ANY),
    "a time-out": (Fault.ERROR, TIMEOUT, Function.ANY),
    "not ready": (Fault.ERROR, NOT_READY, Function.ANY),
    "not there": (Fault.ERROR, NOT_THERE, Function.HANDLE),
    "unknown": (Fault.ERROR, UNKNOWN, Function.FIELD_VALUES),
    "may not be read": (Fault.ERROR, NO_PERMISSION, Function.ANY),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_tried_again_alone(library: str, card: Card, name: str) -> None:
    """With no board that can be read beside it: it is said, shown, and metered when it is there."""
    kind, value, function = FAULTS[name]
    for device in (0, 1):
        card.fault(device, kind, 0, value=value, function=function)
        card.fault(device, kind, 0, value=value, function=Function.POWER)
    with structlog.testing.capture_logs() as logs:
        waiting = Waiting(NvmlSource(library))
        try:
            assert waiting.sampler.devices == ()
            assert waiting.sampler.failure is None
            (reason,) = waiting.sampler.left_out
            assert reason
            for device in (0, 1):
                card.clear_faults(device)
            wait_until(lambda: waiting.seen(A) and waiting.seen(B), "the readings")
            assert waiting.sampler.left_out == ()
        finally:
            waiting.sampler.stop()
    lines = [line for line in logs if line["event"] == "no_energy_yet"]
    assert [line["note"] for line in lines] == ["it is tried again"]
    found = [event.device.id for event in waiting.events.queue if isinstance(event, DeviceFound)]
    assert found == [A, B]


def test_a_library_that_is_not_there_yet_is_tried_again(
    library: str, card: Card, tmp_path: Path
) -> None:
    """A container's may be mounted later."""
    late = tmp_path / "late.so"
    waiting = Waiting(NvmlSource(str(late)))
    try:
        assert "cannot be loaded" in waiting.sampler.left_out[0]
        late.symlink_to(library)
        wait_until(lambda: waiting.seen(A), "the readings")
    finally:
        waiting.sampler.stop()


def test_what_never_will_be_is_not_waited_for(library: str, card: Card) -> None:
    """A board that has neither counter nor power."""
    for device in (0, 1):
        for function in (Function.ENERGY, Function.POWER):
            card.fault(device, Fault.ERROR, 0, value=NOT_SUPPORTED, function=function)
    with pytest.raises(UnsupportedError):
        Waiting(NvmlSource(library))


def test_one_that_never_will_be_does_not_end_the_others_hope(library: str, card: Card) -> None:
    """The other board may still come."""
    for function in (Function.ENERGY, Function.POWER):
        card.fault(0, Fault.ERROR, 0, value=NOT_SUPPORTED, function=function)
    card.fault(1, Fault.LOST, 0)
    waiting = Waiting(NvmlSource(library))
    try:
        assert waiting.sampler.devices == ()
        card.clear_faults(1)
        wait_until(lambda: waiting.seen(B), "the other board")
        assert not waiting.seen(A)
    finally:
        waiting.sampler.stop()


@pytest.mark.parametrize("code", [NOT_READY, NOT_THERE, TIMEOUT, NO_PERMISSION, UNKNOWN])
def test_power_stands_in_until_the_counter_is_ready(
    library: str, card: Card, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimated meanwhile, and said so; then the counter goes on from what was integrated: no
    joule is lost, none counted twice, and the board is as good as any after a while."""
    monkeypatch.setattr("meter.power.nvml_gpu._TRUSTED_NS", 100_000_000)
    card.fault(0, Fault.ERROR, 0, value=code, function=Function.ENERGY)
    with rig(library, card) as running:
        (odd, fine) = running.sampler.devices
        assert odd.note == "integrated power (instant), until its counter can be read"
        assert fine.note is None
        running.more(A, 20)
        card.clear_faults(0)
        wait_until(lambda: len(running.said("device_changed")) > 0, "the counter")
        running.more(A, 40)
        wait_until(lambda: running.sampler.devices[0].note is None, "its trust")
        snapshot = running.end()
        good = running.of(A)
        true_j = card.energy_j(0, good[-1].t_ns) - card.energy_j(0, good[0].t_ns)
        assert moved_j(good) == pytest.approx(true_j, abs=POWER_W * 4 * REFRESH_S, rel=0.03)
        state = snapshot.devices[0]
        assert state.measured_j == pytest.approx(moved_j(good), abs=1e-3)
        assert (state.resets, state.jumps) == (0, 0)
        assert closes(snapshot)


def test_a_board_is_trusted_only_after_a_while(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may hold joules of before: it stays estimated till those are over."""
    monkeypatch.setattr("meter.power.nvml_calls.hasattr", lambda *_: False, raising=False)
    card.fault(0, Fault.ERROR, 0, value=NOT_READY, function=Function.ENERGY)
    source = NvmlSource(library, ("0",))
    (device,) = source.open()
    assert device.quality is Quality.ESTIMATED
    source.read()
    card.clear_faults(0)
    time.sleep(0.025)
    source.read()
    after = source.described(A)
    assert (after.quality, after.note) == (
        Quality.ESTIMATED,
        "its counter, which could not be read at first: its power was integrated till then",
    )
    monkeypatch.setattr("meter.power.nvml_gpu.time.monotonic_ns", later(61))
    source.read()
    assert source.described(A).quality is Quality.MEASURED
    assert source.described(A).note is None
    source.close()


def later(seconds: float):  # type: ignore[no-untyped-def]
    now = time.monotonic_ns
    return lambda: now() + round(seconds * 1e9)


@pytest.mark.parametrize("function", [Function.ANY, Function.NAME, Function.FIELD_VALUES])
def test_a_board_that_hangs_holds_up_no_other(
    library: str, card: Card, function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any call of it: the other is metered meanwhile, it when it answers; it is asked once, however
    often it is looked for, and NVML is not restarted nor let go under its call."""
    monkeypatch.setattr("meter.power.nvml_find._BOARD_WITHIN_S", 0.1)
    card.fault(0, Fault.HANG, 0, function=function)
    waiting = Waiting(NvmlSource(library))
    try:
        assert [device.id for device in waiting.sampler.devices] == [B]
        assert "has not answered" in waiting.sampler.left_out[0]
        wait_until(lambda: waiting.seen(B), "the other board")
        time.sleep(0.2)
        assert sum(thread.name == "patience" for thread in threading.enumerate()) == 1
        card.clear_faults(0)
        wait_until(lambda: waiting.seen(A), "the board")
        assert waiting.sampler.left_out == ()
    finally:
        card.clear_faults(0)
        waiting.sampler.stop()


# --- what stands in for GPUs, and what does not


def settings(tmp_path: Path, library: str | None, source: str = "auto") -> PowerSettings:
    return PowerSettings(
        source=source,
        nvml_library=library,
        rate_hz=200.0,
        lock_directory=tmp_path / "locks",
        powercap=tmp_path / "none",
    )


def host(tmp_path: Path, *paths: str) -> Path:
    """A machine on which these files are."""
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("0x10de" if path.endswith("vendor") else "0x030200")
    return root


BUS = ("sys/bus/pci/devices/0/vendor", "sys/bus/pci/devices/0/class")


@pytest.mark.parametrize(
    "paths", [("dev/nvidiactl",), ("dev/nvidia0",), BUS, ("dev/nvmap",), ("etc/nv_tegra_release",)]
)
def test_gpus_that_cannot_be_read_are_not_stood_in_for_by_the_cpu(
    tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host with GPUs ``auto`` waits for them; the host's CPU is read beside them alone."""
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("meter.power.hardware.is_container", lambda *_: False)
    power = start_power(
        settings(tmp_path, None), Wanted(), lambda _: None, None, {}, host(tmp_path, *paths)
    )
    try:
        assert power.beside
        assert power.sampler.devices == ()
        assert power.sampler.left_out != ()
    finally:
        power.sampler.stop()


@pytest.mark.parametrize(
    ("environ", "paths", "waits"),
    [
        ({}, (), False),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, BUS, False),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, BUS, False),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, BUS, False),
        ({"KUBERNETES_SERVICE_HOST": "x"}, BUS, False),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, (), True),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1"}, (), True),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, ("dev/nvidiactl",), True),
    ],
)
def test_a_container_is_judged_by_what_it_was_given(
    tmp_path: Path,
    environ: dict[str, str],
    paths: tuple[str, ...],
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sees its host's buses: they say nothing. ``void`` is CDI's word, too, beside real GPUs."""
    for name in ("NVIDIA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)
    root = host(tmp_path, *paths)
    power = start_power(settings(tmp_path, None), Wanted(), lambda _: None, None, environ, root)
    try:
        assert power.beside is waits
        assert [device.id for device in power.sampler.devices] == ([] if waits else ["cpu"])
    finally:
        power.sampler.stop()


def test_gpus_that_never_can_be_read_are_an_error(library: str, card: Card, tmp_path: Path) -> None:
    """Which says how to have the CPU's figures instead; nothing is metered in silence."""
    for device in (0, 1):
        for function in (Function.ENERGY, Function.POWER):
            card.fault(device, Fault.ERROR, 0, value=NOT_SUPPORTED, function=function)
    with pytest.raises(PowerError, match=r"set power\.source to cpu"):
        start_power(settings(tmp_path, library), Wanted(), lambda _: None)


@pytest.mark.parametrize("source", ["auto", "nvml"])
def test_a_server_that_may_use_no_gpu_is_metered_on_the_cpu(
    library: str, card: Card, tmp_path: Path, source: str
) -> None:
    """No GPU is read nor locked: who runs on them can be metered beside it."""
    wanted = Wanted((), as_cuda=True, none=True)
    with structlog.testing.capture_logs() as logs:
        power = start_power(settings(tmp_path, library, source), wanted, lambda _: None)
    try:
        assert [device.id for device in power.sampler.devices] == ["cpu"]
        assert "no_gpu_visible" in [line["event"] for line in logs]
        assert not list(tmp_path.rglob("*GPU*.lock"))
    finally:
        power.sampler.stop()


def test_a_list_that_fits_no_gpu_meters_none(library: str, card: Card, tmp_path: Path) -> None:
    """It is waited for, and never widened to all."""
    wanted = Wanted(("7",), as_cuda=True)
    power = start_power(settings(tmp_path, library), wanted, lambda _: None)
    try:
        assert power.sampler.devices == ()
        assert "'7' is no GPU of this host" in power.sampler.left_out[0]
        assert not list(tmp_path.rglob("*GPU*.lock"))
    finally:
        power.sampler.stop()


@pytest.mark.parametrize(
    ("names", "environ", "said"),
    [
        (("0",), {}, True),
        (("0",), {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, True),
        (("0",), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
        (("GPU-aaaa",), {}, False),
    ],
)
def test_an_order_that_is_not_known_is_said(
    library: str,
    card: Card,
    tmp_path: Path,
    names: tuple[str, ...],
    environ: dict[str, str],
    said: bool,
) -> None:
    """Where the GPUs differ, and nothing says that CUDA counts them as NVML does."""
    Card.create(tmp_path / "card", [CardSpec(A, "NVIDIA T400"), CardSpec(B, "NVIDIA L40S")]).close()
    with structlog.testing.capture_logs() as logs:
        power = start_power(
            settings(tmp_path, library), Wanted(names, True), lambda _: None, None, environ
        )
        power.sampler.stop()
    assert ("cuda_order_unclear" in [line["event"] for line in logs]) is said


# --- turned to other devices


def test_the_sampler_turns_to_what_is_used(library: str, card: Card, tmp_path: Path) -> None:
    """The device in use comes, with its event before its readings; the other is let go, its lock
    too; what it moved stays in the accounts, and the sum holds."""
    from meter.power.owner import Ownership

    locks = tmp_path / "locks"
    own = lambda device: Ownership(device.id, locks)  # noqa: E731
    with rig(library, card, ("0",), ownership=own) as running:
        running.more(A, 5)
        running.sampler.turn_to([B], [A])
        running.more(B, 20)
        wait_until(lambda: [d.id for d in running.sampler.devices] == [B], "the other's end")
        assert running.said("device_found", "device_let_go") == ["device_found", "device_let_go"]
        wait_until(Ownership(A, locks).take, "its lock")
        assert running.gauges.problems() == ()
        snapshot = running.end()
        assert {state.device.id for state in snapshot.devices} == {A, B}
        assert closes(snapshot)
