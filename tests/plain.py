"""Walks through whatever is published, kept or written, down to its leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

_PLAIN = (int, float, str, bool, type(None), Decimal)
_PLAIN_KINDS = (StrEnum, Path)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf with its path; keys are leaves too."""
    if is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from leaves(getattr(value, one.name), f"{path}.{one.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(key, f"{path}.keys")
            yield from leaves(inner, f"{path}[{key}]")
    elif isinstance(value, list | tuple | Set):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def not_plain(value: object) -> set[str]:
    """What is none of Python's own types, such as a number of numpy's: with its type."""
    return {
        f"{path}: {type(leaf).__module__}.{type(leaf).__name__}"
        for path, leaf in leaves(value)
        if type(leaf) not in _PLAIN and not isinstance(leaf, _PLAIN_KINDS)
    }
