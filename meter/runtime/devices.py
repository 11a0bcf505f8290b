"""Which devices an engine owns.

``CUDA_VISIBLE_DEVICES`` names them where nothing is configured. Its indices are taken as NVML's,
which holds where ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` or all GPUs are alike. Where that is not set
either, they are those on which the engine's processes compute, if the driver tells. It is given a
second: who asks must go on hearing the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

from meter.model import Device
from meter.power.errors import PowerError
from meter.power.nvml import boards, devices_of, visible_devices
from meter.power.patience import NoAnswerError, ask

CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
_ANSWER_WITHIN_S = 1.0


def wanted(
    power: Sequence[str], engine: Sequence[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """The names of the devices to meter: as configured, else those the command may use, else
    all (empty)."""
    return tuple(power) or tuple(engine) or visible_devices(environ.get(CUDA_VARIABLE)) or ()


def owned(
    found: Sequence[Device],
    configured: Sequence[str],
    cuda_visible: str | None,
    pid: int | None = None,
) -> tuple[str, ...]:
    """The ids of the devices that an engine owns, of those found; all where nothing narrows it.

    ``pid``: a process of the engine whose children are its workers.
    """
    names = tuple(configured) or visible_devices(cuda_visible) or ()
    with suppress(NoAnswerError):
        names = ask(lambda: boards(names), _ANSWER_WITHIN_S)
    ids = tuple(device.id for device in found if any(is_named(device, name) for name in names))
    return ids or _computed_on(found, pid) or tuple(device.id for device in found)


def _computed_on(found: Sequence[Device], pid: int | None) -> tuple[str, ...]:
    """The devices on which this process and its children compute; none where it cannot be told
    (the driver does not list them, or the PID is of another namespace)."""
    if pid is None or len(found) < 2:
        return ()
    try:
        children = psutil.Process(pid).children(recursive=True)
        pids = [pid, *(child.pid for child in children)]
        used = ask(lambda: devices_of(pids), _ANSWER_WITHIN_S)
    except (PowerError, psutil.Error, NoAnswerError):
        return ()
    return tuple(device.id for device in found if device.id in used)


def is_named(device: Device, name: str) -> bool:
    """Whether ``name`` is the device's index, its id, or a beginning of its id (as CUDA allows)."""
    return name in (device.index, device.id) or (len(name) > 4 and device.id.startswith(name))
