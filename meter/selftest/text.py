"""The report for a terminal."""

from __future__ import annotations

from meter.export.figures import duration, quantity
from meter.selftest.counter import told
from meter.selftest.findings import DeviceFindings, Findings
from meter.selftest.promises import Promise, Verdict

_MARKS = {Verdict.PASS: "pass", Verdict.FAIL: "FAIL", Verdict.UNKNOWN: "  ? "}


def to_text(found: Findings, kept: tuple[Promise, ...]) -> str:
    """Lines; the promises first."""
    model = found.model or "unnamed model"
    lines = [
        f"{model}, {found.requests} requests in {duration(found.seconds)} "
        f"({found.quality or 'quality unknown'})",
        *(f"not covered: {hole}" for hole in found.holes),
        "",
    ]
    for one in kept:
        lines.append(f"{_MARKS[one.verdict]}  {one.says}: {value(one)} ({limit(one)})")
        lines.append(f"      {one.note}")
    if found.meter_cpu_share is not None:
        lines += ["", f"the meter took {100 * found.meter_cpu_share:.2g} % of one core"]
    for device in found.devices:
        lines += ["", *_device(device)]
    return "\n".join([*lines, "", closing(kept)])


def closing(kept: tuple[Promise, ...]) -> str:
    """One line that says how it went."""
    counts = {v: sum(one.verdict is v for one in kept) for v in Verdict}
    return ", ".join(f"{counts[v]} {v}" for v in Verdict)


def value(one: Promise) -> str:
    return "not known" if one.figure is None else _said(one.figure, one.unit)


def limit(one: Promise) -> str:
    return f"{'at least' if one.at_least else 'at most'} {_said(one.limit, one.unit)}"


def _said(figure: float, unit: str) -> str:
    if unit == "s":
        return quantity(figure, "s", 3)
    if unit:
        return f"{figure:.3g} {unit}"
    return f"{100 * figure:.0e} %" if 0 < figure < 1e-5 else f"{100 * figure:.3g} %"


def _device(one: DeviceFindings) -> list[str]:
    """What was found of a device, beside the promises."""
    lines = [f"{one.device.name} ({one.device.id}), {one.intervals:,} intervals"]
    lines += [f"  {name:<36}{value:>10}" for name, value in told(one.counter)]
    for name, (learned, sd) in one.coefficients.items():
        unit = "W" if name.endswith("_w") else "J"
        doubt = "?" if sd is None else quantity(sd, unit, 2)
        lines.append(f"  {name:<9}{quantity(learned, unit):>12} ± {doubt}")
    if one.foreseen is not None:
        shares = "  ".join(f"{name} {factor:.3f}" for name, factor in one.foreseen.quantiles())
        lines.append(f"  measured / foreseen, of {len(one.foreseen.factors):,} intervals: {shares}")
    if one.decode:
        lines.append("  decode by batch     context   J/token     floor")
    lines += [_tokens(row.batch, row.context, row.token_j, row.floor_j) for row in one.decode]
    if one.prefill:
        lines.append("  prefill, company     prompt   J/token     floor")
    lines += [_tokens(row.batch, row.prompt, row.token_j, row.floor_j) for row in one.prefill]
    return lines


def _tokens(batch: float, context: float, token_j: float, floor_j: float | None) -> str:
    floor = quantity(floor_j, "J", 3)
    return f"  {batch:>15.1f} {context:>11,.0f} {quantity(token_j, 'J', 3):>9} {floor:>9}"
