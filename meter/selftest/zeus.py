"""The same window measured by Zeus, where that package is installed: ``pip install zeus``.

Zeus reads the same counter at a window's two ends; the meter follows it in between. What both say
of one window shows that no joule was lost or counted twice on the way. (Zeus 0.16.0 finds the
counter's period as 0, always; windows do not need it.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from meter.model import Event, Reading

_WINDOW = "joulemeter selftest"
#: Of the meter's reading next to an end of the window.
_NEAR_NS = 500_000_000


class Window(NamedTuple):
    """``CLOCK_MONOTONIC`` of its ends, and what Zeus says that each of so many GPUs took."""

    from_ns: int
    to_ns: int
    energy_j: float
    gpus: int


class Beside(NamedTuple):
    """Joules of one window."""

    zeus_j: float
    ours_j: float
    seconds: float


class Open:
    """A window under way; ``closed`` holds it in the end. All of it may fail: then it stays
    ``None``."""

    def __init__(self) -> None:
        self.closed: Window | None = None


@contextlib.contextmanager
def window() -> Iterator[Open]:
    """Zeus's own window around the block, if Zeus can be imported and finds GPUs."""
    opened = Open()
    monitor, from_ns = _begun(), time.monotonic_ns()
    yield opened
    if monitor is not None:
        with contextlib.suppress(Exception):
            each_j = monitor.end_window(_WINDOW, sync_execution=False).gpu_energy
            to_ns, energy_j = time.monotonic_ns(), float(sum(each_j.values()))
            opened.closed = Window(from_ns, to_ns, energy_j, len(each_j))


def _begun() -> Any:
    """Zeus's monitor in a window; ``None`` where Zeus, or what it needs, does not like this
    machine, in whatever way."""
    try:
        from zeus.monitor import ZeusMonitor

        # CPUs are left out: Zeus needs root for them.
        monitor = ZeusMonitor(cpu_indices=[])
        # Nothing of ours runs on the GPU: there is nothing to wait for, and no framework to ask.
        monitor.begin_window(_WINDOW, sync_execution=False)
    except Exception:
        return None
    return monitor


def compare(found: Window | None, events: Iterable[Event], devices: int) -> Beside | None:
    """``None`` where Zeus was not there, or saw other GPUs than the meter's ``devices``."""
    if found is None or found.gpus != devices:
        return None
    by_device: dict[str, list[Reading]] = {}
    for event in events:
        if isinstance(event, Reading) and event.energy_uj is not None:
            by_device.setdefault(event.device, []).append(event)
    ours_j = 0.0
    for readings in by_device.values():
        times_ns = np.array([reading.t_ns for reading in readings])
        first, last = np.searchsorted(times_ns, [found.from_ns, found.to_ns], side="right") - 1
        if first < 0 or found.to_ns - times_ns[last] > _NEAR_NS:
            return None
        ours_j += ((readings[last].energy_uj or 0) - (readings[first].energy_uj or 0)) / 1e6
    return Beside(found.energy_j, ours_j, (found.to_ns - found.from_ns) / 1e9)
