"""NVIDIA GPUs through NVML: the total-energy counter, and the power of this instant beside it.

One batched ``nvmlDeviceGetFieldValues`` per device and poll, nothing else in the loop: NVML calls
serialise in the driver. The counter (field 83, mJ since the driver was loaded, Volta and newer)
moves every 100 ms on Hopper. ``nvmlDeviceGetPowerUsage`` is a 1 s mean since Ampere, so the instant
field (186) is read; beside a counter it serves display and cross-check and is never attributed. On
some superchips the GPU scope of a field fails: the energy then cannot be told from the module's,
and the reading says so rather than show another boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import pynvml

from meter.model import Device, Quality, Reading
from meter.power.errors import PowerError
from meter.power.nvml_calls import call, count, optional, processes
from meter.power.nvml_facts import Facts
from meter.power.nvml_find import board_of, examine, select, select_more, uuid_of
from meter.power.nvml_gpu import Gpu
from meter.power.nvml_session import Session


class NvmlSource:
    """The GPUs of this host, or those named in ``devices``.

    ``library``: path of another ``libnvidia-ml.so.1`` (a simulated one), loaded before NVML starts.
    ``devices``: indices, UUIDs or their beginnings, as in ``CUDA_VISIBLE_DEVICES``.
    ``on_host``: how many GPUs NVML shows, metered or not.
    """

    name = "nvml"

    def __init__(self, library: str | None = None, devices: Sequence[str] = ()) -> None:
        self._wanted = tuple(devices)
        self._gpus: dict[str, Gpu] = {}
        self._session = Session(library, self._forget_handles)
        self._open = False
        self._quality = Quality.MEASURED
        self._left_out: tuple[PowerError, ...] = ()
        self.on_host = 0

    def open(self) -> Sequence[Device]:
        """Start NVML and find the devices; raises ``PowerError`` (see ``errors``).

        A GPU beside others that cannot be read is left out, with a warning: a display adapter
        without counter or power for good, a lost board until ``look_again`` finds that it can be
        read. One of the former kind that was asked for is an error.
        """
        self._quality = self._session.start()
        self._open = True
        try:
            found = examine(self._quality)
            self.on_host = len(found)
            gpus, self._left_out = select(found, self._wanted)
        except PowerError:
            self.close()
            raise
        self._gpus = {gpu.device.id: gpu for gpu in gpus}
        return [gpu.device for gpu in gpus]

    @property
    def left_out(self) -> Sequence[str]:
        """Why GPUs are left out that may be read later, one line each."""
        return [str(problem) for problem in self._left_out]

    def look_again(self) -> Sequence[Device]:
        """Of the GPUs that were left out those that can be read now.

        Where NVML says that a GPU is gone, it is started anew before the next time.
        """
        with self._session.call():
            found = examine(self._quality, known=self._gpus)
            self.on_host = max(self.on_host, len(found))
            fresh = [one for one in found if one.gpu is None or one.gpu.device.id not in self._gpus]
            gpus, problems = select_more(fresh, self._wanted)
            self._gpus = {**self._gpus, **{gpu.device.id: gpu for gpu in gpus}}
        # One that is gone may not even be counted: it is still missing.
        missing = len(self._left_out) - len(gpus)
        self._left_out = (*problems, *self._left_out)[: max(0, missing)]
        for problem in self._left_out:
            self._session.failed(getattr(problem.__cause__, "value", 0))
        return [gpu.device for gpu in gpus]

    def read(self, device: str | None = None) -> Sequence[Reading]:
        """One reading of the device, or of each; one that fails has no energy and says why."""
        gpus = self._gpus.values() if device is None else [self._gpus[device]]
        return [self._read(gpu) for gpu in gpus]

    def _read(self, gpu: Gpu) -> Reading:
        failed_before = gpu.code
        with self._session.call():
            reading = gpu.read()
        if gpu.code:
            self._session.failed(gpu.code)
        elif failed_before:
            self._session.worked()
        return reading

    def _forget_handles(self) -> None:
        """Before a restart: each GPU will look its own up again, by its UUID."""
        for gpu in self._gpus.values():
            gpu.handle = None

    def close(self) -> None:
        """Let NVML go, and a library of our own with it."""
        if self._open:
            self._open = False
            self._gpus = {}
            self._session.end()


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
            running = processes(handle) if handle is not None else None
            if running and wanted & set(running):
                found.append(uuid_of(handle, Facts()))
    finally:
        pynvml.nvmlShutdown()
    return found


def boards(names: Iterable[str]) -> tuple[str, ...]:
    """The names, those of MIG instances replaced by their board's UUID (each once).

    A name of which NVML knows no board stays as it is. Uses the library of the open source.
    """
    resolved = list(names)
    if any(name.startswith("MIG-") for name in resolved):
        with suppress(PowerError):
            call("start", pynvml.nvmlInit)
            resolved = [board_of(name) or name for name in resolved]
            pynvml.nvmlShutdown()
    return tuple(dict.fromkeys(resolved))


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
