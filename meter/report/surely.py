"""How sure: the section of a report that says what its figures rest on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from meter.export.figures import energy, percent, quantity
from meter.report.figures import Ask, Meter, Report
from meter.report.table import row, table

_QUALITIES = {
    "measured": "Energy is read from hardware counters.",
    "estimated": "Energy is estimated from the load: there is no counter.",
    "simulated": "Energy is that of a simulated device: no real joule was spent.",
}
_GAIN = (
    "Not in these doubts: the instrument's own gain. Uncalibrated boards are off by some 5 to 7 %, "
    "the same for all requests of a card; and power supplies, fans and switches are in no counter, "
    "so these are lower bounds of what the facility drew."
)
_REASONS = {
    "lost_steps": "steps that were not heard of",
    "foreign_load": "a stranger on the device",
    "dummy_steps": "steps of ranks without work",
    "meter_down": "time in which no meter was listening",
    "counter_silent": "time in which the counter was not read",
    "no_payer": "joules that came to no other account: please report it",
}
MEANINGS = {
    "static_w": "drawn with a model loaded, doing nothing",
    "F": "a step, whoever is in it",
    "a": "a prompt token",
    "q": "a pair of prompt tokens that attention sees",
    "b": "a decoded token",
    "c": "a context token that a decoding request reads",
    "e": "all experts of a layer, awake",
}


def surely(report: Report) -> str:
    """Quality, doubt, what is unattributed, the counters, and what is not covered."""
    simulated = report.quality == "simulated"
    lines = [_QUALITIES.get(report.quality or "", "The quality of the energy is not known.")]
    lines += _doubts(report.asks)
    if report.fidelity:
        lines.append(f"The engine's work was seen as: {report.fidelity}.")
    reasons = report.unattributed_by_reason
    if reasons:
        said = "; ".join(
            f"{energy(j)} ({percent(j, report.measured_j)}): {_REASONS.get(reason, reason)}"
            for reason, j in reasons.items()
        )
        lines.append(f"Unattributed: {said}.")
    else:
        lines.append("Nothing is unattributed.")
    lines += [hole[0].upper() + hole[1:] + "." for hole in report.holes]
    if not simulated:
        lines.append(_GAIN)
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>How sure</h2><ul>{items}</ul>{_meters(report.meters)}"


def _doubts(asks: Sequence[Ask]) -> list[str]:
    """The relative doubt of requests: of half of them, of nine in ten, and of the largest ones."""
    doubts = [
        (ask.uncertainty_j, ask.energy_j)
        for ask in asks
        if ask.energy_j > 0 and ask.uncertainty_j is not None
    ]
    if not doubts:
        return []
    known = sorted(doubt_j / energy_j for doubt_j, energy_j in doubts)
    weighted = sum(doubt_j for doubt_j, _ in doubts) / sum(energy_j for _, energy_j in doubts)
    half, most = known[len(known) // 2], known[min(len(known) - 1, int(0.9 * len(known)))]
    return [
        f"One standard deviation of the split between requests: ± {percent(half, 1)} for half of "
        f"them, ± {percent(most, 1)} for nine in ten; ± {percent(weighted, 1)} weighted by energy."
    ]


def _meters(meters: Sequence[Meter]) -> str:
    """Every device: what its counter is like, and what work costs there."""
    heads = ("device", "boundary", "quality", "energy", "counter moves every", "shows it later by")
    devices = f"<h3>Devices</h3>{table(heads, map(_meter, meters))}"
    known = [meter for meter in meters if meter.coefficients]
    if not known:
        return devices
    rows = [_coefficient(name, value, sd) for name, value, sd in known[0].coefficients]
    of = known[0].name + (f", the first of {len(known)} devices" if len(known) > 1 else "")
    made = table(("what", "coefficient", "value", "1 σ"), rows)
    title = f"What work costs on {escape(of)}, as learned from its counter"
    return f'{devices}<div class="keep"><h3>{title}</h3>{made}</div>'


def _coefficient(name: str, value: float, sd: float | None) -> str:
    """What is no larger than its doubt is the guess that learning began with."""
    if sd is not None and sd >= abs(value):
        figures = ("not learned", "–")
    else:
        doubt = "–" if sd is None else f"± {quantity(sd, _unit(name), 2)}"
        figures = (quantity(value, _unit(name)), doubt)
    return row((MEANINGS.get(name, name), name, *figures))


def _unit(coefficient: str) -> str:
    return "W" if coefficient.endswith("_w") else "J"


def _meter(meter: Meter) -> str:
    return row(
        (
            f"{meter.name} ({meter.id})",
            meter.boundary,
            meter.quality,
            energy(meter.energy_j),
            _moves(meter.refresh_s),
            "not found" if meter.delay_s is None else _delay(meter.delay_s, meter.delay_sd_s),
        )
    )


def _moves(refresh_s: float | None) -> str:
    """0: it has no tick of its own, as a CPU's."""
    return "reading" if refresh_s == 0.0 else quantity(refresh_s, "s", 3)


def _delay(seconds: float, doubt_s: float | None) -> str:
    """Milliseconds with their doubt."""
    said = f"{1e3 * seconds:.0f} ms"
    return said if doubt_s is None else f"{said} ± {1e3 * doubt_s:.0f} ms"
