"""A replay gives the same, in whatever order within two seconds the lines stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from meter.model import Event, Reading
from meter.replay import CalibrationMode, replay
from meter.trace import TraceWriter
from tests.attribution.scenes import ENGINE, GPU, Scene


def _told(path: Path, events: list[Event], late_ns: int) -> Path:
    """A trace in which each seventh reading stands behind what came ``late_ns`` after it."""
    readings = [event for event in events if isinstance(event, Reading)]
    late = {reading.t_ns for reading in readings[::7]}
    writer = TraceWriter(path, (GPU,), (ENGINE,))

    def stands_ns(event: Event) -> int:
        return event.t_ns + (late_ns if isinstance(event, Reading) and event.t_ns in late else 0)

    for event in sorted(events, key=stands_ns):
        writer.write(event)
    writer.close()
    return path


@pytest.mark.parametrize("mode", CalibrationMode)
def test_lines_may_stand_out_of_order(tmp_path: Path, mode: CalibrationMode) -> None:
    """By a little, as a recorder writes them, or by up to two seconds: the same receipts."""
    events = sorted(Scene(seed=3, seconds=12.0).events, key=lambda event: event.t_ns)
    ordered = replay(_told(tmp_path / "ordered.jsonl", events, 0), calibration=mode)
    assert ordered.snapshot.late_events == 0 and len(ordered.receipts) > 50
    for late_ns in (20_000_000, 1_900_000_000):
        path = _told(tmp_path / f"{late_ns}.jsonl", events, late_ns)
        assert replay(path, calibration=mode) == ordered
