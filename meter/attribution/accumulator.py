"""The closed form: what each request owes, at a cost that does not grow with the batch.

With every settled pass ``k`` three running sums move:
``A += (F + gap)/|S| + b``, ``B += c``, ``C += c·(k − k0)`` (each weighted by the closure's λ).
A request that decodes one token a step from pass ``j`` on with context ``x`` owes
``ΔA + (x − (j − k0))·ΔB + ΔC`` (DESIGN section 5): nothing is done for it while it runs. The same
sums without coefficients (``Doubt``) give the features that its uncertainty rests on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from meter.attribution.batch import Pass
from meter.attribution.coefficients import prefill_pairs
from meter.model import Phase, Work

_REBASE_EVERY = 1 << 16


class Sums(NamedTuple):
    """The running sums, in joules (``a``, ``b``, ``c``) and λ-weighted counts (the rest)."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    gap_s: float = 0.0
    steps: float = 0.0
    decode: float = 0.0
    decode_k: float = 0.0
    noise: float = 0.0
    unlearned: float = 0.0


class Segment(NamedTuple):
    """A stretch of plain decoding: since pass ``k`` with ``context`` tokens, sums as they stood."""

    k: int
    context: int
    sums: Sums


@dataclass(slots=True)
class Bill:
    """What one request has been charged so far, and the λ-weighted features behind it."""

    prefill_j: float = 0.0
    decode_j: float = 0.0
    recompute_j: float = 0.0
    gap_s: float = 0.0
    steps: float = 0.0
    prefill: float = 0.0
    pairs: float = 0.0
    decode: float = 0.0
    context: float = 0.0
    noise: float = 0.0
    unlearned: float = 0.0
    passes: int = 0
    decoded: int = 0
    segment: Segment | None = None

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j


class Accumulator:
    """The running sums of one engine over its settled passes, and the bills they settle."""

    def __init__(self) -> None:
        self._sums = Sums()
        self._k0 = 0
        self._k = 0
        self.bills: dict[str, Bill] = {}

    def apply(self, done: Pass) -> None:
        """Settle one pass, in order: leavers first, then joiners, then what it cost."""
        self._k = done.k
        if done.k - self._k0 >= _REBASE_EVERY:
            self._rebase()
        for request in done.leaves:
            self.close_segment(request)
        for request, context in done.joins:
            self._bill(request).segment = Segment(done.k, context, self._sums)
        participants = done.participants
        if participants == 0:
            return
        fixed_j = (done.step_w + done.gap_j) / participants
        energy_j = done.energy_j
        noise = done.variance_j2 / energy_j**2 if energy_j > 0 else 0.0
        unlearned = done.unlearned_j / energy_j if energy_j > 0 else 0.0
        for work in done.direct:
            bill = self._charge(work, done, fixed_j)
            bill.noise += noise
            bill.unlearned += unlearned
        offset = done.k - self._k0
        s = self._sums
        self._sums = Sums(
            s.a + fixed_j + done.decode_w,
            s.b + done.context_w,
            s.c + done.context_w * offset,
            s.gap_s + done.gap_lambda_s / participants,
            s.steps + done.lambda_sum / participants,
            s.decode + done.lambda_sum,
            s.decode_k + done.lambda_sum * offset,
            s.noise + noise,
            s.unlearned + unlearned,
        )
        self._k = done.k + 1

    def close_segment(self, request: str) -> None:
        """The request decodes no more (or not plainly): put its segment on its bill."""
        bill = self.bills.get(request)
        if bill is not None and bill.segment is not None:
            self._fold(bill, bill.segment)
            bill.segment = None

    def energy_j(self, request: str) -> float:
        """Joules of an open request up to the last settled pass."""
        bill = self.bills.get(request)
        if bill is None:
            return 0.0
        energy_j = bill.energy_j
        if bill.segment is not None:
            _, context, then = bill.segment
            now = self._sums
            start = context - (bill.segment.k - self._k0)
            energy_j += (now.a - then.a) + start * (now.b - then.b) + (now.c - then.c)
        return energy_j

    def current(self, request: str) -> Bill | None:
        """A copy of the bill as it stands at the last settled pass, open segment included."""
        bill = self.bills.get(request)
        if bill is None:
            return None
        copy = Bill(*(getattr(bill, name) for name in Bill.__slots__))
        if copy.segment is not None:
            self._fold(copy, copy.segment)
            copy.segment = None
        return copy

    def _bill(self, request: str) -> Bill:
        bill = self.bills.get(request)
        if bill is None:
            bill = self.bills[request] = Bill()
        return bill

    def _fold(self, bill: Bill, segment: Segment) -> None:
        now, then = self._sums, segment.sums
        start = segment.context - (segment.k - self._k0)
        bill.decode_j += (now.a - then.a) + start * (now.b - then.b) + (now.c - then.c)
        decode = now.decode - then.decode
        bill.gap_s += now.gap_s - then.gap_s
        bill.steps += now.steps - then.steps
        bill.decode += decode
        bill.context += start * decode + (now.decode_k - then.decode_k)
        bill.noise += now.noise - then.noise
        bill.unlearned += now.unlearned - then.unlearned
        bill.passes += self._k - segment.k
        bill.decoded += self._k - segment.k

    def _charge(self, work: Work, done: Pass, fixed_j: float) -> Bill:
        """Put direct work on its request's bill; returns the bill."""
        bill = self._bill(work.request)
        share = 1.0 / done.participants
        bill.steps += done.lambda_sum * share
        bill.gap_s += done.gap_lambda_s * share
        bill.passes += 1
        if work.phase is Phase.DECODE:
            bill.decode += done.lambda_sum * work.tokens
            bill.context += done.lambda_sum * work.context
            bill.decoded += work.kept if work.kept is not None else 1
            bill.decode_j += fixed_j + done.decode_w * work.tokens + done.context_w * work.context
            return bill
        pairs = 0.0 if work.phase is Phase.ENCODER else prefill_pairs(work.tokens, work.context)
        bill.prefill += done.lambda_sum * work.tokens
        bill.pairs += done.lambda_sum * pairs
        energy_j = fixed_j + done.prefill_w * work.tokens + done.pair_w * pairs
        if work.phase is Phase.RECOMPUTE:
            bill.recompute_j += energy_j
        else:
            bill.prefill_j += energy_j
        return bill

    def _rebase(self) -> None:
        """Move ``k0`` here, else ``k·B`` and ``C`` grow until their difference loses its digits."""
        for bill in self.bills.values():
            if bill.segment is not None:
                context = bill.segment.context + (self._k - bill.segment.k)
                self._fold(bill, bill.segment)
                bill.segment = Segment(self._k, context, Sums())
        self._k0, self._sums = self._k, Sums()
