"""What the core is told of devices, engines and steps, less what cannot be.

Sources say what they read; a board or a configuration may say anything that is a number. A fact
beyond these bounds is unknown. The bounds are far from anything that exists: they keep the
arithmetic from overflowing, and judge nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from meter.model import Device, Engine, Experts, Work

#: Watts, bytes a second, seconds between ticks (0: every reading is exact).
_POWER_W_MAX = 1e6
_BANDWIDTH_MAX = 1e18
_REFRESH_S = (1e-4, 60.0)
#: Parameters, bytes, layers, heads.
_COUNT_MAX = 1e17
_EXPERTS_MAX = 10**6
#: Tokens of one request; token pairs of one step, whose sums stay whole numbers of 64 bits.
_TOKENS_MAX = 10**9
_PAIRS_MAX = 1 << 61

_Number = TypeVar("_Number", int, float)


def plausible_device(device: Device) -> Device:
    """The device with what it can be."""
    refresh_s = device.refresh_s
    if refresh_s and not _REFRESH_S[0] <= refresh_s <= _REFRESH_S[1]:
        refresh_s = None
    plausible = replace(
        device,
        power_limit_w=_within(device.power_limit_w, _POWER_W_MAX),
        mem_bandwidth=_within(device.mem_bandwidth, _BANDWIDTH_MAX),
        refresh_s=refresh_s,
    )
    return device if plausible == device else plausible


def plausible_engine(engine: Engine) -> Engine:
    """The engine with what it can be."""
    plausible = replace(
        engine,
        params=_within(engine.params),
        active_params=_within(engine.active_params),
        weight_bytes=_within(engine.weight_bytes),
        kv_bytes_per_token=_within(engine.kv_bytes_per_token),
        layers=_within(engine.layers),
        heads=_within(engine.heads),
        head_dim=_within(engine.head_dim),
        experts=_experts(engine.experts),
    )
    return engine if plausible == engine else plausible


def plausible_work(work: Sequence[Work]) -> bool:
    """Whether what a step computed can be added up."""
    pairs = 0
    for one in work:
        if not (0 <= one.tokens <= _TOKENS_MAX and 0 <= one.context <= _TOKENS_MAX):
            return False
        if one.kept is not None and not 0 <= one.kept <= _TOKENS_MAX:
            return False
        pairs += (one.tokens + 1) * (one.context + one.tokens + 1)
    return pairs < _PAIRS_MAX


def _within(value: _Number | None, most: float = _COUNT_MAX) -> _Number | None:
    return value if value is not None and 1e-3 <= value <= most else None


def _experts(experts: Experts | None) -> Experts | None:
    if experts is None or 0 < experts.active <= experts.total <= _EXPERTS_MAX:
        return experts
    return None
