"""The command in our place, where it cannot be started beside us. Needs nothing but Python."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans(wanted: bool = True) -> None:
    """Linux: descendants that lose their parent become our children. Elsewhere: nothing."""
    with suppress(OSError, AttributeError, ImportError, MemoryError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def without_us(argv: Sequence[str], error: BaseException) -> None:
    """Be the command of ``joulemeter run`` (or ``record``), where not even our command line can be
    had. Returns where these are no words of theirs. Raises ``OSError``."""
    if argv[1:2] not in (["run"], ["record"]) or "--" not in argv[:-1]:
        return
    with suppress(OSError, ValueError):
        said = f"joulemeter: cannot meter: {error!r:.200}; the command runs without\n"
        os.write(2, said.encode(errors="replace"))
    become(argv[argv.index("--") + 1 :], os.environ, ())


def become(command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int]) -> NoReturn:
    """Be the command, in our place, with no meter. Raises ``OSError``."""
    adopt_orphans(False)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set(mask))
    os.execvpe(command[0], list(command), dict(environ))
