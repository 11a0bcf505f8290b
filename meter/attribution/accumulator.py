"""The closed form: what each request owes, at a cost that does not grow with the batch.

With every settled pass ``k`` running sums move, in joules ``A += (F + gap)/|S| + b + e·m/T``,
``B += c``, ``C += c·(k − k0)`` (each weighted by the closure's λ). A request that decodes one token
a step from pass ``j`` on with context ``x`` owes ``ΔA + (x − (j − k0))·ΔB + ΔC`` (DESIGN section
5): nothing is done for it while it runs.

The doubt rests on more sums of the same kind. The noise of single steps: an interval knows the sum
of its steps only, so a request pays wrongly by ``Σ_j (x_j − X·p_j/P)·ε_j``, where ``x_j`` is its
share of step ``j``, ``p_j`` the step, ``X`` and ``P`` their sums over the interval. With
``x_j = f_j + κ·c_j`` for a context of κ this is ``u_j + κ·v_j``, and its square has three sums. The
coefficients' covariance: over the request's own features less those that its joules would buy on
average in its intervals, again linear in κ. Passes settle in blocks, all sums by numpy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from meter.attribution import passes
from meter.attribution.batch import Change, Direct, Dispersed, Ended, Joins
from meter.attribution.bill import Bill, Own, Segment
from meter.attribution.coefficients import prefill_pairs
from meter.attribution.curve import Array
from meter.attribution.fit import SIZE
from meter.attribution.settled import Prices, Settled
from meter.model import Phase, Work

#: Passes after which ``k0`` moves; also the largest block that ``settle`` takes.
REBASE_EVERY = 1 << 16

# The running sums, by column: joules; λ-weighted features of a member; unlearned passes; squares
# of u and v (noise), weighted by k as the context grows; the mean work that f, c, c·k joules buy.
_ENERGY = slice(0, 3)
_FEATURES = slice(3, 8)
_UNLEARNED = 8
_SQUARES = slice(9, 15)
_MIX = 15
_COLUMNS = _MIX + 3 * SIZE


class Accumulator:
    """The running sums of one engine over its settled passes, and the bills they settle."""

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        self._sums = np.zeros(_COLUMNS)
        self._k0 = 0
        self._k = 0
        self._last: Prices | None = None
        # Of all open segments together: their number, and the sums that ``energy_j`` needs.
        self._open = 0
        self._open_sums = [0.0, 0.0, 0.0, 0.0]
        self._billed_j = 0.0

    @property
    def energy_j(self) -> float:
        """Joules of all open bills together, up to the last settled pass."""
        a, b, c = self._sums[_ENERGY].tolist()
        then_a, starts, starts_b, then_c = self._open_sums
        return float(
            self._billed_j + self._open * (a + c) - then_a - then_c + starts * b - starts_b
        )

    def settle(self, block: Settled, changes: deque[Change]) -> Iterator[str]:
        """Settle passes and the changes before and in them; yields requests as they end.

        At most ``REBASE_EVERY`` passes. When a request is yielded its bill is complete: take it.
        """
        count = len(block.rows)
        if self._k - self._k0 >= REBASE_EVERY:
            self._rebase()
        sums = self._running(block)
        prices = Prices.of(block)
        first = self._k
        while changes:
            change = changes[0]
            place = change.k - first
            between = isinstance(change, (Ended, Dispersed))
            if place > count or (place == count and not between):
                break
            changes.popleft()
            self._sums, self._k = sums[place], change.k
            self._last = prices[place - 1] if place else self._last
            if isinstance(change, Joins):
                self._open_segment(change.request, Segment(change.k, change.context, sums[place]))
            elif isinstance(change, Direct):
                self._charge(change.work, prices[place], block.mix[place])
            elif isinstance(change, Dispersed):
                for request in change.requests:
                    self._close_segment(request)
            else:
                self._close_segment(change.request)
                if isinstance(change, Ended):
                    yield change.request
        self._sums, self._k = sums[count].copy(), first + count
        self._last = prices[-1] if prices else self._last

    def take(self, request: str) -> Bill | None:
        """The bill of a request that has ended, out of the books of open ones."""
        bill = self.bills.pop(request, None)
        if bill is not None:
            bill.end_own()
            self._billed_j -= bill.energy_j
        return bill

    def current(self, request: str) -> Bill | None:
        """A copy of the bill as it stands at the last settled pass, open segment included."""
        bill = self.bills.get(request)
        if bill is None:
            return None
        copy = bill.copy()
        if copy.segment is not None:
            self._fold(copy, copy.segment)
            copy.segment = None
        copy.end_own()
        return copy

    def open_segment(self, bill: Bill) -> tuple[float, int]:
        """Joules and tokens of a bill's open segment, which are not on the bill yet."""
        if bill.segment is None:
            return 0.0, 0
        k, context, sums = bill.segment
        a, b, c = (self._sums[_ENERGY] - sums[_ENERGY]).tolist()
        return a + (context - (k - self._k0)) * b + c, self._k - k

    def _running(self, block: Settled) -> Array:
        """The sums before each pass, and after the last: shape (n + 1, columns)."""
        moved = np.zeros((len(block.rows) + 1, _COLUMNS))
        moved[0] = self._sums
        rows = moved[1:]
        k = (block.rows[:, passes.K] - self._k0).astype(np.float64)
        f, c = block.member_j, block.context_j
        columns = (
            *(f, c, c * k),
            *(block.gap_s, block.step_share, block.factor, block.factor * k, block.expert_share),
            block.unlearned,
            *(block.u**2, block.u * block.v, block.v**2),
            *(block.u * block.v * k, block.v**2 * k, block.v**2 * k**2),
        )
        for i, column in enumerate(columns):
            rows[:, i] = column
        rows[:, _SQUARES] *= block.noise2[:, None]
        for i, joules in enumerate((f, c, c * k)):
            rows[:, _MIX + i * SIZE : _MIX + (i + 1) * SIZE] = block.mix * joules[:, None]
        rows[block.heads == 0] = 0.0
        return np.cumsum(moved, axis=0)

    # --- segments

    def _open_segment(self, request: str, segment: Segment) -> None:
        bill = self._bill(request)
        self._close_segment(request)
        bill.segment = segment._replace(sums=segment.sums.copy())
        self._count_open(segment, 1)

    def _close_segment(self, request: str) -> None:
        """The request decodes no more (or not plainly): put its segment on its bill."""
        bill = self.bills.get(request)
        if bill is not None and bill.segment is not None:
            self._count_open(bill.segment, -1)
            self._billed_j += self._fold(bill, bill.segment)
            bill.segment = None

    def _count_open(self, segment: Segment, sign: int) -> None:
        a, b, c = segment.sums[_ENERGY].tolist()
        start = segment.context - (segment.k - self._k0)
        self._open += sign
        for i, value in enumerate((a, start, start * b, c)):
            self._open_sums[i] += sign * value

    def _bill(self, request: str) -> Bill:
        bill = self.bills.get(request)
        if bill is None:
            bill = self.bills[request] = Bill()
        return bill

    def _fold(self, bill: Bill, segment: Segment, ends: bool = True) -> float:
        """Put a segment's joules on a bill; returns them. ``ends``: the stretch is over."""
        grown = self._sums - segment.sums
        start = segment.context - (segment.k - self._k0)
        numbers = grown[:_MIX].tolist()
        a, b, c = numbers[_ENERGY]
        gap_s, steps, decode, decode_k, experts = numbers[_FEATURES]
        energy_j: float = a + start * b + c
        bill.decode_j += energy_j
        bill.features += (gap_s, steps, 0.0, 0.0, decode, start * decode + decode_k, experts)
        mix_f, mix_c, mix_ck = grown[_MIX:].reshape(3, SIZE)
        bill.mean_work += mix_f + start * mix_c + mix_ck
        uu, uv, vv, uvk, vvk, vvkk = numbers[_SQUARES]
        bill.noise_j2 += max(
            0.0, uu + 2 * (start * uv + uvk) + start**2 * vv + 2 * start * vvk + vvkk
        )
        count = self._k - segment.k
        bill.unlearned += numbers[_UNLEARNED]
        bill.passes += count
        bill.decoded += count
        if ends and count and self._last is not None:
            bill.noise_j2 += _ends_j2(energy_j / count, count, self._last)
        return energy_j

    def _rebase(self) -> None:
        """Move ``k0`` here, else ``k·B`` and ``C`` grow until their difference loses its digits."""
        for bill in self.bills.values():
            if bill.segment is not None:
                self._billed_j += self._fold(bill, bill.segment, ends=False)
                context = bill.segment.context + (self._k - bill.segment.k)
                bill.segment = Segment(self._k, context, np.zeros(_COLUMNS))
        self._k0, self._sums = self._k, np.zeros(_COLUMNS)
        segments = [b.segment for b in self.bills.values() if b.segment is not None]
        self._open, self._open_sums = 0, [0.0, 0.0, 0.0, 0.0]
        for segment in segments:
            self._count_open(segment, 1)

    # --- direct work

    def _charge(self, work: Work, price: Prices, mix: Array) -> None:
        """Put direct work on its request's bill."""
        bill = self._bill(work.request)
        tokens, context = work.tokens, work.context
        energy_j = price.fixed_j + price.expert_j * tokens
        factor = price.factor
        own = [price.gap_s, price.step_share, 0.0, 0.0, 0.0, 0.0, price.expert_share * tokens]
        if work.phase is Phase.DECODE:
            energy_j += price.decode_j * tokens + price.context_j * context
            own[4], own[5] = factor * tokens, factor * context
            bill.decode_j += energy_j
            bill.decoded += 1 if work.kept is None else work.kept
        else:
            pairs = 0 if work.phase is Phase.ENCODER else prefill_pairs(tokens, context)
            energy_j += price.prefill_j * tokens + price.pair_j * pairs
            own[2], own[3] = factor * tokens, factor * pairs
            if work.phase is Phase.RECOMPUTE:
                bill.recompute_j += energy_j
            else:
                bill.prefill_j += energy_j
        self._billed_j += energy_j
        bill.features += own
        bill.mean_work += energy_j * mix
        bill.passes += 1
        bill.unlearned += price.unlearned
        _note_own(bill, energy_j, price)


def _note_own(bill: Bill, energy_j: float, price: Prices) -> None:
    """Remember direct work by interval, for what the interval cannot tell of it."""
    own = bill.own
    if own is None or own.interval != price.interval:
        own = Own(price.interval, price.concentration, price.noise2, price.edge2)
        bill.next_own(own)
    own.own_j += energy_j
    own.own_j2 += energy_j**2
    own.shared_j += energy_j * price.share


def _ends_j2(mean_j: float, count: int, price: Prices) -> float:
    """Variance that a stretch of ``count`` passes adds by beginning and ending inside intervals.

    Of an interval of ``m`` equal steps it has ``n``: then ``n·(1 − n/m)`` steps' noise is its own,
    ``m/6`` on average at either end, and at most ``count`` in all.
    """
    steps = 1.0 / max(price.concentration, 1e-9)
    alone = 1.0 / (1.0 / count + 3.0 / steps)
    shared = min(count, steps) / 2
    return mean_j**2 * (price.noise2 * alone + 2 * price.edge2 * shared**2)
