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
from dataclasses import dataclass
from typing import Any

import pynvml

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
        """Start NVML and find the devices; raises ``PowerError`` (see ``errors``)."""
        quality = _start(self._library)
        self._open = True
        try:
            found = [_describe(index, quality) for index in range(_call("count", _count))]
            self._handles = tuple(_choose(found, self._wanted))
            for held in self._handles:
                _energy_mj(held.handle)
        except PowerError:
            self.close()
            raise
        return [held.device for held in self._handles]

    def read(self) -> Sequence[Reading]:
        return [_read(held) for held in self._handles]

    def close(self) -> None:
        if self._open:
            self._open = False
            self._handles = ()
            pynvml.nvmlShutdown()


def devices_of(pids: Iterable[int]) -> list[str]:
    """UUIDs of the GPUs on which these processes compute (``nvidia-smi --query-compute-apps``).

    NVML must be open. Asked once when an engine is found, never in the loop: listing processes
    takes milliseconds and holds the driver's lock. In a container the PIDs must be the host's.
    """
    wanted = set(pids)
    found = []
    for index in range(_call("count", _count)):
        handle = _call("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
        running = _call("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if wanted & {process.pid for process in running}:
            found.append(_call("uuid", pynvml.nvmlDeviceGetUUID, handle))
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
            pynvml.nvmlLib = ctypes.CDLL(library)
        except OSError as error:
            raise LibraryMissingError(
                f"power.nvml_library {library!r} cannot be loaded: {error}"
            ) from error
        pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise nvml_error("nvmlInit", error) from error
    return Quality.SIMULATED if hasattr(pynvml.nvmlLib, _SIMULATED) else Quality.MEASURED


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


def _describe(index: int, quality: Quality) -> _Handle:
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


def _choose(found: Sequence[_Handle], wanted: Sequence[str]) -> list[_Handle]:
    """The devices that were asked for, in that order; all where nothing was asked."""
    if not found:
        raise NoDeviceError("NVML works, but there is no GPU: see `nvidia-smi -L`")
    if not wanted:
        return list(found)
    return [_match(name, found) for name in dict.fromkeys(wanted)]


def _match(name: str, found: Sequence[_Handle]) -> _Handle:
    if name.startswith("MIG-"):
        raise UnsupportedError(
            f"device {name!r} is a MIG instance: only the whole board has an energy counter; "
            "name the GPU by its index or its GPU- UUID"
        )
    matches = [
        held
        for held in found
        if name == held.device.index
        or (name.startswith("GPU-") and held.device.id.startswith(name))
    ]
    if len(matches) != 1:
        known = ", ".join(f"{held.device.index} ({held.device.id})" for held in found)
        problem = "names several GPUs" if matches else "is no GPU of this host"
        raise NoDeviceError(f"device {name!r} {problem}; there are: {known}")
    return matches[0]


def _energy_mj(handle: Any) -> int:
    """``nvidia-smi --query-gpu=total_energy_consumption`` (mJ)."""
    (value,) = _call("total-energy", pynvml.nvmlDeviceGetFieldValues, handle, [_FIELD_ENERGY])
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
