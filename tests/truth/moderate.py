"""Scenarios of moderate mix, which the issue's targets are about.

Load comes and goes, so that the card is idle now and then, and half-way to saturation at its
busiest. Two kinds of mix: ``even`` (few prompt lengths far apart, any output up to a length), and
``chat`` (log-normal both, some prefixes cached). Coefficients, lag, smear and phase of the counter
are drawn or hidden; ``*-facts`` are the same runs with data sheets told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.truth.costs import H100, LIGHT, MOE, Setup
from tests.truth.spec import Scenario
from tests.truth.workload import Choice, LogNormal, Mix, Profile, Uniform

CHAT = Mix(LogNormal(400, 1.1, 8, 8000), LogNormal(110, 0.8, 1, 800), cached=0.2)
EVEN = Mix(Choice((20, 200, 800, 3000)), Uniform(1, 200))
#: For the light card, which is ten times slower.
LIGHT_CHAT = Mix(LogNormal(200, 1.0, 8, 3000), LogNormal(70, 0.7, 1, 400), cached=0.2)
LIGHT_EVEN = Mix(Choice((20, 200, 800)), Uniform(1, 120))

_NUMBERS = (1, 2, 3, 4)
_NUMBERS_TOLD = (1, 2)


def bursty(rate: float) -> Profile:
    """Seven seconds at this rate, three nearly at rest."""
    return Profile(((7.0, rate), (3.0, 0.025 * rate)))


def waving(rate: float) -> Profile:
    """Slow waves around this rate, with a trough."""
    return Profile(((12.0, 0.5 * rate), (15.0, 1.4 * rate), (6.0, 0.04 * rate), (9.0, rate)))


_LIGHT_BURSTY = Profile(((10.0, 3.0), (7.0, 0.03)))
_LIGHT_WAVING = Profile(((12.0, 1.5), (15.0, 3.0), (10.0, 0.03), (10.0, 2.0)))


def moderate() -> Iterator[Scenario]:
    """By card, kind of mix and seed."""
    even, chat = (EVEN, bursty(11.0)), (CHAT, waving(9.0))
    yield from _kinds("h100", H100, 0, even, chat, "moderate")
    even, chat = (LIGHT_EVEN, _LIGHT_BURSTY), (LIGHT_CHAT, _LIGHT_WAVING)
    yield from _kinds("light", LIGHT, 10, even, chat, "moderate")
    even, chat = (EVEN, bursty(8.0)), (CHAT, waving(7.0))
    yield from _kinds("moe", MOE, 20, even, chat, "experts")


def _kinds(
    label: str,
    setup: Setup,
    first_seed: int,
    even: tuple[Mix, Profile],
    chat: tuple[Mix, Profile],
    targets: str,
) -> Iterator[Scenario]:
    """Odd ones are even mixes. How many experts there are is always told: a card cannot tell."""
    for number in _NUMBERS:
        kind, (mix, profile) = ("even", even) if number % 2 else ("chat", chat)
        plain = Scenario(
            f"moderate-{label}-{number}",
            f"{setup.model.name}, {kind} mix, nothing told",
            targets=targets,
            setup=setup,
            mix=mix,
            profile=profile,
            facts="experts",
            seed=first_seed + number,
        )
        yield plain
        if number in _NUMBERS_TOLD:
            about = f"{setup.model.name}, {kind} mix, data sheets told"
            yield replace(plain, name=f"{plain.name}-facts", about=about, facts="all")
