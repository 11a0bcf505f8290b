"""The recording rules: energy and cost per token over trailing windows, by model and for the fleet.

A board can divide sums on the spot; a report over a day, or over many hosts, wants them recorded.
Numerators and denominators stand apart, each a sum of rates: a ratio of sums can be formed over any
grouping afterwards, an average of ratios is wrong (Prometheus, practices/rules.md). The same rules
stand once per window, so they are written from one text.
"""

from __future__ import annotations

# Each window, and how often its rules are evaluated: often enough for the window, and no more.
WINDOWS = {"5m": "30s", "1h": "1m", "1d": "5m"}

_HEAD = """\
# Energy and cost per token, by model and for the fleet. Written by `make dashboards` from
# grafana/rules.py: edit it there.
#
# Every rule is a numerator, a denominator, or a ratio of the two, over 5m, 1h and 1d.
#   idle="without"  what requests took: prefill, decode, recompute
#   idle="with"     the same, and the idle energy between them
#   token_type      output: generated tokens; total: prompt tokens too, computed and cached
# Start-up and unattributed energy are in neither. Energy is at the GPU boundary, without a PUE;
# cost has the PUE in it where one is configured. Idle energy of no model counts for the fleet only.
#
# joulemeter_cost_total has no phase, so requests' and idle's part of it is taken by energy. That is
# exact while prices do not change within the window.
groups:
"""

_ENERGY = """\
  - name: joulemeter-per-token-@window
    interval: @interval
    rules:
      # Numerators of energy: joules per second.
      - record: model:joulemeter_energy_joules:rate@window
        labels: {idle: without}
        expr: >-
          sum by (model_name) (
            rate(joulemeter_energy_joules_total{phase=~"prefill|decode|recompute"}[@window]))
      - record: model:joulemeter_energy_joules:rate@window
        labels: {idle: with}
        expr: >-
          sum by (model_name) (
            rate(joulemeter_energy_joules_total{phase=~"prefill|decode|recompute|idle"}[@window]))
      - record: fleet:joulemeter_energy_joules:rate@window
        expr: sum by (idle) (model:joulemeter_energy_joules:rate@window)

      # Denominators: tokens per second.
      - record: model:joulemeter_tokens:rate@window
        labels: {token_type: output}
        expr: sum by (model_name) (rate(joulemeter_tokens_total{token_type="output"}[@window]))
      - record: model:joulemeter_tokens:rate@window
        labels: {token_type: total}
        expr: sum by (model_name) (rate(joulemeter_tokens_total[@window]))
      - record: fleet:joulemeter_tokens:rate@window
        expr: sum by (token_type) (model:joulemeter_tokens:rate@window)
"""

# What a negative price pays back counts against the cost; without one there is no such series.
_COST = """
      # Numerators of cost: money per second, first of all accounts, then of requests and idle.
      - record: model:joulemeter_all_cost:rate@window
        expr: >-
          sum by (model_name, currency) (rate(joulemeter_cost_total[@window]))
          - (
            sum by (model_name, currency) (rate(joulemeter_cost_credits_total[@window]))
            or sum by (model_name, currency) (rate(joulemeter_cost_total[@window])) * 0
          )
      - record: model:joulemeter_cost:rate@window
        expr: >-
          model:joulemeter_energy_joules:rate@window
          / on (model_name) group_left ()
          (sum by (model_name) (rate(joulemeter_energy_joules_total[@window])) > 0)
          * on (model_name) group_left (currency)
          model:joulemeter_all_cost:rate@window
      - record: fleet:joulemeter_cost:rate@window
        expr: sum by (idle, currency) (model:joulemeter_cost:rate@window)

      # Ratios. None where no token was computed.
"""

_MODEL_RATIOS = """\
      - record: model:joulemeter_kwh_per_token:ratio_rate@window
        labels: {token_type: @token_type}
        expr: >-
          model:joulemeter_energy_joules:rate@window / 3.6e6
          / on (model_name) group_left ()
          (model:joulemeter_tokens:rate@window{token_type="@token_type"} > 0)
      - record: model:joulemeter_cost_per_million_tokens:ratio_rate@window
        labels: {token_type: @token_type}
        expr: >-
          1e6 * model:joulemeter_cost:rate@window
          / on (model_name) group_left ()
          (model:joulemeter_tokens:rate@window{token_type="@token_type"} > 0)
"""

_FLEET_RATIOS = """\
      - record: fleet:joulemeter_kwh_per_token:ratio_rate@window
        labels: {token_type: @token_type}
        expr: >-
          fleet:joulemeter_energy_joules:rate@window / 3.6e6
          / on () group_left ()
          (fleet:joulemeter_tokens:rate@window{token_type="@token_type"} > 0)
      - record: fleet:joulemeter_cost_per_million_tokens:ratio_rate@window
        labels: {token_type: @token_type}
        expr: >-
          1e6 * fleet:joulemeter_cost:rate@window
          / on () group_left ()
          (fleet:joulemeter_tokens:rate@window{token_type="@token_type"} > 0)
"""

# vLLM counts the same tokens on its own; model_name and engine mean the same on both sides.
_BESIDE_VLLM = """\
      # Beside vLLM's own counter: 1 where every token that vLLM generated was metered.
      - record: model:joulemeter_tokens_per_vllm_generation_tokens:ratio_rate@window
        expr: >-
          model:joulemeter_tokens:rate@window{token_type="output"}
          / on (model_name)
          (sum by (model_name) (rate(vllm:generation_tokens_total[@window])) > 0)
"""

# dcgm-exporter 4.9 (DCGM 4.7) renames the counter and the clock, and gives other units: joules for
# millijoules, hertz for megahertz (go-dcgm's list of base unit fields: 156 became 1611, 100 became
# 1603). Rates are recorded, not counters: the two names of one card differ by a moment, and where
# one of them ends a counter that was the larger of both would fall, which reads as a reset.
_BESIDE_DCGM = """
  - name: joulemeter-beside-dcgm
    interval: 30s
    rules:
      # Watts by card, from dcgm-exporter's counter under its old name or its new one. A card that
      # is there under both, or once for each part of it (MIG), counts once. One that has not been
      # there for all of the window has no figure yet: its rate would come out too low.
@energy
      # Its clock, likewise.
      - record: gpu:dcgm_sm_clock_hertz:max
        expr: >-
          max by (gpu_uuid) (label_replace(
            DCGM_FI_DEV_SM_CLOCK_HERTZ or DCGM_FI_DEV_SM_CLOCK * 1e6,
            "gpu_uuid", "$1", "UUID", "(.+)"))
"""

_DCGM_ENERGY = """\
      - record: gpu:dcgm_energy_joules:rate@window
        expr: >-
          max by (gpu_uuid) (label_replace(
            rate(DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL[@window])
            and DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL offset @window
            or rate(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION[@window]) / 1000
            and DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION offset @window,
            "gpu_uuid", "$1", "UUID", "(.+)"))
"""


def rules() -> str:
    """The rule file, as YAML."""
    groups = "\n".join(_group(window, every) for window, every in WINDOWS.items())
    energy = "".join(_DCGM_ENERGY.replace("@window", window) for window in ("5m", "1h"))
    return _HEAD + groups + _BESIDE_DCGM.replace("@energy\n", energy)


def _group(window: str, interval: str) -> str:
    ratios = (
        text.replace("@token_type", token_type)
        for text in (_MODEL_RATIOS, _FLEET_RATIOS)
        for token_type in ("output", "total")
    )
    text = "".join((_ENERGY, _COST, *ratios, _BESIDE_VLLM))
    return text.replace("@window", window).replace("@interval", interval)
