"""What the simulated card's counter shows, against a second account of it written here.

The library reads the clock itself, so a test cannot know to the nanosecond when it looked; it knows
two moments around the call, and the counter must show what one of the ticks between them allows.
"""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter.demo.card import RING_SLOTS, Card, CardSpec, Fault, Virtualization
from meter.model import Event, Quality, Reading
from meter.power.errors import LibraryMissingError
from meter.power.nvml import NvmlSource
from meter.power.sampler import Sampler


class Shown:
    """The oracle: the posts of one card, and what its counter may show, in mJ."""

    def __init__(self, spec: CardSpec) -> None:
        self.refresh_ns = round(spec.refresh_s * 1e9)
        self.lag_ns = round(spec.lag_s * 1e9)
        rnd = random.Random(f"{spec.seed}-0")
        self.phase_ns = rnd.randrange(self.refresh_ns)
        self.base_mj = rnd.randrange(10**9)
        self.posts: list[tuple[int, float]] = []

    def energy_mj(self, t_ns: int) -> float:
        """The integral of the posted power, piece by piece."""
        ends = [start for start, _ in self.posts[1:]] + [t_ns]
        return sum(
            power_w * max(0, min(end, t_ns) - start) / 1e6
            for (start, power_w), end in zip(self.posts, ends, strict=True)
        )

    def between(self, first_ns: int, last_ns: int) -> list[float]:
        """What the counter may show at some moment from ``first_ns`` to ``last_ns``."""
        tick = first_ns - (first_ns - self.phase_ns) % self.refresh_ns
        ticks = range(tick, last_ns + 1, self.refresh_ns)
        return [self.base_mj + self.energy_mj(t - self.lag_ns) for t in ticks]


@contextmanager
def one_card(path: Path, library: str, spec: CardSpec) -> Iterator[tuple[Card, NvmlSource]]:
    """A card, seen through the real pynvml."""
    made = Card.create(path, [spec])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOULEMETER_FAKE_NVML", str(path))
        source = NvmlSource(library)
        source.open()
    try:
        yield made, source
    finally:
        source.close()
        made.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 700)), min_size=1, max_size=20),
    st.integers(1, 200),
    st.integers(0, 300),
    st.integers(0, 1000),
)
def test_the_counter_shows_the_integral_at_its_ticks(
    library: str,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int]],
    refresh_ms: int,
    lag_ms: int,
    seed: int,
) -> None:
    """Any power, refresh, lag and seed: to the millijoule, and only at ticks of its grid."""
    spec = CardSpec(refresh_s=refresh_ms / 1000, lag_s=lag_ms / 1000, seed=seed)
    shown = Shown(spec)
    t = time.monotonic_ns() - sum(gap for gap, _ in steps) - 10**9
    with one_card(tmp_path_factory.mktemp("card") / "c", library, spec) as (card, source):
        for gap, power_w in steps:
            t += gap
            card.post(0, float(power_w), t)
            shown.posts.append((t, float(power_w)))
        before_ns = time.monotonic_ns()
        (reading,) = source.read()
        allowed = shown.between(before_ns, time.monotonic_ns())
    assert reading.energy_uj is not None
    assert any(abs(reading.energy_uj / 1000 - value) <= 1.01 for value in allowed)


def test_it_moves_on_its_grid_alone(library: str, tmp_path: Path) -> None:
    """Polled through several ticks: what is seen always belongs to the last one."""
    spec = CardSpec(refresh_s=0.02, seed=3)
    shown = Shown(spec)
    seen = set()
    with one_card(tmp_path / "c", library, spec) as (card, source):
        shown.posts.append((time.monotonic_ns(), 500.0))
        card.post(0, 500.0, shown.posts[0][0])
        while len(seen) < 8:
            before_ns = time.monotonic_ns()
            (reading,) = source.read()
            allowed = shown.between(before_ns, time.monotonic_ns())
            assert reading.energy_uj is not None
            assert any(abs(reading.energy_uj / 1000 - value) <= 1.01 for value in allowed)
            seen.add(reading.energy_uj)
    for one, other in pairwise(sorted(seen)[1:]):  # before the first lies no whole tick
        ticks = (other - one) / 10_000_000  # 500 W for 20 ms
        assert round(ticks) >= 1
        assert ticks == pytest.approx(round(ticks), abs=2e-4)


def energy_mj(source: NvmlSource) -> float:
    (reading,) = source.read()
    assert reading.energy_uj is not None, reading.error
    return reading.energy_uj / 1000


def test_a_long_rest_is_summed(library: str, tmp_path: Path) -> None:
    """A day at full power without a post overflows nothing."""
    day_ns = 24 * 3600 * 10**9
    with one_card(tmp_path / "c", library, CardSpec()) as (card, source):
        start = energy_mj(source)
        now = time.monotonic_ns()
        card.post(0, 700.0, now - day_ns - 10**9)
        card.post(0, 0.0, now - 10**9)
        card.post(0, 0.0, now)
        assert energy_mj(source) - start == pytest.approx(700.0 * 86_400 * 1000, abs=1)


def test_a_stuck_counter_stands_still(library: str, tmp_path: Path) -> None:
    """No refresh while it is stuck; everything shows afterwards."""
    with one_card(tmp_path / "c", library, CardSpec(refresh_s=0.001)) as (card, source):
        card.post(0, 500.0, time.monotonic_ns() - 10**9)
        card.fault(0, Fault.STUCK, time.monotonic_ns())
        stuck = energy_mj(source)
        time.sleep(0.02)
        assert energy_mj(source) == stuck
        card.clear_faults(0)
        assert energy_mj(source) - stuck >= 9_000  # 500 W for 20 ms, and more


@pytest.mark.parametrize("kind", [Fault.RESET, Fault.STUCK])
def test_a_fault_outlives_the_ring(library: str, tmp_path: Path, kind: Fault) -> None:
    """After more posts than the ring holds, a reset or stuck counter still knows its start."""
    spec = CardSpec(refresh_s=0.001)
    with one_card(tmp_path / "c", library, spec) as (card, source):
        start = energy_mj(source)
        now = time.monotonic_ns()
        begin = now - 10 * 10**9
        card.post(0, 100.0, begin)
        card.fault(0, kind, begin + 2 * 10**9)
        for i in range(RING_SLOTS + 50):
            card.post(0, 100.0, begin + 3 * 10**9 + i * 1000)
        card.post(0, 0.0, begin + 5 * 10**9)
        expected = 300_000 if kind is Fault.RESET else start + 200_000
        assert energy_mj(source) == pytest.approx(expected, abs=101)


def test_the_sampler_on_the_card(library: str, tmp_path: Path) -> None:
    """The real chain: its own thread, pynvml, the library. From the first reading to the last the
    counter has moved by the joules that were drawn between the ticks that they show."""
    spec = CardSpec(refresh_s=0.01, seed=9)
    shown = Shown(spec)
    with one_card(tmp_path / "c", library, spec) as (card, source):
        source.close()
        now = time.monotonic_ns()
        for after_ms, power_w in ((20, 700.0), (50, 90.0), (80, 420.0)):  # known before it happens
            shown.posts.append((now + after_ms * 1_000_000, power_w))
            card.post(0, power_w, shown.posts[-1][0])
        events: queue.Queue[Event] = queue.Queue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JOULEMETER_FAKE_NVML", str(tmp_path / "c"))
            sampler = Sampler([NvmlSource(library)], events.put, rate_hz=200.0)
            (device,) = sampler.start()
        time.sleep(0.12)
        sampler.stop()
        readings = [events.get_nowait() for _ in range(events.qsize())]
    assert sampler.counters.errors == {}
    assert len(readings) == sampler.counters.samples
    assert device.quality is Quality.SIMULATED
    for reading in readings:
        assert isinstance(reading, Reading)
        assert reading.latency_s is not None
        assert reading.energy_uj is not None
        half_ns = round(reading.latency_s * 0.5e9) + 1
        allowed = shown.between(reading.t_ns - half_ns, reading.t_ns + half_ns)
        assert any(abs(reading.energy_uj / 1000 - value) <= 1.01 for value in allowed)


def test_the_samplers_caller_hears_what_nvml_said(library: str, tmp_path: Path) -> None:
    """A start that fails in the sampler's thread is told in the caller's, with its class."""
    sampler = Sampler([NvmlSource(str(tmp_path / "none.so"))], lambda event: None)
    with pytest.raises(LibraryMissingError, match=r"power\.nvml_library"):
        sampler.start()


def test_the_fields_tell_their_latency(library: str, tmp_path: Path) -> None:
    """Each field says how long it took, as NVML does, and an unknown one is not supported."""
    with one_card(tmp_path / "c", library, CardSpec()) as (card, _source):
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        card.fault(0, Fault.SLOW, 0, value=3_000_000)
        energy, strange = pynvml.nvmlDeviceGetFieldValues(handle, [83, 1])
    assert energy.nvmlReturn == pynvml.NVML_SUCCESS
    assert energy.latencyUsec >= 3000
    assert strange.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_the_real_pynvml_reads_the_whole_card(library: str, tmp_path: Path) -> None:
    """Every call that the simulated card answers, through pynvml's own functions."""
    spec = CardSpec(uuid="GPU-x", name="one", power_limit_w=350.0, refresh_s=0.001)
    with one_card(tmp_path / "c", library, spec) as (card, _source):
        now = time.monotonic_ns()
        card.post(0, 200.0, now - 10**9 - 10**8)
        card.post(0, 100.0, now - 5 * 10**8)
        card.set_processes(0, [11, 12])
        handle = pynvml.nvmlDeviceGetHandleByUUID("GPU-x")
        assert pynvml.nvmlDeviceGetCount() == 1
        assert pynvml.nvmlDeviceGetIndex(handle) == 0
        assert pynvml.nvmlDeviceGetUUID(handle) == "GPU-x"
        assert pynvml.nvmlDeviceGetName(handle) == "one"
        assert pynvml.nvmlSystemGetDriverVersion() == "simulated"
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 350_000
        assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 350_000
        assert pynvml.nvmlDeviceGetMemoryInfo(handle).total == 80 << 30
        assert pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) >= 40
        assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)] == [11, 12]
        assert 100_000 <= pynvml.nvmlDeviceGetPowerUsage(handle) <= 150_100  # the mean of 1 s
        (field,) = pynvml.nvmlDeviceGetFieldValues(handle, [186])
        assert field.value.uiVal == 100_000  # the power of this instant
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) > 0
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceGetMigMode(handle)
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-y")
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetHandleByIndex(1)


def test_a_handle_dies_with_its_start(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real one's: after a new start only new handles work, and they must be asked for."""
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(tmp_path / "c"))
    with one_card(tmp_path / "c", library, CardSpec(uuid="GPU-x", refresh_s=0.001)) as (card, _):
        before = pynvml.nvmlDeviceGetHandleByIndex(0)
        now = time.monotonic_ns()
        back_ns = now + 500_000_000
        card.reload_driver(now, back_ns)
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            pynvml.nvmlDeviceGetUUID(before)
        pynvml.nvmlShutdown()
        with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
            pynvml.nvmlInit()
        time.sleep(max(0, back_ns - time.monotonic_ns()) / 1e9 + 0.005)
        pynvml.nvmlInit()
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetUUID(before)
        handle = pynvml.nvmlDeviceGetHandleByUUID("GPU-x")
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 0


def test_a_mig_instance_has_a_name_and_no_energy(library: str, tmp_path: Path) -> None:
    """Its board has: an instance leads to it."""
    spec = CardSpec(uuid="GPU-x", mig_instances=2)
    with one_card(tmp_path / "c", library, spec) as (_card, _source):
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetMigMode(board) == [1, 1]
        instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 1)
        assert pynvml.nvmlDeviceGetUUID(instance) == "MIG-x-2"
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceGetTotalEnergyConsumption(instance)
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, 2)
        back = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
        assert pynvml.nvmlDeviceGetUUID(back) == "GPU-x"


def test_a_card_says_what_it_is_to_this_machine(library: str, tmp_path: Path) -> None:
    """NVML's own code of virtualization."""
    spec = CardSpec(virtualization=Virtualization.VGPU)
    with one_card(tmp_path / "c", library, spec) as (_card, _source):
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        mode = pynvml.nvmlDeviceGetVirtualizationMode(handle)
        assert mode == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU
