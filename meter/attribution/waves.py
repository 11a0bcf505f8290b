"""Ranks that run in waves: data parallel engines whose experts are shared step together.

A rank without work must still run a *dummy* step, since the other ranks' tokens may need the
experts it holds. The joules of its step belong to the wave: to the requests that the other ranks
compute at that time, in equal parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meter.attribution import passes
from meter.attribution.engine import EngineState


def waves(engines: Sequence[EngineState]) -> list[list[EngineState]]:
    """The engines in groups that step together; most are alone."""
    together = {engine.model for engine in engines if engine.dummies}
    groups: dict[str, list[EngineState]] = {}
    for engine in engines:
        name = f"model {engine.model}" if engine.model in together else f"engine {engine.info.id}"
        groups.setdefault(name, []).append(engine)
    return list(groups.values())


def share_dummies(wave: Sequence[EngineState], until_ns: int) -> float:
    """Put what dummy steps before ``until_ns`` booked onto the wave's passes at that time.

    Returns the joules of dummy steps beside which nobody ran.
    """
    unowned_j = 0.0
    for engine in wave:
        table = engine.table
        table.gather()
        peers = [peer for peer in wave if peer is not engine]
        for place in np.flatnonzero(table.rows[: table.ended_by(until_ns), passes.DUMMY]):
            unowned_j += _share(engine, int(place), peers)
    return unowned_j


def _share(engine: EngineState, place: int, peers: Sequence[EngineState]) -> float:
    table = engine.table
    t0, t1 = table.rows[place, [passes.T0_NS, passes.T1_NS]].tolist()
    weights = []
    for peer in peers:
        peer.table.gather()
        rows = peer.table.rows
        beside = np.minimum(rows[:, passes.T1_NS], t1) - np.maximum(rows[:, passes.GAP_NS], t0)
        weights.append(np.maximum(beside, 0) * passes.heads(rows))
    return table.move(place, [(p.table, w) for p, w in zip(peers, weights, strict=True)])
