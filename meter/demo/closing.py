"""What the demo says at its end: how the joules add up, and how true each request's are.

The accounts are the live meter's. So are the receipts; beside them stands what the rules in use
elsewhere would have charged on the same recorded readings and steps. Where the truth is known (the
simulation's), each is held against it; where it is not, the rules are held against the receipts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from meter.attribution.rules import Rule, split
from meter.export import figures
from meter.model import Event, RequestOpened
from meter.trace import read_trace

WARM_UP = 60
"""Requests in which the calibration learns the card; the ones after them are told apart."""


class Sum(NamedTuple):
    """Measured joules, the accounts they are in, and what is left over."""

    measured_j: float
    accounts_j: Mapping[str, float]
    residual_j: float


class Errors(NamedTuple):
    """Relative errors over requests: mean and 99th percentile, of so many."""

    mean: float
    p99: float
    requests: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far each way to charge is from what it is held against.

    ``against``: ``truth`` or ``receipts``. ``warm``: the same after the warm-up.
    """

    against: str
    by_rule: Mapping[str, Errors]
    warm: Mapping[str, Errors]


def add_up(summary: Mapping[str, Any]) -> Sum:
    """The accounts of ``/v1/summary``, added up anew."""
    accounts = {name: float(summary[f"{name}_j"]) for name in figures.TERMS}
    measured_j = float(summary["measured_j"])
    return Sum(measured_j, accounts, measured_j - sum(accounts.values()))


def errors(estimates: Mapping[str, float], true_j: Mapping[str, float]) -> Errors | None:
    """Of all requests whose true joules are known and not zero; ``None`` where there is none."""
    found = sorted(
        abs(estimates.get(id, 0.0) - joules) / joules for id, joules in true_j.items() if joules > 0
    )
    if not found:
        return None
    rank = max(0, -(-99 * len(found) // 100) - 1)
    return Errors(sum(found) / len(found), found[rank], len(found))


def compare(
    receipts_j: Mapping[str, float],
    rules_j: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
    true_j: Mapping[str, float] | None,
) -> Comparison:
    """``order``: ids as they were opened. Only requests with a receipt and, where there is a truth,
    with one, count."""
    against = receipts_j if true_j is None else true_j
    ids = [id for id in order if id in receipts_j and id in against]
    ways = dict(rules_j) if true_j is None else {"joulemeter": receipts_j, **rules_j}
    return Comparison(
        "receipts" if true_j is None else "truth",
        _each(ways, {id: against[id] for id in ids}),
        _each(ways, {id: against[id] for id in ids[WARM_UP:]}),
    )


def _each(
    ways: Mapping[str, Mapping[str, float]], true_j: Mapping[str, float]
) -> dict[str, Errors]:
    found = {name: errors(estimates, true_j) for name, estimates in ways.items()}
    return {name: error for name, error in found.items() if error is not None}


def charge_by_rules(trace: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Joules by the client's id under each rule, and those ids in order of opening.

    Raises ``meter.trace.TraceError`` where nothing was recorded.
    """
    events: Sequence[Event] = read_trace(trace).events
    parents = {
        event.request: event.client_id for event in events if isinstance(event, RequestOpened)
    }
    rules = {rule.value: _by_parent(split(events, rule), parents) for rule in Rule}
    return rules, list(dict.fromkeys(parents.values()))


def _by_parent(joules: Mapping[str, float], parents: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for request, energy_j in joules.items():
        found[parents.get(request, request)] += energy_j
    return found


# --- in words -------------------------------------------------------------------------------


def sum_line(total: Sum, quality: str | None) -> str:
    """The line that a sceptic can check."""
    return figures.sum_line(total.measured_j, total.accounts_j, quality)


def comparison_rows(comparison: Comparison) -> Iterable[tuple[str, str, str, str, str]]:
    """Per way to charge: its name, mean and p99 over all, the same after the warm-up."""
    for name, error in comparison.by_rule.items():
        warm = comparison.warm.get(name)
        late = (_percent(warm.mean), _percent(warm.p99)) if warm else ("–", "–")
        yield (name, _percent(error.mean), _percent(error.p99), *late)


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"
