"""Rebuilds an engine's steps from its scheduler's own calls, at a cost that follows change.

Of the hundreds of requests in a step nearly all decode one token at one context more than in the
step before. These are the *members*: they are not looked at. The others are the *watched*: they
run, but their next step is not implied (a prefill under way, a first decode, one that sat out a
step). Newly scheduled ones and watched ones are told one by one; members who left are dropped.

Why that is sound without looking at each: every participant is new, watched or a member. If those
told apart number ``e`` and compute ``t`` tokens, and there are ``n`` participants with ``total``
tokens in all, then the others number ``n - e`` and each computes at least one token. If there are
just as many members, and ``total - t`` is that number too, the others are the members, with one
token each. If not, who left is found by one set difference (in C); and if it still does not add
up, or the engine speculates, the step is told in full form and everything starts from there.

A step is built when it is scheduled and told when its result is there. With asynchronous
scheduling a request may finish while a later step still computes it: its end is told after all
steps then in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from . import adapter
from .sender import Sender

Row = list[object]


class _Entry:
    """One unfinished request: vLLM's own object, and what is remembered of it.

    ``reached``: context after its last step told; for members ``offset`` + the step's number
    instead. ``redo``: below this context tokens are computed again, after a preemption.
    ``absent``: the step that it is expected to sit out.
    """

    __slots__ = ("absent", "cached", "offset", "preemptions", "reached", "redo", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.cached: int | None = None
        self.offset = 0
        self.reached = 0
        self.redo = 0
        self.preemptions = 0
        self.absent = -1


class _Flying(NamedTuple):
    """A step that is scheduled and not yet done."""

    output: Any
    seq: int
    t_ns: int
    same: bool
    rows: list[Row]
    drop: list[str]


class _Closing(NamedTuple):
    """A finished request whose end waits for step ``seq``."""

    seq: int
    fields: tuple[str, str, int, int | None, int]


class Tap:
    """The view of one scheduler. ``clock``: ``CLOCK_MONOTONIC`` in ns. Not thread safe."""

    def __init__(self, sender: Sender, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._sender = sender
        self._clock = clock
        self._open: dict[str, _Entry] = {}
        self._members: set[str] = set()
        self._watched: set[str] = set()
        self._absent: dict[int, set[str]] = {}  # step -> members expected to sit it out
        self._seq = 0
        self._irregular = True  # the next step cannot build on the last one
        self._flying: deque[_Flying] = deque()
        self._closing: deque[_Closing] = deque()
        self._done_ns = 0

    # --- what the engine does

    def added(self, request: Any, t_ns: int) -> None:
        """The scheduler took ``request``. The same one again is more input of a session."""
        name: str = request.request_id
        if name in self._open:
            return
        self._open[name] = _Entry(request)
        parent, model = adapter.parent_of(request), adapter.adapter_name(request)
        self._sender.opened(t_ns, name, parent, request.num_prompt_tokens, model)

    def scheduled(self, output: Any, t_ns: int) -> None:
        """``schedule()`` returned ``output`` at ``t_ns``."""
        for name in self._open.keys() & adapter.finished_ids(output):
            self._finish(name)
        if self._closing:
            self._tell_ends()
        if output.num_scheduled_tokens:
            self._flying.append(self._build(output, t_ns))
        self._sender.flush()

    def updated(self, output: Any, model_output: Any, t_ns: int, scheduler: Any) -> None:
        """``update_from_output()``, entered at ``t_ns``, returned."""
        step = self._land(output)
        if step is not None:
            self._tell(step, model_output, t_ns)
        for name in self._open.keys() & adapter.finished_ids(scheduler):
            self._finish(name)
        if self._closing:
            self._tell_ends()
        if adapter.nobody_runs(scheduler):
            self._sender.flush()  # else schedule() comes next, and sends this with its own news

    def dummy(self, t0_ns: int, t1_ns: int) -> None:
        """A pass with no request in it ran from ``t0_ns`` to ``t1_ns``."""
        start_ns = max(t0_ns, self._done_ns)
        if t1_ns > start_ns:
            self._sender.dummy(max(0, self._seq - 1), start_ns, t1_ns)
            self._done_ns = t1_ns
            self._sender.flush()

    def release(self) -> None:
        """Let go of everything that belongs to the engine."""
        self._open.clear()
        self._flying.clear()
        self._sender.close()

    # --- steps

    def _build(self, output: Any, t_ns: int) -> _Flying:
        seq = self._seq
        self._seq = seq + 1
        if not (self._irregular or output.scheduled_spec_decode_tokens or self._sender.wants_full):
            drop: list[str] = []
            rows = self._changes(output, seq, drop)
            if rows is not None:
                return _Flying(output, seq, t_ns, True, rows, drop)
        return _Flying(output, seq, t_ns, False, self._everyone(output, seq), [])

    def _changes(self, output: Any, seq: int, drop: list[str]) -> list[Row] | None:
        """The rows of the change form, and into ``drop`` who left; ``None`` if it is unsound."""
        counts: dict[str, int] = output.num_scheduled_tokens
        members = self._members
        for name in adapter.preempted_ids(output):
            self._watched.discard(name)
            if name in members and name not in counts:
                self._leave(name, seq, drop)
        for name in self._absent.pop(seq, ()):
            if name in members and name not in counts:
                self._leave(name, seq, drop)
                self._watched.add(name)
        rows: list[Row] = []
        joins: list[str] = []
        told = 0
        for name in self._apart(output, counts):
            tokens = counts[name]
            told += tokens
            rows.append(self._row(name, tokens, seq, joins))
        others = len(counts) - len(rows)
        if len(members) != others or output.total_num_scheduled_tokens - told != others:
            for name in members.difference(counts):
                self._leave(name, seq, drop)
                self._watched.add(name)
            if len(members) != others or output.total_num_scheduled_tokens - told != others:
                return None
        members.update(joins)
        return rows

    def _apart(self, output: Any, counts: dict[str, int]) -> list[str]:
        """Who in this step is told one by one, each once."""
        watched = [name for name in self._watched if name in counts] if self._watched else []
        new = [fresh.req_id for fresh in output.scheduled_new_reqs]
        new.extend(adapter.resumed_ids(output))
        return list(dict.fromkeys(new + watched)) if new else watched

    def _everyone(self, output: Any, seq: int) -> list[Row]:
        """The rows of the full form; members and watched are known afresh from here."""
        counts: dict[str, int] = output.num_scheduled_tokens
        for name in self._members.difference(counts):
            self._leave(name, seq, [])
            self._watched.add(name)
        self._watched.difference_update(adapter.preempted_ids(output))
        joins: list[str] = []
        rows = [self._row(name, tokens, seq, joins) for name, tokens in counts.items()]
        self._members = set(joins)
        self._irregular = any(row[3] == "d" and row[1] != 1 for row in rows)
        return rows

    def _row(self, name: str, tokens: int, seq: int, joins: list[str]) -> Row:
        """One request's work, read off vLLM's own object right after ``schedule()``."""
        entry = self._open[name]
        request = entry.request
        context: int = request.num_computed_tokens - tokens
        if name in self._members:
            self._members.discard(name)
            entry.reached = entry.offset + seq
        if entry.cached is None:
            entry.cached = adapter.cached_at_first(request, context)
        if request.num_preemptions != entry.preemptions:
            entry.preemptions = request.num_preemptions
            entry.redo = max(entry.redo, min(entry.reached, request.num_tokens))
        entry.reached = context + tokens
        if context < entry.redo:
            phase = "r"
        elif context < request.num_prompt_tokens:
            phase = "p"
        else:
            phase = "d"
        if phase == "d" and tokens == 1:
            self._watched.discard(name)
            entry.offset = context - seq
            joins.append(name)
            if self._flying:
                self._expect(name, entry, seq)
        else:
            self._watched.add(name)
            self._irregular = self._irregular or phase == "d"
        return [name, tokens, context, phase]

    def _expect(self, name: str, entry: _Entry, seq: int) -> None:
        """Note the step that ``name`` will sit out if nothing ends it before its last token.

        With asynchronous scheduling that step comes before its end is known. Only a hint: it saves
        the search for who left.
        """
        if entry.absent >= 0:
            self._expect_no_more(name, entry)
        request = entry.request
        last = request.num_prompt_tokens + request.max_tokens - 2  # context of its last decode
        entry.absent = max(seq, last - entry.offset) + 1
        self._absent.setdefault(entry.absent, set()).add(name)

    def _expect_no_more(self, name: str, entry: _Entry) -> None:
        names = self._absent.get(entry.absent)
        if names is not None:
            names.discard(name)
            if not names:
                del self._absent[entry.absent]

    def _leave(self, name: str, seq: int, drop: list[str]) -> None:
        self._members.discard(name)
        entry = self._open[name]
        entry.reached = entry.offset + seq
        drop.append(name)

    # --- results

    def _land(self, output: Any) -> _Flying | None:
        """The step that ``output`` was; ``None`` for one with nobody in it.

        Steps come back in order. One before it that never did was given up by the engine: the jump
        in ``seq`` tells, and a full form has to follow.
        """
        flying = self._flying
        if flying and flying[0].output is output:
            return flying.popleft()
        if not any(step.output is output for step in flying):
            return None
        while flying[0].output is not output:
            flying.popleft()
        self._irregular = True
        return flying.popleft()

    def _tell(self, step: _Flying, model_output: Any, t_ns: int) -> None:
        if step.output.scheduled_spec_decode_tokens:
            kept = adapter.kept_tokens(step.output, model_output)
            for row in step.rows:
                if row[0] in kept:
                    row.append(kept[str(row[0])])
        start_ns = max(step.t_ns, self._done_ns)
        self._done_ns = t_ns
        self._sender.step(step.seq, start_ns, t_ns, step.rows, step.same, step.drop)

    # --- ends

    def _finish(self, name: str) -> None:
        """``name`` is finished; vLLM's object is read for the last time and let go."""
        entry = self._open.pop(name)
        self._members.discard(name)
        self._watched.discard(name)
        self._expect_no_more(name, entry)
        request = entry.request
        last = self._flying[-1].seq if self._flying else -1
        reason = adapter.reason_of(request)
        counts = (request.num_prompt_tokens, entry.cached or 0, request.num_output_tokens)
        self._closing.append(_Closing(last, (name, reason, *counts)))

    def _tell_ends(self) -> None:
        """Tell the ends that wait for no step in flight."""
        closing, now_ns = self._closing, self._clock()
        first = self._flying[0].seq if self._flying else self._seq
        while closing and closing[0].seq < first:
            name, reason, prompt, cached, completion = closing.popleft().fields
            self._sender.closed(now_ns, name, reason, prompt, cached, completion)
