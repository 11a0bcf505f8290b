"""NVIDIA GPUs through NVML: the total-energy counter, and the power of this instant beside it.

One batched ``nvmlDeviceGetFieldValues`` per device and poll, nothing else in the loop: NVML calls
serialise in the driver. The counter (field 83, mJ since the driver was loaded, Volta and newer)
moves every 100 ms on Hopper. ``nvmlDeviceGetPowerUsage`` is a 1 s mean since Ampere, so the instant
field (186) is read; it serves display and cross-check and is never attributed. On some superchips
the GPU scope of a field fails: the energy then cannot be told from the module's, and the reading
says so rather than show another boundary.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml
import structlog

from meter.model import Device, Quality, Reading
from meter.power.errors import (
    LibraryMissingError,
    NoDeviceError,
    PowerError,
    UnsupportedError,
    nvml_error,
)

_FIELD_ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_FIELD_POWER = pynvml.NVML_FI_DEV_POWER_INSTANT
_SIMULATED = "joulemeter_simulated"


@dataclass(frozen=True, slots=True)
class _Handle:
    device: Device
    handle: Any


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU that NVML counts: what is known of it, and why it cannot be metered (if so)."""

    index: str
    held: _Handle | None
    problem: PowerError | None

    @property
    def label(self) -> str:
        return f"{self.index} ({self.held.device.id if self.held else 'unreadable'})"

    def is_named(self, name: str) -> bool:
        uuid = self.held.device.id if self.held else ""
        return name == self.index or (name.startswith("GPU-") and uuid.startswith(name))


class NvmlSource:
    """The GPUs of this host, or those named in ``devices``.

    ``library``: path of another ``libnvidia-ml.so.1`` (a simulated one), loaded before NVML starts.
    ``devices``: indices, UUIDs or their beginnings, as in ``CUDA_VISIBLE_DEVICES``.
    """

    name = "nvml"

    def __init__(self, library: str | None = None, devices: Sequence[str] = ()) -> None:
        self._library = library
        self._wanted = tuple(devices)
        self._handles: tuple[_Handle, ...] = ()
        self._open = False

    def open(self) -> Sequence[Device]:
        """Start NVML and find the devices; raises ``PowerError`` (see ``errors``).

        A GPU that was asked for must be readable. Where all are meant, one that is not (a display
        adapter without the counter, a lost board) is left out, with a warning.
        """
        quality = _start(self._library)
        self._open = True
        try:
            self._handles = _select(_examine(quality), self._wanted)
        except PowerError:
            self.close()
            raise
        return [held.device for held in self._handles]

    def read(self) -> Sequence[Reading]:
        """One reading of each device; one that fails has no energy and says why."""
        return [_read(held) for held in self._handles]

    def close(self) -> None:
        """Let NVML go, and a library of our own with it."""
        if not self._open:
            return
        self._open = False
        self._handles = ()
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        if self._library is not None:
            _use_library(None)


def devices_of(pids: Iterable[int]) -> list[str]:
    """UUIDs of the GPUs on which these processes compute (``nvidia-smi --query-compute-apps``).

    Asked once when an engine is found, never in the loop: listing processes takes milliseconds and
    holds the driver's lock. Uses the library of the open ``NvmlSource``. In a container the PIDs
    must be the host's. A GPU that does not list its processes is left out.
    """
    wanted = set(pids)
    found = []
    _call("start", pynvml.nvmlInit)  # NVML counts its users: ours is one more
    try:
        for index in range(_call("count", _count)):
            handle = _optional(pynvml.nvmlDeviceGetHandleByIndex, index)
            running = handle and _optional(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
            if wanted & {process.pid for process in running or ()}:
                found.append(str(_call("UUID", pynvml.nvmlDeviceGetUUID, handle)))
    finally:
        pynvml.nvmlShutdown()
    return found


def visible_devices(value: str | None) -> tuple[str, ...] | None:
    """The devices that ``CUDA_VISIBLE_DEVICES`` names; ``None`` where it is unset (all)."""
    if value is None:
        return None
    names = []
    for part in value.split(","):
        name = part.strip()
        if name in ("", "-1", "none", "void", "NoDevFiles"):
            break  # CUDA stops at the first entry that names nothing
        names.append(name)
    return tuple(names)


def _start(library: str | None) -> Quality:
    """Load and start NVML; a library that calls itself simulated makes all its figures so."""
    if library is not None:
        try:
            _use_library(ctypes.CDLL(library))
        except OSError as error:
            raise LibraryMissingError(
                f"power.nvml_library {library!r} cannot be loaded: {error}"
            ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if library is not None:
            _use_library(None)
        raise nvml_error("nvmlInit", error) from error
    return Quality.SIMULATED if hasattr(pynvml.nvmlLib, _SIMULATED) else Quality.MEASURED


def _use_library(library: ctypes.CDLL | None) -> None:
    """Give pynvml its library (``None``: it looks for the system's) before NVML starts.

    It keeps the functions it has looked up: those of the library before must go.
    """
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()


def _count() -> int:
    return int(pynvml.nvmlDeviceGetCount())


def _call(what: str, function: Any, *arguments: Any) -> Any:
    """Call NVML; its error becomes ours."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise nvml_error(f"NVML's {what} call", error) from error


def _optional(function: Any, *arguments: Any) -> Any:
    """Call NVML for a fact that one can do without; ``None`` where it is not to be had."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _examine(quality: Quality) -> list[_Found]:
    """Every GPU of the host, in NVML's order, with what is wrong with it."""
    found = []
    for index in range(_call("count", _count)):
        held = None
        try:
            held = _describe(index, quality)
            _energy_mj(held.handle)
        except PowerError as error:
            found.append(_Found(str(index), held, error))
        else:
            found.append(_Found(str(index), held, None))
    return found


def _describe(index: int, quality: Quality) -> _Handle:
    """``nvidia-smi --query-gpu=index,uuid,name,enforced.power.limit,clocks.max.memory``."""
    handle = _call("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
    limit_mw = _optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    device = Device(
        id=str(_call("UUID", pynvml.nvmlDeviceGetUUID, handle)),
        name=str(_call("name", pynvml.nvmlDeviceGetName, handle)),
        quality=quality,
        index=str(index),
        mem_bandwidth=_bandwidth(handle),
        power_limit_w=limit_mw / 1000 if limit_mw else None,
    )
    return _Handle(device, handle)


def _bandwidth(handle: Any) -> float | None:
    """Peak memory bandwidth in bytes a second: two transfers a clock over the bus's width."""
    clock_mhz = _optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    bits = _optional(pynvml.nvmlDeviceGetMemoryBusWidth, handle)
    return 2e6 * clock_mhz * bits / 8 if clock_mhz and bits else None


def _select(found: Sequence[_Found], wanted: Sequence[str]) -> tuple[_Handle, ...]:
    """The devices that were asked for, in that order; all that can be read where none was."""
    if not found:
        raise NoDeviceError("NVML works, but there is no GPU: see `nvidia-smi -L`")
    chosen = [_match(name, found) for name in wanted] or found
    usable = [one.held for one in chosen if one.held is not None and one.problem is None]
    problems = [one.problem for one in chosen if one.problem is not None]
    if problems and (wanted or not usable):
        raise problems[0]
    for problem in problems:
        structlog.get_logger("joulemeter.power").warning("gpu_left_out", reason=str(problem))
    return tuple({held.device.id: held for held in usable}.values())


def _match(name: str, found: Sequence[_Found]) -> _Found:
    """The one GPU of this name: its index, its UUID, or the beginning of that."""
    if name.startswith("MIG-"):
        raise UnsupportedError(
            f"device {name!r} is a MIG instance: only the whole board has an energy counter; "
            "name the GPU by its index or its GPU- UUID"
        )
    matches = [one for one in found if one.is_named(name)]
    if len(matches) != 1:
        known = ", ".join(one.label for one in found)
        problem = "names several GPUs" if matches else "is no GPU of this host"
        raise NoDeviceError(f"device {name!r} {problem}; there are: {known}")
    return matches[0]


def _energy_mj(handle: Any) -> int:
    """``nvidia-smi --query-gpu=total_energy_consumption`` (mJ)."""
    (value,) = _call("field-values", pynvml.nvmlDeviceGetFieldValues, handle, [_FIELD_ENERGY])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise nvml_error("NVML's total-energy field", pynvml.NVMLError(value.nvmlReturn))
    return int(value.value.ullVal)


def _read(held: _Handle) -> Reading:
    """One poll: energy as by ``total_energy_consumption``, power as by ``power.draw.instant``."""
    device = held.device.id
    begun_ns = time.monotonic_ns()
    try:
        energy, power = pynvml.nvmlDeviceGetFieldValues(held.handle, [_FIELD_ENERGY, _FIELD_POWER])
    except pynvml.NVMLError as error:
        done_ns = time.monotonic_ns()
        return Reading(
            device,
            (begun_ns + done_ns) // 2,
            None,
            latency_s=(done_ns - begun_ns) / 1e9,
            error=str(nvml_error("NVML's field values", error)),
        )
    done_ns = time.monotonic_ns()
    failed = None
    if energy.nvmlReturn != pynvml.NVML_SUCCESS:
        cause = pynvml.NVMLError(energy.nvmlReturn)
        failed = str(nvml_error("NVML's total-energy field", cause))
    has_power = power.nvmlReturn == pynvml.NVML_SUCCESS
    return Reading(
        device,
        (begun_ns + done_ns) // 2,
        None if failed else int(energy.value.ullVal) * 1000,
        power_w=power.value.uiVal / 1000 if has_power else None,
        latency_s=(done_ns - begun_ns) / 1e9,
        error=failed,
    )
