"""The real chain on a simulated card: fake NVML, pynvml, the sampler, the core, the metrics."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog.testing

from meter.attribution import Attributor
from meter.demo.card import Card
from meter.export.prometheus import make_registry
from meter.export.publisher import Publisher
from meter.model import Device, Event, Reading, Snapshot
from meter.power.nvml import NvmlSource
from meter.power.owner import Ownership
from meter.power.sampler import Sampler
from meter.pricing import Tariff
from meter.runtime.gauges import Gauges
from meter.runtime.writer import Inbox

RATE_HZ = 200.0
#: The cards of these tests refresh every 10 ms.
REFRESH_S = 0.01


def wait_until(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait at most 20 s."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.005)


class Rig:
    """A running sampler on ``card``; what it pushes goes into a core."""

    def __init__(
        self,
        library: str,
        card: Card,
        names: Sequence[str] = (),
        ownership: Callable[[Device], Ownership] | None = None,
        logs: Sequence[MutableMapping[str, Any]] = (),
    ) -> None:
        self.card = card
        self.logs = logs
        self.readings: list[Reading] = []
        self._events: queue.Queue[Event] = queue.Queue()
        source = NvmlSource(library, names)
        self.sampler = Sampler([source], self._events.put, RATE_HZ, ownership=ownership)
        self.sampler.start()
        self._core = Attributor(self.sampler.devices)
        self.gauges = Gauges(Inbox(), self.sampler, None, {}, ())

    def pump(self) -> list[Event]:
        """Give the core what has been pushed; returns that."""
        fresh = [self._events.get_nowait() for _ in range(self._events.qsize())]
        for event in fresh:
            self._core.feed(event)
        self.readings += [event for event in fresh if isinstance(event, Reading)]
        return fresh

    def of(self, device: str, good: bool | None = None) -> list[Reading]:
        """The readings of a device so far; ``good``: those with an energy, or those without."""
        self.pump()
        readings = [r for r in self.readings if r.device == device]
        return [r for r in readings if good is None or (r.energy_uj is not None) == good]

    def more(self, device: str, count: int = 20, good: bool = True) -> list[Reading]:
        """Wait for so many more readings of a device; returns those."""
        before = len(self.of(device, good))
        wait_until(lambda: len(self.of(device, good)) >= before + count, f"readings of {device}")
        return self.of(device, good)[before:]

    def said(self, *events: str) -> list[str]:
        """The log's lines of these events, in order."""
        return [line["event"] for line in self.logs if line["event"] in events]

    def end(self) -> Snapshot:
        """Stop, settle, and give the accounts."""
        self.sampler.stop()
        self.pump()
        self._core.finish()
        return self._core.snapshot()

    def metrics(self) -> dict[tuple[str, str], float]:
        """What is exported now, by name and GPU (or source)."""
        self.pump()
        publisher = Publisher(Tariff("EUR"), start_ns=0)
        state = publisher.publish(self._core.snapshot(), [], self.gauges.health())
        return {
            (sample.name, sample.labels.get("gpu_uuid") or sample.labels.get("source", "")): (
                sample.value
            )
            for family in make_registry(lambda: state).collect()
            for sample in family.samples
        }


@contextmanager
def rig(library: str, card: Card, names: Sequence[str] = (), **more: Any) -> Iterator[Rig]:
    """A running chain whose log is heard; faults still on at the end are taken away."""
    with structlog.testing.capture_logs() as logs:
        running = Rig(library, card, names, logs=logs, **more)
        try:
            yield running
        finally:
            for device in range(card.devices):
                card.clear_faults(device)
            running.sampler.stop()


def moved_j(readings: Sequence[Reading]) -> float:
    """What the counter moved from the first to the last of these readings."""
    energies = [r.energy_uj for r in readings if r.energy_uj is not None]
    return (energies[-1] - energies[0]) / 1e6


def closes(snapshot: Snapshot) -> bool:
    """measured = all accounts + pending, to the microjoule."""
    return abs(snapshot.conservation_error_j) < 1e-6


def hidden_s(moments: Sequence[int], good: Sequence[Reading]) -> float:
    """For so long nothing could be seen around these moments: from the tick before the last good
    reading before each to the tick of the first one after."""
    seconds = 0.0
    for moment_ns in moments:
        before_ns = max(r.t_ns for r in good if r.t_ns <= moment_ns)
        after_ns = min(r.t_ns for r in good if r.t_ns > moment_ns + REFRESH_S * 1e9)
        seconds += (after_ns - before_ns) / 1e9 + 2 * REFRESH_S
    return seconds
