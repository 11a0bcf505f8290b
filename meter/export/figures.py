"""Numbers for people, with their units, wherever they are printed. Unknown is a dash, not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
J_PER_KWH = 3.6e6
UNKNOWN = "–"
# The accounts that what was measured is the sum of, in the order in which they are told.
TERMS = ("attributed", "idle", "startup", "unattributed", "pending")


def printable(text: str) -> str:
    """Text of others for a terminal, character by character: what it would obey is U+FFFD."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def number(value: float | None, significant: int = 4) -> str:
    """So many significant digits, and at least the whole part: never in powers of ten."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant}g}")
    before = math.floor(math.log10(abs(rounded))) + 1  # digits before the point, less zeros after
    return f"{value:,.{min(12, max(0, significant - before))}f}"


def quantity(value: float | None, unit: str, significant: int = 4) -> str:
    """With the prefix that fits: ``12.34 kJ``."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return f"0 {unit}"
    size = abs(value)
    factor, prefix = next((p for p in _PREFIXES if size >= 0.99995 * p[0]), _PREFIXES[-1])
    return f"{number(value / factor, significant)} {prefix}{unit}"


def energy(energy_j: float | None, unit: str = "J", significant: int = 4) -> str:
    """Joules, or where ``unit`` is ``kWh`` watt-hours, with their prefix."""
    if energy_j is None or unit != "kWh":
        return quantity(energy_j, "J", significant)
    return quantity(energy_j / 3600, "Wh", significant)


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def many(number_of: int, noun: str) -> str:
    """``1 request``, ``2,000 requests``."""
    return f"{count(number_of)} {noun}{'s' * (number_of != 1)}"


def percent(part: float, whole: float) -> str:
    return UNKNOWN if whole <= 0 else f"{100 * part / whole:.1f} %"


def money(amount: float | None, currency: str, significant: int = 3) -> str:
    """Often millionths: ``131 µUSD``."""
    if amount is None:
        return UNKNOWN
    if amount == 0 or abs(amount) >= 0.01:
        return f"{number(amount, significant)} {currency}"
    return quantity(amount, currency, significant)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 100:
        return f"{minutes} min {seconds % 60:.0f} s"
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes < 6000 else f"{minutes / 1440:.1f} days"
    )


def summands(
    total_j: float, terms_j: Sequence[float], unit: str = "J"
) -> tuple[str, list[str], str]:
    """A total, its terms and their common unit, so rounded that a reader can add them up.

    Where the terms are not all of the total, they do not add up to it, and a reader can see that.
    """
    scale, shown = 1 / 3600 if unit == "kWh" else 1.0, len(terms_j)
    size = abs(total_j * scale)
    # Kilojoules from a thousand of them on, so that smaller terms still show.
    enough = ((p, 1000 if p[0] > 1 else 1) for p in _PREFIXES)
    smallest = _PREFIXES[-1] if size else (1.0, "")
    factor, prefix = next((p for p, least in enough if size >= least * p[0]), smallest)
    rest_j = total_j - sum(terms_j)
    terms_j = terms_j if closes(total_j, rest_j) else [*terms_j, rest_j]
    digits = 1 if not size or size >= 100 * factor else 2 if size >= 10 * factor else 3
    fine = 10**digits
    exact = [fine * joules * scale / factor for joules in terms_j]
    whole = [math.floor(value) for value in exact]
    missing = round(fine * total_j * scale / factor) - sum(whole)
    largest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in largest[: max(0, missing)]:
        whole[i] += 1
    said = [f"{value / fine:,.{digits}f}" for value in whole[:shown]]
    return f"{sum(whole) / fine:,.{digits}f}", said, prefix + ("Wh" if unit == "kWh" else "J")


def closes(measured_j: float, residual_j: float) -> bool:
    """Whether what is left of a sum is no more than a microjoule, or than floats round to."""
    return abs(residual_j) < max(1e-6, 1e-10 * abs(measured_j))


def sum_line(measured_j: float, accounts_j: Mapping[str, float], quality: str | None) -> str:
    """``measured 12.5 J (simulated) = 8.0 attributed + 4.5 idle; residual 0.0e+00 J``: a sceptic
    can add it up, and sees what is in no account."""
    total, terms, unit = summands(measured_j, list(accounts_j.values()))
    said = " + ".join(f"{term} {name}" for term, name in zip(terms, accounts_j, strict=True))
    residual_j = measured_j - sum(accounts_j.values())
    return (
        f"measured {total} {unit} ({quality or 'quality unknown'}) = {said}; "
        f"residual {residual_j:.1e} J"
    )
