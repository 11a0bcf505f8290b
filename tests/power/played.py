"""A recorded trace on the simulated card: what its counter showed is drawn again, from now on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from meter.demo.card import Card
from meter.model import Reading


def changes(readings: Sequence[Reading]) -> list[tuple[int, int]]:
    """When the counter was first seen at which µJ; readings that failed are no change."""
    found: list[tuple[int, int]] = []
    for reading in readings:
        if reading.energy_uj is not None and (not found or reading.energy_uj > found[-1][1]):
            found.append((reading.t_ns, reading.energy_uj))
    return found


def play(card: Card, device: int, readings: Sequence[Reading], start_ns: int) -> int:
    """Post one device's readings so that the first change happens at ``start_ns``; returns the time
    of the last. The card takes posts ahead of time, 32,768 of them."""
    moves = changes(readings)
    shift_ns = start_ns - moves[0][0]
    for (t_ns, energy_uj), (next_ns, next_uj) in pairwise(moves):
        watts = (next_uj - energy_uj) * 1e3 / (next_ns - t_ns)
        card.post(device, watts, t_ns + shift_ns)
    end_ns = moves[-1][0] + shift_ns
    card.post(device, 0.0, end_ns)
    return end_ns
