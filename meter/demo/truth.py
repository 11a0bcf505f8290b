"""What each request truly took: the simulation knows it, the meter may only infer it.

Of a step: its shares (``physics.py``). Static power in the time that the engine held requests and
ran no step (the host's work between steps, a late wake-up after one) belongs to those in the step
next to it, in equal parts: any of them alone would cause it. Children of one ``n > 1`` request
count for the id that its client saw. All else that the card drew is idle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO


class Truth:
    """Running sums by the client's id; finished ones are handed to ``out``, a JSON line each."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._parent: dict[str, str] = {}
        self._children: dict[str, int] = {}
        self._joules: dict[str, float] = {}
        self.finished_j: dict[str, float] = {}

    def opened(self, request: str, parent: str) -> None:
        self._parent[request] = parent
        self._children[parent] = self._children.get(parent, 0) + 1
        self._joules.setdefault(parent, 0.0)

    def step(self, requests: Iterable[str], shares_j: Iterable[float]) -> None:
        """A step cost its requests so much, in order."""
        for request, share_j in zip(requests, shares_j, strict=True):
            self._joules[self._parent[request]] += share_j

    def waited(self, requests: list[str], energy_j: float) -> None:
        """Static power next to a step of these requests; at least one."""
        self.step(requests, [energy_j / len(requests)] * len(requests))

    def closed(self, request: str) -> None:
        """A request takes no more; with its last child the parent's sum is final."""
        parent = self._parent.pop(request)
        self._children[parent] -= 1
        if self._children[parent]:
            return
        del self._children[parent]
        energy_j = self._joules.pop(parent)
        if self._out is None:
            self.finished_j[parent] = self.finished_j.get(parent, 0.0) + energy_j
        else:
            self._out.write(json.dumps({"id": parent, "energy_j": energy_j}) + "\n")
            self._out.flush()

    def total_j(self) -> float:
        """Of all requests still here: open ones, and finished ones that were not written out."""
        return sum(self._joules.values()) + sum(self.finished_j.values())


def read_truth(path: Path) -> dict[str, float]:
    """Joules by id of a file that ``Truth`` wrote."""
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            found[row["id"]] = found.get(row["id"], 0.0) + row["energy_j"]
    return found
