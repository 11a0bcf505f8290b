"""Devices that come late: from a driver that was slow, or a GPU that could not be read at first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meter.model import DeviceFound, Event

#: The engines that own the device of this id; ``None``: it cannot be told.
Owners = Callable[[str], tuple[str, ...] | None]


class Latecomers:
    """Between the sampler and the queue: says of a device that comes late which engines own it.

    ``owners`` is set once engines can be heard; it is called in the sampler's threads.
    """

    def __init__(self, push: Callable[[Event], None]) -> None:
        self._push = push
        self.owners: Owners = lambda device: None

    def push(self, event: Event) -> None:
        """From the sampler's threads."""
        if isinstance(event, DeviceFound) and event.engines is None:
            event = replace(event, engines=self.owners(event.device.id))
        self._push(event)
