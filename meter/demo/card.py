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
count in a device's block is written last and in one piece: what it counts is complete. The ring
holds the last 32,768 posts; where a fault needs an energy from before, the writer notes it in the
fault (its ``anchor``) while the ring still knows it.
"""

from __future__ import annotations

import mmap
import random
import struct
import time
from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MAGIC = b"JMCARD1\0"
RING_SLOTS = 1 << 15
_RING_KEPT = RING_SLOTS - 8  # what a reader may trust while the writer goes on
FAULT_SLOTS = 64
PROCESS_SLOTS = 16

_HEADER = struct.Struct("=8sIIII")  # magic, devices, ring slots, fault slots, unused
_HEADER_BYTES = 64
# uuid, name, refresh_ns, lag_ns, phase_ns, power_limit_mw, base_mj, memory clock MHz, bus bits,
# MIG instances, virtualization mode, what the module draws beside the board (mW)
_SPEC = struct.Struct("=80s96sqqqqqIIIII")
_COUNTS = struct.Struct("=QQQ")  # posts, faults, processes
_COUNT = struct.Struct("Q")  # native: stored in one piece, "=" would store byte by byte
_COUNTS_AT = 256
_PROCESSES_AT = 320
_SPEC_BYTES = 512
_FAULT = struct.Struct("=qqiiqQ")  # from_ns, to_ns, kind, function, value, anchor (nJ + 1)
_ENTRY = struct.Struct("=qqq")  # t_ns, power_mw, energy_nj
_DEVICE_BYTES = _SPEC_BYTES + FAULT_SLOTS * _FAULT.size + RING_SLOTS * _ENTRY.size
_FOREVER_NS = 1 << 62


class Fault(IntEnum):
    """What may be scripted to go wrong from one moment to another.

    ``ERROR``: calls return the NVML code ``value`` (``function`` says which calls). ``RESET``: the
    counter starts again from 0 at the first moment. ``STUCK``: the counter stands still. ``LOST``:
    every call says that the GPU is lost. ``SLOW``: every call takes ``value`` ns. ``JUMP``: the
    counter is ``value`` mJ further on from the first moment (the second means nothing). ``HANG``:
    a call does not come back before the second moment, or ``clear_faults``. ``UNLOADED``: the
    driver is not there, for no card; from the second moment on it is, for who starts NVML anew.
    ``ODD``: calls work and give ``value``: a number as it is, of a text the bytes of that number.

    ``ERROR``, ``SLOW``, ``HANG`` and ``ODD`` befall the calls that ``function`` names.
    """

    ERROR = 1
    RESET = 2
    STUCK = 3
    LOST = 4
    SLOW = 5
    JUMP = 6
    HANG = 7
    UNLOADED = 8
    ODD = 9


class Function(IntEnum):
    """Which calls a fault befalls; for ``GetFieldValues`` the single field fails.

    ``POWER`` is all power, ``POWER_INSTANT`` the instant's field alone (older drivers). ``DRIVER``,
    ``INIT`` and ``COUNT`` are the host's: a fault of any card befalls them. ``INIT`` takes
    ``ERROR`` alone.
    """

    ANY = 0
    ENERGY = 1
    POWER = 2
    FIELD_VALUES = 3
    POWER_INSTANT = 4
    NAME = 5
    UUID = 6
    POWER_LIMIT = 7
    CLOCKS = 8
    BUS_WIDTH = 9
    MIG = 10
    VIRTUALIZATION = 11
    PROCESSES = 12
    DRIVER = 13
    HANDLE = 14
    PCI = 15
    COUNT = 16
    INIT = 17
    MODULE = 18


#: Facts of a board (or of the driver) that a meter can do without.
OPTIONAL = (
    Function.NAME,
    Function.POWER_LIMIT,
    Function.CLOCKS,
    Function.BUS_WIDTH,
    Function.MIG,
    Function.VIRTUALIZATION,
    Function.PROCESSES,
    Function.DRIVER,
    Function.PCI,
    Function.MODULE,
)


class Virtualization(IntEnum):
    """NVML's own codes of what a GPU is to this machine."""

    NONE = 0
    PASSTHROUGH = 1
    VGPU = 2
    HOST_VGPU = 3


@dataclass(frozen=True)
class CardSpec:
    """How the card presents itself. ``seed`` sets the phase of its ticks and its first reading.

    ``refresh_s``: how often the counter moves; ``lag_s``: how late it shows what was drawn.
    ``mem_clock_mhz`` and ``bus_bits`` give the memory's bandwidth (an H100 SXM's by default).
    ``mig_instances``: MIG instances on the board (at most 7), named ``MIG-…-1`` for ``GPU-…``.
    ``module_w``: a superchip's module, which draws so much beside the board (``None``: no module).
    """

    uuid: str = "GPU-51300000-0000-4000-8000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3 (simulated)"
    refresh_s: float = 0.1
    power_limit_w: float = 700.0
    lag_s: float = 0.0
    seed: int = 0
    mem_clock_mhz: int = 2619
    bus_bits: int = 5120
    mig_instances: int = 0
    virtualization: Virtualization = Virtualization.NONE
    module_w: float | None = None


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
                    spec.mig_instances,
                    spec.virtualization,
                    round((spec.module_w or 0.0) * 1e3),
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
        count, faults, _ = self._counts(device)
        energy_nj = 0
        if count:
            last_ns, power_mw, energy_nj = self._entry(device, count - 1)
            now_ns = max(now_ns, last_ns)
            energy_nj += power_mw * (now_ns - last_ns) // 1000
        entry = (now_ns, round(power_w * 1000), energy_nj)
        _ENTRY.pack_into(self._map, _entry_at(device, count), *entry)
        _COUNT.pack_into(self._map, _device_at(device) + _COUNTS_AT, count + 1)
        if faults:
            self._anchor(device, faults, now_ns)

    def energy_j(self, device: int, t_ns: int | None = None) -> float:
        """Joules drawn from the first post up to ``t_ns`` (default now): the truth.

        Raises ``ValueError`` for a moment that the ring no longer holds.
        """
        return self._energy_nj(device, time.monotonic_ns() if t_ns is None else t_ns) / 1e9

    def _energy_nj(self, device: int, t_ns: int) -> int:
        count, _, _ = self._counts(device)
        oldest = max(0, count - _RING_KEPT)
        after = bisect_right(
            range(oldest, count), t_ns, key=lambda number: self._entry(device, number)[0]
        )
        if after == 0:
            if oldest:
                raise ValueError(f"{t_ns} ns lies before the last {_RING_KEPT} posts")
            return 0
        start_ns, power_mw, energy_nj = self._entry(device, oldest + after - 1)
        return energy_nj + power_mw * (t_ns - start_ns) // 1000

    def _anchor(self, device: int, faults: int, now_ns: int) -> None:
        """Note in each fault that has begun the energy that it goes back to."""
        for slot in range(faults):
            at = _fault_at(device, slot)
            from_ns, _, kind, _, _, anchor = _FAULT.unpack_from(self._map, at)
            if not anchor and from_ns <= now_ns and kind in (Fault.RESET, Fault.STUCK):
                energy_nj = self._energy_nj(device, self._shown_ns(device, kind, from_ns))
                _COUNT.pack_into(self._map, at + _FAULT.size - _COUNT.size, energy_nj + 1)

    def _shown_ns(self, device: int, kind: int, from_ns: int) -> int:
        """The moment whose energy a fault of this kind goes back to."""
        spec = _SPEC.unpack_from(self._map, _device_at(device))
        refresh_ns, lag_ns, phase_ns = spec[2:5]
        waited_ns = (from_ns - phase_ns) % refresh_ns if refresh_ns else 0
        return int(from_ns - lag_ns - (waited_ns if kind == Fault.STUCK else 0))

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
        """Script a fault from ``from_ns`` to ``to_ns`` (``None``: for ever). At most 64.

        Raises ``ValueError`` where there are too many, or it begins before what the ring holds.
        """
        _, count, _ = self._counts(device)
        if count >= FAULT_SLOTS:
            raise ValueError(f"a card holds at most {FAULT_SLOTS} faults")
        if kind in (Fault.RESET, Fault.STUCK):
            self._energy_nj(device, self._shown_ns(device, kind, from_ns))
        at = _fault_at(device, count)
        end_ns = _FOREVER_NS if to_ns is None else to_ns
        raw = value - (1 << 64) if value >= 1 << 63 else value  # as C sees 64 bits
        _FAULT.pack_into(self._map, at, from_ns, end_ns, kind, function, raw, 0)
        _COUNT.pack_into(self._map, _device_at(device) + _COUNTS_AT + 8, count + 1)

    def reload_driver(self, from_ns: int, to_ns: int) -> None:
        """The driver is unloaded and loaded again: its counters start from 0 at ``to_ns``.

        The posts that a counter will go back to must have been made by then.
        """
        for device in range(self.devices):
            self.fault(device, Fault.UNLOADED, from_ns, to_ns)
            self.fault(device, Fault.RESET, to_ns)

    def clear_faults(self, device: int) -> None:
        """Nothing is wrong any more, and nothing was: a counter that was reset is back, too."""
        _COUNT.pack_into(self._map, _device_at(device) + _COUNTS_AT + 8, 0)

    def set_processes(self, device: int, pids: list[int]) -> None:
        """The processes that compute on the card (at most 16)."""
        at = _device_at(device) + _PROCESSES_AT
        for slot, pid in enumerate(pids[:PROCESS_SLOTS]):
            struct.pack_into("=I", self._map, at + 4 * slot, pid)
        running = min(len(pids), PROCESS_SLOTS)
        _COUNT.pack_into(self._map, _device_at(device) + _COUNTS_AT + 16, running)

    def _counts(self, device: int) -> tuple[int, int, int]:
        posts, faults, processes = _COUNTS.unpack_from(self._map, _device_at(device) + _COUNTS_AT)
        return posts, faults, processes

    def _entry(self, device: int, number: int) -> tuple[int, int, int]:
        t_ns, power_mw, energy_nj = _ENTRY.unpack_from(self._map, _entry_at(device, number))
        return t_ns, power_mw, energy_nj


def _device_at(device: int) -> int:
    return _HEADER_BYTES + device * _DEVICE_BYTES


def _fault_at(device: int, slot: int) -> int:
    return _device_at(device) + _SPEC_BYTES + slot * _FAULT.size


def _entry_at(device: int, number: int) -> int:
    ring = _fault_at(device, FAULT_SLOTS)
    return ring + (number % RING_SLOTS) * _ENTRY.size
