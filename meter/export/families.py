"""The accounts as Prometheus families: energy, tokens, requests, tenants, cost, figures per token.

Each function reads one immutable state and makes families from nothing else, so no second set of
counters can drift from the accounts. Several raw names may share the label ``other``; their values
are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from meter.export.histogram import HistogramState
from meter.export.plain import figure
from meter.export.state import ModelEngine, State
from meter.model import Snapshot
from meter.pricing import CostKey

ACCOUNT_LABELS = ("model_name", "engine", "phase", "quality")
Labels = tuple[str, ...]
_LOWER_BOUND = "a lower bound: power supplies, fans and whatever else is not metered are missing."


def counter(name: str, help_: str, labels: Labels, rows: Iterable[tuple[Labels, float]]) -> Metric:
    """A counter family; rows with equal labels are summed. ``name`` without ``_total``.

    What is no finite number becomes one that is none, which ``StateCollector`` leaves out.
    """
    family = CounterMetricFamily(name, help_, labels=labels)
    sums: dict[Labels, float] = {}
    for values, value in _each(rows, labels):
        sums[values] = sums.get(values, 0.0) + value
    for values, value in sums.items():
        family.add_metric(values, value)
    return family


def gauge(name: str, help_: str, labels: Labels, rows: Iterable[tuple[Labels, float]]) -> Metric:
    """A gauge family; of rows with equal labels the last one stays."""
    family = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in dict(_each(rows, labels)).items():
        family.add_metric(values, value)
    return family


def _each(rows: Iterable[tuple[Labels, float]], labels: Labels) -> Iterator[tuple[Labels, float]]:
    """The rows, as far as they can be worked out; what is no finite number is not-a-number."""
    try:
        for values, value in rows:
            found = figure(value)
            yield values, math.nan if found is None else found
    except (ArithmeticError, TypeError, ValueError):
        yield ("",) * len(labels), math.nan


def account_families(state: State) -> Iterator[Metric]:
    """Every joule by account, at the boundaries that are known."""
    yield counter(
        "joulemeter_energy_joules",
        "Energy by account: prefill, decode, recompute, idle, startup, unattributed. "
        "Its sum equals the sum of joulemeter_gpu_energy_joules_total.",
        ACCOUNT_LABELS,
        _accounts(state, state.snapshot, 1.0),
    )
    if state.snapshot.host is not None:
        yield counter(
            "joulemeter_host_energy_joules",
            "What the engines claim of this host's CPU, by account; in no other figure. With what "
            "is not settled yet it is joulemeter_host_cpu_energy_joules_total of share claimed.",
            ACCOUNT_LABELS,
            _accounts(state, state.snapshot.host, 1.0),
        )
    if state.tariff.pue is not None:
        yield counter(
            "joulemeter_facility_energy_joules",
            "Metered energy times the configured PUE, by account; " + _LOWER_BOUND,
            ACCOUNT_LABELS,
            _accounts(state, state.snapshot, float(state.tariff.pue)),
        )
    yield counter(
        "joulemeter_unattributed_joules",
        "Energy that no request, idle time or start-up explains, by reason: lost_steps, "
        "foreign_load, dummy_steps, meter_down, counter_silent, no_payer.",
        ("reason",),
        (((reason,), j) for reason, j in state.snapshot.unattributed.items()),
    )


def _accounts(state: State, snapshot: Snapshot, factor: float) -> Iterator[tuple[Labels, float]]:
    for key, energy_j in snapshot.accounts.items():
        labels = (state.model_label(key.model), key.engine, key.account.value, key.quality.value)
        found = figure(energy_j)
        yield labels, math.nan if found is None else found * factor


def work_families(state: State) -> Iterator[Metric]:
    """Tokens and requests."""
    yield counter(
        "joulemeter_tokens",
        "Tokens whose energy is in the accounts. input: computed tokens of prompts; input_cached: "
        "those found in the prefix cache; output. A prompt is the sum of the first two.",
        ("model_name", "engine", "token_type"),
        (
            ((state.model_label(key.model), key.engine, key.token_type), count)
            for key, count in state.snapshot.tokens.items()
        ),
    )
    yield counter(
        "joulemeter_requests",
        "Requests of clients that have their receipt, by the reason the engine gave; n > 1 is one. "
        "stop_or_abort: a stop string or the client ended it, and the engine does not know which.",
        ("model_name", "engine", "finished_reason"),
        (
            ((state.model_label(model), engine, reason), count)
            for (engine, model, reason), count in state.snapshot.requests.items()
        ),
    )


def receipt_families(state: State) -> Iterator[Metric]:
    """What the receipts say, summed on their own path: a check on the accounts, not a copy."""
    snapshot = state.snapshot
    yield gauge(
        "joulemeter_receipts_joules",
        "Energy on receipts, of open and of closed requests. Its sum equals what "
        "joulemeter_energy_joules_total holds in prefill, decode and recompute.",
        ("state",),
        [(("open",), snapshot.receipts_open_j), (("closed",), snapshot.receipts_closed_j)],
    )


def tenant_families(state: State) -> Iterator[Metric]:
    """Energy and tokens by tenant."""
    snapshot = state.snapshot
    yield counter(
        "joulemeter_tenant_energy_joules",
        "Energy attributed to the requests of a tenant.",
        ("tenant", "model_name"),
        (
            ((state.tenant_label(key.tenant), state.model_label(key.model)), energy_j)
            for key, energy_j in snapshot.tenant_energy_j.items()
        ),
    )
    yield counter(
        "joulemeter_tenant_tokens",
        "Tokens of the ended requests of a tenant; input and input_cached are told apart as in "
        "joulemeter_tokens_total.",
        ("tenant", "model_name", "token_type"),
        (
            ((state.tenant_label(tenant), state.model_label(model), token_type), count)
            for (tenant, model, token_type), count in snapshot.tenant_tokens.items()
        ),
    )


def request_families(state: State) -> Iterator[Metric]:
    """Distributions over requests; exemplars name one request in each bucket."""
    yield _histogram(
        "joulemeter_request_energy_joules",
        "Energy of a request, one observation when its receipt is final.",
        state.request_energy,
    )
    yield _histogram(
        "joulemeter_output_token_energy_joules",
        "Energy of a request per output token, one observation when its receipt is final.",
        state.output_token_energy,
    )


def _histogram(
    name: str, help_: str, histograms: Mapping[ModelEngine, HistogramState]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help_, labels=("model_name", "engine"))
    for labels, histogram in histograms.items():
        family.add_metric(labels, _buckets(histogram), histogram.sum)
    return family


def _buckets(
    histogram: HistogramState,
) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    rows = zip(bounds, accumulate(histogram.counts), histogram.examples, strict=True)
    for bound, count, example in rows:
        if example is None:
            buckets.append((bound, count))
            continue
        # An exemplar may hold 128 characters, its label's name included.
        label = {"request_id": example.request[:112]}
        buckets.append((bound, count, Exemplar(label, example.value, round(example.utc_s, 3))))
    return buckets


def cost_families(state: State) -> Iterator[Metric]:
    """Money; families without a known price are absent, never zero."""
    labels = ("model_name", "component", "currency")
    if state.costs.charges:
        yield counter(
            "joulemeter_cost",
            "Cost so far: electricity (metered energy x PUE x price; without a PUE a lower bound) "
            "and compute (hours metered x hardware price, split by energy).",
            labels,
            _money(state, state.costs.charges),
        )
    if state.costs.credits:
        yield counter(
            "joulemeter_cost_credits",
            "What negative electricity prices paid back so far.",
            labels,
            _money(state, state.costs.credits),
        )
    price = state.tariff.electricity_price_per_kwh
    if price is not None:
        yield gauge(
            "joulemeter_electricity_price_per_kwh",
            "Electricity price in force.",
            ("currency",),
            [((state.tariff.currency,), float(price))],
        )


def _money(state: State, amounts: Mapping[CostKey, Decimal]) -> Iterator[tuple[Labels, float]]:
    """Summed as decimals first, so that the float of a growing sum never falls."""
    sums: dict[Labels, Decimal] = {}
    for key, amount in amounts.items():
        labels = (state.model_label(key.model), key.component.value, state.tariff.currency)
        sums[labels] = sums.get(labels, Decimal(0)) + amount
    return ((labels, float(amount)) for labels, amount in sums.items())


def window_families(state: State) -> Iterator[Metric]:
    """Figures ready for display. For fleets use the recording rules: ratios cannot be averaged."""
    labels = ("model_name", "token_type", "idle", "window")
    yield gauge(
        "joulemeter_kwh_per_token",
        "Energy per token over a trailing window, for display; idle energy spread over the tokens "
        "(with) or left out (without).",
        labels,
        (((f.model, f.token_type, f.idle, f.window), f.kwh_per_token) for f in state.windows),
    )
    priced = [f for f in state.windows if f.cost_per_million_tokens is not None]
    if priced:
        yield gauge(
            "joulemeter_cost_per_million_tokens",
            "Cost of a million tokens over a trailing window, for display, of the components whose "
            "price is configured.",
            labels,
            (
                (
                    (f.model, f.token_type, f.idle, f.window),
                    f.cost_per_million_tokens or 0.0,
                )
                for f in priced
            ),
        )
