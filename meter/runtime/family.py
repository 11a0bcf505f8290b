"""All that the command has started: adopted when it loses its parent, ended when the command has.

Servers that die hard leave workers, which then hold the GPUs. We are a *subreaper*: a descendant
without a parent becomes our child. What is left when the command has ended gets SIGTERM, and
SIGKILL after a few seconds, or at the next signal to us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import psutil
import structlog

from meter.runtime.signals import next_signal

GRACE_S = 5.0
_KILLED_WITHIN_S = 2.0
_LOOK_S = 0.1


def reap() -> dict[int, int]:
    """The children that have ended since the last time, adopted ones too: pid to status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = status
    return ended


def end_the_rest(hurry: Iterable[int], grace_s: float = GRACE_S, spared: int | None = None) -> None:
    """End every descendant that still runs, and say so. ``hurry``: blocked signals that cut the
    grace short; ``spared``: a child that is our own, not the command's."""
    left = _descendants(spared)
    if not left:
        return
    structlog.get_logger("joulemeter").warning(
        "left_behind",
        processes=len(left),
        names=sorted({name for process in left if (name := _name(process))}),
        note="the command has ended, so they are ended too",
    )
    _send(left, signal.SIGTERM)
    if _gone_within(grace_s, {*hurry}, spared):
        return
    deadline_s = time.monotonic() + _KILLED_WITHIN_S
    while time.monotonic() < deadline_s:  # who is being killed may still have forked
        _send(_descendants(spared), signal.SIGKILL)
        if _gone_within(_LOOK_S, set(), spared):
            return


def _descendants(spared: int | None) -> list[psutil.Process]:
    reap()
    try:
        return [p for p in psutil.Process().children(recursive=True) if p.pid != spared]
    except (psutil.Error, OSError):  # gone, or no file to spare
        return []


def _name(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except (psutil.Error, OSError):
        return None


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            process.send_signal(number)


def _gone_within(seconds: float, hurry: set[int], spared: int | None) -> bool:
    """Wait until no descendant is left; false after so long, or at a signal of ``hurry``."""
    deadline_s = time.monotonic() + seconds
    while _descendants(spared):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        info = next_signal({*hurry, signal.SIGCHLD}, min(left_s, _LOOK_S))
        if info is not None and info.si_signo != signal.SIGCHLD:
            return False
    return True
