"""The engine as a child process: started, its signals forwarded, its exit code ours.

The main thread waits for the signals that it forwards (``signals``): one from the terminal is not
passed on, since the child has it already.

The child stays in our process group and session: job control, ``nohup`` and reading from the
terminal behave as without the meter. It holds the server's own stdio, no pipe of ours, and is not
tied to our life: killed, we leave it serving.
What it leaves behind at its end is ended too: see ``family``.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

from meter.runtime.family import adopt_orphans, reap
from meter.runtime.signals import FORWARDED, FROM_KERNEL, next_signal

_POLL_S = 0.5


class CommandError(Exception):
    """The command cannot be started; ``code`` is what a shell would exit with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Child:
    """A started command. All methods belong to the main thread."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def start(
        cls, command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int] = ()
    ) -> Child:
        """Start ``command`` with our stdio. Raises ``CommandError``."""
        path = shutil.which(command[0], path=environ.get("PATH"))
        if path is None:
            exists = os.path.exists(command[0]) and os.sep in command[0]  # noqa: PTH110
            raise CommandError(
                f"{command[0]}: {'not executable' if exists else 'command not found'}",
                126 if exists else 127,
            )
        adopt_orphans()
        try:
            # Python ignores two signals; the child starts with the usual ones.
            pid = os.posix_spawn(
                path,
                list(command),
                dict(environ),
                setsigmask=list(mask),
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            raise CommandError(f"{command[0]}: {error.strerror}", 126) from error
        return cls(pid)

    def wait(self, look: Callable[[], None] = lambda: None) -> int:
        """Forward signals until the child ends; returns its code, 128 + n for signal n.

        ``look`` is called about twice a second.
        """
        while True:
            look()
            info = next_signal((*FORWARDED, signal.SIGCHLD), _POLL_S)
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._forward(info)
            status = reap().get(self.pid)
            if status is not None:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _forward(self, info: signal.struct_siginfo) -> None:
        if info.si_code == FROM_KERNEL:
            return
        os.kill(self.pid, info.si_signo)
