"""Draws a scenario: errors, true against attributed, residuals over time, coverage.

matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.truth.report import FIRST_MINUTE_S, Outcome
from tests.truth.score import Pairs, paired, rule_pairs

_SMALLEST = 1e-4


def draw(outcome: Outcome, folder: Path) -> Path:
    """One PNG with four panels; returns its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    case = outcome.case
    whole = paired(case, outcome.whole)
    online = paired(case, outcome.online, FIRST_MINUTE_S)
    figure, ((errors, against), (over_time, coverage)) = pyplot.subplots(
        2, 2, figsize=(13, 9), layout="constrained"
    )
    figure.suptitle(f"{case.name}: {case.about}")
    _errors(errors, outcome, whole, online)
    _against(against, whole)
    _over_time(over_time, whole, online)
    _coverage(coverage, whole, online)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _errors(axes: Any, outcome: Outcome, whole: Pairs, online: Pairs) -> None:
    """How many requests are off by at most so much."""
    shown = {"whole": whole, "online, after a minute": online}
    shown |= {rule: rule_pairs(outcome.case, joules) for rule, joules in outcome.rules.items()}
    for name, pairs in shown.items():
        off = np.sort(np.maximum(np.abs(pairs.got - pairs.true) / pairs.true, _SMALLEST))
        axes.step(100 * off, np.arange(1, len(off) + 1) / max(1, len(off)), label=name)
    axes.set(
        xscale="log", xlabel="error of a request, %", ylabel="share of requests at most so far off"
    )
    axes.set_title("error distribution")
    _finish(axes)


def _against(axes: Any, whole: Pairs) -> None:
    axes.errorbar(whole.true, whole.got, yerr=whole.doubt, fmt=".", markersize=3, linewidth=0.5)
    ends = [whole.true.min(), whole.true.max()] if len(whole.true) else [1.0, 1.0]
    axes.plot(ends, ends, color="black", linewidth=0.7, label="equal")
    axes.set(xscale="log", yscale="log", xlabel="true joules", ylabel="attributed joules")
    axes.set_title("true against attributed (whole)")
    _finish(axes)


def _over_time(axes: Any, whole: Pairs, online: Pairs) -> None:
    for name, pairs in (("whole", whole), ("online", online)):
        off = 100 * (pairs.got - pairs.true) / pairs.true
        axes.plot(pairs.closed_s, off, ".", markersize=3, label=name)
        axes.plot(*_running_mean(pairs.closed_s, off), linewidth=1)
    axes.axhline(0.0, color="black", linewidth=0.7)
    axes.set(xlabel="end of the request, s", ylabel="attributed − true, %")
    axes.set_title("residuals over time; lines: means of 10 s")
    _finish(axes)


def _running_mean(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    block = (times // 10).astype(int)
    blocks = np.unique(block)
    return 10.0 * blocks + 5.0, np.array([values[block == b].mean() for b in blocks])


def _coverage(axes: Any, whole: Pairs, online: Pairs) -> None:
    """Which share lies within k doubts, against which should."""
    reach = np.linspace(0.0, 3.0, 61)
    nominal = [math.erf(k / math.sqrt(2)) for k in reach]
    middle = np.median(whole.true) if len(whole.true) else 0.0
    parts = {
        "whole": (whole, whole.true > 0),
        "whole, short": (whole, whole.true <= middle),
        "whole, long": (whole, whole.true > middle),
        "online": (online, online.true > 0),
    }
    for name, (pairs, chosen) in parts.items():
        score = (np.abs(pairs.got - pairs.true) / np.maximum(pairs.doubt, 1e-12))[chosen]
        axes.plot(nominal, [float((score <= k).mean()) for k in reach], label=name)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.7)
    axes.set(xlabel="share that should lie within", ylabel="share that does")
    axes.set_title("coverage of uncertainty_j")
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
