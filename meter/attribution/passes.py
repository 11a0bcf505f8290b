"""The passes of one engine that are not settled yet, as columns of numbers.

Rows come one by one from the batch and are looked at in blocks. Beside what each pass computed
stands what its devices have booked on it so far: a pass may lie in several intervals of several
devices, and is settled when all of them have closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from meter.attribution.batch import PassRow
from meter.attribution.curve import Array, Ints
from meter.attribution.fit import DOUBTED
from meter.attribution.resolution import FACTS, PARTS

#: What is booked on a pass, summed over devices: λ-weighted coefficients (joules per step and per
#: unit of work), the gap's joules, mean λ, λ-weighted gap seconds, joules split before the
#: calibration converged, mean squared noise of a step; what a member pays in the intervals that
#: show the pass, as a share of their joules, but for its context and per token of it; what
#: the noise of other engines' steps adds to the squares of a member's joules, by 1, context and
#: context² (``OTHERS`` on); which part of the pass each interval shows (``PART`` on), and what
#: share of that interval's joules this is (``SHARE`` on); what a member pays later in that interval
#: (``LATER`` on); and the intervals' features per joule (``MIX`` on). See ``resolution``.
STEP_J, PREFILL_J, PAIR_J, DECODE_J, CONTEXT_J, EXPERT_J = range(6)
GAP_J, LAMBDA, GAP_S, UNLEARNED_J, NOISE, MEMBER_SEEN, CONTEXT_SEEN, OTHERS = range(6, 14)
PART = OTHERS + 3
SHARE = PART + PARTS
LATER = SHARE + PARTS
MIX = LATER + PARTS
_WIDTH = MIX + DOUBTED

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

    ``rows``: shape (n, fields of ``PassRow``); ``booked``: (n, columns), see the names above;
    ``interval``: (n,), the number of the first interval of the first device that shows the pass, or
    -1 while unknown; ``facts``: see ``resolution``, of the intervals from ``first_fact`` on;
    ``longest_ns``: no pass lasts longer, its gap included.
    """

    def __init__(self) -> None:
        self._new: list[PassRow] = []
        self._on_device: dict[str, Array] = {}
        self.rows: Ints = np.zeros((0, len(PassRow._fields)), dtype=np.int64)
        self._ends: Ints = np.zeros(0, dtype=np.int64)
        self.longest_ns = 0
        self.booked: Array = np.zeros((0, _WIDTH))
        self.interval: Ints = np.zeros(0, dtype=np.int64)
        self.facts: Array = np.zeros((0, FACTS))
        self.first_fact = 0

    def append(self, row: PassRow) -> None:
        self._new.append(row)

    def gather(self) -> None:
        """Take the rows that came since the last call into the arrays."""
        count = len(self._new)
        if not count:
            return
        width = self.rows.shape[1]
        # A third of what np.array takes for such rows.
        numbers = np.fromiter(chain.from_iterable(self._new), np.int64, count * width)
        new = numbers.reshape(count, width)
        ends = new[:, T1_NS]
        self.longest_ns = max(self.longest_ns, int((ends - new[:, GAP_NS]).max()))
        self.rows = np.concatenate((self.rows, new))
        self._ends = np.concatenate((self._ends, ends))
        self.booked = np.concatenate((self.booked, np.zeros((count, _WIDTH))))
        self.interval = np.concatenate((self.interval, np.full(count, -1, dtype=np.int64)))
        for id, joules in self._on_device.items():
            self._on_device[id] = np.concatenate((joules, np.zeros(count)))
        self._new.clear()

    def add_facts(self, number: int, facts: Array) -> None:
        """Facts of the intervals from ``number`` on, which follow those that are known."""
        if number != self.first_fact + len(self.facts):
            self.facts, self.first_fact = np.zeros((0, FACTS)), number
        self.facts = np.concatenate((self.facts, facts))

    def note_parts(self, rows: Ints, number: Ints, seen: tuple[Array, ...]) -> None:
        """Note which part of passes intervals show, in order of pass and interval.

        All (n,): places in the table; numbers of intervals; ``seen``: what goes to ``PART``,
        ``SHARE`` and ``LATER``.
        """
        new = self.interval[rows] < 0
        # The first entry of a pass is written last, and stays.
        self.interval[rows[new][::-1]] = number[new][::-1]
        offset = np.clip(number - self.interval[rows], 0, PARTS - 1)
        for column, values in zip((PART, SHARE, LATER), seen, strict=True):
            np.add.at(self.booked, (rows, column + offset), values)

    def ended_by(self, t_ns: int) -> int:
        """How many passes end at ``t_ns`` at the latest: they are in order of their ends."""
        return int(self._ends.searchsorted(t_ns, side="right"))

    def before(self, t_ns: int) -> int:
        """No pass from this place on begins before ``t_ns``."""
        return self.ended_by(t_ns + self.longest_ns)

    def on_device(self, id: str) -> Array:
        """Joules booked on each pass by one device: shape (n,), to be added to."""
        if id not in self._on_device:
            self._on_device[id] = np.zeros(len(self.rows))
        return self._on_device[id]

    def waiting_j(self, id: str) -> float:
        """Joules that one device has booked on passes that are not settled."""
        booked = self._on_device.get(id)
        return float(booked.sum()) if booked is not None else 0.0

    def move(self, place: int, to: Sequence[tuple[PassTable, Array]]) -> float:
        """Take all that is booked on one pass off it, and put it on the passes of other tables.

        ``to``: tables, each with a weight for each of its passes. Returns the joules of which there
        is nowhere to put them, for all weights are zero.
        """
        self.booked[place] = 0.0
        total = sum(float(weight.sum()) for _, weight in to)
        left_j = 0.0
        for id, joules in self._on_device.items():
            energy_j, joules[place] = float(joules[place]), 0.0
            if total <= 0:
                left_j += energy_j
                continue
            for table, weight in to:
                part_j = energy_j * weight / total
                table.booked[:, GAP_J] += part_j
                table.on_device(id)[:] += part_j
        return left_j

    def by_device(self, count: int) -> Iterator[tuple[str, Array]]:
        """Each device, and the joules that it has booked on each of the first ``count`` passes."""
        for id, joules in self._on_device.items():
            yield id, joules[:count]

    def first_j(self, count: int) -> float:
        """Joules that all devices have booked on the first ``count`` passes."""
        return sum(float(joules.sum()) for _, joules in self.by_device(count))

    def drop(self, count: int) -> None:
        """Forget the first ``count`` passes: they are settled.

        Their memory is free when the next ones are gathered.
        """
        self.rows, self._ends = self.rows[count:], self._ends[count:]
        self.booked, self.interval = self.booked[count:], self.interval[count:]
        self._drop_facts()
        for id, joules in self._on_device.items():
            self._on_device[id] = joules[count:]

    def _drop_facts(self) -> None:
        """Forget the intervals that no pass lies in any more, but for the last few."""
        waits = self.interval[self.interval >= 0]
        needed = int(waits.min()) if len(waits) else self.first_fact + len(self.facts)
        old = min(needed - self.first_fact, len(self.facts)) - PARTS
        if old > 0:
            self.facts, self.first_fact = self.facts[old:].copy(), self.first_fact + old
