"""The host beside the GPUs: the same game, played once more for other joules.

What an engine's processes take of the host's CPU is no part of its GPUs' joules, and is split by
coefficients of its own and closed by a λ of its own. So a second core hears the same engines and
knows one device, the claim (``meter.power.claim``); the two share nothing but what they are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from meter.attribution.attributor import Attributor
from meter.attribution.learned import Learned
from meter.model import (
    Device,
    DeviceFound,
    Engine,
    EngineEvent,
    Event,
    Reading,
    Receipt,
    Running,
    Snapshot,
)


class Boundaries:
    """The core of ``devices``, and, where ``beside`` names the host's, one of that.

    ``host``: the host's device, where it is there from the start; it may also come as an event.
    What is asked is answered by the first core; ``host_receipt``, ``drain_host`` and the snapshot's
    ``host`` are the other's.
    """

    def __init__(
        self,
        devices: Iterable[Device] = (),
        engines: Iterable[Engine] = (),
        restored: Iterable[Learned] = (),
        beside: str | None = None,
        host: Device | None = None,
    ) -> None:
        engines = list(engines)
        self._beside = beside
        self._core = Attributor(devices, engines, restored=restored)
        self._host = None
        if beside is not None:
            on_host = [_on(beside, engine) for engine in engines]
            self._host = Attributor([host] if host is not None else [], on_host)

    def feed(self, event: Event) -> None:
        """Readings to the core whose device they are of, all else to both."""
        id = _device(event)
        if id is None or id != self._beside:
            self._core.feed(event)
        if self._host is not None and (id is None or id == self._beside):
            self._host.feed(self._on_host(event))

    def _on_host(self, event: Event) -> Event:
        """What an event is there: the host is the engine's device."""
        if self._beside is None or not isinstance(event, EngineEvent) or event.info is None:
            return event
        return replace(event, info=_on(self._beside, event.info))

    def finish(self) -> None:
        """The input is over: settle everything that can be."""
        self._core.finish()
        if self._host is not None:
            self._host.finish()

    def snapshot(self) -> Snapshot:
        """All accounts; the host's apart, where it was ever read."""
        snapshot = self._core.snapshot()
        host = self._host.snapshot() if self._host is not None else None
        return snapshot if host is None or not host.devices else replace(snapshot, host=host)

    def learned(self) -> list[Learned]:
        """What the GPUs have taught."""
        return self._core.learned()

    def receipt(self, id: str) -> Receipt | None:
        return self._core.receipt(id)

    def running(self) -> list[Running]:
        return self._core.running()

    def drain(self) -> list[Receipt]:
        return self._core.drain()

    def host_receipt(self, id: str) -> Receipt | None:
        """As ``receipt``, of the host's joules."""
        return self._host.receipt(id) if self._host is not None else None

    def drain_host(self) -> list[Receipt]:
        """As ``drain``, of the host's joules; each in its own time, before the other or after."""
        return self._host.drain() if self._host is not None else []


def _on(device: str, engine: Engine) -> Engine:
    return replace(engine, devices=(device,), owns_none=False)


def _device(event: Event) -> str | None:
    """The device that an event is of; ``None`` where it is of none."""
    if isinstance(event, Reading):
        return event.device
    return event.device.id if isinstance(event, DeviceFound) else None
