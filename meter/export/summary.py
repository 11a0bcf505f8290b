"""``/v1/summary``: the accounts and the meter's condition at one moment, as JSON."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from meter import __version__
from meter.export.plain import known
from meter.export.receipts import money
from meter.export.state import State, coefficients
from meter.model import Account, DeviceState, Snapshot
from meter.pricing import Costs


def summary_json(state: State, now_ns: int) -> dict[str, Any]:
    """All accounts of one snapshot; joules unless the key says otherwise. ``None`` is unknown."""
    snapshot = state.snapshot
    quality = snapshot.quality
    return {
        "version": __version__,
        "quality": quality.value if quality else None,
        **_accounts(snapshot),
        **_receipts(snapshot),
        "devices": [_device(d, now_ns) for d in snapshot.devices],
        "coefficients": {
            d.device.id: {name: value for name, value, _ in coefficients(d)}
            for d in snapshot.devices
        },
        "engines": [
            {"engine": e.id, "model": e.model, "devices": list(e.devices)} for e in snapshot.engines
        ],
        "host": _host(snapshot.host, now_ns),
        "per_token": [f._asdict() for f in state.windows],
        "cost": _cost(state.costs, state.tariff.currency),
        "settled_lag_s": _age_s(snapshot.settled_ns, now_ns),
        "source_age_s": {
            source: _age_s(last_ns, now_ns)
            for source, last_ns in state.health.source_last_ns.items()
        },
        "health": {
            "samples": state.health.samples,
            "sample_errors": dict(state.health.sample_errors),
            "datagrams": state.health.datagrams,
            "datagrams_lost": state.health.datagrams_lost,
            "events_dropped": state.health.events_dropped,
            "late_events": snapshot.late_events,
            "lost_steps": snapshot.lost_steps,
            "problems": list(state.health.problems),
        },
    }


def _accounts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "measured_j": snapshot.measured_j,
        "attributed_j": known(lambda: snapshot.attributed_j),
        **{f"{account.value}_j": _total(snapshot, account) for account in Account},
        "unattributed_by_reason": dict(snapshot.unattributed),
        "pending_j": snapshot.pending_j,
        "conservation_error_j": known(lambda: snapshot.conservation_error_j),
    }


def _total(snapshot: Snapshot, account: Account) -> float | None:
    return known(lambda: snapshot.total_j(account))


def _host(snapshot: Snapshot | None, now_ns: int) -> dict[str, Any] | None:
    """The accounts of what the engines claim of the host: in none of the others' sums."""
    if snapshot is None:
        return None
    quality = snapshot.quality
    return {
        "quality": quality.value if quality else None,
        **_accounts(snapshot),
        "devices": [_device(d, now_ns) for d in snapshot.devices],
    }


def _receipts(snapshot: Snapshot) -> dict[str, Any]:
    tokens: dict[str, int] = {}
    for key, count in snapshot.tokens.items():
        tokens[key.token_type] = tokens.get(key.token_type, 0) + count
    reasons: dict[str, int] = {}
    for (_, _, reason), count in snapshot.requests.items():
        reasons[reason] = reasons.get(reason, 0) + count
    return {
        "receipts_open": snapshot.receipts_open,
        "receipts_open_j": snapshot.receipts_open_j,
        "receipts_closed": snapshot.receipts_closed,
        "receipts_closed_j": snapshot.receipts_closed_j,
        "requests": sum(reasons.values()),
        "requests_by_reason": reasons,
        "requests_running": sum(snapshot.running.values()),
        "tokens": tokens,
    }


def _device(state: DeviceState, now_ns: int) -> dict[str, Any]:
    return {
        "gpu": state.device.index,
        "gpu_uuid": state.device.id,
        "gpu_name": state.device.name,
        "boundary": state.device.boundary,
        "quality": state.device.quality.value,
        "note": state.device.note,
        "measured_j": state.measured_j,
        "pending_j": state.pending_j,
        "power_w": state.power_w,
        "power_limit_w": state.device.power_limit_w,
        "age_s": _age_s(state.last_reading_ns, now_ns),
        "refresh_s": state.refresh_s,
        "sample_latency_s": state.latency_s,
        "delay_s": state.delay_s,
        "delay_sd_s": state.delay_sd_s,
        "smear_s": state.smear_s,
        "coefficient_sd": {name: sd for name, _, sd in coefficients(state)},
        "by_model": {
            model: {name: {"value": value, "sd": sd} for name, (value, sd) in costs.items()}
            for model, costs in state.by_model.items()
        },
        "intervals": state.intervals,
        "resets": state.resets,
        "jumps": state.jumps,
    }


def _cost(costs: Costs, currency: str) -> dict[str, Any] | None:
    """Sums by component as decimal strings; ``None`` where no price is known."""
    if not costs.charges and not costs.credits:
        return None
    sums: dict[str, Decimal] = {}
    for key, amount in costs.charges.items():
        sums[key.component.value] = sums.get(key.component.value, Decimal(0)) + amount
    credits = sum(costs.credits.values(), Decimal(0))
    if not all(amount.is_finite() for amount in (*sums.values(), credits)):
        return None
    return {
        "currency": currency,
        "components": {name: money(amount) for name, amount in sums.items()},
        "credits": money(credits),
    }


def _age_s(t_ns: int | None, now_ns: int) -> float | None:
    return None if t_ns is None else known(lambda: max(0, now_ns - t_ns) / 1e9)
