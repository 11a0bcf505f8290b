"""Messages of the live stream, made by the meter's own code from the page tests' meter."""

from __future__ import annotations

import time
from decimal import Decimal

from meter.export.live import moments_json
from meter.export.moments import ACCOUNTS
from meter.export.running import Query, running_json
from meter.export.summary import summary_json
from meter.pricing import Tariff
from tests.page.meter import Meter


def message(running=20, devices=1, power_age_s=0.0, engine_age_s=0.0, device_age_s=0.0):
    """A whole message; an age of ``None``: that source has never spoken."""
    meter = Meter(
        running,
        devices,
        device_age_s=device_age_s,
        tariff=Tariff("EUR", Decimal("0.3"), None, Decimal("2.5")),
    )
    state, now_ns = meter.state(), time.monotonic_ns()
    summary = summary_json(state, now_ns)
    ages = {"power": power_age_s, "engine": engine_age_s}
    summary["source_age_s"] = {name: age for name, age in ages.items() if age is not None}
    return {
        "now_s": now_ns / 1e9,
        "problems": [],
        "summary": summary,
        "accounts": list(ACCOUNTS),
        "moments": moments_json(state.moments),
        "running": running_json(meter.running(), Query(rows=200), now_ns),
        "finished": [],
    }
