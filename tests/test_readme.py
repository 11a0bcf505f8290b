"""What the README says is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)))


def test_it_names_tests() -> None:
    """Those that back its claims on what happens when things go wrong."""
    assert len(NAMED) > 15


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_it_names_is_there(path: str, name: str) -> None:
    """A row without its test would be a promise that nobody keeps."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.M)


def test_every_metric_it_names_is_exported() -> None:
    """By its full name, in the golden text or, where that has no such sample, in the code."""
    files = [ROOT / "tests/export/golden.prom", *(ROOT / "meter/export").glob("*.py")]
    exported = "".join(file.read_text(encoding="utf-8") for file in files)
    for name in set(re.findall(r"`(joulemeter_\w+)", README)):
        assert name.removesuffix("_total") in exported, name
