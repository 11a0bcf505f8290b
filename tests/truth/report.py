"""Plays a scenario both ways and against the other rules, and prints what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from meter.attribution.rules import Rule, split
from meter.replay import CalibrationMode, Replayed, replay_trace
from tests.truth import targets
from tests.truth.case import Case
from tests.truth.floor import floor
from tests.truth.scenarios import build
from tests.truth.score import Coverage, Errors, Score, pooled, rule_errors, score

FIRST_MINUTE_S = 60.0
RULES = (Rule.TOKENS, Rule.TIME, Rule.INFLIGHT)


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario's line. ``missed``: names of the targets that were not met."""

    name: str
    about: str
    kind: str
    whole: Score
    online: Score
    rules: dict[str, Errors]
    floor: Errors | None
    missed: tuple[str, ...]
    seconds: float

    def json(self) -> dict[str, Any]:
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """Named tuples become objects in JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return value


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case and its replays, for who wants to look closer."""

    case: Case
    whole: Replayed
    online: Replayed
    rules: dict[str, dict[str, float]]

    def row(self, seconds: float = 0.0) -> Row:
        whole, online = score(self.case, self.whole), score(self.case, self.online, FIRST_MINUTE_S)
        return Row(
            name=self.case.name,
            about=self.case.about,
            kind=self.case.targets,
            whole=whole,
            online=online,
            rules={name: rule_errors(self.case, joules) for name, joules in self.rules.items()},
            floor=floor(self.case),
            missed=targets.missed(self.case.targets, whole, online),
            seconds=seconds,
        )


def play(name: str, seconds: float | None = None) -> Outcome:
    case = build(name, seconds=seconds)
    return Outcome(
        case=case,
        whole=replay_trace(case.trace(), calibration=CalibrationMode.WHOLE),
        online=replay_trace(case.trace(), calibration=CalibrationMode.ONLINE),
        rules={str(rule): split(case.events, rule) for rule in RULES},
    )


def run(name: str, seconds: float | None = None, plots: Path | None = None) -> Row:
    """Play one scenario; ``plots``: a folder to draw it into."""
    begun = time.perf_counter()
    outcome = play(name, seconds)
    if plots is not None:
        from tests.truth.plots import draw

        draw(outcome, plots)
    return outcome.row(time.perf_counter() - begun)


# --- the table

_HEADS = (
    "floor",
    "whole",
    "online",
    "prefill",
    "decode",
    "idle",
    "tenant",
    "nobody's",
    "within 1/2σ",
    "online",
    "tokens",
    "time",
    "inflight",
)


def print_table(rows: Iterable[Row], console: Console) -> None:
    """Per cent everywhere, mean/p99 where two stand; ``!`` where a target of the issue is missed.

    ``floor``: see there; ``whole``, ``online`` (after the first minute): of the requests' joules.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("scenario", no_wrap=True)
    for name in _HEADS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def print_coverage(rows: Sequence[Row], console: Console) -> None:
    """How often receipts lie within 1 and 2 doubts, over all scenarios of a kind together."""
    for kind in ("moderate", "experts"):
        some = [row for row in rows if row.kind == kind]
        if some:
            console.print(f"{kind}:")
            _print_coverage(some, console)


def _print_coverage(rows: Sequence[Row], console: Console) -> None:
    missed = targets.coverage([row.whole for row in rows], [row.online for row in rows])
    marks = {target.name: "" if target.met else "!" for target in missed}
    for way in ("whole", "online"):
        for part in ("covered", "covered_short", "covered_long"):
            found = pooled(getattr(getattr(row, way), part) for row in rows)
            console.print(
                f"{way:7} {part.replace('_', ', '):15} {100 * found.within_1:5.1f} ± "
                f"{100 * found.sd_1:.1f} / {100 * found.within_2:5.1f} ± {100 * found.sd_2:.1f} %"
                f"  of {found.n} receipts{marks[f'{way} {part}']}"
            )


def _cells(row: Row) -> Iterator[str]:
    whole, online = row.whole, row.online
    yield row.name
    yield "–" if row.floor is None else _both(row.floor)
    yield _both(whole.requests) + _mark(row, "mean", "p99")
    yield _both(online.requests) + _mark(row, "online mean", "online p99")
    yield _percent(whole.prefill.mean, 1) + _mark(row, "prefill")
    yield _percent(whole.decode.mean) + _mark(row, "decode")
    yield _percent(whole.idle, 1) + _mark(row, "idle")
    yield _percent(whole.tenant) + _mark(row, "tenant")
    yield _nobodys(whole) + _mark(row, "foreign", "lost", "unattributed")
    yield _covered(whole.covered)
    yield _covered(online.covered)
    for rule in RULES:
        yield _percent(row.rules[str(rule)].mean, 0)


def _nobodys(whole: Score) -> str:
    """What is unattributed, against what should be; where nothing should, as a share of all."""
    found = whole.foreign if whole.foreign is not None else whole.lost
    return _percent(found if found is not None else whole.unattributed, 1)


def _both(errors: Errors) -> str:
    decimals = 2 if errors.mean < 0.1 else 1
    return f"{_percent(errors.mean, decimals)}/{_percent(errors.p99, decimals - 1)}"


def _covered(covered: Coverage) -> str:
    return f"{_percent(covered.within_1, 0)}/{_percent(covered.within_2, 0)}"


def _percent(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{decimals}f}"


def _mark(row: Row, *names: str) -> str:
    return "!" if any(name in row.missed for name in names) else ""
