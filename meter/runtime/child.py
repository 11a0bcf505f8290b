"""The engine as a child process: started, its signals forwarded, its exit code ours.

The main thread waits for the signals that it forwards (``signals``). One that went to the child as
well (from the terminal, or to the whole group or service: ``witness``) is not passed on.

The child stays in our process group and session: job control, ``nohup`` and reading from the
terminal behave as without the meter. It holds the server's own stdio, no pipe of ours, and is not
tied to our life: killed, we leave it serving.
What it leaves behind at its end is ended too: see ``family``.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from meter.runtime.become import adopt_orphans
from meter.runtime.family import reap
from meter.runtime.signals import FORWARDED, FROM_KERNEL, next_signal, stop_as_told
from meter.runtime.witness import Witness

_LOOK_EVERY_S = 0.5
_NO_ROOM = (errno.EAGAIN, errno.ENOMEM)
_POLL_S = 0.05


class CommandError(Exception):
    """The command cannot be started; ``code`` is what a shell would exit with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NoProcessError(CommandError):
    """The machine has no room for one more process of ours."""


class Child:
    """A started command. All methods belong to the main thread."""

    def __init__(self, pid: int, witness: Witness | None = None) -> None:
        self.pid = pid
        self._witness = witness

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        environ: Mapping[str, str],
        mask: Iterable[int] = (),
        witness: Witness | None = None,
    ) -> Child:
        """Start ``command`` with our stdio. Raises ``CommandError``.

        What has come to us before it was there is passed on: it cannot have come to it.
        """
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
            kind = NoProcessError if error.errno in _NO_ROOM else CommandError
            raise kind(f"{command[0]}: {error.strerror}", 126) from error
        child = cls(pid, witness)
        while (early := next_signal(FORWARDED, 0.0)) is not None:
            child._send(early.si_signo)
            if early.si_signo == signal.SIGTSTP:
                stop_as_told()
        if witness is not None:
            witness.forget()
        return child

    def wait(self, look: Callable[[], None] = lambda: None) -> int:
        """Forward signals until the child ends; returns its code, 128 + n for signal n.

        ``look`` is called about twice a second.
        """
        look_s = time.monotonic()
        while True:
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _LOOK_EVERY_S
                look()
            info = next_signal((*FORWARDED, signal.SIGCHLD), _POLL_S)
            if self._witness is not None:
                self._witness.note()
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._forward(info)
            ended = reap()
            if self._witness is not None and self._witness.pid in ended:
                self._witness = None
            if self.pid in ended:
                while next_signal(FORWARDED, 0.0) is not None:
                    pass  # it was meant for the child
                code = os.waitstatus_to_exitcode(ended[self.pid])
                return code if code >= 0 else 128 - code

    def _forward(self, info: signal.struct_siginfo) -> None:
        if not self._has_it(info):
            self._send(info.si_signo)
        if info.si_signo == signal.SIGTSTP:
            stop_as_told()

    def _has_it(self, info: signal.struct_siginfo) -> bool:
        """Whether the child got this signal itself.

        A child that has left our group does not get what goes to the group. It is told then, even
        where it may have been told already: rather twice than never.
        """
        try:
            if os.getpgid(self.pid) != os.getpgrp():
                return False
        except ProcessLookupError:
            return True
        if info.si_code == FROM_KERNEL:
            return True
        return self._witness is not None and self._witness.saw(info.si_signo)

    def _send(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # it has just ended
        except PermissionError:
            structlog.get_logger("joulemeter").warning(
                "signal_not_passed_on",
                signal=number,
                reason="the command runs as another user",
                remedy=f"send it to the command itself: kill -{number} {self.pid}",
            )
