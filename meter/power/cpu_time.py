"""CPU seconds: of the whole host, and of a process with all that it has started."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

_LIST_EVERY_S = 2.0


def busy_s() -> float:
    """Busy CPU seconds since boot, over all CPUs; what a hypervisor gave to others is not ours."""
    t = psutil.cpu_times()
    elsewhere = ("idle", "iowait", "steal", "guest", "guest_nice")  # guests are in user already
    return float(sum(t)) - sum(getattr(t, field, 0.0) for field in elsewhere)


class TreeTime:
    """CPU seconds of the process ``root`` and of all that it has started, and that has since.

    Without a root it is all that this process (the meter) has started, and not the meter itself.
    Listing processes costs milliseconds, so it is done every two seconds: who came since is counted
    from the next list on, whole. Who ended is in its parent's figures, once that has waited for it.
    """

    def __init__(
        self, root: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = _process(root)
        self._itself = root is not None
        self._clock = clock
        self._listed_s: float | None = None
        self._tree: list[psutil.Process] = []
        self._total_s = 0.0

    def __call__(self) -> float:
        """Never less than before."""
        now_s = self._clock()
        if self._listed_s is None or now_s - self._listed_s >= _LIST_EVERY_S:
            self._listed_s = now_s
            self._tree = self._descendants()
        root_s = _used_s(self._root, self._itself) if self._root is not None else 0.0
        total_s = root_s + sum(_used_s(process) for process in self._tree)
        self._total_s = max(self._total_s, total_s)
        return self._total_s

    def _descendants(self) -> list[psutil.Process]:
        try:
            return self._root.children(recursive=True) if self._root is not None else []
        except psutil.Error:
            return []


def _process(pid: int | None) -> psutil.Process | None:
    """The process (``None``: our own); nothing where it has ended already."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _used_s(process: psutil.Process, itself: bool = True) -> float:
    """What a process used, and its children that have ended; nothing where it is gone."""
    try:
        t = process.cpu_times()
    except psutil.Error:
        return 0.0
    own_s = t.user + t.system if itself else 0.0
    return float(own_s + t.children_user + t.children_system)
