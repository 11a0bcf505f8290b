"""What the demo puts on stage, and how the card is read without NVML."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from meter.demo.announce import MODEL
from meter.demo.card import Card, CardSpec
from meter.demo.card_source import CARD_VARIABLE, CardSource
from meter.demo.stage import StageError, simulated, vllm_cpu
from meter.model import Quality
from meter.power.errors import NoDeviceError

NS = 10**9


def test_the_simulated_stage_draws_power_before_anything_runs(tmp_path: Path) -> None:
    """A bare card idles at 70 W from the first moment: joules are never missing."""
    stage = simulated(tmp_path, 8123)
    card = Card.attach(stage.environment[CARD_VARIABLE])
    now = time.monotonic_ns()
    assert card.energy_j(0, now + NS) - card.energy_j(0, now) == pytest.approx(70.0)
    card.close()
    assert (stage.model, stage.base_url) == (MODEL, "http://127.0.0.1:8123")
    assert stage.command[stage.command.index("--port") + 1] == "8123"


def test_with_a_compiler_nvml_is_read(tmp_path: Path) -> None:
    """The real pynvml path, on a library that was just built."""
    options = simulated(tmp_path, 1).options
    assert options[:2] == ("--source", "nvml")
    assert Path(options[3]).exists()


def test_without_a_compiler_the_card_is_read_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a note says so, with the remedy."""
    monkeypatch.setenv("PATH", str(tmp_path))
    stage = simulated(tmp_path, 1)
    assert stage.options == ("--source", "simulated")
    assert any("without NVML" in note and "gcc" in note for note in stage.notes)


def test_without_vllm_the_stage_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the one command."""
    monkeypatch.setenv("JOULEMETER_CACHE", str(tmp_path))
    with pytest.raises(StageError, match=r"setup\.sh"):
        vllm_cpu(1)


def test_the_card_source_shows_the_counter_at_its_last_refresh(tmp_path: Path) -> None:
    """Whole millijoules up to the tick, simulated, and the mean power of the period before."""
    spec = CardSpec(refresh_s=0.1)
    card = Card.create(tmp_path / "card", [spec])
    card.post(0, 100.0, 10 * NS)
    card.post(0, 300.0, 11 * NS)
    times = iter([11 * NS + 250_000_000, 11 * NS + 299_000_000, 11 * NS + 300_000_000])
    source = CardSource(tmp_path / "card", spec, lambda: next(times))
    (device,) = source.open()
    assert (device.quality, device.power_limit_w) == (Quality.SIMULATED, 700.0)
    assert device.mem_bandwidth == pytest.approx(3.35e12, rel=0.01)
    readings = [source.read()[0] for _ in range(3)]
    assert [r.energy_uj for r in readings] == [160_000_000, 160_000_000, 190_000_000]
    assert readings[0].t_ns == 11 * NS + 250_000_000
    assert readings[0].power_w == pytest.approx(300.0)
    source.close()
    assert source.read() == []


@pytest.mark.parametrize("content", [None, b"no card at all"])
def test_without_a_card_the_source_does_not_open(tmp_path: Path, content: bytes | None) -> None:
    """It says where there would be one."""
    path = tmp_path / "card"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NoDeviceError, match="joulemeter demo"):
        CardSource(path).open()
    with pytest.raises(NoDeviceError, match="no path"):
        CardSource(None).open()
