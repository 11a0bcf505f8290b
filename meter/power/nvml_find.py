"""Which GPUs NVML shows, what they are, and which of them were asked for.

MIG instances and vGPUs are shown for what they are. Energy and power are the whole board's, and
only its own handle has them: an instance that is asked for stands for its board, which is metered
once, however many of its instances are. A vGPU's host seldom lets its guests see energy or power;
where it does, the figures are the board's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import pynvml
import structlog

from meter.model import Device, Quality
from meter.power.errors import (
    NoDeviceError,
    PowerError,
    ReadError,
    nvml_error,
)
from meter.power.nvml_calls import call, count, optional
from meter.power.nvml_facts import Facts, readable
from meter.power.nvml_gpu import Gpu, Way, best_way, is_on_module
from meter.power.patience import NoAnswerError, Question

_VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU: this machine is a guest that has a part of a board
_MIG_OFF, _MIG_ON = 0, 1
#: A board without a readable UUID is named so, with its place on the bus.
PCI = "PCI-"
_PCI_SIGNS = frozenset("0123456789abcdef:.")
_NOT_IN_NAMES = frozenset(" /\\\"'")
#: Beyond these a figure is nonsense: what no board has, generously.
_LIMIT_MW_MIN, _LIMIT_MW_MAX = 3_000, 20_000_000
_CLOCK_MHZ_MAX = 50_000
_BUS_BITS_MAX = 131_072
_INSTANCES_MAX = 64
#: So long a board may take to be described, where there are others.
_BOARD_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """A GPU that NVML counts: what is known of it, and why it cannot be metered (if so).

    ``odd``: the facts that could not be read, or were nonsense; ``instances``: its MIG instances.
    """

    index: str
    gpu: Gpu | None
    problem: PowerError | None
    odd: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.index} ({self.gpu.device.id if self.gpu else 'unreadable'})"

    def is_named(self, name: str) -> bool:
        """By its index, its UUID or the beginning of that, or so by one of its instances."""
        if name == self.index:
            return True
        uuid = self.gpu.device.id if self.gpu else ""
        if (board := _board_in(name)) is not None:
            return bool(uuid) and uuid.startswith(board)
        if name.startswith("MIG-"):
            return any(instance.startswith(name) for instance in self.instances)
        return name.startswith("GPU-") and uuid.startswith(name)


#: Questions to boards that have not been answered yet, by the boards' indices.
Asked = dict[int, Question[Found]]


def examine(
    quality: Quality,
    known: Mapping[str, Gpu] = MappingProxyType({}),
    calls: Callable[[], AbstractContextManager[None]] = nullcontext,
    asked: Asked | None = None,
) -> list[Found]:
    """Every GPU of the host, in NVML's order, with what is wrong with it. Those whose UUID is
    ``known`` are not asked again. Raises ``PowerError`` where NVML itself fails.

    A board that hangs does not hold up the others; where all do, that is waited for. ``calls``:
    entered around what may hang; ``asked``: what still does since an earlier time.
    """
    facts = Facts()
    driver = facts.text("driver version", pynvml.nvmlSystemGetDriverVersion)

    def one(index: int) -> Found:
        with calls():
            return _examine(index, quality, driver, known)

    found: list[Found] = []
    uuids: set[str] = set()
    for board in _in_time(count(), one, {} if asked is None else asked):
        uuid = board.gpu.device.id if board.gpu is not None else None
        odd = (*facts.odd, *board.odd)
        if uuid in uuids:
            problem = ReadError(f"GPU {board.index}: it has the UUID of another GPU, {uuid}")
            found.append(Found(board.index, None, problem, odd))
            continue
        uuids |= {uuid} if uuid else set()
        found.append(replace(board, odd=odd))
    return found


def _in_time(number: int, one: Callable[[int], Found], asked: Asked) -> list[Found]:
    """What each board says; of one that does not answer that it did not."""
    found: list[Found] = []
    silent: list[int] = []
    for index in range(number):
        before = asked.get(index)
        if before is not None and before.is_open:
            silent.append(index)
            found.append(_silent(index))
            continue
        asked[index] = Question(partial(one, index))
        try:
            found.append(asked[index].answer(_BOARD_WITHIN_S if number > 1 else None))
        except NoAnswerError:
            silent.append(index)
            found.append(_silent(index))
    if silent and len(silent) == number:  # it is the driver: there is nobody to go on with
        found[silent[0]] = asked[silent[0]].answer(None)
    return found


def _silent(index: int) -> Found:
    said = f"GPU {index}: the driver has not answered for it: does `nvidia-smi` answer?"
    return Found(str(index), None, ReadError(said))


def _examine(index: int, quality: Quality, driver: str | None, known: Mapping[str, Gpu]) -> Found:
    """One board. Whatever goes wrong with it is its own problem."""
    facts = Facts()
    gpu = None
    try:
        handle = call("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = uuid_of(handle, facts)
        if uuid in known:
            instances = tuple(_instances(handle, facts))
            return Found(str(index), known[uuid], None, instances=instances)
        gpu = _describe(index, uuid, handle, quality, driver, facts)
        instances = tuple(_instances(handle, facts))
        gpu.go_by(*_best_way(gpu))
        if is_on_module(gpu):
            gpu.is_on_module()
    except Exception as error:
        kind = type(error) if isinstance(error, PowerError) else ReadError
        problem = kind(f"GPU {index}: {error!s:.300}")
        problem.__cause__ = error.__cause__ or error
        return Found(str(index), gpu, problem, tuple(facts.odd))
    return Found(str(index), gpu, None, tuple(facts.odd), instances)


def uuid_of(handle: Any, facts: Facts) -> str:
    """What names the board: its UUID; where that cannot be read its place on the PCI bus, which
    serves as well as long as the machine runs. Raises ``PowerError`` where it has neither."""
    uuid = facts.text("UUID", pynvml.nvmlDeviceGetUUID, handle)
    if uuid is not None and uuid.isascii() and not set(uuid) & _NOT_IN_NAMES:
        return uuid
    pci = facts.any("PCI address", pynvml.nvmlDeviceGetPciInfo, handle)
    bus = readable(pci.busId) if pci is not None else None
    if bus is None or not set(bus.lower()) <= _PCI_SIGNS:
        raise ReadError("neither its UUID nor its PCI address can be read")
    return f"{PCI}{bus}"


def _describe(
    index: int, uuid: str, handle: Any, quality: Quality, driver: str | None, facts: Facts
) -> Gpu:
    """``nvidia-smi --query-gpu=index,uuid,name,driver_version,enforced.power.limit``."""
    name = facts.text("name", pynvml.nvmlDeviceGetName, handle)
    limit_mw = facts.number(
        "power limit", _LIMIT_MW_MAX, pynvml.nvmlDeviceGetEnforcedPowerLimit, handle
    )
    if limit_mw is not None and limit_mw < _LIMIT_MW_MIN:
        facts.odd.append("power limit")
        limit_mw = None
    clocks_mhz = _max_clocks(handle, facts)
    device = Device(
        id=uuid,
        name=name or "NVIDIA GPU (its name cannot be read)",
        quality=quality,
        index=str(index),
        mem_bandwidth=_bandwidth(handle, clocks_mhz[1], facts),
        power_limit_w=limit_mw / 1000 if limit_mw else None,
        driver=driver,
        clocks_mhz=_application_clocks(handle) or _pair(*clocks_mhz),
        note=_part_of_a_board(handle, facts),
    )
    return Gpu(device, handle)


def _part_of_a_board(handle: Any, facts: Facts) -> str | None:
    """What to say of a board that others share: MIG (``nvidia-smi -L``) or vGPU."""
    mode = facts.any("virtualization mode", pynvml.nvmlDeviceGetVirtualizationMode, handle)
    if mode == _VGPU:
        return "a vGPU: what its host shows of the board, other guests included"
    mode = facts.any("MIG mode", pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] == _MIG_OFF:
        return None
    if mode[0] != _MIG_ON:
        facts.odd.append("MIG mode")
        return None
    number = len(list(_instances(handle, facts)))
    return f"the whole board, shared by {number or 'its'} MIG instances"


def _instances(handle: Any, facts: Facts) -> Iterator[str]:
    """The UUIDs of the board's MIG instances."""
    most = facts.any("MIG instances", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    for i in range(min(most, _INSTANCES_MAX)):
        instance = optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, i)
        if instance is not None:
            yield facts.text("MIG instances", pynvml.nvmlDeviceGetUUID, instance) or "MIG-?"


def _max_clocks(handle: Any, facts: Facts) -> tuple[int | None, int | None]:
    """``nvidia-smi --query-gpu=clocks.max.sm,clocks.max.memory``."""
    ask = pynvml.nvmlDeviceGetMaxClockInfo
    sm_mhz = facts.number("clocks", _CLOCK_MHZ_MAX, ask, handle, pynvml.NVML_CLOCK_SM)
    memory_mhz = facts.number("clocks", _CLOCK_MHZ_MAX, ask, handle, pynvml.NVML_CLOCK_MEM)
    return sm_mhz, memory_mhz


def _application_clocks(handle: Any) -> tuple[int, int] | None:
    """``nvidia-smi --query-gpu=clocks.applications.graphics,clocks.applications.memory``.

    Where the board has them they say more than ``clocks.max.sm`` and ``clocks.max.memory``, which
    never change. Clocks that were locked (``nvidia-smi -lgc``) NVML does not tell.
    """
    facts, ask = Facts(), pynvml.nvmlDeviceGetApplicationsClock
    kinds = (pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_CLOCK_MEM)
    return _pair(*(facts.number("clocks", _CLOCK_MHZ_MAX, ask, handle, kind) for kind in kinds))


def _pair(sm_mhz: int | None, memory_mhz: int | None) -> tuple[int, int] | None:
    return (sm_mhz, memory_mhz) if sm_mhz and memory_mhz else None


def _bandwidth(handle: Any, clock_mhz: int | None, facts: Facts) -> float | None:
    """Peak memory bandwidth in bytes a second: two transfers a clock over the bus's width."""
    ask = pynvml.nvmlDeviceGetMemoryBusWidth
    bits = facts.number("memory bus", _BUS_BITS_MAX, ask, handle)
    return 2e6 * clock_mhz * bits / 8 if clock_mhz and bits else None


def _best_way(gpu: Gpu) -> tuple[Way, int]:
    """How its energy is had; raises where ``nvidia-smi --query-gpu=power.draw`` has nothing
    either."""
    try:
        return best_way(gpu.handle)
    except pynvml.NVMLError as error:
        raise nvml_error("NVML's total-energy field", error) from error


@dataclass(frozen=True, slots=True)
class Choice:
    """The GPUs to meter, of those that there are.

    ``gpus``: in the order in which they were asked for; ``waiting``: why others are not there that
    may come; ``never``: why some that were asked for never will.
    """

    gpus: tuple[Gpu, ...]
    waiting: tuple[PowerError, ...] = ()
    never: tuple[PowerError, ...] = ()


def choose(
    found: Sequence[Found], wanted: Sequence[str], as_cuda: bool = False, aloud: bool = True
) -> Choice:
    """The GPUs of these names, all where none is given.

    ``as_cuda``: the names are CUDA's list, which ends at the first that is no GPU; ``aloud``: who
    is left out is said in the log. Raises ``PowerError`` where no GPU is left.
    """
    if not found:
        raise NoDeviceError("NVML works, but there is no GPU: see `nvidia-smi -L`")
    named, missing = (list(found), []) if not wanted else _named(found, wanted, as_cuda)
    chosen = {one.index: one for one in named}.values()  # a board may be named twice
    gpus = tuple(one.gpu for one in chosen if one.gpu is not None and one.problem is None)
    problems = [one.problem for one in chosen if one.problem is not None]
    waiting = [problem for problem in problems if problem.passes]
    never = [problem for problem in problems if not problem.passes]
    unreadable = any(one.gpu is None for one in found)
    if not as_cuda or not named or unreadable:
        waiting += missing  # CUDA itself does without; but it may be the one that tells nothing
    if not gpus:
        raise (waiting or never)[0]
    if aloud:
        _say(gpus, waiting, never, missing if as_cuda else [])
    return Choice(gpus, tuple(waiting), tuple(never) if wanted else ())


def _named(
    found: Sequence[Found], wanted: Sequence[str], as_cuda: bool
) -> tuple[list[Found], list[PowerError]]:
    """The GPUs of these names; and of names that are no GPU's, why."""
    named: list[Found] = []
    missing: list[PowerError] = []
    for name in wanted:
        try:
            named.append(_match(name, found))
        except NoDeviceError as error:
            missing.append(error)
            if as_cuda:
                break
    return named, missing


def _say(
    gpus: Iterable[Gpu],
    waiting: Iterable[PowerError],
    never: Iterable[PowerError],
    ended: Iterable[PowerError],
) -> None:
    log = structlog.get_logger("joulemeter.power")
    for problem in waiting:
        log.warning("gpu_left_out", reason=str(problem), note="it is tried again")
    for problem in never:
        log.warning("gpu_left_out", reason=str(problem), note="until the meter is started anew")
    for problem in ended:
        log.warning("cuda_list_ends", reason=str(problem), note="CUDA uses the GPUs before it")
    say_what_figures_are(gpus)


def say_what_figures_are(gpus: Iterable[Gpu]) -> None:
    """What is to be known of a board's figures, once for each."""
    log = structlog.get_logger("joulemeter.power")
    for gpu in gpus:
        if gpu.device.note is not None:
            log.warning("gpu_figures", gpu=gpu.device.id, are=gpu.device.note)


def _match(name: str, found: Sequence[Found]) -> Found:
    """The one GPU of this name (``Found.is_named``). Raises ``NoDeviceError``."""
    matches = [one for one in found if one.is_named(name)]
    if len(matches) != 1:
        known = ", ".join(one.label for one in found)
        problem = "names several GPUs" if matches else "is no GPU of this host"
        raise NoDeviceError(f"device {name!r} {problem}; there are: {known}")
    return matches[0]


def _board_in(name: str) -> str | None:
    """The board's UUID that an instance's name of drivers before R470 holds
    (``MIG-<board's UUID>/<GI>/<CI>``); ``None`` for any other name."""
    if not name.startswith("MIG-GPU-"):
        return None
    return name.removeprefix("MIG-").partition("/")[0]


def board_of(name: str) -> str | None:
    """The UUID of the board of a MIG instance, by the instance's UUID or the beginning of it;
    ``None`` where NVML knows none, or several boards. Any other name is its own."""
    if not name.startswith("MIG-"):
        return name
    if (board := _board_in(name)) is not None:
        return board
    found = set()
    for index in range(count()):
        handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is not None and any(
            instance.startswith(name) for instance in _instances(handle, Facts())
        ):
            found.add(optional(pynvml.nvmlDeviceGetUUID, handle))
    return found.pop() if len(found) == 1 else None
