"""What was found of one part of the machine, and what would better it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meter.model import Quality


class Level(StrEnum):
    """How good it is: ``good``, ``less`` than there could be, or ``no`` figure at all."""

    GOOD = "good"
    LESS = "less"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of an ``area`` (``gpu 0``, ``cpu``, ``vllm`` …), and the step to the next better.

    ``quality``: of the energy that can be had there; ``None`` where there is none, or where the
    finding is not about energy.
    """

    area: str
    level: Level
    text: str
    step: str | None = None
    quality: Quality | None = None
