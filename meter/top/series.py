"""The last minutes: what the devices drew by their counters, and which account took it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

#: Over how long a counter's power is taken: many of its ticks, so that they do not show.
COUNTER_S = 1.3
#: The same for the accounts, which move with the counters' ticks.
SETTLED_S = 0.9
#: What grew while the stream said nothing for so long is drawn at its end alone.
HOLE_S = 3.0
KEPT_S = 300.0
STACK = ("prefill", "decode", "recompute", "startup", "idle", "unattributed")


class Moment(NamedTuple):
    """Running sums at ``t_s`` (the accounts': at ``settled_s``), as the stream tells them."""

    t_s: float
    settled_s: float | None
    measured_j: Sequence[float]
    accounts_j: Sequence[float]
    running: int
    output_tokens: int


class Flow(NamedTuple):
    """Watts by account, in the order of ``STACK``, around a time."""

    t_s: float
    watts: tuple[float, ...]


def _spread(from_s: float, until_s: float) -> list[float]:
    """Where to draw a mean power that held between two times: where much settled at once, all
    along."""
    count = max(1, int((until_s - from_s) / SETTLED_S))
    step_s = (until_s - from_s) / count
    return [from_s + (i + 0.5) * step_s for i in range(count)]


class Series:
    """Moments and flows, oldest first, as far back as ``KEPT_S``."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.flows: list[Flow] = []

    def clear(self) -> None:
        self.moments, self.flows = [], []

    def copy(self) -> Series:
        """An independent copy; its entries are immutable."""
        other = Series()
        other.moments, other.flows = list(self.moments), list(self.flows)
        return other

    def add(self, rows: Sequence[Sequence[Any]], accounts: Sequence[str]) -> None:
        """Take rows of the stream's ``moments``; ``accounts`` names what is in ``accounts_j``."""
        for row in rows:
            moment = Moment(*row)
            self.moments.append(moment)
            self._flow(moment, accounts)
        if self.moments:
            oldest_s = self.moments[-1].t_s - KEPT_S
            self.moments = [m for m in self.moments if m.t_s >= oldest_s]
            self.flows = [f for f in self.flows if f.t_s >= oldest_s]

    def _flow(self, moment: Moment, accounts: Sequence[str]) -> None:
        until_s = moment.settled_s
        if until_s is None or (len(self.moments) > 1 and until_s == self.moments[-2].settled_s):
            return
        before = next(
            (
                m
                for m in reversed(self.moments)
                if m.settled_s is not None and m.settled_s <= until_s - SETTLED_S
            ),
            None,
        )
        if before is None or before.settled_s is None:
            return
        over_s = until_s - before.settled_s
        grown = {
            name: max(0.0, moment.accounts_j[i] - before.accounts_j[i]) / over_s
            for i, name in enumerate(accounts)
        }
        watts = tuple(grown.get(name, 0.0) for name in STACK)
        last_s = self.flows[-1].t_s if self.flows else -math.inf
        unseen = moment.t_s - before.t_s > HOLE_S
        times_s = (until_s - SETTLED_S / 2,) if unseen else _spread(before.settled_s, until_s)
        self.flows += [Flow(t_s, watts) for t_s in times_s if t_s > last_s]

    def power_w(self) -> list[float] | None:
        """What each device draws now, by its counter; ``None`` while it is too early to say."""
        if not self.moments:
            return None
        last = self.moments[-1]
        before = next((m for m in reversed(self.moments) if m.t_s <= last.t_s - COUNTER_S), None)
        if before is None or len(before.measured_j) != len(last.measured_j):
            return None
        over_s = last.t_s - before.t_s
        pairs = zip(last.measured_j, before.measured_j, strict=True)
        return [max(0.0, now - then) / over_s for now, then in pairs]

    def tokens_per_s(self, over_s: float = 3.0) -> float | None:
        """Output tokens a second; ``None`` while it is too early to say."""
        if not self.moments:
            return None
        last = self.moments[-1]
        before = next((m for m in reversed(self.moments) if m.t_s <= last.t_s - over_s), None)
        if before is None:
            return None
        return max(0, last.output_tokens - before.output_tokens) / (last.t_s - before.t_s)

    def quiet_s(self) -> float | None:
        """How long no request has been in flight; ``None`` where one is."""
        if not self.moments or self.moments[-1].running:
            return None
        busy = next((m for m in reversed(self.moments) if m.running), self.moments[0])
        return self.moments[-1].t_s - busy.t_s
