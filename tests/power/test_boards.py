"""Boards that are not a whole card with a counter: without one, MIG, vGPU, and several kinds in one
host."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from meter.demo.card import Card, CardSpec, Fault, Function, Virtualization
from meter.model import Device, Quality
from meter.power.errors import NoDeviceError, UnsupportedError
from meter.power.nvml import NvmlSource, boards
from meter.power.nvml_calls import start
from meter.power.nvml_find import examine
from meter.runtime.devices import owned
from tests.power.rig import REFRESH_S, closes, moved_j, rig

A, B = "GPU-aaaa-0", "GPU-bbbb-1"
NOT_SUPPORTED, FUNCTION_NOT_FOUND = 3, 13
Make = Callable[[Sequence[CardSpec]], Card]


@pytest.fixture
def make(tmp_path: Path, card: Card) -> Iterator[Make]:
    """Makes the cards of this host; each draws 200 W."""
    made = []

    def cards(specs: Sequence[CardSpec]) -> Card:
        new = Card.create(tmp_path / "card", list(specs))
        made.append(new)
        for device in range(new.devices):
            new.post(device, 200.0, time.monotonic_ns() - 10**10)
        return new

    yield cards
    for new in made:
        new.close()


def opened(library: str, *names: str) -> tuple[Device, ...]:
    """The devices that an NVML source finds."""
    source = NvmlSource(library, names)
    try:
        return tuple(source.open())
    finally:
        source.close()


def without_counter(card: Card, device: int) -> None:
    card.fault(device, Fault.ERROR, 0, value=NOT_SUPPORTED, function=Function.ENERGY)


def test_without_a_counter_power_is_integrated(library: str, make: Make) -> None:
    """The joules of a varying load to a few per cent, and each figure says what it is. Nothing of
    that is said of the other card, which has a counter: mixed hosts are metered card by card."""
    card = make([CardSpec(uuid=id, refresh_s=REFRESH_S, seed=2) for id in (A, B)])
    without_counter(card, 0)
    rnd, now = random.Random(4), time.monotonic_ns()
    # Power changes every 250 ms, known before it happens: what lies between two looks is guessed,
    # and on a busy machine these may be 100 ms apart.
    for step in range(40):
        for device in (0, 1):
            card.post(device, rnd.uniform(80, 700), now + step * 250_000_000)
    with rig(library, card) as running:
        old, new = running.sampler.devices
        assert (old.note, new.note) == ("integrated power (instant)", None)
        running.more(A, 200)
        running.more(B, 5)
        snapshot = running.end()
        for device, id, rel in ((0, A, 0.05), (1, B, 0.05)):
            good = running.of(id, good=True)
            true_j = card.energy_j(device, good[-1].t_ns) - card.energy_j(device, good[0].t_ns)
            assert true_j > 100
            assert moved_j(good) == pytest.approx(true_j, rel=rel)
        assert closes(snapshot)
        assert [line["gpu"] for line in running.logs if line["event"] == "gpu_figures"] == [A]


@pytest.mark.parametrize(
    ("broken", "code", "note"),
    [
        ((Function.ENERGY,), NOT_SUPPORTED, "integrated power (instant)"),
        ((Function.ENERGY, Function.POWER_INSTANT), NOT_SUPPORTED, "integrated power (1 s mean)"),
        ((Function.FIELD_VALUES,), FUNCTION_NOT_FOUND, "integrated power (power usage)"),
    ],
)
def test_the_best_power_there_is(
    library: str, make: Make, broken: Sequence[Function], code: int, note: str
) -> None:
    """The instant field, else the mean, else what the oldest drivers have; always estimated."""
    card = make([CardSpec(uuid=A)])
    for function in broken:
        card.fault(0, Fault.ERROR, 0, value=code, function=function)
    start(library)
    (found,) = examine(Quality.MEASURED)
    assert found.gpu is not None
    assert found.gpu.device.quality is Quality.ESTIMATED
    assert found.gpu.device.note == note
    assert found.gpu.read().power_w == pytest.approx(200.0, abs=0.1)


def test_a_simulated_cards_power_stays_simulated(library: str, make: Make) -> None:
    """The worst of the qualities is shown."""
    without_counter(make([CardSpec(uuid=A)]), 0)
    (device,) = opened(library)
    assert device.quality is Quality.SIMULATED


def test_integrated_power_does_not_bridge_an_outage(library: str, make: Make) -> None:
    """What was drawn while nothing was read is in no account: it is not made up."""
    card = make([CardSpec(uuid=A, refresh_s=REFRESH_S)])
    without_counter(card, 0)
    with rig(library, card) as running:
        before_j = moved_j(running.more(A))
        now = time.monotonic_ns()
        card.fault(0, Fault.ERROR, now, now + 1_200_000_000, value=999, function=Function.POWER)
        running.more(A, good=False)
        running.more(A)
        good = running.of(A, good=True)
        snapshot = running.end()
        assert snapshot.devices[0].resets == 1
        span_s = (good[-1].t_ns - good[0].t_ns) / 1e9
        assert before_j < snapshot.measured_j < 200.0 * (span_s - 1.0)
        assert closes(snapshot)


def test_a_counter_that_differs_from_its_power_is_shown(
    library: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap is a metric, and a line in the log where it is large."""
    monkeypatch.setattr("meter.power.watch._WINDOW_NS", 300_000_000)
    monkeypatch.setattr("meter.power.watch._WINDOW_UJ", 10_000_000)
    card = make([CardSpec(uuid=A, refresh_s=REFRESH_S)])
    with rig(library, card) as running:
        running.more(A, 100)
        gap = running.metrics()["joulemeter_gpu_energy_gap_ratio", A]
        assert gap == pytest.approx(0, abs=0.09)
        now = time.monotonic_ns()
        for step in range(60):  # the counter gains a watt-second every 10 ms: 100 W too much
            card.fault(0, Fault.JUMP, now + step * 10_000_000, value=1000)
        running.more(A, 130)
        assert "counter_and_power_disagree" in running.said("counter_and_power_disagree")


def test_mig_instances_show_their_board_once(library: str, make: Make) -> None:
    """Each instance stands for its board; the board's counter is never summed over them."""
    card = make([CardSpec(uuid=A, mig_instances=3, refresh_s=REFRESH_S), CardSpec(uuid=B)])
    instances = ("MIG-aaaa-0-1", "MIG-aaaa-0-3")
    with rig(library, card, instances) as running:
        (board,) = running.sampler.devices
        assert (board.id, board.note) == (A, "the whole board, shared by 3 MIG instances")
        assert [line["gpu"] for line in running.logs if line["event"] == "gpu_figures"] == [A]
        running.more(A)
        good = running.of(A)
        true_j = card.energy_j(0, good[-1].t_ns) - card.energy_j(0, good[0].t_ns)
        assert running.end().measured_j == pytest.approx(true_j, abs=200 * 0.04)


def test_engines_on_instances_own_the_board(library: str, make: Make) -> None:
    """By an instance's UUID, the board's, or drivers' older names; a stranger's name stays."""
    make([CardSpec(uuid=A, mig_instances=2), CardSpec(uuid=B)])
    source = NvmlSource(library)
    found = source.open()
    assert owned(found, (), "MIG-aaaa-0-2") == (A,)
    assert owned(found, (), "MIG-GPU-bbbb-1/3/0") == (B,)
    assert boards(("MIG-aaaa-0-1", "MIG-aaaa-0-2", "1", "MIG-x")) == (A, "1", "MIG-x")
    assert boards(("0",)) == ("0",)
    source.close()


@pytest.mark.parametrize("name", ["MIG-a", "MIG-aaaa-0-2", "MIG-aaaa", "MIG-GPU-aaaa"])
def test_the_beginning_of_an_instances_name_will_do(library: str, make: Make, name: str) -> None:
    """As CUDA allows for boards and instances alike."""
    make([CardSpec(uuid=A, mig_instances=2), CardSpec(uuid=B, mig_instances=2)])
    assert [device.id for device in opened(library, name)] == [A]
    source = NvmlSource(library, (name,), as_cuda=True)
    found = source.open()
    assert owned(found, (), name) == (A,)
    source.close()


def test_a_beginning_that_several_boards_share_names_none(library: str, make: Make) -> None:
    """Nothing is guessed, nor widened to all."""
    make([CardSpec(uuid=A, mig_instances=2), CardSpec(uuid=B, mig_instances=2)])
    with pytest.raises(NoDeviceError, match="names several GPUs"):
        opened(library, "MIG-")


def test_a_strange_instance_is_refused(library: str, make: Make) -> None:
    """With what there is."""
    make([CardSpec(uuid=A, mig_instances=2)])
    with pytest.raises(NoDeviceError, match=r"MIG-aaaa-0-3.* there are: 0 \(GPU-aaaa-0\)"):
        opened(library, "MIG-aaaa-0-3")


def test_a_vgpu_says_what_it_shows(library: str, make: Make) -> None:
    """Where its host lets it see energy; where not, it cannot be metered, and that is said."""
    card = make([CardSpec(uuid=A, virtualization=Virtualization.VGPU)])
    (device,) = opened(library)
    assert device.note is not None
    assert "a vGPU" in device.note
    without_counter(card, 0)
    (device,) = opened(library)
    assert device.note is not None
    assert device.note.startswith("integrated power (instant); a vGPU")
    card.fault(0, Fault.ERROR, 0, value=NOT_SUPPORTED, function=Function.POWER)
    with pytest.raises(UnsupportedError, match="vGPU"):
        opened(library)


def test_a_card_that_is_passed_through_is_a_card(library: str, make: Make) -> None:
    """The guest has all of it: nothing to say."""
    make([CardSpec(uuid=A, virtualization=Virtualization.PASSTHROUGH)])
    assert opened(library)[0].note is None
