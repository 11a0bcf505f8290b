"""Which devices belong to an engine."""

import os
import subprocess
import sys
import threading

import pytest

from meter.demo.card import Card, CardSpec, Fault
from meter.demo.nvml_build import build
from meter.model import Device, DeviceFound, Quality, Reading
from meter.power.nvml import NvmlSource
from meter.runtime.devices import owned, wanted
from meter.runtime.late import Latecomers
from meter.runtime.meter import _owners
from meter.work.wire import Hello, Source

FOUND = tuple(
    Device(f"GPU-{letter * 8}", "H100", Quality.MEASURED, index=str(i))
    for i, letter in enumerate("abc")
)


def test_configured_devices_come_first():
    """Then what the command may use, then all."""
    environ = {"CUDA_VISIBLE_DEVICES": "2"}
    assert wanted(("0",), ("1",), environ) == ("0",)
    assert wanted((), ("1",), environ) == ("1",)
    assert wanted((), (), environ) == ("2",)
    assert wanted((), (), {}) == ()


@pytest.mark.parametrize(
    ("configured", "cuda", "indices"),
    [
        ((), None, "012"),
        (("1",), "0", "1"),
        ((), "0,2", "02"),
        ((), "GPU-bbbb", "1"),
        ((), "7", "012"),
        ((), "", "012"),
    ],
)
def test_an_engine_owns_what_names_it_else_all(configured, cuda, indices):
    """By index, by UUID or the beginning of one; a name that fits nothing narrows nothing."""
    ids = tuple(FOUND[int(i)].id for i in indices)
    assert owned(FOUND, configured, cuda) == ids


@pytest.fixture
def three_cards(tmp_path, monkeypatch):
    """Three simulated cards behind an open NVML; this process computes on the second."""
    library = build(tmp_path)
    specs = [CardSpec(uuid=f"GPU-{letter * 8}") for letter in "abc"]
    card = Card.create(tmp_path / "card", specs)
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(tmp_path / "card"))
    source = NvmlSource(str(library))
    found = source.open()
    yield card, tuple(found)
    source.close()
    card.close()


def test_an_engine_owns_the_gpus_that_its_processes_compute_on(three_cards):
    """Where nothing names them, the driver's list does: of the engine's process or a child."""
    card, found = three_cards
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        card.set_processes(1, [child.pid])
        assert owned(found, (), None, os.getpid()) == ("GPU-bbbbbbbb",)
        assert owned(found, (), "2", os.getpid()) == ("GPU-cccccccc",)
        assert owned(found, (), None, None) == owned(found, (), None, 2**22 + 1)
        card.set_processes(1, [])
        assert owned(found, (), None, os.getpid()) == tuple(device.id for device in found)
    finally:
        child.communicate(b"\n")


def test_a_driver_that_hangs_is_not_waited_for(three_cards, monkeypatch):
    """Who asks hears the engine: after a moment all devices are taken, as where none is told."""
    monkeypatch.setattr("meter.runtime.devices._ANSWER_WITHIN_S", 0.05)
    card, found = three_cards
    card.set_processes(1, [os.getpid()])
    card.fault(0, Fault.HANG, 0)
    assert owned(found, (), None, os.getpid()) == tuple(device.id for device in found)
    assert owned(found, (), "MIG-x", None) == tuple(device.id for device in found)
    card.clear_faults(0)
    for thread in threading.enumerate():
        if thread.name == "patience":
            thread.join(10)
    monkeypatch.setattr("meter.runtime.devices._ANSWER_WITHIN_S", 10.0)
    assert owned(found, (), None, os.getpid()) == ("GPU-bbbbbbbb",)


class Heard:
    """A listener that has heard these engines."""

    def __init__(self, *sources):
        self.sources = sources


@pytest.mark.parametrize(
    ("heard", "ours", "device", "whose"),
    [
        ({"0": "0,1", "1": "2"}, (), 2, ("1",)),
        ({"0": "0", "1": None}, (), 2, ("1",)),
        ({"0": "0", "1": "1"}, (0, 1, 2), 2, ()),
        ({}, (0, 2), 2, ("0",)),
        ({}, (0, 1), 2, None),
        ({}, (), 2, None),
    ],
)
def test_a_device_that_comes_late_is_whose_it_would_have_been(heard, ours, device, whose):
    """By what each engine says of itself; while none speaks, by what the command may use."""
    hellos = [Hello(label, engine=label, cuda_visible_devices=v) for label, v in heard.items()]
    listener = Heard(*(Source(hello.source, hello, hello.engine, 0) for hello in hellos))

    def devices_of(hello):
        return owned(FOUND, (), hello.cuda_visible_devices)

    told = _owners(listener, devices_of, lambda: [FOUND[i].id for i in ours], FOUND[device].id)
    assert told == whose


def test_whose_a_device_is_comes_with_its_event():
    """Before anybody can be asked it is not known; what is told already, and what else comes, is
    passed on as it is."""
    seen = []
    late = Latecomers(seen.append)
    reading, found = Reading("d", 1, 1), DeviceFound(1, FOUND[0])
    late.push(reading)
    late.push(found)
    late.owners = lambda device: (device,)
    late.push(found)
    known = DeviceFound(2, FOUND[0], ())
    late.push(known)
    assert seen == [reading, found, DeviceFound(1, FOUND[0], (FOUND[0].id,)), known]
