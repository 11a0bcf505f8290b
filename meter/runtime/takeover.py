"""A meter that was killed is followed by another one: what is lost between them is said.

While it runs, a meter keeps a note beside its socket: where each counter stood at the settled
watermark, and whom it heard. The next meter on that socket holds its readings back until the
engines that live have joined it. If one of them is in the note, what the counters moved since then
was watched by nobody: it is unattributed (``meter_down``). The note is no log: the file of another
boot, or of engines that are gone, counts for nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from meter.model import Event, Reading, Snapshot
from meter.system.files import User, acting_as, read_file, replace_file

MISSED = "meter_down"
#: Engines try a socket twice a second: by then every one that lives should have joined.
JOIN_S = 0.75
#: On a busy host it may take those longer of whom a note says that they were there.
_NOTED_WITHIN_S = 3.0
_LOOK_S = 0.02
_NOTE = "counters.json"
_NOTE_BYTES_MAX = 1 << 20
#: No board draws so much: a note that says so is another's, or forged.
_DRAWN_W_MAX = 20_000.0
_NUMBER_MAX = 1 << 63
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Stood(NamedTuple):
    """Where a counter stood, and when (``CLOCK_MONOTONIC``)."""

    t_ns: int
    energy_uj: int


@dataclass(frozen=True, slots=True)
class Note:
    """What the last meter knew. ``sources``: the lives of engines that it heard."""

    boot: str
    sources: frozenset[str]
    counters: Mapping[str, Stood]

    def missed_by(self, sources: Iterable[str]) -> Mapping[str, Stood]:
        """The counters' places, if one of these engines was metered then."""
        same = self.boot == boot_id() and self.sources.intersection(sources)
        return self.counters if same else {}


def missed(note: Note | None, heard: Callable[[], Sequence[str]]) -> Mapping[str, Stood]:
    """Wait until the engines that live have joined; where the counters stood, if ``note`` knows
    any of them. ``heard``: the lives of engines that are heard now."""
    start_s = time.monotonic()
    noted = note.sources if note is not None and note.boot == boot_id() else frozenset[str]()
    within_s = _NOTED_WITHIN_S if noted else JOIN_S
    while time.monotonic() - start_s < within_s and not (noted and noted.issubset(heard())):
        time.sleep(_LOOK_S)
    return note.missed_by(heard()) if note is not None else {}


def boot_id() -> str:
    """Names this boot: the monotonic clock is one within it. Empty where it cannot be read."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Notes:
    """The note in ``directory``. Belongs to one thread."""

    def __init__(self, directory: Path, user: User | None = None) -> None:
        """``user``: as whom root works there."""
        self._directory = directory
        self._user = user
        self._written = ""

    def write(self, snapshot: Snapshot, sources: Iterable[str]) -> None:
        """Replace the note. A crash leaves the old one, or the new one whole. Raises ``OSError``.

        What is pending is in no account yet: for the next meter it is missed as well.
        """
        counters = {}
        for state in snapshot.devices:
            t_ns = snapshot.settled_ns or state.last_reading_ns
            if state.counter_uj is not None and t_ns is not None:
                settled_uj = state.counter_uj - round(state.pending_j * 1e6)
                counters[state.device.id] = Stood(t_ns, max(0, settled_uj))
        if not counters:  # nothing is known yet: the last meter's note stands
            return
        text = json.dumps({"boot": boot_id(), "sources": sorted(sources), "counters": counters})
        if text == self._written:
            return
        with acting_as(self._user):
            replace_file(self._directory, _NOTE, text.encode())
        self._written = text

    def read(self) -> Note | None:
        """The last meter's note; ``None`` where there is none that can be used."""
        try:
            owners = {os.geteuid(), self._user.uid if self._user is not None else 0}
            with acting_as(self._user):
                note = read_file(self._directory / _NOTE, _NOTE_BYTES_MAX, owners)
            return _read(json.loads(note))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            structlog.get_logger("joulemeter").warning(
                "note_not_read",
                file=str(self._directory / _NOTE),
                reason=f"{type(error).__name__}: {error!s:.200}",
                note="what the counters moved since the last meter is not known",
            )
            return None


def _read(found: Any) -> Note:
    """Raises ``ValueError``, ``TypeError`` or ``KeyError`` where it is no note."""
    boot, sources, stood = found["boot"], found["sources"], found["counters"]
    if not (isinstance(boot, str) and isinstance(sources, list) and isinstance(stood, dict)):
        raise ValueError("boot is no text, sources no list, or counters no object")
    if not all(isinstance(source, str) for source in sources):
        raise ValueError("sources are no texts")
    counters = {}
    for id, place in stood.items():
        t_ns, energy_uj = place
        if not all(type(n) is int and 0 <= n < _NUMBER_MAX for n in (t_ns, energy_uj)):
            raise ValueError(f"counters of {id!r:.100} are no whole numbers from 0 to 2**63")
        counters[id] = Stood(t_ns, energy_uj)
    return Note(boot, frozenset(sources), counters)


class Gate:
    """Between the sampler and the queue: holds readings back until it is opened."""

    def __init__(self, push: Callable[[Event], None]) -> None:
        self._push = push
        self._stood: dict[str, Stood] | None = None

    def push(self, event: Event) -> None:
        """From the sampler's threads."""
        if not isinstance(event, Reading):
            self._push(event)
        elif self._stood is not None:
            stood = None if event.energy_uj is None else self._stood.pop(event.device, None)
            self._push(event if stood is None else _following(event, stood))

    def open(self, stood: Mapping[str, Stood]) -> None:
        """Let readings through. ``stood``: where the counters were when they were last watched."""
        self._stood = dict(stood)


def _following(reading: Reading, stood: Stood) -> Reading:
    """The first reading after nobody watched; a counter that was reset meanwhile says nothing."""
    missed_uj = (reading.energy_uj or 0) - stood.energy_uj
    passed_ns = reading.t_ns - stood.t_ns
    if passed_ns < 0 or missed_uj * 1e3 > _DRAWN_W_MAX * passed_ns:
        structlog.get_logger("joulemeter").warning(
            "note_not_believed",
            device=reading.device,
            reason=f"{missed_uj / 1e6:.0f} J in {passed_ns / 1e9:.1f} s",
        )
        return reading
    structlog.get_logger("joulemeter").warning(
        "took_over",
        device=reading.device,
        unwatched_s=round((reading.t_ns - stood.t_ns) / 1e9, 1),
        unattributed_j=missed_uj / 1e6 if missed_uj >= 0 else "unknown: the counter was reset",
        reason=MISSED,
    )
    if missed_uj < 0:
        return reading
    return replace(reading, missed=MISSED, missed_uj=missed_uj)
