"""The README's promises, each with what was found, its limit, and whether it was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from meter.selftest.findings import DeviceFindings, Findings
from meter.selftest.price import Counted, Price, Ratio
from meter.selftest.repeats import Repeats
from meter.selftest.zeus import Beside

#: Sums of floats over a long run: nothing that could be joules.
_EXACT = 1e-9
_UNATTRIBUTED_MAX = 0.01
_EDGE_S_MAX = 0.002
_STEP_MAX = 0.01
_DELAY_SD_S_MAX = 0.01
_IDLE_MAX = 0.02
_POWER_MAX = 0.10
FORESEEN_MAX = 0.02
_ALONE_MAX = 0.05
_SWING_MAX = 0.05
_REPEATS_MAX = 0.02
_ZEUS_MAX = 0.005
_THROUGHPUT_MAX = 0.005
_ITL_MAX = 0.01


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "not known"


class Promise(NamedTuple):
    """``figure`` is judged against ``limit``, both in ``unit`` (empty: a ratio); ``None``: why it
    is not known stands in ``note``. ``at_least``: the limit is a lower one."""

    id: str
    says: str
    figure: float | None
    limit: float
    unit: str
    note: str
    at_least: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.figure is None:
            return Verdict.UNKNOWN
        kept = self.figure >= self.limit if self.at_least else self.figure <= self.limit
        return Verdict.PASS if kept else Verdict.FAIL


def promises(found: Findings) -> tuple[Promise, ...]:
    """All of them, in the order in which they rest on each other."""
    return (
        *_accounts(found),
        *_counters(found.devices),
        *_coefficients(found.devices),
        _repeated(found),
        _floor(found.devices),
        _zeus(found.zeus),
        *prices(found.price),
    )


def prices(one: Price | None) -> tuple[Promise, ...]:
    """What metering costs the server."""
    unknown = (
        "not measured, or its tokens not counted alike in all runs: --pairs 6 starts the server "
        "with and without the meter in turn"
    )
    lost = slower = None
    if one is not None:
        ratio = one.throughput
        lost = Ratio(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
        slower = Ratio(*(value - 1 for value in one.itl_p99))
    return (
        _surely("throughput", "metering costs no throughput", lost, _THROUGHPUT_MAX, unknown,
                f"{_per_s(one)} bare, {one.pairs} pairs" if one else ""),
        _surely("latency", "metering makes the slowest tokens no slower (99th percentile)", slower,
                _ITL_MAX, unknown, f"{_ms(one.bare_itl_p99_s)} bare" if one else ""),
    )  # fmt: skip


def _per_s(one: Price) -> str:
    if one.counted is Counted.EVENTS:
        return f"{one.bare_tokens_per_s:,.0f} events/s (the server does not tell its tokens)"
    return f"{one.bare_tokens_per_s:,.0f} tokens/s"


def exit_code(kept: Sequence[Promise]) -> int:
    """0: none is broken; 1: one is; 2: what all the others rest on could not be judged."""
    verdicts = {promise.id: promise.verdict for promise in kept}
    if Verdict.FAIL in verdicts.values():
        return 1
    return 2 if verdicts["foreseen"] is Verdict.UNKNOWN else 0


def _accounts(found: Findings) -> tuple[Promise, ...]:
    reasons = ", ".join(
        f"{reason} {joules:,.0f} J" for reason, joules in found.unattributed_by_reason.items()
    )
    return (
        Promise(
            "conservation",
            "every joule that the counter moved is in exactly one account",
            abs(found.residual_j) / found.measured_j,
            _EXACT,
            "",
            f"{found.measured_j:,.3f} J measured, {found.residual_j:.1e} J in no account",
        ),
        Promise(
            "receipts",
            "the receipts are all that was attributed",
            abs(found.receipts_residual_j) / found.measured_j,
            _EXACT,
            "",
            f"{found.requests} receipts, {found.attributed_j:,.3f} J",
        ),
        Promise(
            "attributed",
            "nothing else draws on the card, and no step is missed",
            found.unattributed_share,
            _UNATTRIBUTED_MAX,
            "",
            reasons or "nothing is unattributed",
        ),
    )


def _counters(devices: Sequence[DeviceFindings]) -> tuple[Promise, ...]:
    return (
        _worst(
            devices,
            Promise("ticks", "the counter's ticks are timed to about a millisecond", None,
                    _EDGE_S_MAX, "s", "the counter did not move"),
            lambda d: d.counter.edge_s,
            lambda d: f"{_tick(d.counter.refresh_s)}, a reading every {_ms(d.counter.poll_s)}",
        ),
        _worst(
            devices,
            Promise("resolution", "the counter counts finely enough", None, _STEP_MAX, "",
                    "the counter did not move"),
            lambda d: _over(d.counter.step_j, d.counter.tick_j),
            lambda d: f"steps of {d.counter.step_j:g} J, {d.counter.tick_j:.3g} J in a usual tick",
        ),
        _worst(
            devices,
            Promise("lag", "how late the counter shows what was drawn is found", None,
                    _DELAY_SD_S_MAX, "s", "not to be seen: the load was too steady or too short"),
            lambda d: d.counter.delay_sd_s,
            lambda d: f"{_ms(d.counter.delay_s)} late against ticks as readings time them, "
            f"smeared over {_ms(d.counter.smear_s)}",
        ),
        _worst(
            devices,
            Promise("full_duty", "the counter sees short loads wherever in its tick they fall",
                    None, _SWING_MAX, "", "too few short loads with idle around them"),
            lambda d: d.sweep.swing if d.sweep else None,
            lambda d: "by quarter of the tick, measured / foreseen: "
            + ", ".join(f"{ratio:.3f}" for _, ratio, _ in (d.sweep.ratios if d.sweep else ())),
        ),
        _worst(
            devices,
            Promise("power", "counter and power agree", None, _POWER_MAX, "",
                    "no power was read beside the counter"),
            lambda d: _off(d.counter.power_ratio),
            lambda d: f"counter / integral of power: {d.counter.power_ratio:.4f}",
        ),
    )  # fmt: skip


def _coefficients(devices: Sequence[DeviceFindings]) -> tuple[Promise, ...]:
    return (
        _worst(
            devices,
            Promise("idle", "the static power that was learned is what idle draws", None,
                    _IDLE_MAX, "", "never idle for long enough"),
            lambda d: _off(_over(d.counter.static_w, d.counter.idle_w)),
            lambda d: f"{d.counter.static_w:.1f} W learned, {d.counter.idle_w:.1f} W seen",
        ),
        _worst(
            devices,
            Promise("foreseen", "what one half of the load taught foresees the other half",
                    None, FORESEEN_MAX, "", "too few intervals with work in each half"),
            lambda d: d.foreseen.off if d.foreseen else None,
            _said_foreseen,
        ),
        _worst(
            devices,
            Promise("alone", "what was learned in company foresees a request alone", None,
                    _ALONE_MAX, "", "too few requests alone, or too little company"),
            lambda d: d.alone.off if d.alone else None,
            lambda d: f"{len(d.alone.ratios)} requests, {_signed(d.alone.bias)} in the middle"
            if d.alone
            else "",
        ),
    )  # fmt: skip


def _said_foreseen(device: DeviceFindings) -> str:
    one = device.foreseen
    if one is None:
        return ""
    return (
        f"{len(one.factors)} intervals; together {_signed(one.bias)}; one by one half within "
        f"{_percent(one.quantile(0.5))}, nine in ten within {_percent(one.quantile(0.9))}"
    )


def _repeated(found: Findings) -> Promise:
    one = found.repeats
    return Promise(
        "repeatable",
        "the same request under the same load takes the same",
        one.spread if one else None,
        _REPEATS_MAX,
        "",
        _said_repeats(one) if one else "no request came often enough under one load",
    )


def _said_repeats(one: Repeats) -> str:
    return (
        f"± {100 * one.error:.2f} %, of {one.requests} requests in {one.groups} groups; nine in "
        f"ten within {_percent(one.quantile(0.9))}; their own doubt {_percent(one.doubt)}"
    )


def _floor(devices: Sequence[DeviceFindings]) -> Promise:
    """The least of measured over floor, of all batch sizes and contexts."""
    return _worst(
        devices,
        Promise("floor", "no decoded token takes less than physics asks", None, 1.0,
                "times the floor", "the model's facts are not known, or it never only decoded",
                at_least=True),
        lambda d: min((r.token_j / r.floor_j for r in d.decode if r.floor_j), default=None),
        _said_floor,
    )  # fmt: skip


def _said_floor(device: DeviceFindings) -> str:
    """Of the smallest and the largest batch."""
    rows = sorted((r for r in device.decode if r.floor_j), key=lambda row: row.batch)
    return "; ".join(
        f"{row.batch:.0f} at once: {row.token_j:.3g} J, floor {row.floor_j:.2g} J"
        for row in dict.fromkeys((rows[0], rows[-1]))
    )


def _zeus(one: Beside | None) -> Promise:
    off = _off(_over(one.ours_j, one.zeus_j)) if one else None
    return Promise(
        "zeus",
        "Zeus measures the same in the same window",
        off,
        _ZEUS_MAX,
        "",
        f"{one.ours_j:,.1f} J, {one.zeus_j:,.1f} J by Zeus, in {one.seconds:.0f} s"
        if one
        else "Zeus is not installed here (pip install zeus), or sees other GPUs",
    )


def _surely(
    id: str, says: str, change: Ratio | None, limit: float, unknown: str, note: str
) -> Promise:
    """Judged where its whole interval lies on one side of the limit."""
    if change is None:
        return Promise(id, says, None, limit, "", unknown)
    sure = change.high <= limit or change.low > limit
    said = (
        f"{_signed(change.value)}, between {_signed(change.low)} and {_signed(change.high)} (95 %)"
    )
    doubt = "" if sure else "; too wide to say: more --pairs"
    return Promise(id, says, change.value if sure else None, limit, "", f"{said}; {note}{doubt}")


def _worst(
    devices: Sequence[DeviceFindings],
    promise: Promise,
    figure: Callable[[DeviceFindings], float | None],
    note: Callable[[DeviceFindings], str],
) -> Promise:
    """The promise with the figure of the device that keeps it least; it has to be known of all."""
    figures = [figure(device) for device in devices]
    known = [value for value in figures if value is not None]
    if not known:
        return promise
    worst = min(known) if promise.at_least else max(known)
    judged = promise._replace(figure=worst)
    if len(known) < len(figures) and judged.verdict is Verdict.PASS:
        return promise._replace(note=f"of {len(figures) - len(known)} devices: {promise.note}")
    device = devices[figures.index(worst)]
    where = f"{device.device.id}: " if len(devices) > 1 else ""
    return judged._replace(note=where + note(device))


def _over(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _off(ratio: float | None) -> float | None:
    return None if ratio is None else abs(ratio - 1.0)


def _tick(refresh_s: float | None) -> str:
    if refresh_s is None:
        return "its tick was not found"
    return f"a tick every {_ms(refresh_s)}" if refresh_s else "it moves at every reading"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f} %"


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{1e3 * seconds:.3g} ms"
