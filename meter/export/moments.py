"""The last minutes, a moment every half second: what a chart shows as soon as it is opened."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from meter.model import Account, DeviceState, Snapshot

EVERY_NS = 450_000_000
KEPT = 360
ACCOUNTS = tuple(Account)
#: A device that settles nothing for so long after the others holds up no chart.
_SILENT_NS = 60_000_000_000

Joules = tuple[float, ...]


class Moment(NamedTuple):
    """The accounts' running sums at one time. They stand at ``settled_ns``, all else at ``t_ns``.

    ``measured_j``: by device, in the order of the snapshot's; ``accounts_j``: in the order of
    ``ACCOUNTS``, all that was drawn until ``settled_ns``, also what stands on steps that are not
    settled yet; ``output_tokens``: those whose energy is in the accounts.
    """

    t_ns: int
    settled_ns: int | None
    measured_j: Joules
    accounts_j: Joules
    running: int
    output_tokens: int


class Moments:
    """Keeps the last moments; given the same snapshots, the same moments."""

    def __init__(self, every_ns: int = EVERY_NS, kept: int = KEPT) -> None:
        self._every_ns = every_ns
        self._kept: deque[Moment] = deque(maxlen=kept)
        self._drawn = Drawn()

    def add(self, snapshot: Snapshot) -> tuple[Moment, ...]:
        """Remember a snapshot where enough time has gone by; returns all that is kept."""
        now = self._drawn.moment(snapshot)
        if not self._kept or snapshot.t_ns - self._kept[-1].t_ns >= self._every_ns:
            self._kept.append(now)
        return tuple(self._kept)


class Drawn:
    """What all devices drew until one time, by account, from snapshots as they come.

    Each device settles in steps of its own. All are told as of the time that all have settled; in
    between, a device's joules grow evenly from one of its steps to the next.
    """

    def __init__(self) -> None:
        self._past: dict[str, deque[tuple[int, Joules]]] = {}
        self._until_ns: int | None = None

    def moment(self, snapshot: Snapshot) -> Moment:
        """What a chart needs of a snapshot, which is later than those before it."""
        for device in snapshot.devices:
            self._remember(device)
        settled_ns, accounts_j = self._told(snapshot)
        return Moment(
            snapshot.t_ns,
            settled_ns,
            tuple(device.measured_j for device in snapshot.devices),
            accounts_j,
            sum(snapshot.running.values()),
            sum(n for key, n in snapshot.tokens.items() if key.token_type == "output"),
        )

    def end(self) -> tuple[int, Joules] | None:
        """All that was ever drawn, at the time until which any device is known."""
        if not self._past:
            return None
        newest = [past[-1] for past in self._past.values()]
        joules = (sum(column) for column in zip(*(then for _, then in newest), strict=True))
        return max(t_ns for t_ns, _ in newest), tuple(joules)

    def _remember(self, device: DeviceState) -> None:
        if device.settled_ns is None or not device.drawn_j:
            return
        past = self._past.setdefault(device.device.id, deque())
        if not past or device.settled_ns > past[-1][0]:
            joules = tuple(device.drawn_j.get(account, 0.0) for account in ACCOUNTS)
            past.append((device.settled_ns, joules))

    def _told(self, snapshot: Snapshot) -> tuple[int | None, Joules]:
        if not self._past:
            return snapshot.settled_ns, _accounts(snapshot)
        newest_ns = max(past[-1][0] for past in self._past.values())
        ends = (past[-1][0] for past in self._past.values())
        until_ns = min(end for end in ends if end >= newest_ns - _SILENT_NS)
        self._until_ns = max(until_ns, self._until_ns or until_ns)
        pasts = [_at(past, self._until_ns) for past in self._past.values()]
        return self._until_ns, tuple(sum(joules) for joules in zip(*pasts, strict=True))


def _at(past: deque[tuple[int, Joules]], t_ns: int) -> Joules:
    """One device's joules at a time, level beyond what is known; what is older is dropped."""
    while len(past) > 1 and past[1][0] <= t_ns:
        past.popleft()
    start_ns, first = past[0]
    if len(past) == 1 or t_ns <= start_ns:
        return first
    end_ns, then = past[1]
    part = (t_ns - start_ns) / (end_ns - start_ns)
    return tuple(a + part * (b - a) for a, b in zip(first, then, strict=True))


def _accounts(snapshot: Snapshot) -> Joules:
    joules = dict.fromkeys(ACCOUNTS, 0.0)
    for key, energy_j in snapshot.accounts.items():
        joules[key.account] += energy_j
    return tuple(joules.values())
