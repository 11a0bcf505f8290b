"""Plays recorded readings back, at the pace they were taken: a machine without a GPU shows one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from meter.model import Device, Quality, Reading
from meter.power.errors import NoDeviceError


class Playback:
    """Readings of ``devices`` from a trace, moved to start now. All count as ``simulated``.

    ``readings`` may come in any order. Between two of them, and when they are used up, a device's
    last one is repeated: its counter stands still. ``clock``: the monotonic time in ns.
    """

    name = "playback"

    def __init__(
        self,
        devices: Iterable[Device],
        readings: Iterable[Reading],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._devices = [replace(device, quality=Quality.SIMULATED) for device in devices]
        self._readings = sorted(readings, key=lambda reading: reading.t_ns)
        self._clock = clock
        self._next = 0
        self._offset_ns = 0
        self._last: dict[str, Reading] = {}
        self._lock = threading.Lock()  # each device is read from its own thread

    def open(self) -> Sequence[Device]:
        """Start playing. Raises ``NoDeviceError`` where the recording holds no reading."""
        if not self._readings:
            raise NoDeviceError("the recording holds no reading: record one with a power source")
        self._next = 0
        self._last = {}
        self._offset_ns = self._clock() - self._readings[0].t_ns
        return self._devices

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """What the device's counter (or each one's) showed by now, at the time of this call."""
        now_ns = self._clock()
        with self._lock:
            self._advance(now_ns)
            shown = [one for one in self._last.values() if device in (None, one.device)]
        return [replace(reading, t_ns=now_ns) for reading in shown]

    def _advance(self, now_ns: int) -> None:
        while self._next < len(self._readings):
            reading = self._readings[self._next]
            if reading.t_ns + self._offset_ns > now_ns:
                break
            self._last[reading.device] = reading
            self._next += 1

    def close(self) -> None:
        """Stop playing; ``open`` starts from the beginning again."""
        self._last = {}
