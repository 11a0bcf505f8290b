"""Who runs in an engine's batch: turns steps in change form into complete passes.

The *members* of a batch are the requests that decode one token a step: their contexts grow by one
each step, so their sum is known without looking at each of them, and a step costs work only for
what changes. A ``Pass`` is one step with its totals, who joined and who left, and the *direct* work
(chunks of prefill, recompute, speculation) that pays its own way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from meter.attribution.coefficients import Features, prefill_pairs
from meter.model import Phase, Step, Work


class Join(NamedTuple):
    """A request that decodes one token a step from this pass on, with ``context`` tokens before."""

    request: str
    context: int


@dataclass(slots=True)
class Totals:
    """Sums over the participants of a pass, by phase."""

    requests: int = 0
    tokens: int = 0
    pairs: float = 0.0
    context: int = 0

    def add(self, work: Work) -> None:
        self.requests += 1
        self.tokens += work.tokens
        if work.phase is Phase.DECODE:
            self.context += work.context
        elif work.phase is not Phase.ENCODER:
            self.pairs += prefill_pairs(work.tokens, work.context)


@dataclass(slots=True)
class Pass:
    """One step of one engine, complete. ``k`` counts the engine's passes from 0, over all epochs.

    ``gap_ns`` is when the gap before it begins: the gap ``[gap_ns, t0_ns)`` belongs to this pass.

    The rest grows as intervals settle (see ``settle``): ``*_w`` are joules per step and per unit of
    work, weighted by λ; ``gap_j`` the gap's joules; ``lambda_sum`` and ``gap_lambda_s`` the λ and
    the gap seconds so weighted; ``variance_j2`` what intervals cannot tell about this pass;
    ``unlearned_j`` the joules split before the calibration had converged;
    ``pending_j`` the joules by device that wait for the pass to be complete.
    """

    k: int
    gap_ns: int
    t0_ns: int
    t1_ns: int
    prefill: Totals
    decode: Totals
    recompute: Totals
    joins: list[Join]
    leaves: list[str]
    direct: list[Work]
    emitted: int
    members: int
    step_w: float = 0.0
    prefill_w: float = 0.0
    pair_w: float = 0.0
    decode_w: float = 0.0
    context_w: float = 0.0
    gap_j: float = 0.0
    lambda_sum: float = 0.0
    gap_lambda_s: float = 0.0
    variance_j2: float = 0.0
    unlearned_j: float = 0.0
    pending_j: dict[str, float] = field(default_factory=dict)

    @property
    def participants(self) -> int:
        return self.prefill.requests + self.decode.requests + self.recompute.requests

    @property
    def energy_j(self) -> float:
        """Joules priced so far."""
        return (
            self.step_w
            + self.gap_j
            + self.prefill_w * self.prefill_tokens
            + self.pair_w * self.pairs
            + self.decode_w * self.decode.tokens
            + self.context_w * self.decode.context
        )

    @property
    def prefill_tokens(self) -> int:
        return self.prefill.tokens + self.recompute.tokens

    @property
    def pairs(self) -> float:
        return self.prefill.pairs + self.recompute.pairs

    @property
    def work(self) -> Features:
        """All that the step computed."""
        decode = self.decode
        return Features(0.0, 1.0, self.prefill_tokens, self.pairs, decode.tokens, decode.context)

    @property
    def duration_ns(self) -> int:
        return max(1, self.t1_ns - self.t0_ns)


class Batch:
    """The running batch of one engine, followed step by step."""

    def __init__(self) -> None:
        self._joined: dict[str, int] = {}  # member -> context at join minus the pass of its join
        self._offset_sum = 0
        self._passes = 0
        self._synchronised = False

    def __len__(self) -> int:
        return len(self._joined)

    @property
    def passes(self) -> int:
        return self._passes

    def __contains__(self, request: object) -> bool:
        return request in self._joined

    def forget(self) -> list[str]:
        """A gap or a new epoch: nobody is known to run. Returns who was a member."""
        members = list(self._joined)
        self._joined.clear()
        self._offset_sum = 0
        self._synchronised = False
        return members

    def remove(self, request: str) -> bool:
        """Take a closed request out; true where it was a member."""
        offset = self._joined.pop(request, None)
        if offset is None:
            return False
        self._offset_sum -= offset
        return True

    def apply(self, step: Step, gap_ns: int) -> Pass | None:
        """The pass that ``step`` was; ``None`` where its change form has no known base."""
        if step.same and not self._synchronised:
            return None
        k = self._passes
        prefill, decode, recompute = Totals(), Totals(), Totals()
        joins: list[Join] = []
        leaves = [r for r in step.drop if self.remove(r)]
        direct: list[Work] = []
        emitted = 0
        if not step.same:
            named = {work.request for work in step.work}
            gone = [r for r in self._joined if r not in named]
            leaves += gone
            for request in gone:
                self.remove(request)
        for work in step.work:
            if work.phase is Phase.DECODE and work.tokens == 1:
                if self._joined.get(work.request) != work.context - k:
                    if self.remove(work.request):
                        leaves.append(work.request)
                    joins.append(Join(work.request, work.context))
                continue
            if self.remove(work.request):
                leaves.append(work.request)
            direct.append(work)
            if work.phase is Phase.DECODE:
                decode.add(work)
                emitted += work.kept if work.kept is not None else 1
            elif work.phase is Phase.RECOMPUTE:
                recompute.add(work)
            else:
                prefill.add(work)
        for request, context in joins:
            self._joined[request] = context - k
            self._offset_sum += context - k
        members = len(self._joined)
        decode.requests += members
        decode.tokens += members
        decode.context += self._offset_sum + k * members
        self._passes += 1
        self._synchronised = True
        return Pass(
            k=k,
            gap_ns=gap_ns,
            t0_ns=step.t0_ns,
            t1_ns=step.t1_ns,
            prefill=prefill,
            decode=decode,
            recompute=recompute,
            joins=joins,
            leaves=leaves,
            direct=direct,
            emitted=emitted + members,
            members=members,
        )
