"""What every source of energy is to the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class LooksAgain(PowerSource, Protocol):
    """A source that may have left devices out when it was opened: they could not be read then.

    Where ``open`` raised what may pass (``PowerError.passes``), ``look_again`` opens it anew.
    """

    @property
    def left_out(self) -> Sequence[str]:
        """Why some devices are not there, one line each; empty: there is nothing to look for."""

    @property
    def never(self) -> Sequence[str]:
        """Why some that were asked for never will be there, one line each."""

    def described(self, device: str) -> Device:
        """The device of this id as it is now: how its energy is had may change."""

    def look_again(self) -> Sequence[Device]:
        """Those of them that can be read now. Called now and then, from a thread of its own.

        Raises ``PowerError`` where there is still none at all.
        """

    def find(self, ids: Sequence[str]) -> Sequence[Device]:
        """The devices of these ids that can be read, whether they were asked for or not."""
