"""Which devices an engine owns.

The driver is asked first: it lists the processes that compute on each GPU. Where it tells nothing
(they have not begun, or their pids are another namespace's), ``CUDA_VISIBLE_DEVICES`` says which,
else all are its own. That variable's numbers are taken as NVML's, which need not be CUDA's
(``meter.power.visible``): where the list of processes says otherwise it is believed, that is said,
and the GPUs on it are metered instead of those. Devices that are configured are the engine's
whatever the driver lists. The driver is given a second: who asks must go on hearing the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil
import structlog

from meter.model import Device
from meter.power.errors import PowerError
from meter.power.nvml import boards, processes_by_board
from meter.power.patience import NoAnswerError, ask
from meter.power.visible import BY_BUS, CUDA_VARIABLE, ORDER_VARIABLE, visible_devices
from meter.work.hello import Hello

_ANSWER_WITHIN_S = 1.0

#: Tells the sampler which devices are used after all, and which are not.
TurnTo = Callable[[Sequence[str], Sequence[str]], None]


class Wanted(NamedTuple):
    """The names of the GPUs to meter; none: all.

    ``as_cuda``: they are CUDA's list, which ends at the first that is no GPU; ``none``: that list
    is there and names none, so no GPU is this server's.
    """

    names: tuple[str, ...] = ()
    as_cuda: bool = False
    none: bool = False


def wanted(power: Sequence[str], engine: Sequence[str], environ: Mapping[str, str]) -> Wanted:
    """As configured, else those the command may use, else all."""
    configured = tuple(power) or tuple(engine)
    visible = visible_devices(environ.get(CUDA_VARIABLE))
    if configured or visible is None:
        return Wanted(configured)
    return Wanted(visible, as_cuda=True, none=not visible)


def owned(
    found: Sequence[Device],
    configured: Sequence[str],
    cuda_visible: str | None,
    pid: int | None = None,
    ranks: int | None = None,
) -> tuple[str, ...]:
    """The ids of the devices that an engine owns, of those found (or used).

    ``pid``: a process of the engine whose children are its workers; ``ranks``: on how many GPUs it
    computes, where that is known.
    """
    named = named_devices(found, configured, cuda_visible)
    used = () if configured else used_devices(found, pid, ranks)
    return used or named


def named_devices(
    found: Sequence[Device], configured: Sequence[str], cuda_visible: str | None
) -> tuple[str, ...]:
    """The devices that are named; all where nothing names any. A host's CPU is every engine's."""
    visible = tuple(configured) or visible_devices(cuda_visible)
    if visible is None:
        return tuple(device.id for device in found)
    names: tuple[str, ...] = visible
    with suppress(NoAnswerError):
        names = ask(lambda: boards(visible), _ANSWER_WITHIN_S)
    return tuple(
        device.id
        for device in found
        if device.boundary != "gpu" or any(is_named(device, name) for name in names)
    )


def used_devices(
    found: Sequence[Device], pid: int | None, ranks: int | None = None
) -> tuple[str, ...]:
    """The GPUs on which this process and its children compute, found or not; none where that cannot
    be told, or where not all of its ranks have begun."""
    if pid is None or not any(device.boundary == "gpu" for device in found):
        return ()
    try:
        children = psutil.Process(pid).children(recursive=True)
        pids = {pid, *(child.pid for child in children)}
        listed = ask(processes_by_board, _ANSWER_WITHIN_S)
    except (PowerError, psutil.Error, NoAnswerError):
        return ()
    if not all(psutil.pid_exists(one) for running in listed.values() for one in running):
        return ()  # pids of another namespace, which may be ours by chance
    used = {id for id, running in listed.items() if running & pids}
    if len(used) < (ranks or 1):
        return ()
    known = [device.id for device in found if device.id in used]
    return (*known, *sorted(used.difference(known)))


def is_named(device: Device, name: str) -> bool:
    """Whether ``name`` is the device's index, its id, or a beginning of its id (as CUDA allows)."""
    return name in (device.index, device.id) or (len(name) > 4 and device.id.startswith(name))


class Claims:
    """Which devices each engine that is heard owns, one after the other as they speak.

    ``found``: all devices that are there now; ``environ``: the command's; ``turn_to``: called where
    an engine computes on other GPUs than its list was taken for.
    """

    def __init__(
        self,
        found: Callable[[], Sequence[Device]],
        configured: Sequence[str],
        environ: Mapping[str, str],
        turn_to: TurnTo | None = None,
    ) -> None:
        self._found = found
        self._configured = tuple(configured)
        self._visible = environ.get(CUDA_VARIABLE)
        self._turn_to = turn_to
        self._owned: dict[str, tuple[str, ...]] = {}
        self._said: set[tuple[str, ...]] = set()

    def of_command(self, pid: int | None = None) -> tuple[str, ...] | None:
        """Those of an engine that says nothing of itself; ``pid``: its server's, where known.

        ``None``: that cannot be told yet.
        """
        found = self._found()
        return self._told(owned(found, self._configured, self._visible, pid), found, self._visible)

    def __call__(self, hello: Hello) -> tuple[str, ...] | None:
        """Those of the engine that says so of itself; ``None``: that cannot be told yet."""
        found = self._found()
        visible = hello.cuda_visible_devices
        visible = self._visible if visible is None else visible
        named = named_devices(found, self._configured, visible)
        used = used_devices(found, hello.pid, _ranks(hello))
        if used and not set(used) <= set(named):
            self._disagree(hello, visible, named, used)
        ids = named if self._configured or not used else used
        self._owned[hello.source] = ids
        return self._told(ids, found, visible)

    def _told(
        self, ids: tuple[str, ...], found: Sequence[Device], visible: str | None
    ) -> tuple[str, ...] | None:
        """None is an answer where the list names none, or other GPUs than are there; where no GPU
        was found yet, nobody knows."""
        names_none = not self._configured and visible_devices(visible) == ()
        if ids or names_none or any(device.boundary == "gpu" for device in found):
            return ids
        return None

    def _disagree(
        self, hello: Hello, visible: str | None, named: Sequence[str], used: Sequence[str]
    ) -> None:
        if (hello.source, *used) not in self._said:
            self._said.add((hello.source, *used))
            structlog.get_logger("joulemeter.engine").warning(
                "gpus_disagree",
                engine=hello.engine,
                named=",".join(self._configured) or visible,
                taken_for=list(named),
                computes_on=list(used),
                note="as configured" if self._configured else "the driver's list is believed",
                remedy="correct the configured devices"
                if self._configured
                else f"set {ORDER_VARIABLE}={BY_BUS}, or name GPUs by their UUIDs",
            )
        if self._turn_to is not None and not self._configured:
            others = {
                id for source, ids in self._owned.items() if source != hello.source for id in ids
            }
            self._turn_to(used, [id for id in named if id not in used and id not in others])


def _ranks(hello: Hello) -> int | None:
    """On how many GPUs it computes, where it says so."""
    if hello.tp is None and hello.pp is None:
        return None
    return max(1, hello.tp or 1) * max(1, hello.pp or 1)
