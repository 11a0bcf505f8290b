"""The GPUs: through NVML as the meter reads them, and why not where it cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from meter.doctor.finding import Finding, Level
from meter.doctor.machine import Machine
from meter.model import Device
from meter.power.errors import (
    DeviceLostError,
    DriverError,
    LibraryMissingError,
    NoPermissionError,
    PowerError,
    UnsupportedError,
)
from meter.power.hardware import why_gpus
from meter.power.nvml_find import Found
from meter.power.nvml_find import examine as examine_gpus
from meter.power.nvml_gpu import COUNTER
from meter.power.nvml_session import Session
from meter.power.patience import NoAnswerError, ask
from meter.power.visible import BY_BUS, CUDA_VARIABLE, ORDER_VARIABLE, order_is_unclear
from meter.runtime.devices import Wanted, wanted
from meter.runtime.power import ownership

_INTEGRATED = re.compile(r"\b(Thor|Orin|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE)


def gpus(machine: Machine) -> list[Finding]:
    """One finding for each GPU, or one that says why there is none."""
    if machine.power.source == "cpu":
        return [Finding("gpu", Level.LESS, "not asked for", "set power.source to auto")]
    wanted = _wanted(machine)
    if wanted.none:
        value = machine.environ.get(CUDA_VARIABLE, "")
        text = f"{CUDA_VARIABLE}={value!r:.40} names none: a server here is metered on the CPU"
        return [Finding("gpu", Level.LESS, text, f"unset {CUDA_VARIABLE} for servers on the GPUs")]
    try:
        return ask(lambda: _look(machine), machine.driver_within_s)
    except NoAnswerError as error:
        step = "see whether `nvidia-smi` answers; else reboot"
        return [Finding("gpu", Level.NO, f"the driver hangs: {error}", step)]


def _look(machine: Machine) -> list[Finding]:
    library = machine.power.nvml_library
    session = Session(str(library) if library else None, lambda: None)
    try:
        quality = session.start()
    except PowerError as error:
        return [_without_nvml(machine, error)]
    try:
        found = examine_gpus(quality)
        if not found:
            return [_none(machine)]
        return [*_order(machine, found), *(_of(machine, one) for one in found)]
    except Exception as error:
        said = str(error) if isinstance(error, PowerError) else f"NVML broke: {error!r:.200}"
        return [Finding("gpu", Level.NO, said, "see whether `nvidia-smi` works")]
    finally:
        session.end()


def _wanted(machine: Machine) -> Wanted:
    return wanted(machine.power.devices, (), machine.environ)


def _order(machine: Machine, found: Sequence[Found]) -> list[Finding]:
    """A finding where CUDA may count these GPUs in another order than NVML."""
    names = _wanted(machine).names
    kinds = {one.gpu.device.name for one in found if one.gpu is not None}
    if machine.power.devices or not order_is_unclear(names, kinds, machine.environ):
        return []
    text = (
        f"{CUDA_VARIABLE}={','.join(names):.40}: CUDA's order need not be NVML's, the GPUs differ; "
        "until the driver lists the engine's processes NVML's is taken"
    )
    step = f"set {ORDER_VARIABLE}={BY_BUS}, or name GPUs by their UUIDs"
    return [Finding("cuda", Level.LESS, text, step)]


def _without_nvml(machine: Machine, error: PowerError) -> Finding:
    """NVML does not start: for want of hardware, driver, library or permission."""
    given = why_gpus(machine.environ, machine.root) is not None
    if machine.is_container() and not given and machine.power.nvml_library is None:
        return _none(machine)  # what is to be seen is its host's
    if machine.power.nvml_library is not None and isinstance(error, LibraryMissingError):
        return Finding("gpu", Level.NO, str(error), "correct power.nvml_library, or leave it out")
    if isinstance(error, NoPermissionError):
        step = "run as a user who may open /dev/nvidiactl and /dev/nvidia0"
        return Finding("gpu", Level.NO, "the driver may not be used by this user", step)
    if isinstance(error, LibraryMissingError) and machine.has_kernel_driver():
        if machine.is_container() and machine.lacks_utility():
            text = "the container has GPUs, but not NVML: it lacks the `utility` capability"
            step = "start it with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
            return Finding("gpu", Level.NO, text, step)
        step = "install the driver's libraries (libnvidia-ml.so.1) of the kernel module's version"
        return Finding("gpu", Level.NO, "the kernel's driver is there, its library is not", step)
    if isinstance(error, LibraryMissingError | DriverError) and machine.has_nvidia_hardware():
        return Finding("gpu", Level.NO, *_no_driver(error))
    if isinstance(error, LibraryMissingError | DriverError):
        return _none(machine)
    return Finding("gpu", Level.NO, str(error), "see whether `nvidia-smi` works")


def _no_driver(error: PowerError) -> tuple[str, str]:
    if "mismatch" in str(error):
        return "the driver was updated, and its kernel module was not", "reload it, or reboot"
    if isinstance(error, DriverError):
        return "the driver is installed and not loaded", "`modprobe nvidia`, or reboot"
    return "an NVIDIA GPU without its driver", "install the NVIDIA driver"


def _none(machine: Machine) -> Finding:
    if machine.is_container() and why_gpus(machine.environ, machine.root) is not None:
        step = "give the container its GPUs (`--gpus all`)"
        return Finding("gpu", Level.NO, "the container asks for GPUs and has none", step)
    return Finding("gpu", Level.LESS, "no NVIDIA GPU: engines are metered on the CPU")


def _of(machine: Machine, found: Found) -> Finding:
    """One GPU that NVML shows; what of it cannot be read is named, and costs nothing else."""
    finding = _of_board(machine, found)
    if not found.odd:
        return finding
    facts = ", ".join(dict.fromkeys(found.odd))
    return replace(finding, text=f"{finding.text}; not to be read of it: {facts}")


def _of_board(machine: Machine, found: Found) -> Finding:
    area = f"gpu {found.index}"
    gpu = found.gpu
    if gpu is None or found.problem is not None:
        name = f"{gpu.device.name}: " if gpu is not None else ""
        text, step = _unreadable(found.problem, gpu.device if gpu else None, machine)
        return Finding(area, Level.NO, name + text, step)
    device = gpu.device
    lock = ownership(machine.power.lock_directory, device)
    owner = lock.held_by() if lock is not None else None
    if owner is not None:
        who = f"pid {owner}" if owner else "another process"
        step = "one meter can serve all engines of a host: ask that one, or end it"
        return Finding(area, Level.NO, f"{device.name}: {who} meters it already", step)
    if gpu.waits:
        step = "ask again in a minute; the meter takes the counter as soon as it answers"
        return Finding(area, Level.LESS, f"{device.name}: {device.note}", step, device.quality)
    if gpu.way is not COUNTER:
        text = f"{device.name}: {device.note}; it has no energy counter"
        step = "GPUs since Volta have one (drivers since 2018)"
        return Finding(area, Level.LESS, text, step, device.quality)
    if device.note is not None:
        text = f"{device.name}: {device.note}"
        return Finding(area, Level.LESS, text, _whole_board(device.note), device.quality)
    return Finding(area, Level.GOOD, f"{device.name}: energy counter", None, device.quality)


def _whole_board(note: str) -> str | None:
    if "superchip" in note:
        return None  # the meter finds out while it runs, and there is nothing to do about it
    if "MIG" in note:
        return "give all its instances to engines that this meter sees, or switch MIG off"
    return "meter on the host of the virtual machine, where the whole board is seen"


def _unreadable(
    problem: PowerError | None, device: Device | None, machine: Machine
) -> tuple[str, str]:
    if isinstance(problem, UnsupportedError):
        text = "shows neither energy nor power"
        if device is not None and "vGPU" in (device.note or ""):
            return text, "its figures are to be had on its host"
        instead = "set power.source to cpu to meter the host's CPU instead"
        if machine.is_integrated() or _INTEGRATED.search(device.name if device else ""):
            return f"{text}, as GPUs that are a part of the chip (Jetson, Thor)", instead
        return text, f"no meter can read it by NVML; {instead}"
    if isinstance(problem, NoPermissionError):
        return "may not be read by this user", "run as a user who may open /dev/nvidia*"
    if isinstance(problem, DeviceLostError):
        return "has fallen off the bus", "reset it (`nvidia-smi --gpu-reset`), or reboot"
    return str(problem), "see whether `nvidia-smi` shows it"
