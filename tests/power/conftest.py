"""The simulated card, built once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the built fake library."""
    return str(build(tmp_path_factory.mktemp("nvml")))


TWO = [CardSpec(uuid="GPU-aaaa-0", seed=1), CardSpec(uuid="GPU-bbbb-1", seed=1)]


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Two cards, shown by the fake library of this test."""
    path = tmp_path / "card"
    made = Card.create(path, TWO)
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", str(path))
    yield made
    made.close()
    # pynvml keeps the library it loaded: the next test starts from nothing
    while pynvml._nvmlLib_refcount > 0:
        pynvml.nvmlShutdown()
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
