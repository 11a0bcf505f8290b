"""What every source of energy is to the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meter.model import Device, Reading


class PowerSource(Protocol):
    """A source of cumulative energy readings.

    ``open`` and ``close`` are called from one thread, the sampler's. Between them each device is
    read from a thread of its own, so that a call that hangs holds up no other device.
    """

    @property
    def name(self) -> str:
        """What the source is called in metrics and logs: ``nvml``, ``rapl``, ``estimate`` …"""

    def open(self) -> Sequence[Device]:
        """Find the devices. Raises ``PowerError`` where there is nothing to read."""

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """A reading of the device of this id (``None``: of each), failed ones with ``energy_uj``
        None and ``error`` set; nothing where it is too early for one."""

    def close(self) -> None:
        """Let go of everything. Not called while a read has not come back."""
