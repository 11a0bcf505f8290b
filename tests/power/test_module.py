"""A superchip's counter is not called the GPU's before it was compared: with the GPU's power, and
with its module's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter.demo.card import Card, CardSpec, Fault, Function
from meter.power.nvml import NvmlSource
from meter.power.nvml_module import (
    NEITHER,
    OF_GPU,
    OF_MODULE,
    POWER_UNKNOWN,
    UNKNOWN,
    ModuleCheck,
    is_superchip,
)
from tests.power.rig import REFRESH_S, rig, wait_until

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
S = 1_000_000_000
GPU_W, MODULE_W = 400.0, 650.0


def judged(
    counter_w: float, gpu_w: float | None, module_w: float | None, seconds: float = 31.0
) -> ModuleCheck:
    """What is said of a counter that moves so fast, by these powers."""
    check = ModuleCheck()
    for poll in range(round(seconds * 20)):
        check.see(S + poll * S // 20, round(counter_w * 1e6 * poll / 20), gpu_w, module_w)
    return check


@pytest.mark.parametrize(
    ("counter_w", "gpu_w", "module_w", "note"),
    [
        (400.0, GPU_W, MODULE_W, OF_GPU),
        (430.0, GPU_W, MODULE_W, OF_GPU),
        (650.0, GPU_W, MODULE_W, OF_MODULE),
        (520.0, GPU_W, MODULE_W, NEITHER),
        (650.0, None, MODULE_W, OF_MODULE),
        (400.0, None, MODULE_W, OF_GPU),
        (900.0, None, MODULE_W, NEITHER),
        (400.0, GPU_W, None, UNKNOWN),
        (400.0, GPU_W, 410.0, UNKNOWN),
        (0.0, GPU_W, MODULE_W, UNKNOWN),
    ],
)
def test_the_note_says_what_the_evidence_says(
    counter_w: float, gpu_w: float | None, module_w: float | None, note: str
) -> None:
    """With or without the GPU's own power (some Grace Hoppers do not tell it); nothing is said
    where both powers are alike, or the module's is not told."""
    check = judged(counter_w, gpu_w, module_w)
    assert check.note == note
    assert check.is_over == (note != UNKNOWN)


def test_half_a_minute_is_needed() -> None:
    """And without a gap, which would hide what was drawn."""
    assert judged(400.0, GPU_W, MODULE_W, 29.0).note == UNKNOWN
    check = ModuleCheck()
    for poll in range(620):
        t_ns = S + poll * S // 20 + (5 * S if poll > 400 else 0)
        check.see(t_ns, round(400e6 * poll / 20), GPU_W, MODULE_W)
    assert check.note == UNKNOWN


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA GH200 480GB", True),
        ("NVIDIA GB200", True),
        ("NVIDIA Grace Hopper", True),
        ("NVIDIA H200", False),
        ("NVIDIA RTX A6000", False),
    ],
)
def test_names_of_superchips(name: str, known: bool) -> None:
    """Where the driver tells nothing of a module."""
    assert is_superchip(name) is known


@pytest.fixture
def card(tmp_path: Path, card: Card) -> Iterator[Card]:
    """A board on a module that draws 250 W beside it, and one that is alone."""
    first = CardSpec(uuid=A, refresh_s=REFRESH_S, module_w=250.0, seed=5)
    made = Card.create(tmp_path / "card", [first, CardSpec(uuid=B, refresh_s=REFRESH_S, seed=5)])
    for device in (0, 1):
        made.post(device, GPU_W, time.monotonic_ns() - 10**9)
    yield made
    made.close()


def test_a_running_meter_finds_out(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note changes as an event, once; the module is not asked any more; the other board has
    nothing to be said of."""
    monkeypatch.setattr("meter.power.nvml_module._WINDOW_NS", 300_000_000)
    with rig(library, card) as running:
        on_module, alone = running.sampler.devices
        assert (on_module.note, alone.note) == (UNKNOWN, None)
        wait_until(lambda: running.sampler.devices[0].note == OF_GPU, "the answer")
        running.more(A, 5)
        snapshot = running.end()
        assert snapshot.devices[0].device.note == OF_GPU
        assert running.said("device_changed") == ["device_changed"]
        assert snapshot.devices[0].resets == snapshot.devices[0].jumps == 0


def test_power_that_stands_in_says_that_it_may_be_the_modules(library: str, card: Card) -> None:
    """There is nothing to compare it with."""
    card.fault(0, Fault.ERROR, 0, value=3, function=Function.ENERGY)
    source = NvmlSource(library)
    device = source.open()[0]
    assert device.note == f"integrated power (instant); {POWER_UNKNOWN}"
    source.close()


def test_a_module_whose_power_fails_later_stays_unknown(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counter is read all the same."""
    monkeypatch.setattr("meter.power.nvml_module._WINDOW_NS", 50_000_000)
    source = NvmlSource(library)
    source.open()
    card.fault(0, Fault.ERROR, 0, value=999, function=Function.MODULE)
    for _ in range(10):
        (reading,) = source.read(A)
        assert reading.error is None
        time.sleep(0.01)
    assert source.described(A).note == UNKNOWN
    source.close()
