"""The signals that we take in place of the engine: blocked, and waited for.

That leaves no handler to race with, and tells who sent a signal: one from the terminal (Ctrl-C)
comes from the kernel and went to the whole foreground group, so the child has it already. One from
``kill``, systemd or a container runtime came to us alone, or to every process of a group or a
service: ``witness`` tells which.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

#: What ends a process that does not handle it, as far as people and supervisors send it.
ENDING: tuple[int, ...] = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGPWR,  # a container runtime that stops its machine (LXC, systemd-nspawn)
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
#: All that is passed on: those, the terminal's stop, going on after it, and a new window size.
FORWARDED: tuple[int, ...] = (*ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
FROM_KERNEL = 0x80
_TURN_S = 0.05


def block_signals(numbers: Iterable[int] = FORWARDED) -> set[int]:
    """Block these signals. Call it before any thread starts: threads inherit the mask.

    Returns the mask before, which the child gets.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*numbers, signal.SIGCHLD})
    return {int(number) for number in before}


def heeded(numbers: Iterable[int] = ENDING) -> set[int]:
    """Those that we were not started to ignore (``nohup`` has SIGHUP ignored)."""
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


def next_signal(numbers: Iterable[int], within_s: float) -> signal.struct_siginfo | None:
    """One of these blocked signals; ``None`` where none comes within so long.

    In short turns: ``sigtimedwait`` with a timeout, interrupted by a stop (SIGSTOP, Ctrl-Z) that
    outlasts it, gives a random signal (Python 3.11): that once ended the engine.
    """
    wanted = set(numbers)
    deadline_s = time.monotonic() + within_s
    while True:
        info = signal.sigtimedwait(wanted, 0)
        left_s = deadline_s - time.monotonic()
        if info is not None or left_s <= 0:
            return info
        time.sleep(min(_TURN_S, left_s))


def stop_as_told() -> None:
    """Stop as SIGTSTP (Ctrl-Z) stops who does not handle it; returns when we go on.

    Sent anew rather than replaced by SIGSTOP: where nobody could let us go on (no shell), the
    kernel passes over it.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
