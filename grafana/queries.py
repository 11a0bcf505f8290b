"""PromQL, in one place: what every panel asks, over the counters themselves.

No recording rule is needed to see the boards. Ratios are sums over sums, never averages of ratios.

Two answers look alike and must not: the meter sees no traffic, and nobody sees the meter. So a
ratio without a denominator becomes NaN as long as any meter reports, which panels show as
``No traffic``, and is absent only where no meter reports, which they show as ``Meter blind``.
"""

from __future__ import annotations

TARGET = 'job=~"$job", instance=~"$instance"'
MODEL = TARGET + ', model_name=~"$model_name"'
# Only the board of GPUs has this variable.
GPU = TARGET + ', gpu=~"$gpu"'

# `$__rate_interval` follows the graph's step. A single figure instead covers the whole range shown,
# and so does not jump from one refresh to the next.
STEP = "$__rate_interval"
RANGE = "$__range"

# What tells one card from another, and how a legend names it.
CARD = "instance, gpu"
CARD_NAME = "{{instance}} GPU {{gpu}}"

ATTRIBUTED = 'phase=~"prefill|decode|recompute"'
WITH_IDLE = 'phase=~"prefill|decode|recompute|idle"'

JOULES_PER_KWH = "3.6e6"
_METER_REPORTS = f"sum(joulemeter_gpu_energy_joules_total{{{TARGET}}})"


def series(metric: str, *matchers: str, scope: str = MODEL) -> str:
    """A selector of ``metric`` under the board's variables."""
    return f"{metric}{{{', '.join((scope, *matchers))}}}"


def rate(selector: str, by: str = "", window: str = STEP) -> str:
    """The summed rate (per second) of a counter; ``by`` names labels to keep, comma-separated."""
    keep = f" by ({by})" if by else ""
    return f"sum{keep} (rate({selector}[{window}]))"


def energy_w(phases: str, by: str = "", window: str = STEP) -> str:
    """Joules a second (W) that these accounts took."""
    return rate(series("joulemeter_energy_joules_total", phases), by, window)


def tokens_per_s(token_type: str, by: str = "", window: str = STEP) -> str:
    """Tokens a second; ``total`` are all: computed input, cached input, output."""
    matchers = () if token_type == "total" else (f'token_type="{token_type}"',)
    return rate(series("joulemeter_tokens_total", *matchers), by, window)


def cost_per_s(by: str, window: str = STEP) -> str:
    """Money a second, what negative prices paid back taken off."""
    charges = rate(series("joulemeter_cost_total"), by, window)
    credits = rate(series("joulemeter_cost_credits_total"), by, window)
    return f"({charges} - ({credits} or {charges} * 0))"


def ratio(numerator: str, denominator: str) -> str:
    """A ratio, absent where its denominator is not above zero."""
    return f"{numerator} / ({denominator} > 0)"


def figure(expression: str) -> str:
    """A single figure: NaN where it cannot be formed though a meter reports."""
    return f"{expression} or on () {_METER_REPORTS} * NaN"


def joules_per_token(phases: str, token_type: str, by: str = "", window: str = STEP) -> str:
    """Joules per token."""
    return ratio(energy_w(phases, by, window), tokens_per_s(token_type, by, window))


def kwh_per_million_tokens(phases: str, token_type: str, by: str = "", window: str = STEP) -> str:
    """Kilowatt-hours per million tokens."""
    return f"1e6 / {JOULES_PER_KWH} * {joules_per_token(phases, token_type, by, window)}"


def cost_per_million_tokens(token_type: str, by: str, window: str = STEP) -> str:
    """Money per million tokens, by currency and the labels in ``by``, idle included."""
    per_token = f"{cost_per_s(by, window)} / on ({_without(by, 'currency')}) group_left ()"
    tokens = tokens_per_s(token_type, _without(by, "currency"), window)
    return f"1e6 * {per_token} ({tokens} > 0)"


def idle_share(window: str = STEP) -> str:
    """Idle energy as a part of all energy that the accounts took."""
    idle = energy_w('phase="idle"', window=window)
    everything = rate(series("joulemeter_energy_joules_total"), window=window)
    return ratio(f"({idle} or {everything} * 0)", everything)


def unattributed_share(window: str = STEP) -> str:
    """Energy that nothing explains, as a part of what the hardware's counters moved."""
    moved = rate(series("joulemeter_gpu_energy_joules_total", scope=TARGET), window=window)
    lost = rate(series("joulemeter_unattributed_joules_total", scope=TARGET), window=window)
    return ratio(f"({lost} or {moved} * 0)", moved)


def conservation_error() -> str:
    """Accounts over hardware, less one: both from one scrape, so that it is exact at any moment."""
    accounts = f"sum({series('joulemeter_energy_joules_total', scope=TARGET)})"
    moved = f"sum({series('joulemeter_gpu_energy_joules_total', scope=TARGET)})"
    return f"abs({ratio(accounts, moved)} - 1)"


def receipts_error() -> str:
    """Receipts, open and closed, over what the accounts attributed, less one."""
    receipts = f"sum({series('joulemeter_receipts_joules', scope=TARGET)})"
    accounts = series("joulemeter_energy_joules_total", ATTRIBUTED, scope=TARGET)
    return f"abs({ratio(receipts, f'sum({accounts})')} - 1)"


def worst_quality() -> str:
    """0 measured, 1 estimated, 2 simulated: a total takes the worst quality of its parts."""
    ranks = (
        f"count({series('joulemeter_gpu_energy_joules_total', matcher, scope=TARGET)}) * 0 + {rank}"
        for rank, matcher in (
            (2, 'quality="simulated"'),
            (1, 'quality="estimated"'),
            (0, 'quality="measured"'),
        )
    )
    return " or ".join(ranks)


def quantile(q: float, histogram: str, window: str = STEP) -> str:
    """A quantile over requests; ``histogram`` without ``_bucket``."""
    return f"histogram_quantile({q}, {rate(series(histogram + '_bucket'), 'le', window)})"


def counter_w(by: str, window: str = STEP) -> str:
    """Power (W) as the energy counters moved, by the labels in ``by``."""
    return rate(series("joulemeter_gpu_energy_joules_total", scope=GPU), by, window)


def counter_whole_w(by: str, window: str) -> str:
    """The same over whole windows alone: a rate over more than there is comes out too low."""
    counter = series("joulemeter_gpu_energy_joules_total", scope=GPU)
    return f"sum by ({by}) (rate({counter}[{window}]) and {counter} offset {window})"


def dcgm_w(by: str, window: str) -> str:
    """Power (W) by dcgm-exporter's counter of the same cards, under the meter's own labels.

    As the recording rules have it (windows of 5m and 1h), which know all of its names and units.
    """
    return f"sum by ({by}) ({of_card(f'gpu:dcgm_energy_joules:rate{window}')})"


def of_card(dcgm: str) -> str:
    """One of DCGM's figures by ``gpu_uuid``, with ``instance`` and ``gpu`` of the meter's card.

    DCGM's job and instance are its own, so it is joined by the card alone. Empty where Prometheus
    has no such series.
    """
    card = series("joulemeter_gpu_info", scope=GPU)
    card = f"max by (instance, gpu, gpu_uuid) ({card})"
    return f"{dcgm} * on (gpu_uuid) group_right () {card}"


def dcgm_difference(window: str) -> str:
    """How far the meter is from DCGM, either way, as a part of what DCGM counted; by card."""
    by = "instance, gpu"
    return f"abs({ratio(counter_whole_w(by, window), dcgm_w(by, window))} - 1)"


def cap_share(window: str = RANGE) -> str:
    """Part of the time in which a card's power stood within 2 % of its limit, by card."""
    power = f"max by (instance, gpu) ({series('joulemeter_gpu_power_watts', scope=GPU)})"
    limit = f"max by (instance, gpu) ({series('joulemeter_gpu_power_limit_watts', scope=GPU)})"
    return f"avg_over_time(({power} >= bool 0.98 * {limit})[{window}:{STEP}])"


def running() -> str:
    """Requests that vLLM runs at once, by model: its batch."""
    return f"sum by (model_name) ({series('vllm:num_requests_running')})"


def joules_per_token_at(low: int, high: int | None) -> str:
    """J per output token by model, of requests alone, while vLLM's batch was in a range.

    Energy and tokens of those times are summed apart; an average of ratios would be wrong.
    """
    batch = f"({running()} >= {low}" + (f" < {high})" if high else ")")
    energy = f"({energy_w(ATTRIBUTED, 'model_name')} and {batch})"
    tokens = f"({tokens_per_s('output', 'model_name')} and {batch})"
    over = f"[{RANGE}:{STEP}]"
    return ratio(
        f"sum by (model_name) (sum_over_time({energy}{over}))",
        f"sum by (model_name) (sum_over_time({tokens}{over}))",
    )


def _without(labels: str, label: str) -> str:
    return ", ".join(name for name in labels.split(", ") if name != label)
