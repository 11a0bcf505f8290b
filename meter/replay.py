"""Runs the core over a recorded trace: how results are reproduced and policies compared."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from meter.attribution import WINDOW_NS, Attributor, Learned, from_facts
from meter.attribution.rules import Charge, Charges, Rule, charges
from meter.export.receipts import receipt_line
from meter.model import (
    Account,
    AccountKey,
    Event,
    Quality,
    Receipt,
    Snapshot,
    Step,
    TenantKey,
)
from meter.trace import BAD_LINES_MAX, BadLine, Trace, TraceReader, collection_paused

Watch = Callable[[Event, Attributor], None]
_META_LINE = 1
_LEARNED_MAX = 4096
#: Lines of a recorder stand out of order by no more than this, but for readings from afar.
_NEARLY_NS = 250_000_000
#: Where the parts of a rule's charge are booked, in their order.
_CHARGED = (Account.PREFILL, Account.DECODE, Account.RECOMPUTE)
#: Some 60 intervals of a counter of 100 ms.
_SHORT_NS = 6_000_000_000


class Policy(StrEnum):
    """Who pays: the cost game's Shapley value, or a rule in use elsewhere (for comparison)."""

    SHAPLEY = "shapley"
    TOKENS = "tokens"
    TIME = "time"
    INFLIGHT = "inflight"


class CalibrationMode(StrEnum):
    """``whole`` may look at the whole trace; ``online`` only at the past, as live."""

    WHOLE = "whole"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gives: receipts, the accounts at the end, and the lines it could not use.

    ``bad_unlisted``: how many such lines there are beyond ``bad_lines``.
    """

    receipts: tuple[Receipt, ...]
    snapshot: Snapshot
    bad_lines: tuple[BadLine, ...] = ()
    policy: Policy = Policy.SHAPLEY
    bad_unlisted: int = 0

    @property
    def bad_count(self) -> int:
        """How many lines could not be used."""
        return len(self.bad_lines) + self.bad_unlisted


def replay(
    path: Path | str,
    policy: Policy = Policy.SHAPLEY,
    calibration: CalibrationMode = CalibrationMode.WHOLE,
    watch: Watch | None = None,
) -> Replayed:
    """Replay the trace at ``path``. Raises ``meter.trace.TraceError`` where nothing is usable.

    ``watch`` may look at the core after each event, and must not drain it.
    """
    with collection_paused():
        if calibration is CalibrationMode.WHOLE and watch is None:
            # What is held for less time is nearer to the processor.
            with contextlib.suppress(_DisorderError):
                reader = TraceReader(path)
                return _replay(reader, reader, policy, calibration, window_ns=_NEARLY_NS)
        reader = TraceReader(path)
        return _replay(reader, reader, policy, calibration, watch)


def replay_trace(
    trace: Trace,
    policy: Policy = Policy.SHAPLEY,
    calibration: CalibrationMode = CalibrationMode.WHOLE,
) -> Replayed:
    """Replay a trace that is already read."""
    return _replay(trace, trace.events, policy, calibration)


class _DisorderError(Exception):
    """A line is later than the window allows."""


def _replay(
    source: TraceReader | Trace,
    events: Iterable[Event],
    policy: Policy,
    calibration: CalibrationMode,
    watch: Watch | None = None,
    window_ns: int = WINDOW_NS,
) -> Replayed:
    """Events go through as they are read: a trace may be larger than the memory.

    Where the trace says what was known at its start, ``online`` begins there; ``whole`` only where
    the trace itself has too little work to learn from. Raises ``_DisorderError`` where a window
    below the usual one is too narrow.
    """
    restored, odd = _restored(source.meta)
    if policy is not Policy.SHAPLEY:
        events = list(events)
    hindsight, coming = calibration is CalibrationMode.WHOLE, iter(events)
    first: list[Event] = []
    if hindsight and restored:
        first, short = _first_work(coming)
        restored = restored if short else []
    core = Attributor(
        source.devices, source.engines, restored=restored, hindsight=hindsight, window_ns=window_ns
    )
    feed = core.feed
    for event in chain(first, coming):
        feed(event)
        if watch is not None:
            watch(event, core)
    if core.out_of_order and window_ns < WINDOW_NS:
        raise _DisorderError
    core.finish()
    receipts, snapshot = core.drain(), core.snapshot()
    if policy is not Policy.SHAPLEY:
        charged = charges(events, Rule(policy), source.devices, source.engines)
        receipts, snapshot = _under_rule(charged, receipts, snapshot)
    bad_lines = sorted([*source.bad_lines, *odd])
    listed, unlisted = bad_lines[:BAD_LINES_MAX], bad_lines[BAD_LINES_MAX:]
    unlisted_count = len(unlisted) + source.bad_unlisted
    return Replayed(tuple(receipts), snapshot, tuple(listed), policy, unlisted_count)


def _restored(meta: Mapping[str, Any]) -> tuple[list[Learned], list[BadLine]]:
    """What the recording core began with, and what is odd there."""
    said = meta.get("calibration")
    learned = said.get("learned", []) if isinstance(said, dict) else said or []
    if not isinstance(learned, list):
        return [], [BadLine(_META_LINE, "calibration.learned must be a list")]
    restored, odd = [], []
    if len(learned) > _LEARNED_MAX:
        reason = f"calibration.learned has {len(learned)} entries, and {_LEARNED_MAX} is the most"
        return [], [BadLine(_META_LINE, reason)]
    for number, facts in enumerate(learned):
        try:
            if not isinstance(facts, dict):
                raise ValueError(f"it must be an object, not {facts!r:.40}")
            restored.append(from_facts(facts))
        except (ValueError, ArithmeticError) as error:
            reason = str(error).removeprefix("calibration: ")
            reason = f"calibration.learned[{number}] is left out: {reason}"
            odd.append(BadLine(_META_LINE, reason))
    return restored, odd


def _first_work(events: Iterator[Event]) -> tuple[list[Event], bool]:
    """The first events, with ``_SHORT_NS`` of steps; and whether there is no more than that."""
    taken: list[Event] = []
    left_ns = _SHORT_NS
    for event in events:
        taken.append(event)
        if isinstance(event, Step):
            left_ns -= event.t1_ns - event.t0_ns
            if left_ns <= 0:
                return taken, False
    return taken, True


def _under_rule(
    charged: Charges, receipts: Iterable[Receipt], snapshot: Snapshot
) -> tuple[list[Receipt], Snapshot]:
    """The same requests charged by another rule, and accounts that agree with them.

    A rule knows neither doubt nor strangers, start-up or lost steps: what it charges to no request
    is idle. Of an id that is used twice the first request to end pays all.
    """
    left, quality = dict(charged), snapshot.quality or Quality.ESTIMATED
    accounts: defaultdict[AccountKey, float] = defaultdict(float)
    tenants: defaultdict[TenantKey, float] = defaultdict(float)

    def book(engine: str, model: str, charge: Charge) -> None:
        for account, energy_j in zip(_CHARGED, charge, strict=True):
            if energy_j:
                accounts[AccountKey(engine, model, account, quality)] += energy_j

    ruled = []
    for receipt in receipts:
        parts = [left.pop(id, Charge()) for id in dict.fromkeys(receipt.requests)]
        charge = Charge(*(sum(phase) for phase in zip(*parts, strict=True)))
        book(receipt.engine, receipt.model or "", charge)
        if receipt.tenant is not None:
            tenants[TenantKey(receipt.tenant, receipt.model or "")] += charge.energy_j
        ruled.append(
            replace(
                receipt,
                prefill_j=charge.prefill_j,
                decode_j=charge.decode_j,
                recompute_j=charge.recompute_j,
                uncertainty_j=None,
                quality=receipt.quality or (quality if charge.energy_j else None),
                children=(),
            )
        )
    for charge in left.values():
        book("", "", charge)
    open_j, whole_j = sum(c.energy_j for c in left.values()), sum(accounts.values())
    idle_j = snapshot.measured_j - snapshot.pending_j - whole_j
    if idle_j > 1e-9 * whole_j:
        accounts[AccountKey("", "", Account.IDLE, quality)] = idle_j
    return ruled, replace(
        snapshot,
        accounts=dict(accounts),
        unattributed={},
        tenant_energy_j=dict(tenants),
        receipts_open_j=open_j,
        receipts_closed_j=whole_j - open_j,
    )


def not_covered(s: Snapshot) -> list[str]:
    """What the accounts leave out, a sentence each."""
    holes = []
    for state in s.devices:
        name = state.device.id
        if state.resets:
            holes.append(
                f"{name}: the counter went backwards {state.resets} times: what it moved there "
                "is not covered"
            )
        if state.jumps:
            holes.append(
                f"{name}: the counter jumped {state.jumps} times by more than the device can "
                "draw: that time is not covered"
            )
    if s.lost_steps:
        steps = _many(s.lost_steps, "step")
        holes.append(f"lost: {steps}; the joules of that time are unattributed (lost_steps)")
    if s.late_events:
        events = _many(s.late_events, "event")
        holes.append(f"late: {events}, after what came later had been used; used where possible")
    return holes


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# --- what replay writes ---------------------------------------------------------------------


def summary(replayed: Replayed) -> dict[str, Any]:
    """The accounts at the end of a replay, in joules."""
    s = replayed.snapshot
    quality = s.quality
    return {
        "policy": str(replayed.policy),
        "measured_j": s.measured_j,
        "attributed_j": s.attributed_j,
        "prefill_j": s.total_j(Account.PREFILL),
        "decode_j": s.total_j(Account.DECODE),
        "recompute_j": s.total_j(Account.RECOMPUTE),
        "idle_j": s.total_j(Account.IDLE),
        "startup_j": s.total_j(Account.STARTUP),
        "unattributed_j": s.total_j(Account.UNATTRIBUTED),
        "unattributed_by_reason": dict(s.unattributed),
        "pending_j": s.pending_j,
        "conservation_error_j": s.conservation_error_j,
        "requests": len(replayed.receipts),
        "coefficients": {d.device.id: dict(d.coefficients) for d in s.devices},
        "by_model": {
            d.device.id: {
                m: {n: v for n, (v, _) in costs.items()} for m, costs in d.by_model.items()
            }
            for d in s.devices
            if d.by_model
        },
        "latency_s": {d.device.id: d.delay_s for d in s.devices},
        "smear_s": {d.device.id: d.smear_s for d in s.devices},
        "refresh_s": {d.device.id: d.refresh_s for d in s.devices},
        "quality": None if quality is None else str(quality),
        "late_events": s.late_events,
        "lost_steps": s.lost_steps,
        "resets": {d.device.id: d.resets for d in s.devices},
        "jumps": {d.device.id: d.jumps for d in s.devices},
        "bad_lines": replayed.bad_count,
    }


def write_receipts(replayed: Replayed, path: Path) -> None:
    """One JSON line a receipt, in order of completion."""
    with path.open("w", encoding="utf-8") as file:
        for receipt in replayed.receipts:
            file.write(json.dumps(receipt_line(receipt)) + "\n")
