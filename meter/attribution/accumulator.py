"""The closed form: what each request owes, at a cost that does not grow with the batch.

With every settled pass ``k`` running sums move, in joules ``A += (F + gap)/|S| + b + e·m/T``,
``B += c``, ``C += c·(k − k0)`` (each weighted by the closure's λ). A request that decodes one token
a step from pass ``j`` on with context ``x`` owes ``ΔA + (x − (j − k0))·ΔB + ΔC``: nothing
is done for it while it runs.

The doubt rests on more sums of the same kind. The noise of single steps (``resolution``): for
a share of ``f_k + κ·c_k`` at a context of κ the error is ``(u_k + κ·v_k)·ε_k``, and its square has
three sums. The coefficients' covariance: over the request's own features less those that its joules
would buy on average in its intervals, again linear in κ. Passes settle in blocks, all sums by
numpy; what a block puts on bills is gathered first, and worked out for all of it at once
(``charges``, ``stretches``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution import passes
from meter.attribution.batch import Change, Direct, Dispersed, Ended, Joins
from meter.attribution.bill import Bill, Segment
from meter.attribution.charges import charge
from meter.attribution.curve import Array
from meter.attribution.fit import DOUBTED
from meter.attribution.settled import Settled
from meter.attribution.stretches import COLUMNS, ENERGY, MIX, SQUARES, Stretch, fold

#: Passes after which ``k0`` moves; also the largest block that ``settle`` takes.
REBASE_EVERY = 1 << 16


class _Changed(NamedTuple):
    """What changes in a block: segments that begin, stretches that are over, direct work, ends."""

    opened: list[Segment]
    over: list[Stretch]
    direct: list[tuple[Bill, Direct]]
    ended: list[str]


class Accumulator:
    """The running sums of one engine over its settled passes, and the bills they settle."""

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        self._sums = np.zeros(COLUMNS)
        self._k0 = 0
        self._k = 0
        self._doubts: Array = np.zeros(3)
        # Of all open segments together: their number, and the sums that ``energy_j`` needs.
        self._open = 0
        self._open_sums: Array = np.zeros(4)
        self._billed_j = 0.0

    @property
    def energy_j(self) -> float:
        """Joules of all open bills together, up to the last settled pass."""
        a, b, c = self._sums[ENERGY].tolist()
        then_a, starts, starts_b, then_c = self._open_sums.tolist()
        return float(
            self._billed_j + self._open * (a + c) - then_a - then_c + starts * b - starts_b
        )

    def may_settle(self, changes: deque[Change]) -> bool:
        """Is there anything to do before the next pass?"""
        return bool(changes) and changes[0].k <= self._k

    def settle(self, block: Settled, changes: deque[Change]) -> list[str]:
        """Settle passes and the changes before and in them; returns the requests that ended.

        At most ``REBASE_EVERY`` passes. The bills of ended requests are complete: take them.
        """
        count = len(block.rows)
        if self._k - self._k0 >= REBASE_EVERY:
            self._rebase()
        sums, doubts = self._running(block), np.vstack((self._doubts, block.doubts))
        first, found = self._k, self._changed(changes, sums)
        self._count_open(found.opened, 1)
        self._count_open([stretch.segment for stretch in found.over], -1)
        self._billed_j += charge(found.direct, block, first)
        self._billed_j += fold(found.over, sums, doubts, first, self._k0)
        self._sums, self._doubts, self._k = sums[count].copy(), doubts[count].copy(), first + count
        return found.ended

    def _changed(self, changes: deque[Change], sums: Array) -> _Changed:
        """Take the changes before and in the passes of ``sums``, as ``_running`` gives them."""
        found = _Changed([], [], [], [])
        first, count = self._k, len(sums) - 1
        while changes and changes[0].k <= first + count:
            change = changes[0]
            kind, place = type(change), change.k - first
            if place == count and kind is not Ended and kind is not Dispersed:
                break
            changes.popleft()
            if isinstance(change, Direct):
                found.direct.append((self._bill(change.work.request), change))
            elif isinstance(change, Dispersed):
                for request in change.requests:
                    self._end_stretch(self.bills.get(request), place, found)
            elif isinstance(change, Joins):
                bill = self._bill(change.request)
                self._end_stretch(bill, place, found)
                bill.segment = Segment(change.k, change.context, sums[place].copy())
                found.opened.append(bill.segment)
            else:
                self._end_stretch(self.bills.get(change.request), place, found)
                if kind is Ended:
                    found.ended.append(change.request)
        return found

    def _end_stretch(self, bill: Bill | None, place: int, found: _Changed) -> None:
        """The bill's open segment, if it has one, is over."""
        if bill is not None and bill.segment is not None:
            found.over.append(Stretch(bill, bill.segment, place))
            bill.segment = None

    def take(self, request: str) -> Bill:
        """The bill of a request that has ended, out of the books of open ones."""
        bill = self.bills.pop(request, None) or Bill()
        self._billed_j -= bill.energy_j
        return bill

    def current(self, request: str) -> Bill:
        """A copy of the bill as it stands at the last settled pass, open segment included."""
        bill = self.bills.get(request) or Bill()
        copy = bill.copy()
        if copy.segment is not None:
            self._fold_here([Stretch(copy, copy.segment, 0)], self._doubts)
            copy.segment = None
        return copy

    def open_segments(self) -> Callable[[Segment], tuple[float, int]]:
        """What is on no bill yet: joules and tokens of an open segment, as things stand now."""
        now_a, now_b, now_c = self._sums[ENERGY].tolist()
        k_now, k0 = self._k, self._k0

        def of(segment: Segment) -> tuple[float, int]:
            k, context, sums = segment
            a, b, c = sums[ENERGY].tolist()
            return now_a - a + (context - (k - k0)) * (now_b - b) + now_c - c, k_now - k

        return of

    def _running(self, block: Settled) -> Array:
        """The sums before each pass, and after the last: shape (n + 1, columns)."""
        moved = np.zeros((len(block.rows) + 1, COLUMNS))
        moved[0] = self._sums
        rows = moved[1:]
        k = (block.rows[:, passes.K] - self._k0).astype(np.float64)
        f, c = block.member_j, block.context_j
        uu, uv, vv = block.u**2, block.u * block.v, block.v**2
        uu, uv, vv = uu + block.others[0], uv + block.others[1], vv + block.others[2]
        columns = (
            *(f, c, c * k),
            *(block.gap_s, block.step_share, block.factor, block.factor * k, block.expert_share),
            block.unlearned,
            *(uu, uv, vv),
            *(uv * k, vv * k, vv * k**2),
        )
        for i, column in enumerate(columns):
            rows[:, i] = column
        rows[:, SQUARES] *= block.doubts[:, :1]
        mean_work = np.stack((f, c, c * k), axis=1)[:, :, None] * block.mix[:, None, :]
        rows[:, MIX:] = mean_work.reshape(-1, 3 * DOUBTED)
        # Where nobody decodes nobody owes of it; and prices of work that nobody does may be huge.
        rows[block.rows[:, passes.D_HEADS] == 0] = 0.0
        return np.cumsum(moved, axis=0)

    def _bill(self, request: str) -> Bill:
        bill = self.bills.get(request)
        if bill is None:
            bill = self.bills[request] = Bill()
        return bill

    # --- open segments

    def _count_open(self, segments: Sequence[Segment], sign: int) -> None:
        """Count segments in or out of the sums over all open ones."""
        if not segments:
            return
        a, b, c = np.array([segment.sums[ENERGY] for segment in segments]).T
        start = np.array([s.context - (s.k - self._k0) for s in segments], dtype=np.float64)
        self._open += sign * len(segments)
        self._open_sums += sign * np.array((a.sum(), start.sum(), start @ b, c.sum()))

    def _fold_here(self, stretches: Sequence[Stretch], doubts: Array) -> float:
        """Put stretches that reach to the last settled pass on their bills."""
        return fold(stretches, self._sums[None], doubts[None], self._k, self._k0)

    def _rebase(self) -> None:
        """Move ``k0`` here, else ``k·B`` and ``C`` grow until their difference loses its digits."""
        bills = [bill for bill in self.bills.values() if bill.segment is not None]
        stretches = [Stretch(b, b.segment, 0) for b in bills if b.segment is not None]
        # The stretches go on: their ends add no doubt here.
        self._billed_j += self._fold_here(stretches, np.zeros(3))
        for bill, segment, _ in stretches:
            context = segment.context + (self._k - segment.k)
            bill.segment = Segment(self._k, context, np.zeros(COLUMNS))
        self._k0, self._sums = self._k, np.zeros(COLUMNS)
        self._open, self._open_sums = 0, np.zeros(4)
        self._count_open([b.segment for b in bills if b.segment is not None], 1)
