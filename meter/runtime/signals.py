"""The signals that we take in place of the engine: blocked, and waited for.

That leaves no handler to race with, and tells who sent a signal: one from the terminal (Ctrl-C)
comes from the kernel and went to the whole foreground group, so the child has it already; one from
``kill``, systemd or a container runtime came to us alone.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
FROM_KERNEL = 0x80
_TURN_S = 0.05


def block_signals() -> set[signal.Signals]:
    """Block the signals to forward. Call it before any thread starts: threads inherit the mask.

    Returns the mask before, which the child gets.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    return {signal.Signals(number) for number in before}


def next_signal(numbers: Iterable[signal.Signals], within_s: float) -> signal.struct_siginfo | None:
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
