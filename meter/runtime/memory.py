"""What was learned of the devices outlives the meter: one JSON file for each device.

A calibration holds for one device and served model, and on terms: the device's driver, clocks and
power limit. On other terms it is dropped, and learned anew. A card of which nothing is known begins
with what another card of its kind learned on the same terms, believed half as much. What comes back
counts as not converged: until the core has seen some work itself, nothing is bounded by it, or a
calibration that is too low would make all that is above it a stranger's, and never be put right.

Nothing here may stop the metering: what cannot be read or written is said once, and done without. A
damaged file is set aside (``.refused`` is added to its name). What could not be read back is not
written: no number that is not finite, and none of a library's own kinds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import structlog

from meter.attribution import Fit, Learned, from_facts, to_facts
from meter.model import Device, Engine, Quality, Snapshot
from meter.system.files import replace_in

VERSION = 1
_BYTES_MAX = 1 << 20
_ENTRIES_MAX = 16
_REASON_CHARS = 300
_REFUSED = ".refused"


@dataclass(frozen=True, slots=True)
class Terms:
    """The facts of a device on which its calibration depends; an unknown one is a fact too."""

    name: str
    quality: Quality
    driver: str | None = None
    power_limit_w: float | None = None
    clocks_mhz: tuple[int, int] | None = None

    @classmethod
    def of(cls, device: Device) -> Terms:
        limit_w, clocks_mhz = device.power_limit_w, device.clocks_mhz
        return cls(device.name, device.quality, device.driver, limit_w, clocks_mhz)

    def changed(self, now: Terms) -> str:
        """What is different now, in words."""
        old, new = asdict(self), asdict(now)
        return ", ".join(f"{k} was {old[k]}, is {new[k]}" for k in old if old[k] != new[k])


@dataclass(frozen=True, slots=True)
class Entry:
    """What one device learned of one model. ``layout``: the engine's; ``None`` where unknown.

    ``utc``: when it was written (ISO 8601); ``facts``: those of ``to_facts``.
    """

    device: str
    model: str
    layout: dict[str, int] | None
    terms: Terms
    utc: str
    facts: dict[str, Any]

    def fit(self) -> Fit:
        """Raises ``ValueError`` for odd facts."""
        try:
            return from_facts(self.facts).fit
        except ArithmeticError as error:  # a number of hundreds of digits
            raise ValueError(f"calibration: {error}") from error


@dataclass(frozen=True, slots=True)
class _File:
    version: int
    entries: list[Entry]


class _OtherVersionError(ValueError):
    """A file of another meter's: it is not used, and not damaged."""


def state_directory(set_: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Where calibrations are kept: as set, systemd's, XDG's; ``None`` where there is no home."""
    if set_ is not None:
        return set_
    of_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if of_systemd:
        return Path(of_systemd)
    of_xdg = Path(environ.get("XDG_STATE_HOME", ""))
    if of_xdg.is_absolute():  # others are to be ignored, says the XDG specification
        return of_xdg / "joulemeter"
    home = Path(environ.get("HOME", ""))
    return home / ".local/state/joulemeter" if home.is_absolute() else None


class Memory:
    """The calibrations under ``directory``. Belongs to one thread at a time; never raises."""

    def __init__(self, directory: Path, now_s: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._now_s = now_s
        self._known: dict[tuple[str, str], Fit] = {}
        self._said: set[str] = set()
        self._log = structlog.get_logger("joulemeter.memory")

    def restore(self, devices: Sequence[Device]) -> list[Learned]:
        """What is known of ``devices`` on their present terms, one for each device and model."""
        try:
            restored = list(self._restore(devices))
        except Exception as error:
            self._say("calibration_not_restored", error)
            return []
        self._known |= {(known.device, known.model): known.fit for known in restored}
        return restored

    def keep(self, learned: Iterable[Learned], snapshot: Snapshot) -> None:
        """Write down what was learned since the last time."""
        fresh = [
            known
            for known in learned
            if known.model and self._known.get((known.device, known.model)) is not known.fit
        ]
        for state in snapshot.devices:
            of_device = [known for known in fresh if known.device == state.device.id]
            try:
                if of_device:
                    self._keep(state.device, of_device, snapshot.engines)
            except Exception as error:
                self._say("calibration_not_kept", error)

    # --- reading

    def _restore(self, devices: Sequence[Device]) -> Iterator[Learned]:
        entries = [entry for path in self._paths() for entry in self._read(path)]
        entries.sort(key=lambda entry: entry.utc)
        dropped = {}
        for device in devices:
            terms = Terms.of(device)
            own = [entry for entry in entries if entry.device == device.id]
            others = [entry for entry in entries if entry.device != device.id]
            # By model; of several the newest stays.
            found = {entry.model: _seed(entry.fit()) for entry in others if entry.terms == terms}
            found |= {entry.model: entry.fit() for entry in own if entry.terms == terms}
            for entry in own:
                if entry.terms != terms:
                    dropped[device.id] = entry.terms.changed(terms)
            for model, fit in found.items():
                yield Learned(device.id, model, replace(fit, converged=False))
        if dropped:
            self._log.warning("calibration_dropped", devices=dropped, note="it is learned anew")

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self._directory.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> list[Entry]:
        """The entries of a file; none where it cannot be used, which is said once."""
        try:
            if not path.is_file():
                return []
            with path.open("rb") as file:
                return _parsed(file.read(_BYTES_MAX + 1))
        except (OSError, _OtherVersionError) as error:
            self._refuse(path, error)
        except (ValueError, ArithmeticError, RecursionError, msgspec.MsgspecError) as error:
            self._refuse(path, error, set_aside=True)
        return []

    def _refuse(self, path: Path, error: Exception, set_aside: bool = False) -> None:
        """Say once that a file is not used; ``set_aside``: and take it out of the way."""
        if str(path) not in self._said:
            self._said.add(str(path))
            reason = str(error)[:_REASON_CHARS]
            self._log.warning("calibration_unreadable", file=str(path), reason=reason)
        if set_aside:
            with contextlib.suppress(OSError):  # it is overwritten where it is, or stays
                path.replace(path.with_name(path.name + _REFUSED))

    # --- writing

    def _keep(self, device: Device, learned: list[Learned], engines: Iterable[Engine]) -> None:
        path = self._directory / f"{quote(device.id, safe='')}.json"
        owner = next((engine for engine in engines if device.id in engine.devices), None)
        layout = owner.layout._asdict() if owner is not None and owner.layout is not None else None
        utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._now_s()))
        terms = Terms.of(device)
        fresh = []
        for known in learned:
            entry = Entry(device.id, known.model, layout, terms, utc, to_facts(known))
            try:
                _parsed(_encoded([entry]))
            except (ValueError, msgspec.MsgspecError) as error:
                self._say("calibration_not_kept", error)
            else:
                fresh.append(entry)
        if not fresh:
            return
        replaced = {entry.model for entry in fresh}
        old = [
            entry
            for entry in self._read(path)
            if (entry.device, entry.terms) == (device.id, terms)
            and (entry.model not in replaced or entry.layout != layout)
        ]
        old.sort(key=lambda entry: entry.utc, reverse=True)
        data = _encoded((fresh + old)[:_ENTRIES_MAX])
        _write(path, msgspec.json.format(data, indent=1) + b"\n")
        self._known |= {(known.device, known.model): known.fit for known in learned}

    def _say(self, event: str, error: Exception) -> None:
        """Once."""
        if event in self._said:
            return
        self._said.add(event)
        if isinstance(error, OSError):
            remedy = "set calibration.directory to a folder of the meter's, or remember to false"
            self._log.warning(event, reason=str(error), remedy=remedy)
        else:
            self._log.error(event, exc_info=error, remedy="please report this")


def _seed(fit: Fit) -> Fit:
    """Of another card: its covariance twice as large, its counter's delay to be found anew."""
    window = fit.window._replace(doubt_s=None)
    return replace(fit, covariance=2 * fit.covariance, window=window)


def _encoded(entries: list[Entry]) -> bytes:
    """As JSON. Raises ``TypeError`` for what it has no form for."""
    return msgspec.json.encode(_File(VERSION, entries), enc_hook=_number_of)


def _number_of(value: object) -> float | int:
    """A library's own kind of number as Python's."""
    if isinstance(value, np.floating | float):
        return float(value)
    if isinstance(value, np.integer | int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no form in a kept calibration")


def _parsed(data: bytes) -> list[Entry]:
    """Raises ``ValueError`` or ``MsgspecError``."""
    if len(data) > _BYTES_MAX:
        raise ValueError(f"it is larger than {_BYTES_MAX} bytes")
    file = msgspec.json.decode(data, type=_File)
    if file.version != VERSION:
        raise _OtherVersionError(f"its version {file.version} is not {VERSION}")
    for entry in file.entries:
        entry.fit()
    return file.entries


def _write(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``path``. A crash leaves the old file, or the new one whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        replace_in(folder, path.name, data, durable=True)
    finally:
        os.close(folder)
