"""An address's parameters: what is not known is refused, with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


class QueryError(ValueError):
    """A query that cannot be answered: its field, what is wrong with it, and what it may be."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.remedy = remedy


def only(given: Mapping[str, str], names: Sequence[str]) -> Mapping[str, str]:
    """``given``, of which every parameter is one of ``names``. Raises ``QueryError``."""
    for name in given:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, 1)
            known = f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(names)}."
            raise QueryError(name[:100], "no such parameter", known)
    return given


def whole(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A whole number within bounds. Raises ``QueryError``."""
    text = given.get(name, str(default))
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise QueryError(name, f"{text[:100]!r}", f"Give a whole number from {least} to {most}.")
    return int(text)
