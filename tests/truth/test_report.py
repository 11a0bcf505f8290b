"""The table and the plots, from one short scenario played with the meter itself."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from tests.truth.report import Outcome, play, print_coverage, print_table

pytestmark = pytest.mark.slow


@cache
def outcome() -> Outcome:
    return play("moderate-light-1", seconds=75.0)


def test_the_table_fits_its_width() -> None:
    """One line a scenario, the rules of others beside it, nothing cut off."""
    console = Console(width=140, file=io.StringIO())
    row = outcome().row()
    print_table([row], console)
    print_coverage([row], console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "moderate-light-1" in printed
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 140


def test_the_meter_beats_the_other_rules() -> None:
    """Theirs miss by several times as much."""
    row = outcome().row()
    assert all(errors.mean > 5 * row.whole.requests.mean for errors in row.rules.values())


def test_figures_are_plain_json() -> None:
    """Every figure can be written down."""
    figures = json.loads(json.dumps(outcome().row().json()))
    assert figures["whole"]["requests"]["n"] > 0


def test_a_scenario_is_drawn(tmp_path: Path) -> None:
    """One PNG a scenario."""
    from tests.truth.plots import draw

    assert draw(outcome(), tmp_path).stat().st_size > 20_000
