"""NVIDIA GPUs through NVML: the total-energy counter, and the power of this instant beside it.

One batched ``nvmlDeviceGetFieldValues`` per device and poll, nothing else in the loop: NVML calls
serialise in the driver. The counter (field 83, mJ since the driver was loaded, Volta and newer)
moves every 100 ms on Hopper. ``nvmlDeviceGetPowerUsage`` is a 1 s mean since Ampere, so the instant
field (186) is read; beside a counter it serves display and cross-check and is never attributed. On
some superchips the GPU scope of a field fails: the energy then cannot be told from the module's,
and the reading says so rather than show another boundary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pynvml

from meter.model import Device, Quality, Reading
from meter.power.errors import PowerError, ReadError
from meter.power.nvml_calls import call, count, optional, processes
from meter.power.nvml_facts import Facts
from meter.power.nvml_find import Asked, board_of, choose, examine, say_what_figures_are, uuid_of
from meter.power.nvml_gpu import Gpu
from meter.power.nvml_session import Session


class NvmlSource:
    """The GPUs of this host, or those named in ``devices``.

    ``library``: path of another ``libnvidia-ml.so.1`` (a simulated one), loaded before NVML starts.
    ``devices``: indices, UUIDs or their beginnings, as in ``CUDA_VISIBLE_DEVICES``; ``as_cuda``:
    they are that list, which ends at the first that is no GPU.
    ``on_host``: how many GPUs NVML shows, metered or not; ``kinds``: their names.
    """

    name = "nvml"

    def __init__(
        self, library: str | None = None, devices: Sequence[str] = (), as_cuda: bool = False
    ) -> None:
        self._wanted = tuple(devices)
        self._as_cuda = as_cuda
        self._gpus: dict[str, Gpu] = {}
        self._session = Session(library, self._forget_handles)
        self._open = False
        self._quality = Quality.MEASURED
        self._left_out: tuple[PowerError, ...] = ()
        self._never: tuple[PowerError, ...] = ()
        self._looking = threading.Lock()
        self._asked: Asked = {}
        self.on_host = 0
        self.kinds: frozenset[str] = frozenset()

    def open(self) -> Sequence[Device]:
        """Start NVML and find the devices; raises ``PowerError`` (see ``errors``).

        A GPU beside others that cannot be read is left out, with a warning: one without counter
        and power for good, any other until ``look_again`` finds that it can be read. After an error
        that may pass ``look_again`` opens it anew.
        """
        try:
            self._quality = self._session.start()
            self._open = True
            found = examine(self._quality, calls=self._session.call, asked=self._asked)
            self.on_host = len(found)
            self.kinds = frozenset(one.gpu.device.name for one in found if one.gpu is not None)
            choice = choose(found, self._wanted, self._as_cuda)
        except PowerError as error:
            self.close()
            self._left_out = (error,)
            raise
        self._gpus = {gpu.device.id: gpu for gpu in choice.gpus}
        self._left_out, self._never = choice.waiting, choice.never
        return [gpu.device for gpu in choice.gpus]

    @property
    def left_out(self) -> Sequence[str]:
        """Why GPUs are left out that may be read later, one line each."""
        return [str(problem) for problem in self._left_out]

    @property
    def never(self) -> Sequence[str]:
        """Why GPUs that were asked for never will be read, one line each."""
        return [str(problem) for problem in self._never]

    def described(self, device: str) -> Device:
        """The device as it is now: how its energy is had may change."""
        return self._gpus[device].device

    def look_again(self) -> Sequence[Device]:
        """Of the GPUs that were left out those that can be read now.

        Where NVML says that a GPU is gone, it is started anew before the next time. Raises
        ``PowerError`` where there is still none at all.
        """
        if not self._open:
            return self.open()
        fresh, problems = self._look(self._wanted, self._as_cuda)
        # One that is gone may not even be counted: it is still missing.
        missing = len(self._left_out) - len(fresh)
        self._left_out = (*problems, *self._left_out)[: max(0, missing)]
        for problem in self._left_out:
            self._session.failed(getattr(problem.__cause__, "value", 0))
        return [gpu.device for gpu in fresh]

    def find(self, ids: Sequence[str]) -> Sequence[Device]:
        """The devices of these ids, whether they were asked for or not: those that can be read.

        Raises ``PowerError`` while there is no NVML, or somebody looks already.
        """
        if not self._open:
            raise ReadError("NVML has not been started yet")
        if set(ids) - self._gpus.keys():
            self._look(ids, False)
        return [self._gpus[id].device for id in ids if id in self._gpus]

    def _look(
        self, names: Sequence[str], as_cuda: bool
    ) -> tuple[Sequence[Gpu], Sequence[PowerError]]:
        """GPUs of these names that are not known yet; and why others are not to be had."""
        if not self._looking.acquire(blocking=False):
            raise ReadError("the GPUs are being looked for already")
        try:
            return self._look_alone(names, as_cuda)
        finally:
            self._looking.release()

    def _look_alone(
        self, names: Sequence[str], as_cuda: bool
    ) -> tuple[Sequence[Gpu], Sequence[PowerError]]:
        with self._session.call():
            found = examine(self._quality, self._gpus, self._session.call, self._asked)
            self.on_host = max(self.on_host, len(found))
            try:
                choice = choose(found, names, as_cuda, aloud=False)
            except PowerError as error:
                return [], [error]
            fresh = [gpu for gpu in choice.gpus if gpu.device.id not in self._gpus]
            self._gpus = {**self._gpus, **{gpu.device.id: gpu for gpu in fresh}}
        say_what_figures_are(fresh)
        return fresh, choice.waiting

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


def processes_by_board() -> dict[str, frozenset[int]]:
    """The processes that compute on each GPU, by its UUID
    (``nvidia-smi --query-compute-apps=gpu_uuid,pid``). Raises ``PowerError``.

    Asked once when an engine is found, never in the loop: listing processes takes milliseconds and
    holds the driver's lock. Uses the library of the open ``NvmlSource``. A GPU that does not list
    its processes is left out.
    """
    found: dict[str, frozenset[int]] = {}
    call("start", pynvml.nvmlInit)  # NVML counts its users: ours is one more
    try:
        for index in range(count()):
            handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
            running = processes(handle) if handle is not None else None
            if running:
                with suppress(PowerError):
                    found[uuid_of(handle, Facts())] = frozenset(running)
    finally:
        optional(pynvml.nvmlShutdown)
    return found


def devices_of(pids: Iterable[int]) -> list[str]:
    """UUIDs of the GPUs on which these processes compute. Raises ``PowerError``."""
    wanted = set(pids)
    return [uuid for uuid, running in processes_by_board().items() if running & wanted]


def boards(names: Iterable[str]) -> tuple[str, ...]:
    """The names, those of MIG instances replaced by their board's UUID (each once).

    A name of which NVML knows no board stays as it is. Uses the library of the open source.
    """
    resolved = list(names)
    if any(name.startswith("MIG-") for name in resolved):
        with suppress(PowerError):
            call("start", pynvml.nvmlInit)
            try:
                resolved = [board_of(name) or name for name in resolved]
            finally:
                optional(pynvml.nvmlShutdown)
    return tuple(dict.fromkeys(resolved))
