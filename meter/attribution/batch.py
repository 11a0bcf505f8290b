"""Who runs in an engine's batch: turns steps in change form into complete passes.

The *members* of a batch are the requests that decode one token a step: their contexts grow by one
each step, so their sum is known without looking at each of them, and a step costs work only for
what changes. A ``PassRow`` is one step with its totals; who joined, who left and the *direct* work
(chunks of prefill, recompute, speculation) that pays its own way are ``Change``s beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from meter.attribution.coefficients import Features, prefill_pairs
from meter.model import Phase, Step, Work

#: Looked at for every request and step: a class's attributes are slow to look up.
_DECODE, _RECOMPUTE, _ENCODER = Phase.DECODE, Phase.RECOMPUTE, Phase.ENCODER


class PassRow(NamedTuple):
    """One step of one engine, complete: a row of whole numbers (see ``passes``).

    ``k`` counts the engine's passes from 0, over all epochs. ``gap_ns`` is when the gap before it
    begins: the gap ``[gap_ns, t0_ns)`` belongs to this pass. Of prefill, recompute and decode:
    requests, tokens computed, and token pairs or context tokens read. ``emitted``: output tokens.
    ``dummy``: 1 where a rank without work ran along with its wave (see ``waves``).
    """

    k: int
    gap_ns: int
    t0_ns: int
    t1_ns: int
    prefill_requests: int
    prefill_tokens: int
    prefill_pairs: int
    recompute_requests: int
    recompute_tokens: int
    recompute_pairs: int
    decode_requests: int
    decode_tokens: int
    context: int
    emitted: int
    dummy: int = 0

    @property
    def participants(self) -> int:
        return self.prefill_requests + self.recompute_requests + self.decode_requests

    def work(self, experts: float = 0.0) -> Features:
        """All that the step computed; ``experts`` is the share of experts that it woke."""
        tokens = self.prefill_tokens + self.recompute_tokens
        pairs = self.prefill_pairs + self.recompute_pairs
        return Features(0.0, 1.0, tokens, pairs, self.decode_tokens, self.context, experts)


#: Requests, tokens, and pairs or context of a phase that nobody is in.
_NONE = (0, 0, 0)
#: ``PassRow._make`` but for its look at the length.
_new_row = partial(tuple.__new__, PassRow)


class Leaves(NamedTuple):
    """The request decodes plainly no more from pass ``k`` on."""

    k: int
    request: str


class Joins(NamedTuple):
    """A request decodes one token a step from pass ``k`` on, with ``context`` tokens before."""

    k: int
    request: str
    context: int


class Direct(NamedTuple):
    """Work in pass ``k`` that is not one plainly decoded token."""

    k: int
    work: Work


class Dispersed(NamedTuple):
    """The batch was lost from sight before pass ``k``: these requests' segments end there."""

    k: int
    requests: list[str]


class Ended(NamedTuple):
    """A request's end, before pass ``k``."""

    k: int
    request: str


Change = Leaves | Joins | Direct | Dispersed | Ended


class Batch:
    """The running batch of one engine, followed step by step."""

    def __init__(self) -> None:
        self._joined: dict[str, int] = {}  # member -> context at join minus the pass of its join
        self._offset_sum = 0
        self._synchronised = False
        self.passes = 0

    def __len__(self) -> int:
        return len(self._joined)

    def forget(self) -> list[str]:
        """A gap or a new epoch: nobody is known to run. Returns who was a member."""
        members = list(self._joined)
        self._joined.clear()
        self._offset_sum = 0
        self._synchronised = False
        return members

    def everybody_is_gone(self) -> None:
        """Nobody runs, and that is known: a step in change form has its base again."""
        self._synchronised = not self._joined or self._synchronised

    def remove(self, request: str) -> bool:
        """Take a closed request out; true where it was a member."""
        offset = self._joined.pop(request, None)
        if offset is None:
            return False
        self._offset_sum -= offset
        return True

    def news(self, step: Step) -> Sequence[Work]:
        """The step's work but for members that decode one token more, as they are expected to."""
        if step.same:
            return step.work
        k, offset = self.passes, self._joined.get
        return [  # unpacked at once: in full form this is where a replay spends its time
            work
            for work in step.work
            for request, tokens, context, phase, kept in (work,)
            if offset(request) != context - k
            or tokens != 1
            or phase is not _DECODE
            or kept is not None
        ]

    def apply(
        self, step: Step, news: Sequence[Work], gap_ns: int
    ) -> tuple[PassRow, list[Change]] | None:
        """The pass that ``step`` was; ``None`` where its change form has no known base.

        ``news``: what ``news`` says of it.
        """
        if step.same and not self._synchronised:
            return None
        k = self.passes
        joined = self._joined
        if step.same and not news and not step.drop:
            self.passes += 1
            return self._row(step, gap_ns, k, ()), []
        changes: list[Change] = [Leaves(k, r) for r in step.drop if self.remove(r)]
        joins: list[Joins] = []
        joining: set[str] = set()
        direct: list[Work] = []
        for work in news:
            request, tokens, context, phase, kept = work
            plain = tokens == 1 and phase is _DECODE and (kept is None or kept == 1)
            if plain and joined.get(request) == context - k:
                continue
            if request in joined:
                self.remove(request)
                changes.append(Leaves(k, request))
            if plain and request not in joining:
                joins.append(Joins(k, request, context))
                joining.add(request)
            else:  # also what is named twice: it pays twice, and joins once
                direct.append(work)
        if not step.same and len(joined) + len(joins) + len(direct) != len(step.work):
            changes += self._gone(step, k)
        for _, request, context in joins:
            joined[request] = context - k
            self._offset_sum += context - k
        changes += joins
        changes += [Direct(k, work) for work in direct]
        self.passes += 1
        self._synchronised = True
        return self._row(step, gap_ns, k, direct), changes

    def _gone(self, step: Step, k: int) -> list[Leaves]:
        """In full form: who is named no more."""
        named = {work.request for work in step.work}
        gone = [request for request in self._joined if request not in named]
        for request in gone:
            self.remove(request)
        return [Leaves(k, request) for request in gone]

    def _row(self, step: Step, gap_ns: int, k: int, direct: Sequence[Work]) -> PassRow:
        members = len(self._joined)
        times = (k, gap_ns, step.t0_ns, step.t1_ns)
        plain = (members, members, self._offset_sum + k * members)
        if not direct:
            return _new_row((*times, *_NONE, *_NONE, *plain, members, 0))
        prefill, recompute, decode = list(_NONE), list(_NONE), list(plain)
        emitted = members
        for _, tokens, context, phase, kept in direct:
            if phase is _DECODE:
                decode[0] += 1
                decode[1] += tokens
                decode[2] += context
                emitted += 1 if kept is None else kept
                continue
            sums = recompute if phase is _RECOMPUTE else prefill
            sums[0] += 1
            sums[1] += tokens
            if phase is not _ENCODER:
                sums[2] += prefill_pairs(tokens, context)
        return _new_row((*times, *prefill, *recompute, *decode, emitted, 0))

    def dummy(self, step: Step) -> PassRow:
        """A pass with nobody in it: one token of nothing. Call ``forget`` before."""
        k = self.passes
        self.passes += 1
        self._synchronised = True
        times = (k, step.t0_ns, step.t0_ns, step.t1_ns)
        return _new_row((*times, *[0] * 7, 1, 0, 0, 1))
