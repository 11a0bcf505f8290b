"""Facts of a GPU that one can do without, asked so that none of them can stop a board.

A call may fail, be missing in the library, or give nonsense: a text that is no text, a number that
no board has. Then the fact is ``None`` (a text keeps what can be read of it), and what was odd is
remembered, for the doctor and the log. That a board simply does not have a fact is not odd.
"""

from __future__ import annotations

from typing import Any

import pynvml

#: The board has no such fact, its library no such call, or this user may not ask.
_ABSENT = frozenset(
    (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )
)
_TEXT_MAX = 96
_BAD = "\ufffd"


class Facts:
    """Asks one board. ``odd``: the facts that failed or were nonsense, by their names."""

    def __init__(self) -> None:
        self.odd: list[str] = []

    def text(self, what: str, function: Any, *arguments: Any) -> str | None:
        """A text; bytes that are no UTF-8 and signs that cannot be shown are replaced."""
        try:
            raw = function(*arguments)
        except UnicodeDecodeError as error:  # pynvml decodes: the bytes are in its error
            raw = error.object
        except Exception as error:
            self._failed(what, error)
            return None
        text = readable(raw)
        if text is None or _BAD in text:
            self._is_odd(what)
        return text

    def number(self, what: str, most: float, function: Any, *arguments: Any) -> int | None:
        """A number from 1 to ``most``. 0 is how NVML says that it does not know."""
        value = self.any(what, function, *arguments)
        if value is None or value == 0:
            return None
        if not isinstance(value, int) or not 0 < value <= most:
            self._is_odd(what)
            return None
        return value

    def any(self, what: str, function: Any, *arguments: Any) -> Any:
        """Whatever the call gives; ``None`` where it fails."""
        try:
            return function(*arguments)
        except Exception as error:
            self._failed(what, error)
            return None

    def _failed(self, what: str, error: Exception) -> None:
        if getattr(error, "value", None) not in _ABSENT:
            self._is_odd(what)

    def _is_odd(self, what: str) -> None:
        if what not in self.odd:
            self.odd.append(what)


def readable(raw: Any) -> str | None:
    """A text as it can be shown: bounded, bad bytes and control signs replaced; ``None`` where
    nothing is left."""
    text = "".join(sign if sign.isprintable() else _BAD for sign in _plain(raw))
    return text[:_TEXT_MAX].strip() or None


def _plain(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
