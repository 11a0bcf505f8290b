"""One bounded interner per label whose values users choose (models by adapters, tenants)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

OTHER = "other"


class Interner:
    """Admits the first ``cap`` distinct values of a label; later ones all become ``other``.

    A value once admitted stays, so that no series changes its meaning. ``overflow`` counts the
    distinct values turned away, as far as ``remembered`` reaches.
    """

    def __init__(self, cap: int = 100, remembered: int = 100_000) -> None:
        self._cap = cap
        self._remembered = remembered
        self._labels: dict[str, str] = {"": ""}
        self._admitted = 0
        self.overflow = 0

    def admit(self, values: Iterable[str]) -> None:
        """Make labels for values not seen before, in their order."""
        for value in values:
            if value in self._labels:
                continue
            if self._admitted < self._cap:
                self._admitted += 1
                self._labels[value] = value
                continue
            if len(self._labels) < self._remembered:
                self._labels[value] = OTHER
                self.overflow += 1

    def label(self, value: str) -> str:
        """The label of one value, admitting it where there is room."""
        self.admit([value])
        return self._labels.get(value, OTHER)

    def labels(self) -> Mapping[str, str]:
        """An immutable copy: the label of each value; one that is absent is ``other``."""
        return MappingProxyType(dict(self._labels))
