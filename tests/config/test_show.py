"""What ``config show`` prints: a file that can be used, in which every key is explained."""

from pathlib import Path

import yaml

from meter.config import Settings, known_keys, load, variable
from meter.config.show import commented


def shown() -> str:
    return commented(Settings())


def test_what_is_shown_can_be_loaded(tmp_path: Path) -> None:
    """Read back it is the same settings."""
    settings = load(None, {"http.port": 7, "power.devices": ("0", "GPU-1"), "pricing.pue": "1.2"})
    file = tmp_path / "meter.yaml"
    file.write_text(commented(settings))
    assert load(file) == settings


def test_every_key_stands_under_its_meaning() -> None:
    """With the words of its one definition, in 80 columns."""
    words = " ".join(shown().replace("#", " ").split())
    for key, description in known_keys():
        assert " ".join(description.split()) in words, key
    assert max(map(len, shown().splitlines())) <= 80
    values = yaml.safe_load(shown())
    for key, _ in known_keys():
        place = values
        for part in key.split("."):
            assert part in place
            place = place[part]


def test_what_a_key_takes_is_said() -> None:
    """Its words or its bounds, from the definition too."""
    words = " ".join(shown().replace("#", " ").split())
    assert "One of auto, nvml, cpu, simulated." in words
    assert "(20 to 50 suit NVML). From 1 to 200." in words
    assert "More than 0." in words


def test_a_keys_variable_sets_it(monkeypatch) -> None:
    """The variable that errors name is the one that is read."""
    assert variable("http.port") == "JOULEMETER_HTTP__PORT"
    monkeypatch.setenv(variable("http.port"), "7")
    monkeypatch.setenv(variable("log_level"), "debug")
    settings = load()
    assert (settings.http.port, settings.log_level) == (7, "debug")
