"""Whether a signal that came to us went to the server as well: a witness beside it tells.

``timeout``, ``kill -- -GROUP`` and systemd tell every process of a group or a service; ``docker
stop`` and ``kill PID`` tell us alone. Nothing in a signal says which. So an idle process of ours
lives in the same group, session and service as the server: what has reached it too has reached the
server, and is not passed on. Without it every signal is passed on, as one that came to us alone.

It is forked from us before any thread starts, holds no file of the server's, and ends when we do,
however that is. It has a name of its own, for ``pkill joulemeter`` means us and reaches no server.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from meter.runtime.signals import FORWARDED

NAME = "jm-signal-watch"
#: Who tells the processes one by one is done within so long.
_WITHIN_S = 0.1
#: A signal that the witness has may be followed by ours for so long.
_FRESH_S = 0.25
#: A busy machine may let the witness take so long to tell what it has already.
_PENDING_S = 1.0
_READY_S = 2.0
_LOOK_S = 0.005
_READY = 0
_FILES = 1 << 16
_ARGUMENTS = slice(45, 47)  # arg_start and arg_end of proc(5)'s stat, counted behind the name


class Witness:
    """The process beside the server. Belongs to the main thread."""

    def __init__(self, pid: int, reports: int, life: int) -> None:
        """``reports``: a byte for each signal comes there; ``life``: closed, it ends."""
        self.pid = pid
        self._reports = reports
        self._life = life
        self._seen_s: dict[int, float] = {}
        self._shared_s: dict[int, float] = {}

    @classmethod
    def start(cls) -> Witness | None:
        """Fork it. ``None`` where it cannot be had. The signals are blocked, and there is no other
        thread yet."""
        try:
            made = cls._fork()
        except OSError:
            return None
        if made._is_ready():
            return made
        made.stop()
        return None

    @classmethod
    def _fork(cls) -> Witness:
        reports, report = os.pipe()
        alive, life = os.pipe()
        os.set_blocking(reports, False)
        os.set_blocking(report, False)
        try:
            pid = os.fork()
        except OSError:
            for end in (reports, report, alive, life):
                os.close(end)
            raise
        if pid == 0:
            _watch(report, alive)
        os.close(report)
        os.close(alive)
        return cls(pid, reports, life)

    def _is_ready(self) -> bool:
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s:
            with suppress(BlockingIOError):
                return os.read(self._reports, 1) == bytes([_READY])
            time.sleep(_LOOK_S)
        return False

    def note(self) -> None:
        """Take what it tells; to be called in every turn, for what is old counts for nothing."""
        with suppress(OSError):
            told = os.read(self._reports, 4096)
            self._seen_s |= dict.fromkeys(told, time.monotonic())

    def forget(self) -> None:
        """What came before the server was there did not reach it."""
        self.note()
        self._seen_s.clear()

    def saw(self, number: int) -> bool:
        """Whether this signal, which has just come to us, came to the witness as well."""
        now_s = time.monotonic()
        # `timeout` tells us first, and then the whole group: we may have it twice, others once.
        if now_s < self._shared_s.get(number, 0.0):
            return True
        deadline_s = now_s + _WITHIN_S
        while True:
            self.note()
            seen_s = self._seen_s.pop(number, None)
            if seen_s is not None and seen_s > now_s - _FRESH_S:
                self._shared_s[number] = time.monotonic() + _WITHIN_S
                return True
            late_s = time.monotonic() - deadline_s
            if late_s > _PENDING_S or (late_s > 0 and not self._has_pending(number)):
                return False
            time.sleep(_LOOK_S)

    def _has_pending(self, number: int) -> bool:
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("SigPnd", "ShdPnd") and int(value, 16) & 1 << (number - 1):
                    return True
        return False

    def stop(self) -> None:
        """End it, and wait for that."""
        for end in (self._life, self._reports):
            with suppress(OSError):
                os.close(end)
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _watch(report: int, alive: int) -> None:
    """The witness's whole life: Python's own handler writes each signal's number to ``report``."""
    try:
        _close_all_but(report, alive)
        _rename(NAME.encode())
        for number in FORWARDED:
            signal.signal(number, _nothing)
        signal.set_wakeup_fd(report, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {*FORWARDED})
        os.write(report, bytes([_READY]))
        os.read(alive, 1)  # until we are gone
    finally:
        os._exit(0)


def _nothing(*_: object) -> None:
    pass


def _close_all_but(*kept: int) -> None:
    begin = 0
    for end in (*sorted(kept), max(_FILES, os.sysconf("SC_OPEN_MAX"))):
        os.closerange(begin, end)
        begin = end + 1


def _rename(name: bytes) -> None:
    """Another name and command line than ours, which this process has by its birth."""
    Path("/proc/self/comm").write_bytes(name)
    start, end = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[_ARGUMENTS]
    size = int(end) - int(start)
    if size > len(name):
        ctypes.memset(int(start), 0, size)
        ctypes.memmove(int(start), name, len(name))
    if Path("/proc/self/cmdline").read_bytes().rstrip(b"\0") != name:
        raise OSError("the command line is still ours")
