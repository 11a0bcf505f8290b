"""A question to a driver that may never answer, asked on a thread that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """It did not answer in time; its thread goes on waiting, alone."""


class _Answer(Generic[T]):
    """What came of a question: a value, or what it raised."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self.value: list[T] = []
        self.error: BaseException | None = None

    def find(self) -> None:
        try:
            self.value.append(self._question())
        except BaseException as error:
            self.error = error


def ask(question: Callable[[], T], within_s: float) -> T:
    """The answer. Raises what the question raises, or ``NoAnswerError``."""
    answer = _Answer(question)
    thread = threading.Thread(target=answer.find, name="patience", daemon=True)
    thread.start()
    thread.join(within_s)
    if answer.error is not None:
        raise answer.error
    if not answer.value:
        raise NoAnswerError(f"no answer within {within_s:g} s")
    return answer.value[0]
