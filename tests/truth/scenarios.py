"""Every scenario by name; ``build(name)`` plays one."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from tests.truth.build import build_case
from tests.truth.case import Case
from tests.truth.hard import faults, hardware, layouts, loads, work
from tests.truth.moderate import moderate

SCENARIOS = {
    scenario.name: scenario
    for scenario in chain(moderate(), loads(), work(), hardware(), layouts(), faults())
}


def build(name: str, seconds: float | None = None, seed: int | None = None) -> Case:
    """The case of that name. ``seconds``, ``seed``: other than the scenario's own."""
    scenario = SCENARIOS[name]
    if seconds is not None:
        scenario = replace(scenario, seconds=seconds)
    if seed is not None:
        scenario = replace(scenario, seed=seed)
    return build_case(scenario)
