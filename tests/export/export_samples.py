"""Snapshots and receipts with something of everything in them, for all tests of the export."""

from dataclasses import replace
from decimal import Decimal

from meter.model import (
    Account,
    AccountKey,
    Device,
    DeviceState,
    Engine,
    Fidelity,
    Quality,
    Receipt,
    Snapshot,
    TenantKey,
    TokenKey,
)
from meter.pricing import Tariff

NS = 1_000_000_000
TARIFF = Tariff("EUR", Decimal("0.30"), Decimal("1.25"), Decimal("3.60"))


def make_receipt(name: str = "r1", **changes) -> Receipt:
    """A final receipt of 36 J."""
    values = {
        "id": name,
        "engine": "0",
        "model": "m",
        "tenant": "acme",
        "opened_ns": 10 * NS,
        "closed_ns": 20 * NS,
        "reason": "stop",
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "completion_tokens": 12,
        "prefill_j": 6.0,
        "decode_j": 30.0,
        "recompute_j": 0.0,
        "uncertainty_j": 0.5,
        "fidelity": Fidelity.STEP,
        "quality": Quality.SIMULATED,
        "final": True,
        "requests": (name,),
    }
    return Receipt(**(values | changes))


def make_on_host(name: str = "r1", **changes) -> Receipt:
    """What the same request took of the host: 5 J."""
    own = {"prefill_j": 1.0, "decode_j": 4.0, "quality": Quality.ESTIMATED}
    return make_receipt(name, **(own | changes))


def make_device(measured_j: float, pending_j: float, name: str = "GPU-0") -> DeviceState:
    """A simulated H100 whose counter moved so much."""
    return DeviceState(
        device=Device(name, "Simulated H100", Quality.SIMULATED, index="0", power_limit_w=700.0),
        measured_j=measured_j,
        pending_j=pending_j,
        power_w=310.5,
        refresh_s=0.1,
        latency_s=0.05,
        coefficients={"static_w": 115.0, "F": 2.0, "e": 0.0},
        coefficient_sd={"static_w": 1.5, "F": None, "e": 0.0},
        intervals=7,
        resets=0,
        last_reading_ns=29 * NS,
        delay_s=0.0625,
        smear_s=0.025,
        delay_sd_s=0.002,
        jumps=1,
    )


def key(account: Account, engine: str = "0", model: str = "m") -> AccountKey:
    return AccountKey(engine, model, account, Quality.SIMULATED)


def make_host(scale: float = 1.0) -> Snapshot:
    """What the engine claimed of the host: 14 J a ``scale`` in accounts, 1 J pending."""
    labels = ("0", "m")
    accounts = {
        AccountKey(*labels, account, Quality.ESTIMATED): joules * scale
        for account, joules in ((Account.PREFILL, 2.0), (Account.DECODE, 9.0), (Account.IDLE, 3.0))
    }
    device = Device("cpu", "CPU", Quality.ESTIMATED, "cpu", "host")
    state = replace(make_device(14.0 * scale + 1.0, 1.0, "cpu"), device=device)
    return make_snapshot(
        accounts=accounts,
        unattributed={},
        devices=(state,),
        engines=(Engine("0", ("cpu",), model="m"),),
        measured_j=14.0 * scale + 1.0,
        pending_j=1.0,
    )


def make_snapshot(t_s: float = 30.0, scale: float = 1.0, **changes) -> Snapshot:
    """Accounts in which every joule has its place; ``scale`` multiplies all energy and tokens."""
    accounts = {
        key(Account.PREFILL): 60.0 * scale,
        key(Account.DECODE): 300.0 * scale,
        key(Account.IDLE): 80.0 * scale,
        key(Account.UNATTRIBUTED, "", ""): 10.0 * scale,
    }
    values = {
        "t_ns": int((t_s + 2) * NS),
        "settled_ns": int(t_s * NS),
        "accounts": accounts,
        "unattributed": {"lost_steps": 10.0 * scale},
        "tokens": {
            TokenKey("0", "m", "input"): int(60 * scale),
            TokenKey("0", "m", "input_cached"): int(40 * scale),
            TokenKey("0", "m", "output"): int(120 * scale),
        },
        "requests": {("0", "m", "stop"): 3, ("0", "m", "abort"): 1},
        "tenant_energy_j": {TenantKey("acme", "m"): 36.0 * scale},
        "tenant_tokens": {
            ("acme", "m", "input"): 60,
            ("acme", "m", "input_cached"): 40,
            ("acme", "m", "output"): 12,
        },
        "devices": (make_device(450.0 * scale + 5.0, 5.0),),
        "engines": (Engine("0", ("GPU-0",), model="m", engine_version="0.32.0"),),
        "measured_j": 450.0 * scale + 5.0,
        "pending_j": 5.0,
        "receipts_open": 1,
        "receipts_open_j": 324.0 * scale,
        "receipts_closed": 1,
        "receipts_closed_j": 36.0 * scale,
        "running": {"0": 1},
    }
    return Snapshot(**(values | changes))
