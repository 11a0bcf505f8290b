"""The passes of one engine that are not settled yet, as columns of numbers.

Rows come one by one from the batch and are looked at in blocks. Beside what each pass computed
stands what its devices have booked on it so far: a pass may lie in several intervals of several
devices, and is settled when all of them have closed.
"""

from __future__ import annotations

import numpy as np

from meter.attribution.batch import PassRow
from meter.attribution.curve import Array, Ints

#: What is booked on a pass, summed over devices: λ-weighted coefficients (joules per step and per
#: unit of work), the gap's joules, mean λ, λ-weighted gap seconds, joules split before the
#: calibration converged, mean squared doubt of the edges (as a share of an interval), mean squared
#: noise of a step, Σ of the squared shares of single steps in the interval, the pass's own share
#: in it, and the interval's features per joule (7 columns from ``MIX`` on).
STEP_J, PREFILL_J, PAIR_J, DECODE_J, CONTEXT_J, EXPERT_J = range(6)
GAP_J, LAMBDA, GAP_S, UNLEARNED_J, EDGE, NOISE, RUN_SHARE, SHARE = range(6, 14)
MIX = 14
_WIDTH = MIX + 7

# Columns of the rows, in the order of ``PassRow``: prefill's, recompute's and decode's requests,
# tokens, and pairs or context.
K, GAP_NS, T0_NS, T1_NS = range(4)
P_HEADS, P_TOKENS, P_PAIRS, R_HEADS, R_TOKENS, R_PAIRS = range(4, 10)
D_HEADS, D_TOKENS, D_CONTEXT, EMITTED, DUMMY = range(10, 15)


def heads(rows: Ints) -> Ints:
    """How many requests each pass computed."""
    return np.asarray(rows[:, P_HEADS] + rows[:, R_HEADS] + rows[:, D_HEADS])


def prefill_tokens(rows: Ints) -> Ints:
    """Prompt tokens that each pass computed, for the first time or again."""
    return np.asarray(rows[:, P_TOKENS] + rows[:, R_TOKENS])


def pairs(rows: Ints) -> Ints:
    """Token pairs that the attention of those tokens saw."""
    return np.asarray(rows[:, P_PAIRS] + rows[:, R_PAIRS])


def tokens(rows: Ints) -> Ints:
    """All tokens that each pass computed."""
    return np.asarray(prefill_tokens(rows) + rows[:, D_TOKENS])


class PassTable:
    """Passes in order of ``k``; call ``gather`` before a look at the arrays.

    ``rows``: shape (n, fields of ``PassRow``); ``booked``: (n, 21), see the names above;
    ``interval``: (n,), the number of the first device's interval that a pass's middle lies in (or
    of the group of intervals that the counter smears together), or -1 while unknown.
    """

    def __init__(self) -> None:
        self._new: list[PassRow] = []
        self._on_device: dict[str, Array] = {}
        self.rows: Ints = np.zeros((0, len(PassRow._fields)), dtype=np.int64)
        self.booked: Array = np.zeros((0, _WIDTH))
        self.interval: Ints = np.zeros(0, dtype=np.int64)

    def append(self, row: PassRow) -> None:
        self._new.append(row)

    def gather(self) -> None:
        """Take the rows that came since the last call into the arrays."""
        count = len(self._new)
        if not count:
            return
        self.rows = np.concatenate((self.rows, np.array(self._new, dtype=np.int64)))
        self.booked = np.concatenate((self.booked, np.zeros((count, _WIDTH))))
        self.interval = np.concatenate((self.interval, np.full(count, -1, dtype=np.int64)))
        for id, joules in self._on_device.items():
            self._on_device[id] = np.concatenate((joules, np.zeros(count)))
        self._new.clear()

    def ended_by(self, t_ns: int) -> int:
        """How many passes end at ``t_ns`` at the latest: they are in order of their ends."""
        return int(np.searchsorted(self.rows[:, T1_NS], t_ns, side="right"))

    def on_device(self, id: str) -> Array:
        """Joules booked on each pass by one device: shape (n,), to be added to."""
        if id not in self._on_device:
            self._on_device[id] = np.zeros(len(self.rows))
        return self._on_device[id]

    def waiting_j(self, id: str) -> float:
        """Joules that one device has booked on passes that are not settled."""
        booked = self._on_device.get(id)
        return float(booked.sum()) if booked is not None else 0.0

    def drop(self, count: int) -> None:
        """Forget the first ``count`` passes: they are settled."""
        self.rows = self.rows[count:].copy()
        self.booked = self.booked[count:].copy()
        self.interval = self.interval[count:].copy()
        for id, joules in self._on_device.items():
            self._on_device[id] = joules[count:].copy()
