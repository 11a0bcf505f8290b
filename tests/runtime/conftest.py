"""What the tests with real processes share: the fake NVML, a card, and started meters."""

import signal

import pytest
from processes import UUID, Run

from meter.demo.card import Card, CardSpec
from meter.demo.nvml_build import build


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The fake NVML, compiled once."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def card(tmp_path):
    """One simulated H100, drawing nothing yet; gives its control file."""
    path = tmp_path / "card"
    Card.create(path, [CardSpec(UUID, "NVIDIA H100 80GB HBM3")])
    return path


@pytest.fixture
def start():
    """Starts ``joulemeter``; whatever still runs at the end of the test is ended."""
    runs = []

    def begin(*words, **options):
        runs.append(Run(*words, **options))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            run.end()


@pytest.fixture
def metered(start, library, card):
    """Starts it on the simulated card and a free port; of other tests it remembers nothing."""

    def begin(*words, environ=(), **options):
        own = {"JOULEMETER_FAKE_NVML": str(card), "XDG_STATE_HOME": str(card.parent / "state")}
        environ = {**own, **dict(environ)}
        where = ("--port", 0, "--nvml-library", library)
        return start(*where, *words, environ=environ, **options)

    return begin
