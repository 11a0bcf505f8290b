"""A question to a driver that may never answer, asked on a thread that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """It did not answer in time; its thread goes on waiting, alone."""


class Question(Generic[T]):
    """A question that is being asked, from the beginning on, on a thread of its own."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._find, name="patience", daemon=True)
        self._thread.start()

    def _find(self) -> None:
        try:
            self._value.append(self._question())
        except BaseException as error:
            self._error = error

    @property
    def is_open(self) -> bool:
        """Has it not been answered yet?"""
        return self._thread.is_alive()

    def answer(self, within_s: float | None) -> T:
        """The answer (``None``: however long it takes). Raises what the question raises, or
        ``NoAnswerError``."""
        self._thread.join(within_s)
        if self._error is not None:
            raise self._error
        if not self._value:
            raise NoAnswerError(f"no answer within {within_s:g} s")
        return self._value[0]


def ask(question: Callable[[], T], within_s: float) -> T:
    """The answer. Raises what the question raises, or ``NoAnswerError``."""
    return Question(question).answer(within_s)
