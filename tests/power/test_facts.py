"""One board's fact that cannot be read costs that fact, and nothing else: not the board, no other
board, no figure."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
import structlog.testing
from rich.console import Console

from meter.config import PowerSettings
from meter.demo.card import OPTIONAL, Card, CardSpec, Fault, Function
from meter.doctor import examine
from meter.doctor.machine import Machine
from meter.doctor.show import show
from meter.model import Device
from meter.power.nvml import NvmlSource, devices_of
from meter.power.nvml_facts import Facts, readable

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
NOT_SUPPORTED, NO_PERMISSION, NOT_READY, LOST, UNKNOWN = 3, 4, 27, 15, 999
#: How a fact may fail, and what the call gives where it works: bytes that are no UTF-8, a control
#: sign, nothing at all, one, minus one, a number that no board has.
ERRORS = (NOT_SUPPORTED, NO_PERMISSION, 13, NOT_READY, UNKNOWN, 12345)
NONSENSE = (0xA08195F8, 0x1B, 0, 1, 2**64 - 1, 2**31, 2**40 + 7)
KINDS = [
    *((Fault.ERROR, code) for code in ERRORS),
    *((Fault.ODD, value) for value in NONSENSE),
]


@pytest.fixture
def drawing(tmp_path: Path, card: Card) -> Iterator[Card]:
    """Two boards that draw 200 W, the first a MIG board."""
    specs = [CardSpec(uuid=A, mig_instances=2, name="one"), CardSpec(uuid=B, name="two")]
    made = Card.create(tmp_path / "card", specs)
    for device in (0, 1):
        made.post(device, 200.0, time.monotonic_ns() - 10**10)
    yield made
    made.close()


def opened(library: str) -> tuple[list[Device], list[Any]]:
    """The devices that are found, and a reading of each."""
    source = NvmlSource(library)
    try:
        return list(source.open()), list(source.read())
    finally:
        source.close()


@pytest.mark.parametrize("function", OPTIONAL, ids=lambda f: f.name)
@pytest.mark.parametrize(("kind", "value"), KINDS)
def test_a_fact_that_cannot_be_read_stops_nothing(
    library: str, drawing: Card, function: Function, kind: Fault, value: int
) -> None:
    """Whatever is wrong with a fact of one board: both are metered by their counters, and the
    other board's facts are what they were."""
    before, _ = opened(library)
    drawing.fault(0, kind, 0, value=value, function=function)
    found, readings = opened(library)
    assert [device.id for device in found] == [A, B]
    assert all(reading.error is None and reading.energy_uj > 0 for reading in readings)
    assert all("integrated" not in (device.note or "") for device in found)
    if function is not Function.DRIVER:  # the driver is both boards'
        assert found[1] == before[1]
    odd = found[0]
    assert odd.power_limit_w is None or 3 <= odd.power_limit_w <= 20_000
    assert odd.name.isprintable()
    assert odd.driver is None or odd.driver.isprintable()
    assert devices_of_all(library) in ([], [B])


def devices_of_all(library: str) -> list[str]:
    """Asked of nobody's process: no answer, however the lists are."""
    source = NvmlSource(library)
    source.open()
    try:
        return devices_of([4_000_000])
    finally:
        source.close()


def test_bad_bytes_of_a_name_are_replaced(library: str, drawing: Card) -> None:
    """What can be read of it is kept."""
    drawing.fault(0, Fault.ODD, 0, value=int.from_bytes(b"L\xff4\x1b", "little"), function=NAME)
    (odd, fine), _ = opened(library)
    assert (odd.name, fine.name) == ("L\ufffd4\ufffd", "two")


NAME = Function.NAME


@pytest.mark.parametrize(
    ("function", "fact"),
    [
        (Function.POWER_LIMIT, "power_limit_w"),
        (Function.CLOCKS, "clocks_mhz"),
        (Function.BUS_WIDTH, "mem_bandwidth"),
        (Function.DRIVER, "driver"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "value"), [(Fault.ERROR, UNKNOWN), (Fault.ODD, 0), (Fault.ODD, 2**32 - 1)]
)
def test_a_bad_fact_is_unknown(
    library: str, drawing: Card, function: Function, fact: str, kind: Fault, value: int
) -> None:
    """``None``, never a wrong number."""
    drawing.fault(0, kind, 0, value=value, function=function)
    (odd, _), _ = opened(library)
    known = getattr(odd, fact)
    assert known is None or (function is Function.DRIVER and value == 2**32 - 1)


@pytest.mark.parametrize("kind", [Fault.ERROR, Fault.ODD])
def test_a_board_without_a_uuid_is_named_by_its_place(
    library: str, drawing: Card, kind: Fault
) -> None:
    """It is metered under its PCI address, and found again there when NVML was started anew."""
    drawing.fault(0, kind, 0, value=0xF8 if kind is Fault.ODD else UNKNOWN, function=Function.UUID)
    source = NvmlSource(library)
    odd, fine = source.open()
    assert (odd.id, fine.id) == ("PCI-00000000:01:00.0", B)
    source._forget_handles()
    assert [reading.error for reading in source.read()] == [None, None]
    source.close()


def test_a_board_that_nothing_names_is_left_out(library: str, drawing: Card) -> None:
    """Neither UUID nor address: it alone; it is tried again."""
    for function in (Function.UUID, Function.PCI):
        drawing.fault(0, Fault.ERROR, 0, value=UNKNOWN, function=function)
    source = NvmlSource(library)
    assert [device.id for device in source.open()] == [B]
    assert "neither its UUID nor its PCI address" in source.left_out[0]
    drawing.clear_faults(0)
    assert [device.id for device in source.look_again()] == [A]
    source.close()


def test_two_boards_of_one_name_are_not_one(library: str, drawing: Card) -> None:
    """The second cannot be told from the first: it is left out, not counted under its name."""
    odd = int.from_bytes(b"GPU-x", "little")
    for device in (0, 1):
        drawing.fault(device, Fault.ODD, 0, value=odd, function=Function.UUID)
    source = NvmlSource(library)
    assert [device.id for device in source.open()] == ["GPU-x"]
    assert "the UUID of another GPU" in source.left_out[0]
    source.close()


def test_a_count_that_cannot_be_is_an_error(library: str, drawing: Card) -> None:
    """Not a loop over four billion boards."""
    drawing.fault(0, Fault.ODD, 0, value=2**32 - 1, function=Function.COUNT)
    source = NvmlSource(library)
    with pytest.raises(Exception, match="NVML counts 4294967295 GPUs"):
        source.open()


@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 10**17])
def test_a_counter_that_shows_nonsense_gives_no_energy(
    library: str, drawing: Card, value: int
) -> None:
    """Its power is still shown, and the other board is read."""
    source = NvmlSource(library)
    source.open()
    drawing.fault(0, Fault.ODD, 0, value=value, function=Function.ENERGY)
    odd, fine = source.read()
    assert (odd.energy_uj, odd.power_w) == (None, 200.0)
    assert odd.error is not None
    assert "which no board can" in odd.error
    assert fine.error is None
    source.close()


def test_a_power_that_no_board_draws_is_unknown(library: str, drawing: Card) -> None:
    """Beside a counter it is left out; where it would be integrated the reading fails."""
    drawing.fault(1, Fault.ERROR, 0, value=NOT_SUPPORTED, function=Function.ENERGY)
    source = NvmlSource(library)
    source.open()
    for device in (0, 1):
        drawing.fault(device, Fault.ODD, 0, value=2**32 - 1, function=Function.POWER)
    counted, integrated = source.read()
    assert (counted.power_w, counted.error) == (None, None)
    assert counted.energy_uj is not None
    assert integrated.energy_uj is None
    assert "more than 20 kW" in (integrated.error or "")
    source.close()


@pytest.mark.parametrize("function", OPTIONAL, ids=lambda f: f.name)
def test_the_doctor_says_what_cannot_be_read(
    library: str, drawing: Card, function: Function, tmp_path: Path
) -> None:
    """In words, without a traceback, within 80 columns; the board is as good as ever."""
    drawing.fault(1, Fault.ERROR, 0, value=UNKNOWN, function=function)
    settings = PowerSettings(
        nvml_library=Path(library), lock_directory=tmp_path / "locks", powercap=tmp_path
    )
    with structlog.testing.capture_logs():
        diagnosis = examine(Machine(settings, {"PATH": ""}, tmp_path, None))
    (finding,) = [f for f in diagnosis.findings if f.area == "gpu 1"]
    assert finding.level == "good"
    asked = function not in (Function.PROCESSES, Function.PCI, Function.MODULE)
    assert ("not to be read of it" in finding.text) == asked
    screen = io.StringIO()
    show(diagnosis, Console(file=screen))
    assert max(map(len, screen.getvalue().split("\n"))) <= 80


def test_what_a_board_does_not_have_is_not_odd() -> None:
    """Consumer boards have no application clocks: nothing to say. Anything else is named once."""

    def fails(code: int) -> None:
        raise pynvml.NVMLError(code)

    def breaks(_: int) -> None:
        raise OverflowError

    facts = Facts()
    assert facts.number("clocks", 10, fails, NOT_SUPPORTED) is None
    assert facts.text("name", fails, 13) is None
    assert facts.odd == []
    assert facts.number("limit", 10, lambda: 11) is None
    assert facts.number("limit", 10, lambda: float("nan")) is None
    assert facts.any("mode", breaks, 1) is None
    assert facts.odd == ["limit", "mode"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"NVIDIA L4", "NVIDIA L4"),
        ("  L4 ", "L4"),
        (b"\xf8\x95", "\ufffd\ufffd"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
        ("x" * 500, "x" * 96),
        (b"", None),
        (" ", None),
    ],
)
def test_a_text_can_always_be_shown(raw: object, text: str | None) -> None:
    """Bounded, no control signs; nothing where nothing is left."""
    assert readable(raw) == text


def test_facts_of_a_board_do_not_depend_on_the_others(library: str, drawing: Card) -> None:
    """All facts of one board bad at once: the other is described in full."""
    before, _ = opened(library)
    for function in OPTIONAL:
        if function is not Function.DRIVER:
            drawing.fault(0, Fault.ERROR, 0, value=LOST, function=function)
    (odd, fine), _ = opened(library)
    assert fine == before[1]
    unknown = {"mem_bandwidth": None, "power_limit_w": None, "clocks_mhz": None, "note": None}
    name = "NVIDIA GPU (its name cannot be read)"
    assert odd == replace(before[0], name=name, **unknown)
