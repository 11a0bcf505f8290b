"""Scores of receipts whose errors are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest

from meter.model import (
    Account,
    AccountKey,
    DeviceState,
    Fidelity,
    Quality,
    Receipt,
    RequestClosed,
    Snapshot,
)
from meter.replay import Replayed
from tests.truth.case import Case
from tests.truth.floor import floor
from tests.truth.scenarios import build
from tests.truth.score import pooled, score
from tests.truth.targets import missed


@cache
def case() -> Case:
    return build("moderate-light-1", seconds=60.0)


def answered(factor: np.ndarray | float = 1.0, doubt: float = 0.01) -> Replayed:
    """A replay whose receipts are the truth times ``factor``."""
    truth = case().truth
    closed = {e.request: e.t_ns for e in case().events if isinstance(e, RequestClosed)}
    factors = np.broadcast_to(factor, len(closed)).tolist()
    receipts = tuple(
        _receipt(id, t_ns, times, doubt)
        for (id, t_ns), times in zip(closed.items(), factors, strict=True)
    )
    busy_j = sum(receipt.energy_j for receipt in receipts)
    keys = {a: AccountKey("0", "m", a, Quality.SIMULATED) for a in (Account.IDLE, Account.DECODE)}
    snapshot = Snapshot(
        0,
        0,
        accounts={keys[Account.IDLE]: truth.idle_j, keys[Account.DECODE]: busy_j},
        devices=(_device(),),
        measured_j=busy_j + truth.idle_j,
    )
    return Replayed(receipts, snapshot)


def _receipt(id: str, closed_ns: int, times: float, doubt: float) -> Receipt:
    charge = case().truth.requests[id]
    return Receipt(
        id=id,
        engine="0",
        model="m",
        tenant=charge.tenant,
        opened_ns=case().origin_ns + round(charge.opened_s * 1e9),
        closed_ns=closed_ns,
        reason="stop",
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        prefill_j=times * charge.prefill_j,
        decode_j=times * charge.decode_j,
        recompute_j=times * charge.recompute_j,
        uncertainty_j=doubt * charge.energy_j,
        fidelity=Fidelity.STEP,
        quality=Quality.SIMULATED,
        final=True,
        requests=(id,),
    )


def _device() -> DeviceState:
    (device,) = case().devices
    return DeviceState(device, 0.0, 0.0, None, 0.1, None, {}, {}, 0, 0, None)


def test_the_truth_has_no_error() -> None:
    """Perfect receipts score nought everywhere."""
    found = score(case(), answered())
    assert found.requests.mean == pytest.approx(0.0, abs=1e-12)
    assert found.prefill.mean == pytest.approx(0.0, abs=1e-12)
    assert found.idle == pytest.approx(0.0, abs=1e-12)
    assert found.tenant == pytest.approx(0.0, abs=1e-12)
    assert found.missing == 0
    assert found.covered.within_1 == 1.0


def test_a_common_factor_is_seen_everywhere() -> None:
    """Two per cent too much for everybody."""
    found = score(case(), answered(1.02))
    for errors in (found.requests, found.prefill, found.decode):
        assert errors.mean == pytest.approx(0.02, rel=1e-9)
        assert errors.p99 == pytest.approx(0.02, rel=1e-9)
    assert found.tenant == pytest.approx(0.02, rel=1e-9)
    assert "mean" in missed("moderate", found, found)


def test_honest_doubt_covers_as_it_should() -> None:
    """Normal errors of one doubt: 68 and 95 per cent, and no target is missed for it."""
    count = len(answered().receipts)
    normal = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
    spread = 1.0 + 0.004 * np.random.default_rng(1).permutation(normal)
    found = score(case(), answered(spread, doubt=0.004))
    everybody = pooled([found.covered_short, found.covered_long])
    assert everybody.n == found.covered.n == count
    assert everybody.within_1 == pytest.approx(found.covered.within_1)
    assert found.covered.within_1 == pytest.approx(0.683, abs=0.02)
    assert "coverage" not in missed("moderate", found, found)


def test_online_leaves_out_the_first_minute() -> None:
    """Only requests opened so late count."""
    late = score(case(), answered(), after_s=30.0)
    assert 0 < late.requests.n < score(case(), answered()).requests.n


def test_missing_receipts_are_counted() -> None:
    """A request without a receipt is no error of nought."""
    whole = answered()
    short = replace(whole, receipts=whole.receipts[5:])
    assert score(case(), short).missing == 5


def test_the_floor_falls_with_the_counters_period() -> None:
    """Finer counters show more of each step's noise; without noise there is no floor."""
    slow, fast = (floor(build(name, seconds=30.0)) for name in ("sharp", "refresh-20ms"))
    assert slow is not None
    assert fast is not None
    assert 0 < fast.mean < 0.02
    assert 0 < slow.mean < 0.02
    assert floor(build("noiseless", seconds=15.0)) is None
