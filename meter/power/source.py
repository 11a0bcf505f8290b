"""What every source of energy is to the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meter.model import Device, Reading


class PowerSource(Protocol):
    """A source of cumulative energy readings.

    All three are called from one thread, the sampler's: handles live and die there.
    """

    @property
    def name(self) -> str:
        """What the source is called in metrics and logs: ``nvml``, ``rapl``, ``estimate`` …"""

    def open(self) -> Sequence[Device]:
        """Find the devices. Raises ``PowerError`` where there is nothing to read."""

    def read(self) -> Sequence[Reading]:
        """One reading of each device, failed ones with ``energy_uj`` None and ``error`` set."""

    def close(self) -> None:
        """Let go of everything."""
