"""Which GPUs NVML shows, what they are, and which of them were asked for.

MIG instances and vGPUs are shown for what they are. Energy and power are the whole board's, and
only its own handle has them: an instance that is asked for stands for its board, which is metered
once, however many of its instances are. A vGPU's host seldom lets its guests see energy or power;
where it does, the figures are the board's.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pynvml
import structlog

from meter.model import Device, Quality, worst
from meter.power.errors import (
    NoDeviceError,
    NoPermissionError,
    PowerError,
    UnsupportedError,
    nvml_error,
)
from meter.power.nvml_calls import call, count, optional
from meter.power.nvml_gpu import COUNTER, Gpu, best_way

#: These last as long as the meter; after any other problem trying again may help.
_HOPELESS = (UnsupportedError, NoPermissionError)
_VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU: this machine is a guest that has a part of a board


@dataclass(frozen=True, slots=True)
class Found:
    """A GPU that NVML counts: what is known of it, and why it cannot be metered (if so)."""

    index: str
    gpu: Gpu | None
    problem: PowerError | None

    @property
    def label(self) -> str:
        return f"{self.index} ({self.gpu.device.id if self.gpu else 'unreadable'})"

    def is_named(self, name: str) -> bool:
        uuid = self.gpu.device.id if self.gpu else ""
        return name == self.index or (name.startswith("GPU-") and uuid.startswith(name))


def examine(quality: Quality, known: Container[str] = ()) -> list[Found]:
    """Every GPU of the host, in NVML's order, with what is wrong with it; but for those whose UUID
    is ``known``."""
    driver = optional(pynvml.nvmlSystemGetDriverVersion)
    return [_examine(i, quality, driver) for i in range(count()) if _uuid(i) not in known]


def _uuid(index: int) -> str | None:
    """``None`` where the GPU does not tell."""
    handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
    return None if handle is None else optional(pynvml.nvmlDeviceGetUUID, handle)


def _examine(index: int, quality: Quality, driver: str | None) -> Found:
    gpu = None
    try:
        gpu = _describe(index, quality, driver)
        gpu.way = _best_way(gpu)
    except PowerError as error:
        problem = type(error)(f"GPU {index}: {error}")
        problem.__cause__ = error.__cause__
        return Found(str(index), gpu, problem)
    if gpu.way is not COUNTER:
        # Its power is measured; its energy is what is made of that.
        estimated = worst([quality, Quality.ESTIMATED])
        assert estimated is not None
        note = "; ".join(filter(None, (gpu.way.label, gpu.device.note)))
        gpu.device = replace(gpu.device, quality=estimated, note=note)
    return Found(str(index), gpu, None)


def _describe(index: int, quality: Quality, driver: str | None) -> Gpu:
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
        note=_part_of_a_board(handle),
    )
    return Gpu(device, handle)


def _part_of_a_board(handle: Any) -> str | None:
    """What to say of a board that others share: MIG (``nvidia-smi -L``) or vGPU."""
    if optional(pynvml.nvmlDeviceGetVirtualizationMode, handle) == _VGPU:
        return "a vGPU: what its host shows of the board, other guests included"
    mode = optional(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:
        return None
    most = optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    instances = [
        optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, i) for i in range(most)
    ]
    number = sum(instance is not None for instance in instances)
    return f"the whole board, shared by {number} MIG instances"


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


def _best_way(gpu: Gpu) -> Any:
    """How its energy is had; raises where ``nvidia-smi --query-gpu=power.draw`` has nothing
    either."""
    try:
        return best_way(gpu.handle)
    except pynvml.NVMLError as error:
        raise nvml_error("NVML's total-energy field", error) from error


def select(
    found: Sequence[Found], wanted: Sequence[str]
) -> tuple[tuple[Gpu, ...], tuple[PowerError, ...]]:
    """The devices that were asked for, in that order, all where none was; and of others that
    cannot be read now, but may be later, why.

    Raises ``PowerError`` where none can be read, or one that was asked for never will be.
    """
    if not found:
        raise NoDeviceError("NVML works, but there is no GPU: see `nvidia-smi -L`")
    named = [_match(name, found) for name in wanted] or found
    chosen = {one.index: one for one in named}.values()  # a board may be named twice
    usable = tuple(one.gpu for one in chosen if one.gpu is not None and one.problem is None)
    problems = tuple(one.problem for one in chosen if one.problem is not None)
    hopeful = _hopeful(problems)
    if problems and (not usable or (wanted and len(hopeful) < len(problems))):
        raise next((problem for problem in problems if problem not in hopeful), problems[0])
    log = structlog.get_logger("joulemeter.power")
    for problem in problems:
        note = "it is tried again" if problem in hopeful else "until the meter is started anew"
        log.warning("gpu_left_out", reason=str(problem), note=note)
    _say_what_figures_are(usable)
    return usable, hopeful


def select_more(
    found: Sequence[Found], wanted: Sequence[str]
) -> tuple[tuple[Gpu, ...], tuple[PowerError, ...]]:
    """As ``select``, of GPUs that were not metered so far."""
    boards = [board for name in wanted if (board := board_of(name)) is not None]
    asked = [one for one in found if not wanted or any(map(one.is_named, boards))]
    gpus = tuple(one.gpu for one in asked if one.gpu is not None and one.problem is None)
    _say_what_figures_are(gpus)
    return gpus, _hopeful(tuple(one.problem for one in asked if one.problem is not None))


def _hopeful(problems: tuple[PowerError, ...]) -> tuple[PowerError, ...]:
    return tuple(problem for problem in problems if not isinstance(problem, _HOPELESS))


def _say_what_figures_are(gpus: Iterable[Gpu]) -> None:
    log = structlog.get_logger("joulemeter.power")
    for gpu in gpus:
        if gpu.device.note is not None:
            log.warning("gpu_figures", gpu=gpu.device.id, are=gpu.device.note)


def _match(name: str, found: Sequence[Found]) -> Found:
    """The one GPU of this name: its index, its UUID, or the beginning of that; for a MIG instance
    its board."""
    board = board_of(name) if name.startswith("MIG-") else name
    matches = [one for one in found if board is not None and one.is_named(board)]
    if len(matches) != 1:
        known = ", ".join(one.label for one in found)
        problem = "names several GPUs" if matches else "is no GPU of this host"
        raise NoDeviceError(f"device {name!r} {problem}; there are: {known}")
    return matches[0]


def board_of(name: str) -> str | None:
    """The UUID of the board of a MIG instance, by the instance's UUID; ``None`` where NVML knows
    none. Any other name is its own."""
    if not name.startswith("MIG-"):
        return name
    if name.startswith("MIG-GPU-"):  # drivers before R470: MIG-<board's UUID>/<GI>/<CI>
        return name.removeprefix("MIG-").partition("/")[0]
    instance = optional(pynvml.nvmlDeviceGetHandleByUUID, name)
    if instance is None:
        return None
    board = optional(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, instance)
    return None if board is None else str(call("UUID", pynvml.nvmlDeviceGetUUID, board))
