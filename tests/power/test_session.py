"""NVML is started anew when that may help, not too often, and never under a call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pynvml
import pytest
import structlog.testing

from meter.demo.card import Card
from meter.power.errors import LibraryMissingError
from meter.power.nvml_calls import start
from meter.power.nvml_session import Session

S = 1_000_000_000
LOST, NOT_SUPPORTED, UNINITIALISED = 15, 3, 1


@dataclass
class Played:
    """A session on a clock that the test moves, and how often its handles were forgotten."""

    library: str
    now_ns: int = 0
    restarts: int = 0
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = Session(self.library, self.forget, lambda: self.now_ns)
        self.session.start()

    def forget(self) -> None:
        self.restarts += 1


@pytest.fixture
def played(library: str, card: Card) -> Iterator[Played]:
    made = Played(library)
    with structlog.testing.capture_logs():
        yield made
    made.session.end()


def test_it_starts_anew_once_and_then_waits_longer_and_longer(played: Played) -> None:
    """At once, after half a second, one, two … up to a minute: a GPU that stays lost does not have
    the others restarted all the time."""
    at_s = []
    for tenth in range(10 * 240):
        played.now_ns = tenth * S // 10
        before = played.restarts
        played.session.failed(LOST)
        if played.restarts > before:
            at_s.append(tenth / 10)
    assert at_s == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 123.5, 183.5]


def test_what_works_again_begins_at_the_shortest_pause(played: Played) -> None:
    """The next fault is a new one."""
    for second in range(100):
        played.now_ns = second * S
        played.session.failed(UNINITIALISED)
    played.session.worked()
    before = played.restarts
    played.now_ns += 100 * S
    played.session.failed(UNINITIALISED)
    played.now_ns += S // 2
    played.session.failed(UNINITIALISED)
    assert played.restarts == before + 2


def test_a_code_that_a_start_cannot_help_is_left_alone(played: Played) -> None:
    """What the board does not have, it has not after a start either."""
    played.session.failed(NOT_SUPPORTED)
    assert played.restarts == 0


def test_nothing_is_restarted_under_a_call(played: Played) -> None:
    """One that hangs in the driver would crash: whoever fails meanwhile waits until it is back."""
    with played.session.call():
        played.session.failed(LOST)
        assert played.restarts == 0
    played.session.failed(LOST)
    assert played.restarts == 1


def test_a_start_that_fails_is_tried_again(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the driver is away every start fails; when it is back the next one works."""
    monkeypatch.setenv("JOULEMETER_FAKE_NVML_INIT", "9")
    played.session.failed(UNINITIALISED)
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()
    monkeypatch.delenv("JOULEMETER_FAKE_NVML_INIT")
    played.session.failed(UNINITIALISED)
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()
    played.now_ns += S
    played.session.failed(UNINITIALISED)
    assert pynvml.nvmlDeviceGetCount() == 2


@pytest.mark.parametrize("name", ["pipe", "odd\udcff.so"])
def test_a_library_that_can_be_none_is_an_error_that_names_the_setting(
    tmp_path: Path, name: str
) -> None:
    """The loader would wait for a pipe's writer without end, and raises for a name that is no text
    what nobody catches."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LibraryMissingError, match=r"power\.nvml_library .* cannot be loaded"):
        start(str(tmp_path / name))
