"""The real pynvml on the simulated card: what is read, from whom, and every way it can fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest
import structlog
import structlog.testing

from meter.demo.card import Card, Fault, Function
from meter.model import Quality, Reading
from meter.power.errors import (
    DeviceLostError,
    DriverError,
    LibraryMissingError,
    NoDeviceError,
    NoPermissionError,
    PowerError,
    ReadError,
    UnsupportedError,
    nvml_error,
)
from meter.power.nvml import NvmlSource, devices_of
from meter.power.visible import visible_devices


@contextmanager
def opened(library: str, *devices: str) -> Iterator[NvmlSource]:
    source = NvmlSource(library, devices)
    source.open()
    try:
        yield source
    finally:
        source.close()


def test_devices_are_described(library: str, card: Card) -> None:
    """Name, UUID, index, limit and bandwidth are the card's; what is simulated says so."""
    first, second = NvmlSource(library).open()
    assert (first.id, first.index, second.id, second.index) == (
        "GPU-aaaa-0",
        "0",
        "GPU-bbbb-1",
        "1",
    )
    assert first.quality is Quality.SIMULATED
    assert first.power_limit_w == 700.0
    assert first.mem_bandwidth == pytest.approx(3.35e12, rel=0.01)
    assert first.driver == "simulated"
    assert first.clocks_mhz == (1980, 2619)


class Driver:
    """NVML's calls for facts that one can do without; those not named here fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **known: dict[int, int]) -> None:
        for name in ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetMaxClockInfo"):
            monkeypatch.setattr(pynvml, name, self._call(known.get(name, {})))

    @staticmethod
    def _call(values: dict[int, int]) -> Callable[[object, int], int]:
        def ask(handle: object, kind: int) -> int:
            if kind not in values:
                raise pynvml.NVMLError(3)
            return values[kind]

        return ask


GRAPHICS, SM, MEMORY = pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM


@pytest.mark.parametrize(
    ("applications", "most", "clocks_mhz"),
    [
        ({GRAPHICS: 1410, MEMORY: 1593}, {SM: 1980, MEMORY: 2619}, (1410, 1593)),
        ({GRAPHICS: 1410}, {SM: 1980, MEMORY: 2619}, (1980, 2619)),
        ({}, {SM: 1980, MEMORY: 2619}, (1980, 2619)),
        ({}, {MEMORY: 2619}, None),
        ({}, {}, None),
    ],
)
def test_clocks_are_those_of_applications_where_there_are_some(
    library: str,
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
    applications: dict[int, int],
    most: dict[int, int],
    clocks_mhz: tuple[int, int] | None,
) -> None:
    """Else the highest; what the board does not tell is unknown, and costs nothing else."""
    known = {"nvmlDeviceGetApplicationsClock": applications, "nvmlDeviceGetMaxClockInfo": most}
    Driver(monkeypatch, **known)
    device = NvmlSource(library).open()[0]
    assert device.clocks_mhz == clocks_mhz
    assert device.power_limit_w == 700.0
    assert (device.mem_bandwidth is not None) == (MEMORY in most)


def test_a_driver_without_a_version_is_unknown(
    library: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no reason not to meter."""

    def fails() -> str:
        raise pynvml.NVMLError(999)

    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", fails)
    assert NvmlSource(library).open()[0].driver is None


def test_power_is_the_instants(library: str, card: Card) -> None:
    """The instant field is shown, not the one-second mean."""
    card.post(0, 50.0, time.monotonic_ns() - 10**9)
    card.post(0, 432.0, time.monotonic_ns() - 250_000_000)
    with opened(library) as source:
        reading = source.read()[0]
    assert reading.power_w == 432.0
    assert reading.latency_s is not None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), ["GPU-aaaa-0", "GPU-bbbb-1"]),
        (("1",), ["GPU-bbbb-1"]),
        (("1", "0"), ["GPU-bbbb-1", "GPU-aaaa-0"]),
        (("GPU-aaaa-0",), ["GPU-aaaa-0"]),
        (("GPU-b",), ["GPU-bbbb-1"]),
        (("1", "1"), ["GPU-bbbb-1"]),
    ],
)
def test_devices_by_index_and_uuid(
    library: str, card: Card, names: tuple[str, ...], found: list[str]
) -> None:
    """As CUDA_VISIBLE_DEVICES names them: index, UUID, the beginning of one."""
    assert [device.id for device in NvmlSource(library, names).open()] == found


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("7", NoDeviceError, "no GPU of this host"),
        ("GPU-", NoDeviceError, "several"),
        ("MIG-1234", NoDeviceError, "no GPU of this host"),
    ],
)
def test_a_wrong_name_is_explained(
    library: str, card: Card, name: str, error: type[PowerError], says: str
) -> None:
    """What was asked, what there is, and what to do."""
    with pytest.raises(error, match=says):
        NvmlSource(library, (name,)).open()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, None),
        ("", ()),
        ("0,1", ("0", "1")),
        (" GPU-a , 1", ("GPU-a", "1")),
        ("0,-1,1", ("0",)),
        ("none", ()),
    ],
)
def test_cuda_visible_devices(value: str | None, names: tuple[str, ...] | None) -> None:
    """CUDA's own reading of its variable: unset is all, an invalid entry ends the list."""
    assert visible_devices(value) == names


@pytest.mark.parametrize(
    ("value", "found", "said"),
    [
        ("1,9", ["GPU-bbbb-1"], ["cuda_list_ends"]),
        ("1,9,0", ["GPU-bbbb-1"], ["cuda_list_ends"]),
        ("1,GPU-", ["GPU-bbbb-1"], ["cuda_list_ends"]),
        ("GPU-b,GPU-a", ["GPU-bbbb-1", "GPU-aaaa-0"], []),
    ],
)
def test_cudas_list_ends_at_the_first_that_is_no_gpu(
    library: str, card: Card, value: str, found: list[str], said: list[str]
) -> None:
    """CUDA uses those before it: so does the meter, and says so; nobody else's GPU is touched."""
    source = NvmlSource(library, visible_devices(value) or (), as_cuda=True)
    with structlog.testing.capture_logs() as logs:
        assert [device.id for device in source.open()] == found
    assert [line["event"] for line in logs] == said
    assert source.left_out == []
    source.close()


def test_a_list_that_names_no_gpu_is_never_widened(library: str, card: Card) -> None:
    """It is an error that may pass: the GPU may be there later."""
    source = NvmlSource(library, ("9", "0"), as_cuda=True)
    with pytest.raises(NoDeviceError, match="'9' is no GPU of this host") as raised:
        source.open()
    assert raised.value.passes
    with pytest.raises(NoDeviceError):
        source.look_again()


def test_a_name_that_may_be_a_gpu_that_tells_nothing_is_waited_for(
    library: str, card: Card
) -> None:
    """While a board cannot be asked for its UUID, the name may be its own."""
    card.fault(0, Fault.LOST, 0)
    source = NvmlSource(library, ("GPU-bbbb", "GPU-aaaa"), as_cuda=True)
    assert [device.id for device in source.open()] == ["GPU-bbbb-1"]
    assert len(source.left_out) == 1
    card.clear_faults(0)
    assert [device.id for device in source.look_again()] == ["GPU-aaaa-0"]
    assert source.left_out == []
    source.close()


def test_of_gpus_that_were_asked_for_one_may_fail_for_good(library: str, card: Card) -> None:
    """The others are metered; it is named for as long as the meter lives."""
    for function in (Function.ENERGY, Function.POWER):
        card.fault(0, Fault.ERROR, 0, value=3, function=function)
    source = NvmlSource(library, ("0", "1"))
    assert [device.id for device in source.open()] == ["GPU-bbbb-1"]
    (reason,) = source.never
    assert "GPU 0" in reason
    assert source.left_out == []
    source.close()


def test_processes_name_their_cards(library: str, card: Card) -> None:
    """Which cards a process computes on."""
    card.set_processes(1, [4242])
    with opened(library):
        assert devices_of([1, 4242]) == ["GPU-bbbb-1"]
        assert devices_of([7]) == []
        card.fault(0, Fault.LOST, 0)
        assert devices_of([4242]) == ["GPU-bbbb-1"], "a card that does not answer is left out"


def test_a_gpu_without_counter_and_power_is_left_out(library: str, card: Card) -> None:
    """Where all GPUs are meant, one that cannot be read costs only itself, and is named."""
    for function in (Function.ENERGY, Function.POWER):
        card.fault(0, Fault.ERROR, 0, value=3, function=function)
    with structlog.testing.capture_logs() as logs, opened(library) as source:
        assert [reading.device for reading in source.read()] == ["GPU-bbbb-1"]
        assert source.left_out == [], "it never will be read: nothing to look for"
    assert [line["event"] for line in logs] == ["gpu_left_out"]
    assert "no such counter" in logs[0]["reason"]


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [(Fault.ERROR, 3, UnsupportedError), (Fault.LOST, 0, DeviceLostError)],
)
def test_a_gpu_that_was_asked_for_must_be_readable(
    library: str, card: Card, kind: Fault, value: int, error: type[PowerError]
) -> None:
    """No silent substitute: the reason is raised, for this GPU alone."""
    card.fault(0, kind, 0, value=value)
    with pytest.raises(error, match="GPU 0: "):
        NvmlSource(library, ("0",)).open()
    with opened(library, "1") as source:
        assert source.read()[0].error is None


@pytest.mark.parametrize("names", [(), ("0", "1")])
def test_a_gpu_that_cannot_be_read_is_looked_for_again(
    library: str, card: Card, names: tuple[str, ...]
) -> None:
    """Beside others it costs only itself, named or not; and it comes when it can be read, once."""
    card.fault(0, Fault.LOST, 0)
    with structlog.testing.capture_logs() as logs, opened(library, *names) as source:
        assert [line["event"] for line in logs] == ["gpu_left_out"]
        assert [reading.device for reading in source.read()] == ["GPU-bbbb-1"]
        assert source.look_again() == []
        (reason,) = source.left_out
        assert "GPU is lost" in reason
        card.clear_faults(0)
        assert [device.id for device in source.look_again()] == ["GPU-aaaa-0"]
        assert source.left_out == []
        assert source.look_again() == []
        assert all(reading.error is None for reading in source.read())
        assert (source.on_host, len(source.read())) == (2, 2)


def test_a_gpu_that_is_named_twice_is_missed_once(library: str, card: Card) -> None:
    """By its index and by its UUID: when it can be read nothing is left to look for."""
    for function in (Function.ENERGY, Function.POWER):
        card.fault(0, Fault.ERROR, 0, value=pynvml.NVML_ERROR_GPU_IS_LOST, function=function)
    with opened(library, "0", "GPU-aaaa-0", "1", "GPU-bbbb-1") as source:
        assert len(source.left_out) == 1
        assert [reading.device for reading in source.read()] == ["GPU-bbbb-1"]
        card.clear_faults(0)
        assert [device.id for device in source.look_again()] == ["GPU-aaaa-0"]
        assert source.left_out == []


def test_a_gpu_that_nobody_asked_for_is_not_looked_for(library: str, card: Card) -> None:
    """Though it could be read."""
    card.fault(1, Fault.LOST, 0)
    with opened(library, "0") as source:
        card.clear_faults(1)
        assert source.left_out == []
        assert source.look_again() == []


def test_no_readable_gpu_is_an_error(library: str, card: Card) -> None:
    """Where none of them can be read there is no source, and the first reason is given."""
    for device in (0, 1):
        for function in (Function.FIELD_VALUES, Function.POWER):
            card.fault(device, Fault.ERROR, 0, value=4, function=function)
    with pytest.raises(NoPermissionError, match="may open"):
        NvmlSource(library).open()


def test_a_host_without_gpus(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a GPU is told apart from no driver."""
    Card.create(tmp_path / "none", []).close()
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(tmp_path / "none"))
    with pytest.raises(NoDeviceError, match="there is no GPU"):
        NvmlSource(library).open()


def test_one_gpu_fails_the_other_goes_on(library: str, card: Card) -> None:
    """Each device has its own reading and its own error."""
    with opened(library) as source:
        card.fault(0, Fault.LOST, 0)
        lost, fine = source.read()
    assert (lost.device, lost.energy_uj) == ("GPU-aaaa-0", None)
    assert fine.error is None
    assert fine.energy_uj is not None


def test_missing_power_costs_no_energy(library: str, card: Card) -> None:
    """Where the instant power is not to be had (a superchip's scope), energy is read all the
    same."""
    with opened(library, "0") as source:
        card.fault(0, Fault.ERROR, 0, value=3, function=Function.POWER)
        (reading,) = source.read()
    assert (reading.power_w, reading.error) == (None, None)
    assert reading.energy_uj is not None


def test_our_library_goes_with_us(library: str, card: Card) -> None:
    """After the source is closed pynvml looks for the system's library again."""
    with opened(library):
        assert hasattr(pynvml.nvmlLib, "joulemeter_simulated")
    assert pynvml.nvmlLib is None


def test_a_failing_call_is_a_reading_with_an_error(library: str, card: Card) -> None:
    """A poll that fails has no energy, says why, and the next one may work."""
    card.post(0, 100.0, time.monotonic_ns() - 10**9)
    with opened(library, "0") as source:
        card.fault(0, Fault.ERROR, 0, value=4, function=Function.ENERGY)
        (failed,) = source.read()
        assert (failed.energy_uj, failed.power_w) == (None, 100.0)
        assert failed.error is not None
        assert "Insufficient Permissions" in failed.error
        card.clear_faults(0)
        assert source.read()[0].error is None


def test_a_lost_card_is_named_and_comes_back(library: str, card: Card) -> None:
    """GPU is lost: an error while it lasts."""
    with opened(library, "0") as source:
        card.fault(0, Fault.LOST, 0)
        (failed,) = source.read()
        assert failed.energy_uj is None
        assert failed.error is not None
        assert "GPU is lost" in failed.error
        card.clear_faults(0)
        assert source.read()[0].error is None


def test_a_reset_counter_starts_over(library: str, card: Card) -> None:
    """The counter goes backwards; the reading is passed on as it is."""
    card.post(0, 100.0, time.monotonic_ns() - 10**9)
    with opened(library, "0") as source:
        before = source.read()[0].energy_uj
        card.fault(0, Fault.RESET, time.monotonic_ns())
        assert before is not None
        wait_until(lambda: (source.read()[0].energy_uj or before) < before)


def test_a_jump_shows(library: str, card: Card) -> None:
    """A counter that jumps by 5000 J shows it."""
    card.post(0, 0.0)
    with opened(library, "0") as source:
        start = source.read()[0].energy_uj
        card.fault(0, Fault.JUMP, time.monotonic_ns(), value=5_000_000)
        assert start is not None
        wait_until(lambda: source.read()[0].energy_uj == start + 5_000_000_000)


def test_a_slow_call_tells_its_latency(library: str, card: Card) -> None:
    """How long the call took is in the reading, and its time is the middle of it."""
    with opened(library, "0") as source:
        now = time.monotonic_ns()
        card.fault(0, Fault.SLOW, 0, value=30_000_000)
        (reading,) = source.read()
    assert reading.latency_s is not None
    assert reading.latency_s >= 0.03
    assert reading.t_ns - now >= 15_000_000


def test_no_library() -> None:
    """A library that is not there is named with its setting."""
    with pytest.raises(LibraryMissingError, match=r"power\.nvml_library"):
        NvmlSource("./no/such/library.so").open()


def test_no_driver(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without its driver says what to load."""
    monkeypatch.delenv("JOULEMETER_FAKE_NVML", raising=False)
    with pytest.raises(DriverError, match="load the NVIDIA driver"):
        NvmlSource(library).open()
    assert pynvml.nvmlLib is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (10, ReadError),
        (27, ReadError),
        (28, NoDeviceError),
        (1, DriverError),
        (3, UnsupportedError),
        (4, NoPermissionError),
        (6, NoDeviceError),
        (9, DriverError),
        (12, LibraryMissingError),
        (15, DeviceLostError),
        (18, DriverError),
        (999, ReadError),
    ],
)
def test_codes_become_errors(code: int, kind: type[PowerError]) -> None:
    """Each NVML code has its class, keeps its cause, and says what to do."""
    raised = nvml_error("a call", pynvml.NVMLError(code))
    assert type(raised) is kind
    assert isinstance(raised.__cause__, pynvml.NVMLError)
    assert raised.passes == (code != 3)
    assert ";" in str(raised)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the card's next ticks, at most 5 s."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_reading_types(library: str, card: Card) -> None:
    """Energy is whole microjoules: the counter's millijoules, exactly."""
    with opened(library) as source:
        readings = source.read()
    assert all(isinstance(r, Reading) and isinstance(r.energy_uj, int) for r in readings)
    assert all(r.energy_uj is not None and r.energy_uj % 1000 == 0 for r in readings)
