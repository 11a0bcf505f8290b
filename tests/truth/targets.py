"""What the issue asks for, by kind of scenario.

``moderate``: every moderate mix; ``experts``: the same with a mixture of experts; ``shared``: a
moderate mix on engines that share a board; ``stranger``: somebody else on the board; ``lost``:
lines of steps that never arrive; ``none``: conservation alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.truth.score import Coverage, Score, pooled


class Target(NamedTuple):
    """A figure of a score, and what it may not exceed."""

    name: str
    found: float
    most: float

    @property
    def met(self) -> bool:
        return self.found <= self.most


COVERAGE_SLACK = 0.05
KINDS = ("moderate", "experts", "shared", "stranger", "lost", "none")


def missed(kind: str, whole: Score, online: Score) -> tuple[str, ...]:
    """The names of the targets of this kind that were not met."""
    return tuple(target.name for target in targets(kind, whole, online) if not target.met)


def targets(kind: str, whole: Score, online: Score) -> Iterator[Target]:
    """``online``: scored after the first minute."""
    yield Target("conservation", max(whole.conservation, online.conservation), 1e-9)
    if kind in ("moderate", "experts", "shared"):
        yield from _moderate(kind, whole, online)
    elif kind == "stranger":
        yield Target("mean", whole.requests.mean, 0.007)
        yield Target("foreign", abs(whole.foreign or 0.0), 0.03)
        yield Target("online mean", online.requests.mean, 0.02)
        yield Target("online foreign", abs(online.foreign or 0.0), 0.10)
    elif kind == "lost":
        yield Target("mean", whole.requests.mean, 0.03)


def _moderate(kind: str, whole: Score, online: Score) -> Iterator[Target]:
    mean, p99, later_mean, later_p99 = (
        (0.010, 0.05, 0.010, 0.05) if kind == "experts" else (0.0065, 0.032, 0.007, 0.035)
    )
    yield Target("mean", whole.requests.mean, mean)
    yield Target("p99", whole.requests.p99, p99)
    yield Target("online mean", online.requests.mean, later_mean)
    yield Target("online p99", online.requests.p99, later_p99)
    yield Target("prefill", whole.prefill.mean, 0.055)
    yield Target("decode", whole.decode.mean, 0.007)
    yield Target("idle", abs(whole.idle or 0.0), 0.02)
    yield Target("tenant", whole.tenant or 0.0, 0.001)


def coverage(whole: Sequence[Score], online: Sequence[Score]) -> Iterator[Target]:
    """Within 5 points of 68 and 95 per cent; beyond that by two standard deviations of chance.

    Over many runs together: in one all receipts share the error of its coefficients.
    """
    for way, scored in (("whole", whole), ("online", online)):
        for part in ("covered", "covered_short", "covered_long"):
            found = pooled(getattr(score, part) for score in scored)
            yield Target(f"{way} {part}", _beyond(found), COVERAGE_SLACK)


def _beyond(covered: Coverage) -> float:
    return max(
        abs(covered.within_1 - 0.6827) - 2 * covered.sd_1,
        abs(covered.within_2 - 0.9545) - 2 * covered.sd_2,
    )
