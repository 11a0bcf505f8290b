"""Where memory is limited: whether what the meter is made of can be had, found out in a child.

OpenBLAS, numpy's own, ends the process where it gets no memory, with no error that could be caught;
the command would never be started. So a child tries first.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

#: A limit beyond this is no matter; below it there must be so much to spare.
_LIMIT_BYTES = 4 << 30
_SPARE_BYTES = 64 << 20
_WITHIN_S = 20.0
_LOOK_S = 0.005


def is_limited() -> bool:
    """Whether this process may have so little memory that an import may fail."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY and limit < _LIMIT_BYTES for limit in limits)


def can(attempt: Callable[[], None], within_s: float = _WITHIN_S) -> bool:
    """Whether ``attempt`` succeeds in a child of ours, and leaves memory to spare.

    False too where it takes longer, or there is no room for a child. Call it before there are
    threads.
    """
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        _try(attempt)
    end_s = time.monotonic() + within_s
    while True:
        with suppress(InterruptedError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > end_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(_LOOK_S)


def _try(attempt: Callable[[], None]) -> None:
    """In the child: what it has to say nobody needs."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (1, 2):
            os.dup2(nothing, standard)
        attempt()
        bytearray(_SPARE_BYTES)
        code = 0
    finally:
        os._exit(code)
