"""One device's own thread: what hangs or fails there holds up nothing else.

Polls stand on an absolute grid, so they do not drift; a seeded jitter of some per cent around it
keeps them from beating with periodic steps. A poll that comes late says so in its reading;
deadlines that passed meanwhile are left out and counted, never caught up with. A read that fails is
counted, named in the log (each kind of line at most once a minute), and tried again.

A call that took longer than ``_MOMENT_S`` gives no energy: when in it the counter was read is not
known, and the next poll has all its joules. (Where every call is so slow, they are better than
none.) A counter that has stood still for half a minute while the card drew power is given up: from
where it stood on the power is integrated, for as long as the meter lives. Where that power is too
low to tell, the counter gives no energy, or its steps would wait for ever; what it moves later is
read when it moves.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from meter.model import Device, DeviceFound, Event, Reading
from meter.power.instead import Instead, estimated
from meter.power.owner import NoLockError, Ownership
from meter.power.source import LooksAgain, PowerSource
from meter.power.watch import Watch

_JITTER = 0.08
_LOG_EVERY_NS = 60_000_000_000
_MOMENT_S = 1.0
_STUCK_S = 30.0
_ASK_AGAIN_S = 1.0
#: The core settles steps without the joules of a counter that is silent for longer (its
#: ``_SILENT_NS``): what comes later is no request's any more.
_FORGOTTEN_NS = 45_000_000_000


@dataclass(frozen=True, slots=True)
class LaneState:
    """What a lane has done so far. Replaced as a whole after each poll, never changed.

    ``samples``: readings pushed; ``errors``: failed ones; ``late_s``: how long after its deadline
    the last poll began; ``missed``: polls left out, since one before took too long; ``begun_ns``:
    when polling began, ``last_ns``: when the last poll ended; ``good_ns``: the time of the last
    reading that has an energy; ``owned``: whether the device is ours to meter, ``owner``: else
    whose (a pid), where known;
    ``beside``: it is the host's; ``gap``, ``still_s``: see ``meter.power.watch.Watch``;
    ``given_up``: its counter is stuck, and its power is integrated instead.
    """

    device: Device
    source: str
    samples: int = 0
    errors: int = 0
    late_s: float = 0.0
    missed: int = 0
    begun_ns: int | None = None
    last_ns: int | None = None
    good_ns: int | None = None
    owned: bool = True
    beside: bool = False
    owner: int | None = None
    gap: float | None = None
    still_s: float = 0.0
    given_up: bool = False


class Lane:
    """Polls ``device`` every ``period_ns`` and pushes each reading, until ``stopping`` is set: by
    ``stop``, or by who gave it.

    ``offset``: where in the period, from 0 to 1; ``push`` must not block. With ``ownership`` it
    reads only what it owns, and takes over when the owner ends.
    """

    def __init__(
        self,
        source: PowerSource,
        device: Device,
        push: Callable[[Event], None],
        period_ns: int,
        stopping: threading.Event,
        offset: float = 0.0,
        seed: int = 0,
        ownership: Ownership | None = None,
        beside: bool = False,
    ) -> None:
        self._source = source
        self._device = self._told = device
        self._describes = source if isinstance(source, LooksAgain) else None
        self._push = push
        self._period_ns = period_ns
        self._stopping = stopping
        self._offset_ns = round(offset * period_ns)
        self._random = random.Random(f"{seed}-{device.id}")
        self._ownership = ownership
        self._watch = Watch(device)
        self._instead: Instead | None = None
        self._slow = False
        self._ask_ns = 0
        self._said_ns: dict[str, int] = {}
        self._log = structlog.get_logger("joulemeter.power")
        name = f"sampler-{device.index}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.state = LaneState(device, source.name, beside=beside)
        self._own()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread's end (for ever, where a call hangs for ever)."""
        if self._thread.ident is not None:
            self._thread.join()

    # --- whose the device is

    def _own(self) -> bool:
        """Try to own the device. Where locks cannot be had nobody is kept out."""
        ownership = self._ownership
        if ownership is None:
            return True
        try:
            owned = ownership.take()
        except NoLockError as error:
            self._log.warning("no_lock", reason=str(error), note="a second meter is not kept out")
            self._ownership, owned = None, True
        if not owned and self.state.owned:
            owner = ownership.owner()
            self._log.warning("device_not_ours", device=self._device.id, metered_by_pid=owner)
            self.state = replace(self.state, owner=owner)
        for rival in ownership.rivals() if owned else ():
            self._log.warning(
                "device_shared",
                device=self._device.id,
                metered_by_pid=rival.pid,
                of_user=rival.uid,
                note="both count its joules: add up the figures of one",
            )
        self.state = replace(self.state, owned=owned)
        return owned

    def _wait_for_it(self) -> bool:
        """Until the device is ours; false where we stop before."""
        if self.state.owned:
            return True
        while not self._stopping.wait(_ASK_AGAIN_S):
            if self._own():
                self._log.warning("device_taken_over", device=self._device.id)
                self._push(DeviceFound(time.monotonic_ns(), self._device))
                return True
        return False

    # --- polling

    def _run(self) -> None:
        while self._wait_for_it():
            self.poll()
            if self._stopping.is_set():
                break
        if self._ownership is not None:
            self._ownership.release()

    def _is_kept(self, now_ns: int) -> bool:
        """Is the device still ours? Asked once a second: root's meter may have come."""
        ownership = self._ownership
        if ownership is None or now_ns < self._ask_ns:
            return True
        self._ask_ns = now_ns + round(_ASK_AGAIN_S * 1e9)
        if ownership.is_kept():
            return True
        ownership.release()
        return self._own()

    def poll(self) -> None:
        """Poll until it is to stop (the last poll comes then), or the device is ours no more."""
        first_ns = due_ns = time.monotonic_ns() + self._offset_ns
        self.state = replace(self.state, begun_ns=first_ns)
        self._stopping.wait(self._offset_ns / 1e9)
        number = missed = 0
        while True:
            stopping = self._stopping.is_set()
            late_ns = max(0, time.monotonic_ns() - due_ns)
            self._read(late_ns / 1e9)
            done_ns = time.monotonic_ns()
            self.state = replace(
                self.state,
                late_s=late_ns / 1e9,
                missed=missed,
                last_ns=done_ns,
                gap=self._watch.gap,
                still_s=self._watch.still_s,
            )
            if stopping or not self._is_kept(done_ns):
                return
            passed = (done_ns - first_ns) // self._period_ns
            missed += max(0, passed - number)
            number = max(number, passed) + 1
            jitter = self._random.uniform(-_JITTER, _JITTER)
            due_ns = first_ns + round((number + jitter) * self._period_ns)
            self._stopping.wait(max(0, due_ns - done_ns) / 1e9)

    def stop(self) -> None:
        """One last poll, then the end: the device is let go."""
        self._stopping.set()

    def _read(self, late_s: float) -> None:
        try:
            for reading in self._source.read(self._device.id):
                self._hear(reading.t_ns)
                self._take(self._checked(replace(reading, late_s=late_s)))
        except Exception as error:
            self._failed(repr(error))

    def _hear(self, t_ns: int) -> None:
        """What the source says of the device now: its energy may be had in another way."""
        if self._describes is None or self._instead is not None:
            return
        told = self._describes.described(self._device.id)
        if told == self._told:
            return
        self._device = self._told = told
        self._watch = Watch(told)
        self.state = replace(self.state, device=told)
        self._say("device_changed", figures=told.note or "its energy counter")
        self._push(DeviceFound(t_ns, told, engines=()))

    def _take(self, reading: Reading) -> None:
        if reading.error is not None:
            self._failed(reading.error)
        self._push(reading)
        good_ns = self.state.good_ns if reading.energy_uj is None else reading.t_ns
        self.state = replace(self.state, samples=self.state.samples + 1, good_ns=good_ns)

    def _checked(self, reading: Reading) -> Reading:
        """The reading, without its energy where that is not to be trusted."""
        slow, self._slow = self._slow, (reading.latency_s or 0.0) > _MOMENT_S
        if self._slow and not slow and reading.energy_uj is not None:
            said = f"the call took {reading.latency_s:.1f} s: its counter's moment is not known"
            return replace(reading, energy_uj=None, power_w=None, error=said)
        for oddity in self._watch.see(reading):
            note = {"note": "it is not used any more"} if self._instead is not None else {}
            self._say(oddity.event, **oddity.words, **note)
        if self._instead is None and self._watch.stuck_for_good:
            reading = self._give_up(reading)
        elif self._instead is not None:
            reading = self._instead.reading(reading)
        elif self._watch.still_s > _STUCK_S and reading.energy_uj is not None:
            said = f"the counter has stood still for {self._watch.still_s:.0f} s under load"
            return replace(reading, energy_uj=None, error=said)
        good_ns = self.state.good_ns
        if good_ns is not None and reading.energy_uj is not None:
            silent_ns = reading.t_ns - good_ns
            if silent_ns > _FORGOTTEN_NS:
                return replace(reading, missed="counter_silent")
        return reading

    def _give_up(self, reading: Reading) -> Reading:
        """Integrate the power from now on."""
        assert reading.energy_uj is not None
        self._instead = Instead(reading.energy_uj, self._watch.unseen_uj)
        self._device = estimated(self._device)
        self.state = replace(self.state, device=self._device, given_up=True)
        self._say(
            "counter_given_up",
            for_s=round(self._watch.still_s, 1),
            drawn_j=round(self._watch.unseen_uj / 1e6, 1),
            note="its power is integrated from now on, and from where it stood",
            remedy="reset the GPU or reload the driver, then start the meter anew",
        )
        self._push(DeviceFound(reading.t_ns, self._device, engines=()))
        return self._instead.reading(reading)

    def _failed(self, reason: str) -> None:
        self.state = replace(self.state, errors=self.state.errors + 1)
        self._say("no_reading", source=self._source.name, reason=reason, errors=self.state.errors)

    def _say(self, event: str, **words: object) -> None:
        """A line in the log; of one kind no more than one a minute."""
        now_ns = time.monotonic_ns()
        if now_ns - self._said_ns.get(event, -_LOG_EVERY_NS) >= _LOG_EVERY_NS:
            self._said_ns[event] = now_ns
            self._log.warning(event, device=self._device.id, **words)
