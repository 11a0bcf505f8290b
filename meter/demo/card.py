"""A simulated NVIDIA card, shared as one small file: who computes posts power, the fake NVML reads.

The writer (the demo's engine, or a test's hook inside vLLM's worker) says from when on the card
draws how many watts. Each post goes into a ring with the energy used up to it, so that the energy
at *any* moment since is exact: the integral of the posted power, to the nanojoule. The fake
``libnvidia-ml.so.1`` (``fake_nvml.c``) maps the same file and shows that energy as a card would:
only at refresh ticks, in whole millijoules, late by a lag, and with the faults that were scripted.

Standard library only, no import from the meter: a hook inside vLLM can load this file by its path.
One writer per device.

File layout, native byte order (``fake_nvml.c`` has the same): a header ``HEADER``, then per device
one ``SPEC`` block of ``SPEC_BYTES``, ``FAULT_SLOTS`` faults and ``RING_SLOTS`` ring entries. The
count in a device's block is written last: what it counts is complete.
"""

from __future__ import annotations

import mmap
import random
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MAGIC = b"JMCARD1\0"
RING_SLOTS = 1 << 15
FAULT_SLOTS = 64
PROCESS_SLOTS = 16

_HEADER = struct.Struct("=8sIIII")  # magic, devices, ring slots, fault slots, unused
_HEADER_BYTES = 64
# uuid, name, refresh_ns, lag_ns, phase_ns, power_limit_mw, base_mj, memory clock MHz, bus bits
_SPEC = struct.Struct("=80s96sqqqqqII")
_COUNTS = struct.Struct("=QQQ")  # posts, faults, processes
_COUNTS_AT = 256
_PROCESSES_AT = 320
_SPEC_BYTES = 512
_FAULT = struct.Struct("=qqiiqQ")  # from_ns, to_ns, kind, function, value, unused
_ENTRY = struct.Struct("=qqq")  # t_ns, power_mw, energy_nj
_DEVICE_BYTES = _SPEC_BYTES + FAULT_SLOTS * _FAULT.size + RING_SLOTS * _ENTRY.size
_FOREVER_NS = 1 << 62


class Fault(IntEnum):
    """What may be scripted to go wrong from one moment to another.

    ``ERROR``: calls return the NVML code ``value`` (``function`` says which calls). ``RESET``: the
    counter starts again from 0 at the first moment. ``STUCK``: the counter stands still. ``LOST``:
    every call says that the GPU is lost. ``SLOW``: every call takes ``value`` ns. ``JUMP``: the
    counter is ``value`` mJ further on from the first moment (the second means nothing).
    """

    ERROR = 1
    RESET = 2
    STUCK = 3
    LOST = 4
    SLOW = 5
    JUMP = 6


class Function(IntEnum):
    """Which calls an ``ERROR`` befalls; for ``GetFieldValues`` the single field fails."""

    ANY = 0
    ENERGY = 1
    POWER = 2
    FIELD_VALUES = 3


@dataclass(frozen=True)
class CardSpec:
    """How the card presents itself. ``seed`` sets the phase of its ticks and its first reading.

    ``refresh_s``: how often the counter moves; ``lag_s``: how late it shows what was drawn.
    ``mem_clock_mhz`` and ``bus_bits`` give the memory's bandwidth (an H100 SXM's by default).
    """

    uuid: str = "GPU-51300000-0000-4000-8000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3 (simulated)"
    refresh_s: float = 0.1
    power_limit_w: float = 700.0
    lag_s: float = 0.0
    seed: int = 0
    mem_clock_mhz: int = 2619
    bus_bits: int = 5120


class Card:
    """The file of one or more simulated cards. ``create`` makes it, ``attach`` opens it."""

    def __init__(self, path: Path | str) -> None:
        with Path(path).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, self.devices, slots, faults, _ = _HEADER.unpack_from(self._map, 0)
        if (magic, slots, faults) != (MAGIC, RING_SLOTS, FAULT_SLOTS):
            self._map.close()
            raise ValueError(f"{path} is no simulated card of this version")

    @classmethod
    def create(cls, path: Path | str, specs: list[CardSpec]) -> Card:
        """A new file with these cards, drawing nothing yet. Replaces what is there."""
        target = Path(path)
        with target.open("wb") as file:
            file.truncate(_HEADER_BYTES + len(specs) * _DEVICE_BYTES)
        with target.open("r+b") as made, mmap.mmap(made.fileno(), 0) as memory:
            for index, spec in enumerate(specs):
                rnd = random.Random(f"{spec.seed}-{index}")
                refresh_ns = round(spec.refresh_s * 1e9)
                _SPEC.pack_into(
                    memory,
                    _device_at(index),
                    spec.uuid.encode(),
                    spec.name.encode(),
                    refresh_ns,
                    round(spec.lag_s * 1e9),
                    rnd.randrange(refresh_ns) if refresh_ns else 0,
                    round(spec.power_limit_w * 1e3),
                    rnd.randrange(10**9),
                    spec.mem_clock_mhz,
                    spec.bus_bits,
                )
            _HEADER.pack_into(memory, 0, MAGIC, len(specs), RING_SLOTS, FAULT_SLOTS, 0)
        return cls(target)

    @classmethod
    def attach(cls, path: Path | str) -> Card:
        """The cards of a file that another process made."""
        return cls(path)

    def close(self) -> None:
        self._map.close()

    # --- power

    def post(self, device: int, power_w: float, t_ns: int | None = None) -> None:
        """From ``t_ns`` on (``CLOCK_MONOTONIC``, default now) the card draws ``power_w``.

        A moment before the last post counts as that post's: time does not run backwards.
        """
        now_ns = time.monotonic_ns() if t_ns is None else t_ns
        count, _, _ = self._counts(device)
        energy_nj = 0
        if count:
            last_ns, power_mw, energy_nj = self._entry(device, count - 1)
            now_ns = max(now_ns, last_ns)
            energy_nj += power_mw * (now_ns - last_ns) // 1000
        entry = (now_ns, round(power_w * 1000), energy_nj)
        _ENTRY.pack_into(self._map, _entry_at(device, count), *entry)
        struct.pack_into("=Q", self._map, _device_at(device) + _COUNTS_AT, count + 1)

    def energy_j(self, device: int, t_ns: int | None = None) -> float:
        """Joules drawn from the first post up to ``t_ns`` (default now): the truth."""
        until_ns = time.monotonic_ns() if t_ns is None else t_ns
        count, _, _ = self._counts(device)
        for number in range(count - 1, max(-1, count - RING_SLOTS), -1):
            start_ns, power_mw, energy_nj = self._entry(device, number)
            if start_ns <= until_ns:
                return (energy_nj + power_mw * (until_ns - start_ns) / 1000) / 1e9
        return 0.0

    # --- what else a card has

    def fault(
        self,
        device: int,
        kind: Fault,
        from_ns: int,
        to_ns: int | None = None,
        value: int = 0,
        function: Function = Function.ANY,
    ) -> None:
        """Script a fault from ``from_ns`` to ``to_ns`` (``None``: for ever). At most 64."""
        posts, count, processes = self._counts(device)
        if count >= FAULT_SLOTS:
            raise ValueError(f"a card holds at most {FAULT_SLOTS} faults")
        at = _device_at(device) + _SPEC_BYTES + count * _FAULT.size
        end_ns = _FOREVER_NS if to_ns is None else to_ns
        _FAULT.pack_into(self._map, at, from_ns, end_ns, kind, function, value, 0)
        self._set_counts(device, posts, count + 1, processes)

    def set_processes(self, device: int, pids: list[int]) -> None:
        """The processes that compute on the card (at most 16)."""
        posts, faults, _ = self._counts(device)
        at = _device_at(device) + _PROCESSES_AT
        for slot, pid in enumerate(pids[:PROCESS_SLOTS]):
            struct.pack_into("=I", self._map, at + 4 * slot, pid)
        self._set_counts(device, posts, faults, min(len(pids), PROCESS_SLOTS))

    def _counts(self, device: int) -> tuple[int, int, int]:
        posts, faults, processes = _COUNTS.unpack_from(self._map, _device_at(device) + _COUNTS_AT)
        return posts, faults, processes

    def _set_counts(self, device: int, posts: int, faults: int, processes: int) -> None:
        _COUNTS.pack_into(self._map, _device_at(device) + _COUNTS_AT, posts, faults, processes)

    def _entry(self, device: int, number: int) -> tuple[int, int, int]:
        t_ns, power_mw, energy_nj = _ENTRY.unpack_from(self._map, _entry_at(device, number))
        return t_ns, power_mw, energy_nj


def _device_at(device: int) -> int:
    return _HEADER_BYTES + device * _DEVICE_BYTES


def _entry_at(device: int, number: int) -> int:
    ring = _device_at(device) + _SPEC_BYTES + FAULT_SLOTS * _FAULT.size
    return ring + (number % RING_SLOTS) * _ENTRY.size
