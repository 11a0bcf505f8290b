"""The simulated card read without NVML: for machines that cannot compile the fake library.

It shows what the library would show: the joules drawn up to the last refresh, in whole millijoules.
The real NVML path is not exercised then, and the demo says so.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from meter.demo.card import Card, CardSpec
from meter.model import Device, Quality, Reading
from meter.power.errors import NoDeviceError

#: Names the card's file, to this source and to the fake library alike.
CARD_VARIABLE = "JOULEMETER_FAKE_NVML"
_NS = 1_000_000_000


class CardSource:
    """A ``PowerSource`` (``meter.power.source``) over the card's file at ``path``.

    ``spec``: how the card presents itself, as it was created.
    """

    name = "simulated"

    def __init__(
        self,
        path: Path | None,
        spec: CardSpec | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._path = path
        self._spec = spec or CardSpec()
        self._clock = clock
        self._card: Card | None = None

    def open(self) -> Sequence[Device]:
        """Attach to the card. Raises ``NoDeviceError`` where there is none."""
        try:
            if self._path is None:
                raise FileNotFoundError("no path was given")
            self._card = Card.attach(self._path)
        except (OSError, ValueError, struct.error) as error:
            raise NoDeviceError(
                f"no simulated card ({error}): it is there under `joulemeter demo` alone"
            ) from error
        spec = self._spec
        return [
            Device(
                id=spec.uuid,
                name=spec.name,
                quality=Quality.SIMULATED,
                power_limit_w=spec.power_limit_w,
                mem_bandwidth=spec.mem_clock_mhz * 1e6 * 2 * spec.bus_bits / 8,
            )
        ]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """The counter at its last refresh, and the mean power over the period before it."""
        if self._card is None:
            return []
        now_ns = self._clock()
        refresh_ns = round(self._spec.refresh_s * _NS)
        tick_ns = now_ns - now_ns % refresh_ns
        energy_j = self._card.energy_j(0, tick_ns)
        power_w = (energy_j - self._card.energy_j(0, tick_ns - refresh_ns)) / self._spec.refresh_s
        return [Reading(self._spec.uuid, now_ns, int(energy_j * 1e3) * 1000, power_w, late_s=0.0)]

    def close(self) -> None:
        if self._card is not None:
            self._card.close()
            self._card = None
