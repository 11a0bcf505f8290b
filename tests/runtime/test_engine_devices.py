"""Which devices belong to an engine."""

import json
import os
import subprocess
import sys
import threading

import pytest
import structlog.testing

from meter.demo.card import Card, CardSpec, Fault
from meter.demo.nvml_build import build
from meter.model import Device, DeviceFound, Quality, Reading
from meter.power.nvml import NvmlSource
from meter.runtime.devices import Claims, Wanted, owned, wanted
from meter.runtime.late import Latecomers
from meter.runtime.meter import _owners
from meter.work.hello import Hello
from meter.work.wire import Decoder, Source

FOUND = tuple(
    Device(f"GPU-{letter * 8}", "H100", Quality.MEASURED, index=str(i))
    for i, letter in enumerate("abc")
)


def test_configured_devices_come_first():
    """Then what the command may use, then all. A list that is there and empty names none."""
    environ = {"CUDA_VISIBLE_DEVICES": "2"}
    assert wanted(("0",), ("1",), environ) == Wanted(("0",))
    assert wanted((), ("1",), environ) == Wanted(("1",))
    assert wanted((), (), environ) == Wanted(("2",), as_cuda=True)
    assert wanted((), (), {}) == Wanted()
    for none in ("", "-1", "none", " ", "-1,0", "NoDevFiles", "void"):
        assert wanted((), (), {"CUDA_VISIBLE_DEVICES": none}) == Wanted((), True, none=True)
        assert wanted((), ("1",), {"CUDA_VISIBLE_DEVICES": none}) == Wanted(("1",))


@pytest.mark.parametrize(
    ("configured", "cuda", "indices"),
    [
        ((), None, "012"),
        (("1",), "0", "1"),
        ((), "0,2", "02"),
        ((), "GPU-bbbb", "1"),
        ((), "7", ""),
        ((), "", ""),
        ((), "-1", ""),
    ],
)
def test_an_engine_owns_what_names_it_else_all(configured, cuda, indices):
    """By index, by UUID or the beginning of one; a list that fits nothing is not all."""
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
    """The driver's list says so first: of the engine's process or a child; then names."""
    card, found = three_cards
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        card.set_processes(1, [child.pid])
        assert owned(found, (), None, os.getpid()) == ("GPU-bbbbbbbb",)
        assert owned(found, (), "2", os.getpid()) == ("GPU-bbbbbbbb",), "the driver first"
        assert owned(found, ("2",), None, os.getpid()) == ("GPU-cccccccc",), "but as configured"
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
    assert owned(found, (), "MIG-x", None) == ()
    card.clear_faults(0)
    for thread in threading.enumerate():
        if thread.name == "patience":
            thread.join(10)
    monkeypatch.setattr("meter.runtime.devices._ANSWER_WITHIN_S", 10.0)
    assert owned(found, (), None, os.getpid()) == ("GPU-bbbbbbbb",)


def test_pids_of_another_namespace_say_nothing(three_cards):
    """One that is listed and does not exist here: this process's number may be another's there."""
    card, found = three_cards
    card.set_processes(1, [os.getpid(), 2**22 + 1])
    assert owned(found, (), "2", os.getpid()) == ("GPU-cccccccc",)


def test_a_list_that_is_not_whole_says_nothing(three_cards):
    """While not all ranks of an engine have begun, names say whose the GPUs are."""
    card, found = three_cards
    card.set_processes(2, [os.getpid()])
    assert owned(found, (), "0,1", os.getpid(), ranks=2) == ("GPU-aaaaaaaa", "GPU-bbbbbbbb")
    card.set_processes(1, [os.getpid()])
    assert owned(found, (), "0,1", os.getpid(), ranks=2) == ("GPU-bbbbbbbb", "GPU-cccccccc")


def test_the_hosts_cpu_is_every_engines():
    """Whatever an engine's list of GPUs says."""
    cpu = Device("cpu", "CPU", Quality.ESTIMATED, "cpu", "host")
    assert owned((cpu,), (), "") == owned((cpu,), (), "1") == owned((cpu,), (), None) == ("cpu",)
    assert owned((cpu, *FOUND), (), "1") == ("cpu", FOUND[1].id)


class Turned:
    """Hears what the sampler would be turned to."""

    def __init__(self):
        self.calls = []

    def __call__(self, use, leave):
        self.calls.append((tuple(use), tuple(leave)))


@pytest.mark.parametrize("opened", ["0", "012"])
def test_where_index_and_process_disagree_the_driver_is_believed(three_cards, opened):
    """CUDA's 0 is NVML's 1 here. It is said once, with both; the GPU in use is metered after all,
    and the other let go."""
    card, found = three_cards
    there = [found[int(i)] for i in opened]
    turned = Turned()
    claims = Claims(lambda: there, (), {"CUDA_VISIBLE_DEVICES": "0"}, turned)
    hello = Hello("s1", pid=os.getpid())
    assert claims(hello) == ("GPU-aaaaaaaa",), "as long as the driver lists nothing"
    assert turned.calls == []
    card.set_processes(1, [os.getpid()])
    with structlog.testing.capture_logs() as logs:
        assert claims(hello) == claims(hello) == ("GPU-bbbbbbbb",)
    (line,) = logs
    assert (line["event"], line["named"]) == ("gpus_disagree", "0")
    assert (line["taken_for"], line["computes_on"]) == (["GPU-aaaaaaaa"], ["GPU-bbbbbbbb"])
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in line["remedy"]
    assert turned.calls[0] == (("GPU-bbbbbbbb",), ("GPU-aaaaaaaa",))


def test_what_another_engine_computes_on_is_not_let_go(three_cards):
    """Two engines behind one meter, each with CUDA's number of the other's board."""
    card, found = three_cards
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        turned = Turned()
        claims = Claims(lambda: found[:2], (), {}, turned)
        card.set_processes(0, [child.pid])
        assert claims(Hello("s2", pid=child.pid, cuda_visible_devices="0")) == ("GPU-aaaaaaaa",)
        card.set_processes(2, [os.getpid()])
        one = Hello("s1", pid=os.getpid(), cuda_visible_devices="0")
        assert "GPU-cccccccc" in claims(one)
        assert all("GPU-aaaaaaaa" not in leave for _, leave in turned.calls)
    finally:
        child.communicate(b"\n")


def test_configured_devices_stay_and_the_difference_is_said(three_cards):
    """What was set by hand is not overruled."""
    card, found = three_cards
    turned = Turned()
    card.set_processes(1, [os.getpid()])
    claims = Claims(lambda: found, ("0",), {}, turned)
    with structlog.testing.capture_logs() as logs:
        assert claims(Hello("s1", pid=os.getpid())) == ("GPU-aaaaaaaa",)
    assert [line["note"] for line in logs] == ["as configured"]
    assert turned.calls == []


@pytest.mark.parametrize(("told", "ids"), [("", ()), (None, (FOUND[0].id,)), ("2", (FOUND[2].id,))])
def test_an_engines_own_variable_comes_before_its_commands(told, ids):
    """A script may have set it; empty is no GPU, and not the same as unset."""
    claims = Claims(lambda: FOUND, (), {"CUDA_VISIBLE_DEVICES": "0"})
    assert claims(Hello("s", cuda_visible_devices=told)) == ids


@pytest.mark.parametrize(
    ("found", "configured", "told", "ids"),
    [
        ((), (), None, None),
        ((), (), "0", None),
        ((), (), "", ()),
        ((), (), "-1", ()),
        (FOUND[:2], (), "2", ()),
        ((), ("0",), "", None),
    ],
)
def test_no_device_is_an_answer_and_not_known_is_another(found, configured, told, ids):
    """While no GPU was found yet nobody knows which are an engine's, unless its list is empty."""
    assert Claims(lambda: found, configured, {})(Hello("s", cuda_visible_devices=told)) == ids
    command = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    assert Claims(lambda: found, configured, command).of_command() == ids


def test_what_an_engine_says_of_no_device_reaches_the_core():
    """The hello of an engine that may use no GPU says so; where that is not known it does not."""
    claims = Claims(lambda: FOUND, (), {"CUDA_VISIBLE_DEVICES": "0"})
    for said, owns_none in (("", True), ("-1", True), ("0", False)):
        facts = {"engine": "0", "cuda_visible_devices": said}
        packet = json.dumps(["jm1", "s", 0, [["H", 5, "up", facts]]]).encode()
        [event] = Decoder(claims).decode(packet)
        assert (event.info.owns_none, bool(event.info.devices)) == (owns_none, not owns_none)
    [event] = Decoder().decode(packet)
    assert (event.info.owns_none, event.info.devices) == (False, ())


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
