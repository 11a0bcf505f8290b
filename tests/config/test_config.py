"""Settings: who wins, what is refused, and how it is said."""

from decimal import Decimal
from pathlib import Path

import pytest

from meter.config import ConfigError, Settings, known_keys, load


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the caller's reaches a test."""
    import os

    for name in list(os.environ):
        if name.startswith("JOULEMETER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "meter.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_need_nothing():
    """Without file, environment or flags there is a usable object."""
    settings = load()
    assert settings == Settings()
    assert settings.http.port == 29401
    assert settings.pricing.electricity_price_per_kwh is None


def test_flags_win_over_environment_over_file(file, monkeypatch):
    """And each layer leaves what it does not name to the one below."""
    path = file("power: {rate_hz: 10, source: nvml}\nhttp: {port: 1, host: h}\n")
    monkeypatch.setenv("JOULEMETER_HTTP__PORT", "2")
    monkeypatch.setenv("JOULEMETER_POWER__RATE_HZ", "20")
    settings = load(path, {"http.port": 3, "power.source": None})
    assert settings.http.port == 3
    assert settings.power.rate_hz == 20
    assert settings.power.source == "nvml"
    assert settings.http.host == "h"


def test_the_environment_may_name_the_file(file, monkeypatch):
    """``JOULEMETER_CONFIG`` stands for ``--config``."""
    monkeypatch.setenv("JOULEMETER_CONFIG", str(file("record: /r.jsonl\n")))
    assert load().record == Path("/r.jsonl")


def test_money_is_decimal_to_the_last_digit(file):
    """0.1 in YAML is a tenth."""
    settings = load(file("pricing: {electricity_price_per_kwh: 0.1, pue: 1.25, currency: EUR}"))
    assert settings.pricing.electricity_price_per_kwh == Decimal("0.1")
    assert settings.pricing.pue == Decimal("1.25")


def test_devices_are_a_list_or_commas(file, monkeypatch):
    """YAML has lists, the environment has commas; indices become text."""
    assert load(file("power: {devices: [0, GPU-1]}")).power.devices == ("0", "GPU-1")
    monkeypatch.setenv("JOULEMETER_POWER__DEVICES", "GPU-2, 3")
    assert load().power.devices == ("GPU-2", "3")


def test_what_is_learned_is_remembered_unless_told_otherwise(file, monkeypatch):
    """By default, in a place that the environment gives."""
    assert load().calibration.remember
    assert load().calibration.directory is None
    assert load(file("calibration: {directory: /d}")).calibration.directory == Path("/d")
    monkeypatch.setenv("JOULEMETER_CALIBRATION__REMEMBER", "false")
    assert not load().calibration.remember


def test_settings_cannot_be_changed():
    """One frozen object of frozen sections."""
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 1


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("power: {ratehz: 5}", "power.ratehz", "power.rate_hz"),
        ("pricing: {electricity_price: 1}", "pricing.electricity_price",
         "pricing.electricity_price_per_kwh"),
        ("recrod: x", "recrod", "record"),
        ("powre: {source: cpu}", "powre", "power"),
        ("pricing: {hardware: 1}", "pricing.hardware", "pricing.hardware_price_per_hour"),
        ("pue: 1.2", "pue", "pricing.pue"),
        ("http: {rate_hz: 5}", "http.rate_hz", "power.rate_hz"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_known_one(file, text, key, nearest):
    """A typing error is found and put right."""
    with pytest.raises(ConfigError) as raised:
        load(file(text))
    assert str(raised.value) == f"{key}: unknown setting: did you mean {nearest}?"


def test_a_key_like_no_other_says_where_all_are(file):
    """Nothing is near: no guess."""
    with pytest.raises(ConfigError, match="qqqq: unknown setting: `joulemeter config show` has"):
        load(file("qqqq: 1"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("JOULEMETER_POWR__RATE_HZ", "did you mean JOULEMETER_POWER__RATE_HZ?"),
        ("JOULEMETER_POWER_RATE_HZ", "did you mean JOULEMETER_POWER__RATE_HZ?"),
        ("JOULEMETER_RECROD", "did you mean JOULEMETER_RECORD?"),
        ("JOULEMETER_HTTP__PROT", "did you mean JOULEMETER_HTTP__PORT?"),
        ("JOULEMETER_HTTP__", "did you mean JOULEMETER_HTTP__"),
        ("JOULEMETER_PORT", "did you mean JOULEMETER_HTTP__PORT?"),
        ("JOULEMETER_PUE", "did you mean JOULEMETER_PRICING__PUE?"),
        ("JOULEMETER_LOG", "did you mean JOULEMETER_LOG_LEVEL?"),
        ("JOULEMETER_CONIFG", "did you mean JOULEMETER_CONFIG?"),
        ("JOULEMETER_SOCKETS", "did you mean JOULEMETER_SOCKET?"),
        ("JOULEMETER_QQQQ", "`joulemeter config show` has them all"),
    ],
)
def test_an_unknown_variable_is_an_error_too(monkeypatch, name, said):
    """The library would pass over most of them in silence."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError) as raised:
        load()
    assert str(raised.value).startswith(f"{name}: unknown variable: {said}")


def test_variables_that_are_no_settings_are_left_alone(monkeypatch):
    """The socket's path and the simulated card's file have names of their own."""
    monkeypatch.setenv("JOULEMETER_SOCKET", "/s")
    monkeypatch.setenv("JOULEMETER_FAKE_NVML", "/f")
    assert load() == Settings()


def test_what_kubernetes_sets_is_left_alone(monkeypatch):
    """In every pod beside a service called joulemeter, or joulemeter-metrics."""
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "29401",
        "SERVICE_PORT_HTTP": "29401",
        "PORT": "tcp://10.0.0.1:29401",
        "PORT_29401_TCP": "tcp://10.0.0.1:29401",
        "PORT_29401_TCP_PROTO": "tcp",
        "PORT_29401_TCP_PORT": "29401",
        "PORT_29401_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(f"JOULEMETER_{name}", value)
        monkeypatch.setenv(f"JOULEMETER_METRICS_{name}", value)
    assert load() == Settings()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("power: {rate_hz: 1000}", "power.rate_hz"),
        ("power: {source: gpu}", "power.source"),
        ("power: {cpu_idle_w: -1}", "power.cpu_idle_w"),
        ("power: {cpu_idle_w: 50, cpu_max_w: 40}", "power.cpu_max_w"),
        ("pricing: {pue: 0.9}", "pricing.pue"),
        ("pricing: {pue: .nan}", "pricing.pue"),
        ("pricing: {currency: euro}", "pricing.currency"),
        ("pricing: {electricity_price_per_kwh: cheap}", "pricing.electricity_price_per_kwh"),
        ("pricing: {hardware_price_per_hour: -1}", "pricing.hardware_price_per_hour"),
        ("calibration: {remember: perhaps}", "calibration.remember"),
        ("calibration: {directory: 5}", "calibration.directory"),
        ("http: {port: 70000}", "http.port"),
        ("http: {host: ''}", "http.host"),
        ("log_level: loud", "log_level"),
    ],
)
def test_a_bad_value_names_its_field_and_the_remedy(file, text, field):
    """What is wrong, what was found, what the field takes and how to set it."""
    with pytest.raises(ConfigError) as raised:
        load(file(text))
    message = str(raised.value)
    assert message.startswith(f"{field}: ")
    assert ", found " in message
    assert f"Set {field} or JOULEMETER_" in message


def test_every_problem_is_told_at_once(file):
    """One line each."""
    with pytest.raises(ConfigError) as raised:
        load(file("http: {port: -1}\npower: {rate_hz: 0}\n"))
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1, 2]", "expected sections"),
        ("power: [", "is not YAML"),
        ("power: 5", "power: expected a section of keys, found 5"),
    ],
)
def test_a_file_of_another_shape_is_refused(file, text, match):
    """With its path or the section in the message."""
    with pytest.raises(ConfigError, match=match):
        load(file(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """Rather than passed over."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_an_empty_file_is_no_settings(file):
    """A file of comments only is fine."""
    assert load(file("# nothing\n")) == Settings()


def test_an_empty_section_is_no_settings(file, monkeypatch):
    """All of its keys may be commented out; variables still set them."""
    path = file("pricing:\n  # pue: 1.2\nhttp:\n")
    assert load(path) == Settings()
    monkeypatch.setenv("JOULEMETER_HTTP__PORT", "2")
    assert load(path).http.port == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http:\n  port: 1\n  host: h\n  port: 2\n", "'port' is given twice, in lines 2 and 4"),
        ("http: {port: 1}\npricing:\nhttp: {host: h}", "'http' is given twice, in lines 1 and 3"),
        ("http: {port: 1, port: 2}", "'port' is given twice, in line 1"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(file, text, said):
    """YAML's reader would take the last one in silence, and drop the first."""
    path = file(text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path}: {said}: keep one of the two"


@pytest.mark.parametrize("text", ["port: 2024-13-01", "port: !!int x", "a: " + "[" * 3000])
def test_what_yaml_cannot_make_a_value_of_is_no_yaml(file, text):
    """A date that does not exist, a tag that lies, a nest without end: no traceback."""
    with pytest.raises(ConfigError, match="is not YAML"):
        load(file(text))


def test_a_template_that_was_not_filled_in_is_no_yaml(file):
    """``{{ port }}`` is a mapping as a key: the error names the place."""
    path = file("http:\n  port: {{ port }}\n")
    with pytest.raises(ConfigError, match=r"is not YAML: [\s\S]*line 2, column 10"):
        load(path)


def test_every_key_is_described():
    """The descriptions are the documentation."""
    keys = dict(known_keys())
    assert "pricing.pue" in keys
    assert all(len(text) > 10 and text.endswith(".") for text in keys.values())


def test_what_was_set_is_known(file, monkeypatch):
    """Told apart from what is a default, even where it is the same."""
    monkeypatch.setenv("JOULEMETER_POWER__CPU_IDLE_W", "20")
    settings = load(file("power: {rate_hz: 50}"), {"power.source": "cpu", "http.port": None})
    assert settings.power.model_fields_set == {"cpu_idle_w", "rate_hz", "source"}
    assert settings.http.model_fields_set == set()


def test_names_of_the_port_are_names(monkeypatch):
    """As a browser says them: lower case, without port; what is more is refused."""
    monkeypatch.setenv("JOULEMETER_HTTP__ALLOWED_HOSTS", "Meter.example.com., *.svc, vllm,*")
    assert load().http.allowed_hosts == ("meter.example.com", "*.svc", "vllm", "*")
    for wrong in ("http://vllm", "vllm:29401", "a/b", "*x", "a.*.b", "a..b"):
        with pytest.raises(ConfigError, match=r"http\.allowed_hosts.*without port.*421"):
            load(flags={"http.allowed_hosts": [wrong]})


def test_a_port_that_is_set_is_told_from_the_default(file, monkeypatch):
    """Also where it is set to the default: what was asked for is not changed in silence."""
    assert not load().http.port_is_set
    assert load(flags={"http.port": 29401}).http.port_is_set
    assert load(file("http:\n  port: 29401\n")).http.port_is_set
    assert not load(file("http:\n  host: 0.0.0.0\n")).http.port_is_set
    monkeypatch.setenv("JOULEMETER_HTTP__PORT", "29401")
    assert load().http.port_is_set
