"""Standard input, output and error as they may be: closed, full, or broken pipes."""

from __future__ import annotations

import contextlib
import os
import sys


def fill() -> None:
    """Put ``/dev/null`` where one of the three is closed, so that no file of ours takes its number.

    A command that is started inherits none of these: for it the file is as closed as it was.
    """
    with contextlib.suppress(OSError):
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115, PTH123


def settle() -> None:
    """Give up what cannot be written: Python would end with a code of its own (120) for it."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):
            setattr(sys, name, None)
