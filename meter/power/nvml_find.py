"""Which GPUs NVML shows, what they are, and which of them were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pynvml
import structlog

from meter.model import Device, Quality
from meter.power.errors import NoDeviceError, PowerError, UnsupportedError, nvml_error
from meter.power.nvml_calls import call, count, optional


@dataclass(frozen=True, slots=True)
class Handle:
    """A GPU, and what NVML calls it by. Belongs to the thread that opened NVML."""

    device: Device
    handle: Any


@dataclass(frozen=True, slots=True)
class Found:
    """A GPU that NVML counts: what is known of it, and why it cannot be metered (if so)."""

    index: str
    held: Handle | None
    problem: PowerError | None

    @property
    def label(self) -> str:
        return f"{self.index} ({self.held.device.id if self.held else 'unreadable'})"

    def is_named(self, name: str) -> bool:
        uuid = self.held.device.id if self.held else ""
        return name == self.index or (name.startswith("GPU-") and uuid.startswith(name))


def examine(quality: Quality) -> list[Found]:
    """Every GPU of the host, in NVML's order, with what is wrong with it."""
    found = []
    driver = optional(pynvml.nvmlSystemGetDriverVersion)
    for index in range(count()):
        held = None
        try:
            held = _describe(index, quality, driver)
            _check_counter(held.handle)
        except PowerError as error:
            problem = type(error)(f"GPU {index}: {error}")
            problem.__cause__ = error.__cause__
            found.append(Found(str(index), held, problem))
        else:
            found.append(Found(str(index), held, None))
    return found


def _describe(index: int, quality: Quality, driver: str | None) -> Handle:
    """``nvidia-smi --query-gpu=index,uuid,name,driver_version,enforced.power.limit``."""
    handle = call("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
    limit_mw = optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    sm_mhz = optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM)
    memory_mhz = optional(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    device = Device(
        id=str(call("UUID", pynvml.nvmlDeviceGetUUID, handle)),
        name=str(call("name", pynvml.nvmlDeviceGetName, handle)),
        quality=quality,
        index=str(index),
        mem_bandwidth=_bandwidth(handle, memory_mhz),
        power_limit_w=limit_mw / 1000 if limit_mw else None,
        driver=str(driver) if driver else None,
        clocks_mhz=_application_clocks(handle) or _pair(sm_mhz, memory_mhz),
    )
    return Handle(device, handle)


def _application_clocks(handle: Any) -> tuple[int, int] | None:
    """``nvidia-smi --query-gpu=clocks.applications.graphics,clocks.applications.memory``.

    Where the board has them they say more than ``clocks.max.sm`` and ``clocks.max.memory``, which
    never change. Clocks that were locked (``nvidia-smi -lgc``) NVML does not tell.
    """
    kinds = (pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_CLOCK_MEM)
    return _pair(*(optional(pynvml.nvmlDeviceGetApplicationsClock, handle, kind) for kind in kinds))


def _pair(sm_mhz: int | None, memory_mhz: int | None) -> tuple[int, int] | None:
    return (int(sm_mhz), int(memory_mhz)) if sm_mhz and memory_mhz else None


def _bandwidth(handle: Any, clock_mhz: int | None) -> float | None:
    """Peak memory bandwidth in bytes a second: two transfers a clock over the bus's width."""
    bits = optional(pynvml.nvmlDeviceGetMemoryBusWidth, handle)
    return 2e6 * clock_mhz * bits / 8 if clock_mhz and bits else None


def select(found: Sequence[Found], wanted: Sequence[str]) -> tuple[Handle, ...]:
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


def _match(name: str, found: Sequence[Found]) -> Found:
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


def _check_counter(handle: Any) -> None:
    """Raises where ``nvidia-smi --query-gpu=total_energy_consumption`` has no figure either."""
    fields = [pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION]
    (value,) = call("field-values", pynvml.nvmlDeviceGetFieldValues, handle, fields)
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise nvml_error("NVML's total-energy field", pynvml.NVMLError(value.nvmlReturn))
