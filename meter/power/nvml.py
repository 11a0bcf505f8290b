"""NVIDIA GPUs through NVML: the total-energy counter, and the power of this instant beside it.

One batched ``nvmlDeviceGetFieldValues`` per device and poll, nothing else in the loop: NVML calls
serialise in the driver. The counter (field 83, mJ since the driver was loaded, Volta and newer)
moves every 100 ms on Hopper. ``nvmlDeviceGetPowerUsage`` is a 1 s mean since Ampere, so the instant
field (186) is read; it serves display and cross-check and is never attributed. On some superchips
the GPU scope of a field fails: the energy then cannot be told from the module's, and the reading
says so rather than show another boundary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pynvml

from meter.model import Device, Reading
from meter.power.errors import PowerError, nvml_error
from meter.power.nvml_calls import call, count, optional, start, use_library
from meter.power.nvml_find import Handle, examine, select

_FIELD_ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_FIELD_POWER = pynvml.NVML_FI_DEV_POWER_INSTANT


class NvmlSource:
    """The GPUs of this host, or those named in ``devices``.

    ``library``: path of another ``libnvidia-ml.so.1`` (a simulated one), loaded before NVML starts.
    ``devices``: indices, UUIDs or their beginnings, as in ``CUDA_VISIBLE_DEVICES``.
    """

    name = "nvml"

    def __init__(self, library: str | None = None, devices: Sequence[str] = ()) -> None:
        self._library = library
        self._wanted = tuple(devices)
        self._handles: tuple[Handle, ...] = ()
        self._open = False

    def open(self) -> Sequence[Device]:
        """Start NVML and find the devices; raises ``PowerError`` (see ``errors``).

        A GPU that was asked for must be readable. Where all are meant, one that is not (a display
        adapter without the counter, a lost board) is left out, with a warning.
        """
        quality = start(self._library)
        self._open = True
        try:
            self._handles = select(examine(quality), self._wanted)
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
            use_library(None)


def devices_of(pids: Iterable[int]) -> list[str]:
    """UUIDs of the GPUs on which these processes compute (``nvidia-smi --query-compute-apps``).

    Asked once when an engine is found, never in the loop: listing processes takes milliseconds and
    holds the driver's lock. Uses the library of the open ``NvmlSource``. In a container the PIDs
    must be the host's. A GPU that does not list its processes is left out.
    """
    wanted = set(pids)
    found = []
    call("start", pynvml.nvmlInit)  # NVML counts its users: ours is one more
    try:
        for index in range(count()):
            handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
            running = handle and optional(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
            if wanted & {process.pid for process in running or ()}:
                found.append(str(call("UUID", pynvml.nvmlDeviceGetUUID, handle)))
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


def _read(held: Handle) -> Reading:
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
