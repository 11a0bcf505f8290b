"""The last minutes, a moment every half second: what a chart shows as soon as it is opened."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from meter.model import Account, Snapshot

EVERY_NS = 450_000_000
KEPT = 360
ACCOUNTS = tuple(Account)


class Moment(NamedTuple):
    """The accounts' running sums at one time. They stand at ``settled_ns``, all else at ``t_ns``.

    ``measured_j``: by device, in the order of the snapshot's; ``accounts_j``: in the order of
    ``ACCOUNTS``; ``output_tokens``: those whose energy is in the accounts.
    """

    t_ns: int
    settled_ns: int | None
    measured_j: tuple[float, ...]
    accounts_j: tuple[float, ...]
    running: int
    output_tokens: int


class Moments:
    """Keeps the last moments; given the same snapshots, the same moments."""

    def __init__(self, every_ns: int = EVERY_NS, kept: int = KEPT) -> None:
        self._every_ns = every_ns
        self._kept: deque[Moment] = deque(maxlen=kept)

    def add(self, snapshot: Snapshot) -> tuple[Moment, ...]:
        """Remember a snapshot where enough time has gone by; returns all that is kept."""
        if not self._kept or snapshot.t_ns - self._kept[-1].t_ns >= self._every_ns:
            self._kept.append(moment(snapshot))
        return tuple(self._kept)


def moment(snapshot: Snapshot) -> Moment:
    """What a chart needs of a snapshot."""
    joules = dict.fromkeys(ACCOUNTS, 0.0)
    for key, energy_j in snapshot.accounts.items():
        joules[key.account] += energy_j
    return Moment(
        snapshot.t_ns,
        snapshot.settled_ns,
        tuple(device.measured_j for device in snapshot.devices),
        tuple(joules.values()),
        sum(snapshot.running.values()),
        sum(n for key, n in snapshot.tokens.items() if key.token_type == "output"),
    )
