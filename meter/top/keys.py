"""Single keys from a terminal, without Enter and without waiting."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from collections.abc import Iterator
from typing import Any

_NAMES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "pgup",
    b"\x1b[6~": "pgdn",
    b"\x1b": "esc",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x03": "ctrl-c",
}


def split(data: bytes) -> Iterator[str]:
    """The keys in what a terminal sent at once; escape sequences that are not known are dropped."""
    while data:
        known = next((code for code in _NAMES if len(code) > 1 and data.startswith(code)), None)
        if known is not None:
            yield _NAMES[known]
            data = data[len(known) :]
        elif data.startswith((b"\x1b[", b"\x1bO")):
            end = next((i for i, byte in enumerate(data[2:], 2) if 0x40 <= byte <= 0x7E), len(data))
            data = data[end + 1 :]
        elif data[:1] in _NAMES:
            yield _NAMES[data[:1]]
            data = data[1:]
        else:
            size = _width(data[0])
            with contextlib.suppress(UnicodeDecodeError):
                yield data[:size].decode()
            data = data[size:]


def _width(first: int) -> int:
    """Bytes of a UTF-8 character by its first."""
    if first < 0xC0 or first > 0xF4:  # a character of one byte, or none at all
        return 1
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4


class Keyboard:
    """A terminal in cbreak mode while it is open; what it was before comes back at the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] = []

    def __enter__(self) -> Keyboard:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        # Ctrl-C is a key as any other, so that the screen is always left in order.
        now = termios.tcgetattr(self._fd)
        now[3] &= ~termios.ISIG
        termios.tcsetattr(self._fd, termios.TCSANOW, now)
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def read(self, timeout_s: float) -> list[str]:
        """The keys pressed, after no more than ``timeout_s``; ``ctrl-c`` where the terminal is
        gone."""
        ready, _, _ = select.select([self._fd], [], [], timeout_s)
        if not ready:
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        return list(split(data)) if data else ["ctrl-c"]
