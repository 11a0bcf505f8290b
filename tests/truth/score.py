"""How far off the meter was: per request, per account, and against its own doubt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meter.model import Account, Receipt
from meter.replay import Replayed
from tests.truth.case import Case, Charge
from tests.truth.costs import Array, Ints, Mask

_BLOCK_S = 5.0
_RESAMPLES = 200


class Errors(NamedTuple):
    """Relative errors over requests: ``|got − true| / true``. NaN where there is no request."""

    mean: float
    p99: float
    n: int


class Coverage(NamedTuple):
    """Shares of receipts within 1 and 2 of their ``uncertainty_j``.

    ``sd_*``: of each share, by a bootstrap over blocks of time (errors close in time go together).
    """

    within_1: float
    within_2: float
    sd_1: float
    sd_2: float
    n: int


@dataclass(frozen=True, slots=True)
class Score:
    """All figures of one replay. Shares of 1; ``None`` where the truth has none of it.

    ``whole``: all finished requests; ``online``: only those opened after the first minute.
    ``short``, ``long``: below and above the median energy. ``lost_j`` of a request does not count
    as its own. ``delay_s``: found minus true, of the first device.
    """

    requests: Errors
    prefill: Errors
    decode: Errors
    recompute: Errors
    idle: float | None
    startup: float | None
    tenant: float | None
    foreign: float | None
    lost: float | None
    unattributed: float
    covered: Coverage
    covered_short: Coverage
    covered_long: Coverage
    conservation: float
    missing: int
    delay_s: float | None
    coefficients: Mapping[str, float]


class Pairs(NamedTuple):
    """Receipts and what they should say, by request; columns of the same length."""

    got: Array
    true: Array
    doubt: Array
    opened_s: Array
    closed_s: Array


def score(case: Case, replayed: Replayed, after_s: float = 0.0) -> Score:
    """Compare a replay of ``case.trace()`` with the truth.

    ``after_s``: of requests, those opened so long after the start (60 for ``online``).
    """
    truth, snapshot = case.truth, replayed.snapshot
    matched = _matched(case, replayed.receipts, after_s)
    pairs = paired(case, replayed, after_s)
    median = float(np.median(pairs.true)) if len(pairs.true) else 0.0
    short = pairs.true <= median
    foreign_j = snapshot.unattributed.get("foreign_load", 0.0)
    lost_j = snapshot.unattributed.get("lost_steps", 0.0)
    unattributed_j = snapshot.total_j(Account.UNATTRIBUTED)
    return Score(
        requests=_errors(pairs.got, pairs.true),
        prefill=_phase(matched, "prefill_j"),
        decode=_phase(matched, "decode_j"),
        recompute=_phase(matched, "recompute_j"),
        idle=_off(snapshot.total_j(Account.IDLE), truth.idle_j),
        startup=_off(snapshot.total_j(Account.STARTUP), truth.startup_j),
        tenant=_tenant(case, replayed.receipts),
        foreign=_off(foreign_j, truth.stranger_j),
        lost=_off(lost_j, truth.lost_j),
        unattributed=(unattributed_j - truth.stranger_j - truth.lost_j) / snapshot.measured_j,
        covered=_coverage(pairs, np.ones(len(short), dtype=bool)),
        covered_short=_coverage(pairs, short),
        covered_long=_coverage(pairs, ~short),
        conservation=abs(snapshot.conservation_error_j) / snapshot.measured_j,
        missing=len(truth.requests) - len(replayed.receipts),
        delay_s=_delay(case, replayed),
        coefficients=dict(snapshot.devices[0].coefficients),
    )


def rule_errors(case: Case, joules: Mapping[str, float], after_s: float = 0.0) -> Errors:
    """The errors of another rule, given its joules by request."""
    pairs = rule_pairs(case, joules, after_s)
    return _errors(pairs.got, pairs.true)


def rule_pairs(case: Case, joules: Mapping[str, float], after_s: float = 0.0) -> Pairs:
    """The same in the form of ``paired``, without doubt or end."""
    known = _wanted(case, after_s)
    got = np.array([joules.get(id, 0.0) for id in known])
    true = np.array([_due(charge) for charge in known.values()])
    opened_s = np.array([charge.opened_s for charge in known.values()])
    return Pairs(got, true, np.zeros(len(got)), opened_s, opened_s)


def paired(case: Case, replayed: Replayed, after_s: float = 0.0) -> Pairs:
    """Finished requests with their truth, in order of their end."""
    matched = sorted(
        _matched(case, replayed.receipts, after_s), key=lambda pair: pair[0].closed_ns or 0
    )
    origin = case.origin_ns
    return Pairs(
        np.array([r.energy_j for r, _ in matched]),
        np.array([_due(c) for _, c in matched]),
        np.array([r.uncertainty_j for r, _ in matched]),
        np.array([c.opened_s for _, c in matched]),
        np.array([((r.closed_ns or origin) - origin) / 1e9 for r, _ in matched]),
    )


def _due(charge: Charge) -> float:
    """What the meter can know of: lost steps are nobody's."""
    return charge.energy_j - charge.lost_j


def _wanted(case: Case, after_s: float) -> dict[str, Charge]:
    return {
        id: charge
        for id, charge in case.truth.requests.items()
        if charge.opened_s >= after_s and _due(charge) > 0
    }


def _matched(
    case: Case, receipts: Sequence[Receipt], after_s: float
) -> list[tuple[Receipt, Charge]]:
    wanted = _wanted(case, after_s)
    return [(r, wanted[r.id]) for r in receipts if r.final and r.id in wanted]


def _errors(got: Array, true: Array) -> Errors:
    if not len(true):
        return Errors(math.nan, math.nan, 0)
    errors = np.abs(got - true) / true
    return Errors(float(errors.mean()), float(np.quantile(errors, 0.99)), len(errors))


def _phase(matched: Sequence[tuple[Receipt, Charge]], name: str) -> Errors:
    """Of requests that have this phase (and lost nothing of it)."""
    some = [(r, c) for r, c in matched if getattr(c, name) > 0 and c.lost_j == 0]
    got = np.array([getattr(r, name) for r, _ in some])
    return _errors(got, np.array([getattr(c, name) for _, c in some]))


def _off(got_j: float, true_j: float) -> float | None:
    return (got_j - true_j) / true_j if true_j > 0 else None


def _tenant(case: Case, receipts: Sequence[Receipt]) -> float | None:
    """The worst tenant's error."""
    got: dict[str, float] = {}
    for receipt in receipts:
        charge = case.truth.requests.get(receipt.id)
        if charge is not None:
            got[charge.tenant] = got.get(charge.tenant, 0.0) + receipt.energy_j
    due = case.truth.tenants()
    return max((abs(got.get(t, 0.0) - j) / j for t, j in due.items() if j > 0), default=None)


def _delay(case: Case, replayed: Replayed) -> float | None:
    device = replayed.snapshot.devices[0]
    if device.delay_s is None:
        return None
    return device.delay_s - case.truth.devices[device.device.id].delay_s


# --- coverage

NOTHING = Coverage(math.nan, math.nan, math.nan, math.nan, 0)


def pooled(parts: Iterable[Coverage]) -> Coverage:
    """Over several runs: each receipt counts once; the runs do not depend on each other."""
    some = [part for part in parts if part.n]
    total = sum(part.n for part in some)
    if not total:
        return NOTHING
    return Coverage(
        sum(part.n * part.within_1 for part in some) / total,
        sum(part.n * part.within_2 for part in some) / total,
        math.hypot(*(part.n * part.sd_1 for part in some)) / total,
        math.hypot(*(part.n * part.sd_2 for part in some)) / total,
        total,
    )


def _coverage(pairs: Pairs, chosen: Mask) -> Coverage:
    error = np.abs(pairs.got - pairs.true)[chosen]
    doubt = pairs.doubt[chosen]
    if not len(error):
        return NOTHING
    block = (pairs.closed_s[chosen] // _BLOCK_S).astype(np.int64)
    once, twice = error <= doubt, error <= 2 * doubt
    return Coverage(
        float(once.mean()),
        float(twice.mean()),
        _block_sd(once, block),
        _block_sd(twice, block),
        len(error),
    )


def _block_sd(hit: Mask, block: Ints) -> float:
    """The standard deviation of a share when whole blocks of time are drawn anew."""
    _, place = np.unique(block, return_inverse=True)
    hits, sizes = np.bincount(place, hit), np.bincount(place)
    drawn = np.random.default_rng(5).integers(0, len(sizes), (_RESAMPLES, len(sizes)))
    return float((hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)).std())
