"""What was learned of a device while it served a model, in a form that outlives the process.

The facts are plain JSON values; a float's shortest decimal form reads back to the same float, so a
replay that starts from a recorded calibration gives the live receipts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from meter.attribution.coefficients import NAMES, Coefficients
from meter.attribution.fit import SIZE, Fit, Window

#: No watts, joules, seconds or shares are beyond it: what is was damaged, and would spoil a fit.
_MOST = 1e12
_INTERVALS_MAX = 2**53


class Learned(NamedTuple):
    """A device's fit while it served ``model`` (empty: unknown) and no other."""

    device: str
    model: str
    fit: Fit


def to_facts(learned: Learned) -> dict[str, Any]:
    """As JSON values."""
    fit = learned.fit
    pace = fit.pace[0] if fit.pace else (0.0,) * SIZE
    return {
        "device": learned.device,
        "model": learned.model,
        "coefficients": dict(zip(NAMES, fit.coefficients[0], strict=True)),
        "covariance": fit.covariance.tolist(),
        "noise": fit.noise,
        "misfit": fit.misfit,
        "drift": fit.drift,
        "intervals": fit.intervals,
        "converged": fit.converged,
        "window": fit.window._asdict(),
        "pace": dict(zip(NAMES, pace, strict=True)),
    }


def from_facts(facts: Mapping[str, Any]) -> Learned:
    """The reverse. Raises ``ValueError``, naming the field, where facts are missing or odd."""
    window = _of(facts, "window", dict)
    doubt = window.get("doubt_s")
    fit = Fit(
        coefficients=(_coefficients(facts, "coefficients"),),
        covariance=_covariance(facts),
        noise=_number(facts, "noise"),
        intervals=_intervals(facts),
        converged=_of(facts, "converged", bool),
        window=Window(
            _signed(window, "delay_s"),
            _number(window, "width_s"),
            None if doubt is None else _number(window, "doubt_s"),
        ),
        pace=(_coefficients(facts, "pace"),),
        misfit=_number(facts, "misfit"),
        drift=_number(facts, "drift"),
    )
    return Learned(_of(facts, "device", str), _of(facts, "model", str), fit)


def known_of(facts: Iterable[Mapping[str, Any]]) -> list[Learned]:
    """All of it that can be used."""
    known = []
    for one in facts:
        with suppress(ValueError, ArithmeticError):
            known.append(from_facts(one))
    return known


def _of(facts: Mapping[str, Any], name: str, kind: type) -> Any:
    value = facts.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"calibration: {name} must be of type {kind.__name__}, not {value!r:.80}")
    return value


def _signed(facts: Mapping[str, Any], name: str) -> float:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST:
        raise ValueError(
            f"calibration: {name} must be a number within ±{_MOST:g}, not {value!r:.80}"
        )
    return float(value)


def _number(facts: Mapping[str, Any], name: str) -> float:
    value = _signed(facts, name)
    if value < 0:
        raise ValueError(f"calibration: {name} must not be below zero, and is {value!r:.80}")
    return value


def _intervals(facts: Mapping[str, Any]) -> int:
    value: int = _of(facts, "intervals", int)
    if not 0 <= value <= _INTERVALS_MAX:
        raise ValueError(f"calibration: intervals must be from 0 to 2^53, not {value!r:.80}")
    return value


def _coefficients(facts: Mapping[str, Any], name: str) -> Coefficients:
    values = _of(facts, name, dict)
    return Coefficients(*(_number(values, coefficient) for coefficient in NAMES))


def _covariance(facts: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        matrix = np.array(facts.get("covariance"), dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (SIZE, SIZE) or not (np.abs(matrix) <= _MOST**2).all():
        raise ValueError(
            f"calibration: covariance must hold {SIZE} × {SIZE} numbers within ±{_MOST**2:g}"
        )
    return matrix
