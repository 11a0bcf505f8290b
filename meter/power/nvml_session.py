"""NVML while it is open: who is in a call, and how it is started anew when its driver was reloaded.

Calls come from one thread for each GPU. Starting anew takes the library away from under every call,
so it is done only while nobody is in one: where a call hangs in the driver, it waits. A GPU that
stays lost would have the others restarted with it again and again: the pauses double, to a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pynvml
import structlog

from meter.model import Quality
from meter.power.errors import nvml_error
from meter.power.nvml_calls import start, use_library

_FIRST_PAUSE_NS = 500_000_000
_LONGEST_PAUSE_NS = 60_000_000_000
#: Codes after which a new start may help: uninitialised, invalid argument (an old handle), not
#: found, driver not loaded, GPU lost, other version than the driver, unknown (a cgroup that lost
#: its devices).
_HELPS = frozenset((1, 2, 6, 9, 15, 18, 999))


class Session:
    """NVML from ``start`` to ``end``. ``forget`` drops all handles: a restart voids them."""

    def __init__(
        self,
        library: str | None,
        forget: Callable[[], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._library = library
        self._forget = forget
        self._clock = clock
        self._lock = threading.Lock()
        self._calls = 0
        self._started = False
        self._pause_ns = _FIRST_PAUSE_NS
        self._due_ns = 0

    def start(self) -> Quality:
        """Load and start NVML. Raises ``PowerError``."""
        quality = start(self._library)
        self._started = True
        return quality

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call into NVML happens inside: nothing is restarted meanwhile."""
        with self._lock:
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1

    def failed(self, code: int) -> None:
        """A call failed with this NVML code: start anew where that may help and is due."""
        if code not in _HELPS or not self._lock.acquire(blocking=False):
            return
        try:
            if self._calls == 0 and self._clock() >= self._due_ns:
                self._restart()
        finally:
            self._lock.release()

    def worked(self) -> None:
        """A call that had failed works again: the next failure is the first one."""
        self._pause_ns = _FIRST_PAUSE_NS

    def _restart(self) -> None:
        log = structlog.get_logger("joulemeter.power")
        self._shut_down()
        self._forget()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("nvml_not_restarted", reason=str(nvml_error("nvmlInit", error)))
        else:
            self._started = True
            log.warning("nvml_restarted", note="the driver was reloaded, or a GPU was lost")
        self._due_ns = self._clock() + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _LONGEST_PAUSE_NS)

    def _shut_down(self) -> None:
        if self._started:
            self._started = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def end(self) -> None:
        """Let NVML go, and a library of our own with it; not while a call hangs in it."""
        with self._lock:
            if self._calls:
                return
        self._shut_down()
        if self._library is not None:
            use_library(None)
