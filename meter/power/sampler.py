"""Opens the sources, polls each device on a thread of its own (``lane``), and watches over them.

The sampler's thread opens the sources and tells the caller of ``start`` whether that worked. A
driver that hangs while it is opened costs its caller no more than ``within_s``: its devices come
later, as ``DeviceFound``. So do those that a source could not read when it was opened: a thread of
its own looks again, after one second, two, four … at most a minute. Then the sampler's thread
watches the lanes, and says which device has fallen silent, and when it is back.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from meter.model import Device, DeviceFound, Event
from meter.power.errors import PowerError
from meter.power.lane import Lane, LaneState
from meter.power.owner import Ownership
from meter.power.source import LooksAgain, PowerSource

__all__ = ["PowerSource", "Sampler", "SamplerCounters"]

_START_WITHIN_S = 5.0
_STOP_WITHIN_S = 2.0
_WATCH_EVERY_S = 0.25
_LOOK_AGAIN_S, _LOOK_AGAIN_S_MAX = 1.0, 60.0
#: A device that has given no energy for so long is said to be silent.
SILENT_S = 3.0


@dataclass(frozen=True, slots=True)
class SamplerCounters:
    """The lanes' counters together; ``errors`` by source, ``late_s`` the worst, ``last_ns`` the
    last poll's end of all."""

    samples: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    late_s: float = 0.0
    missed: int = 0
    last_ns: int | None = None


class Sampler:
    """Polls the devices of ``sources`` at ``rate_hz`` and pushes each reading.

    ``push`` must not block; where it raises, the reading is lost and counted as a failed one.
    ``seed`` is the jitter's. ``ownership`` gives the lock of a device (``None``: no lock).
    ``beside`` is polled as well, but is none of the devices to meter: it is the host's.
    ``patient``: a source that cannot be opened now, but may be later, is no failure: it is tried
    again as a device that was left out is.
    """

    def __init__(
        self,
        sources: Sequence[PowerSource],
        push: Callable[[Event], None],
        rate_hz: float = 50.0,
        seed: int = 0,
        ownership: Callable[[Device], Ownership | None] | None = None,
        beside: PowerSource | None = None,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._sources = list(sources)
        self._beside = beside
        self._push = push
        self._period_ns = round(1e9 / rate_hz)
        self._seed = seed
        self._ownership = ownership
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._started = threading.Event()
        self._late = False
        self._stopping = threading.Event()
        self._failure: PowerError | None = None
        self._lanes: tuple[Lane, ...] = ()
        self._let_go: tuple[Lane, ...] = ()
        self._lock = threading.Lock()
        self._wanted: tuple[frozenset[str], frozenset[str]] | None = None
        self._silent: set[str] = set()
        self._log = structlog.get_logger("joulemeter.power")

    @property
    def found(self) -> tuple[Device, ...]:
        """All devices, those too that another meter owns."""
        return tuple(state.device for state in self.states() if not state.beside)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that are metered now."""
        return tuple(s.device for s in self.states() if s.owned and not s.beside)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why devices are not there that may still come, one line each."""
        return tuple(reason for source in self._looking() for reason in source.left_out)

    @property
    def never(self) -> tuple[str, ...]:
        """Why devices that were asked for never will be there, one line each."""
        return tuple(reason for source in self._looking() for reason in source.never)

    def turn_to(self, use: Collection[str], leave: Collection[str] = ()) -> None:
        """The devices of these ids are the engines' after all, and those to ``leave`` are not.

        Returns at once: the sampler's thread looks for them, and they come as ``DeviceFound``.
        """
        with self._lock:
            before = self._wanted or (frozenset(), frozenset())
            self._wanted = (before[0] | set(use), (before[1] | set(leave)) - set(use))

    @property
    def beside(self) -> Device | None:
        """The host, where it is there and beside the devices."""
        return next((state.device for state in self.states() if state.beside), None)

    @property
    def counters(self) -> SamplerCounters:
        states = self.states()
        errors: Counter[str] = Counter()
        for state in states:
            if state.errors:
                errors[state.source] += state.errors
        return SamplerCounters(
            sum(state.samples for state in states),
            dict(errors),
            max((state.late_s for state in states), default=0.0),
            sum(state.missed for state in states),
            max((state.last_ns for state in states if state.last_ns is not None), default=None),
        )

    def states(self) -> tuple[LaneState, ...]:
        """Each device's state now."""
        return tuple(lane.state for lane in self._lanes)

    def start(self, within_s: float = _START_WITHIN_S) -> tuple[Device, ...]:
        """Open the sources in the sampler's thread and begin; returns the devices to meter.

        Raises the ``PowerError`` of the first source that cannot be opened. Where opening takes
        longer than ``within_s`` there are none yet: they come as events (``opening`` is true).
        """
        self._thread.start()
        if not self._started.wait(within_s):
            self._late = True
            self._log.warning(
                "driver_does_not_answer",
                after_s=within_s,
                note="its devices are metered when it does",
                remedy="does `nvidia-smi` answer?",
            )
        if self._failure is not None:
            raise self._failure
        return self.devices

    @property
    def opening(self) -> bool:
        """Are the sources still being opened?"""
        return not self._started.is_set()

    @property
    def failure(self) -> PowerError | None:
        """Why there is nothing to poll, where that came out after ``start``."""
        return self._failure

    def stop(self, within_s: float = _STOP_WITHIN_S) -> None:
        """Take one last reading of each device and end; wait for that no longer than so."""
        self._stopping.set()
        self._end_lanes()
        if self._thread.is_alive():
            self._thread.join(within_s)

    # --- on the sampler's thread

    def _run(self) -> None:
        opened: list[PowerSource] = []
        try:
            found: list[tuple[PowerSource, Device]] = []
            for source in self._sources:
                found += [(source, device) for device in self._open(source)]
                opened.append(source)
            if self._beside is not None:
                found += [(self._beside, device) for device in self._beside.open()]
                opened.append(self._beside)
            self._make_lanes(found)
        except PowerError as error:
            self._failure = error
        except Exception as error:
            self._failure = PowerError(f"the power source broke while opening: {error!r}")
            self._failure.__cause__ = error
        self._started.set()
        finders: list[threading.Thread] = []
        if self._failure is None and not self._stopping.is_set():
            self._begin()
            finders = self._look_for_the_rest()
            while not self._stopping.wait(_WATCH_EVERY_S):
                self._follow()
                self._watch()
        elif self._failure is not None and self._late:
            self._log.error("no_energy", reason=str(self._failure))
        # What hangs in the driver must not be shut down under its feet.
        for finder in finders:
            finder.join()
        self._end_lanes()
        for lane in (*self._lanes, *self._let_go):
            lane.join()
        for source in opened:
            self._close(source)

    def _open(self, source: PowerSource) -> Sequence[Device]:
        """Its devices; none where it is tried again later. Raises ``PowerError``."""
        try:
            return source.open()
        except PowerError as error:
            if not (self._patient and error.passes and isinstance(source, LooksAgain)):
                raise
            self._log.warning(
                "no_energy_yet", source=source.name, reason=str(error), note="it is tried again"
            )
            return []

    def _make_lanes(self, found: Sequence[tuple[PowerSource, Device]]) -> None:
        lanes = tuple(
            self._lane(source, device, number / len(found))
            for number, (source, device) in enumerate(found)
        )
        with self._lock:
            self._lanes = lanes

    def _lane(self, source: PowerSource, device: Device, offset: float) -> Lane:
        """With an end of its own: a device may be let go while the others go on."""
        return Lane(
            source,
            device,
            self._push,
            self._period_ns,
            threading.Event(),
            offset,
            self._seed,
            self._ownership(device) if self._ownership is not None else None,
            beside=source is self._beside,
        )

    def _begin(self) -> None:
        if self._late:
            for state in self.states():
                if state.owned:
                    self._push(DeviceFound(time.monotonic_ns(), state.device))
        for lane in self._lanes:
            lane.start()

    def _looking(self) -> list[LooksAgain]:
        return [source for source in self._sources if isinstance(source, LooksAgain)]

    def _look_for_the_rest(self) -> list[threading.Thread]:
        """A running thread for each source that left devices out."""
        finders = [
            threading.Thread(target=self._look_again, args=(source,), name="finder", daemon=True)
            for source in self._looking()
            if source.left_out
        ]
        for finder in finders:
            finder.start()
        return finders

    def _look_again(self, source: LooksAgain) -> None:
        """On a thread of its own: poll what can be read after all."""
        pause_s = _LOOK_AGAIN_S
        while source.left_out and not self._stopping.wait(pause_s):
            pause_s = min(2 * pause_s, _LOOK_AGAIN_S_MAX)
            try:
                found = source.look_again()
            except Exception as error:
                self._log.info("not_found", source=source.name, reason=repr(error))
                continue
            for device in found:
                self._log.warning("device_found", device=device.id)
                self._add(self._lane(source, device, 0.5))

    def _add(self, lane: Lane) -> None:
        with self._lock:
            self._lanes = (*self._lanes, lane)
        if lane.state.owned:
            self._push(DeviceFound(time.monotonic_ns(), lane.state.device))
        lane.start()
        if self._stopping.is_set():
            lane.stop()

    def _end_lanes(self) -> None:
        for lane in self._lanes:
            lane.stop()

    def _follow(self) -> None:
        """Meter what the engines were seen to use, and let go what they were not."""
        with self._lock:
            wanted, self._wanted = self._wanted, None
        if wanted is None:
            return
        use, leave = wanted
        there = {lane.state.device.id for lane in self._lanes}
        for source in self._looking():
            ids = [id for id in use if id not in there]
            try:
                found = source.find(ids) if ids else ()
            except Exception as error:  # it is asked again at the next round
                self._log.info("not_found", source=source.name, reason=repr(error))
                self.turn_to(use, leave)
                continue
            for device in found:
                self._log.warning("device_found", device=device.id)
                self._add(self._lane(source, device, 0.5))
        with self._lock:
            gone = [lane for lane in self._lanes if lane.state.device.id in leave]
            self._lanes = tuple(lane for lane in self._lanes if lane not in gone)
            self._let_go = (*self._let_go, *gone)
        for lane in gone:
            self._log.warning("device_let_go", device=lane.state.device.id)
            lane.stop()

    def _watch(self) -> None:
        """Say once which device has fallen silent, and when it is back."""
        now_ns = time.monotonic_ns()
        for state in self.states():
            id = state.device.id
            heard_ns = state.good_ns or state.begun_ns
            if heard_ns is None:
                continue
            silent = now_ns - heard_ns > SILENT_S * 1e9
            if silent and id not in self._silent:
                self._silent.add(id)
                self._log.warning("device_silent", device=id, no_reading_for_s=SILENT_S)
            elif not silent and id in self._silent:
                self._silent.discard(id)
                self._log.warning("device_back", device=id)

    def _close(self, source: PowerSource) -> None:
        try:
            source.close()
        except Exception as error:
            self._log.warning("not_closed", source=source.name, reason=repr(error))
