"""How far receipts are from the truth, and the limits that the end-to-end run has to hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from truth import Life, Truth


class Bill(NamedTuple):
    """What a receipt says, in joules; prefill holds recomputed work too."""

    energy_j: float
    prefill_j: float


@dataclass(frozen=True)
class Errors:
    """Relative errors per request, as shares of 1. ``phase``: of prefill and decode apart."""

    count: int
    mean: float
    p99: float
    phase_mean: float

    def __str__(self) -> str:
        return (
            f"{self.count:4d} requests: mean {self.mean:7.2%}, p99 {self.p99:8.2%}, "
            f"phases apart {self.phase_mean:7.2%}"
        )


@dataclass(frozen=True)
class Limit:
    """What is good enough."""

    mean: float
    p99: float

    def holds(self, errors: Errors) -> bool:
        """Within the limits; that prefill and decode are not confused is judged by the mean's.

        A wrong price shows most in the phases: 1.2 to 4.0 % apart in twelve whole runs, 5.0 % and
        more in ten with half the price of a step.
        """
        return (
            errors.mean <= self.mean
            and errors.p99 <= self.p99
            and errors.phase_mean <= 1.5 * self.mean
        )


# A machine with other work stalls the engine in odd ways: there 2.2 and 9.6 % were seen for the
# whole, 1.9 and 13 % live; on a quiet one 1.1 to 1.9 and 5.5 to 7.1, 1.3 to 1.8 and 7.4 to 9.5 %.
LIVE = Limit(mean=0.04, p99=0.20)
WHOLE = Limit(mean=0.03, p99=0.12)


def errors(bills: Mapping[str, Bill], truth: Truth, among: Collection[str] | None = None) -> Errors:
    """Compare receipts with the truth, by the client's id. Requests that never ran are no error."""
    ids = [
        id
        for id, true_j in truth.requests_j.items()
        if true_j > 0 and id in bills and (among is None or id in among)
    ]
    true = np.array([truth.requests_j[id] for id in ids])
    prefill = np.array([truth.prefill_j[id] for id in ids])
    billed = np.array([bills[id].energy_j for id in ids])
    billed_prefill = np.array([bills[id].prefill_j for id in ids])
    relative = np.abs(billed - true) / true
    decode_off = np.abs((billed - billed_prefill) - (true - prefill))
    phases = (np.abs(billed_prefill - prefill) + decode_off) / true
    return Errors(
        len(ids), float(relative.mean()), float(np.percentile(relative, 99)), float(phases.mean())
    )


def warmed_up(lives: Collection[Life]) -> tuple[set[str], set[str]]:
    """The clients' ids opened in the warm-up, and those after it.

    The warm-up ends a minute after the first request, or with the 60th that is done: what is first.
    """
    first_ns = min(life.opened_ns for life in lives)
    done = sorted({life.parent: life.closed_ns for life in lives}.values())
    end_ns = min([first_ns + 60_000_000_000, *done[59:60]])
    early = {life.parent for life in lives if life.opened_ns <= end_ns}
    return early, {life.parent for life in lives} - early
