"""Odd settings: whatever a file or a variable holds, there are settings, or a short error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter.config import ConfigError, Settings, known_keys, load, variable
from meter.pricing import Tariff, TariffError

pytestmark = pytest.mark.slow

#: All of an error: twenty problems of one line each.
LONGEST = 20 * 500


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the caller's reaches a test."""
    for name in list(os.environ):
        if name.startswith("JOULEMETER_"):
            monkeypatch.delenv(name)


def refused(path: Path, text: str) -> str:
    """What is said of a file; never more than a screen or two."""
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    said = str(raised.value)
    assert len(said) <= LONGEST + len(str(path))
    return said


# --- absurd values


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("power: {rate_hz: .nan}", "power.rate_hz"),
        ("power: {rate_hz: .inf}", "power.rate_hz"),
        ("power: {rate_hz: 0.01}", "power.rate_hz"),
        ("power: {rate_hz: yes}", "power.rate_hz"),
        ("power: {cpu_idle_w: .inf}", "power.cpu_idle_w"),
        ("power: {cpu_idle_w: .nan}", "power.cpu_idle_w"),
        ("power: {cpu_max_w: 1.0e+300}", "power.cpu_max_w"),
        ("power: {cpu_max_w: .nan}", "power.cpu_max_w"),
        ("power: {devices: [[0, 1]]}", "power.devices"),
        ("power: {devices: [true]}", "power.devices"),
        ("power: {devices: {a: 1}}", "power.devices"),
        ("engine: {devices: [" + "x" * 300 + "]}", "engine.devices"),
        ("engine: {devices: [" + "1," * 300 + "]}", "engine.devices"),
        ("pricing: {pue: 1.0e+300}", "pricing.pue"),
        ("pricing: {pue: .inf}", "pricing.pue"),
        ("pricing: {pue: 11}", "pricing.pue"),
        ("pricing: {pue: '1e999999'}", "pricing.pue"),
        ("pricing: {pue: true}", "pricing.pue"),
        ("pricing: {electricity_price_per_kwh: 1.0e+300}", "pricing.electricity_price_per_kwh"),
        ("pricing: {electricity_price_per_kwh: -1.0e+300}", "pricing.electricity_price_per_kwh"),
        ("pricing: {electricity_price_per_kwh: '1e-999999'}", "pricing.electricity_price_per_kwh"),
        ("pricing: {electricity_price_per_kwh: .nan}", "pricing.electricity_price_per_kwh"),
        ("pricing: {hardware_price_per_hour: .inf}", "pricing.hardware_price_per_hour"),
        ("pricing: {hardware_price_per_hour: 1.0e+10}", "pricing.hardware_price_per_hour"),
        ("http: {port: .inf}", "http.port"),
        ("http: {port: yes}", "http.port"),
        ("http: {port: 1.5}", "http.port"),
        ("http: {port: " + "9" * 5000 + "}", "http.port"),
        ("http: {host: 'a b'}", "http.host"),
        ("http: {host: \"a\\0b\"}", "http.host"),
        ("http: {host: " + "h" * 300 + "}", "http.host"),
        ("record: ''", "record"),
        ("record: \"a\\0b\"", "record"),
        ("record: " + "r" * 5000, "record"),
        ("calibration: {directory: ''}", "calibration.directory"),
    ],
)  # fmt: skip
def test_an_absurd_value_is_refused_by_name(tmp_path, text, key):
    """Not a number, beyond all measure, of another kind: the field and its variable are named."""
    said = refused(tmp_path / "meter.yaml", text)
    assert said.startswith((f"{key}: ", f"{tmp_path}/meter.yaml: is not YAML: "))
    assert len(said.splitlines()) == 1
    assert len(said) < 600 + len(str(tmp_path))


def test_what_may_be_negative_or_nothing_stays_allowed(tmp_path):
    """Electricity may be paid back; a price of zero is a price."""
    path = tmp_path / "meter.yaml"
    path.write_text(
        "pricing: {electricity_price_per_kwh: -0.05, pue: 1, hardware_price_per_hour: 0}"
    )
    pricing = load(path).pricing
    assert pricing.electricity_price_per_kwh == Decimal("-0.05")
    assert (pricing.pue, pricing.hardware_price_per_hour) == (1, 0)


@pytest.mark.parametrize(
    "prices",
    [
        {"electricity_price_per_kwh": Decimal("1e300")},
        {"electricity_price_per_kwh": Decimal("-1e10")},
        {"pue": Decimal("10.1")},
        {"pue": Decimal("0.99")},
        {"hardware_price_per_hour": Decimal("1e10")},
        {"hardware_price_per_hour": Decimal("sNaN")},
    ],
)
def test_a_tariff_holds_to_the_same_ranges(prices):
    """Whoever makes one."""
    with pytest.raises(TariffError, match=next(iter(prices))) as raised:
        Tariff("EUR", **prices)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("key", "is_folder"),
    [
        ("record", False),
        ("power.nvml_library", False),
        ("power.powercap", True),
        ("power.lock_directory", True),
        ("calibration.directory", True),
    ],
)
def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path, monkeypatch, key, is_folder):
    """It is said before anything is started; what is not there yet may become either."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    wrong, right = ("file", "folder") if is_folder else ("folder", "file")
    kind = "folder, and it is a file" if is_folder else "file, and it is a folder"
    with pytest.raises(ConfigError, match=f"{key}: expected a {kind}, found"):
        load(None, {key: tmp_path / wrong})
    for name in (right, "none"):
        monkeypatch.setenv(variable(key), str(tmp_path / name))
        load()


# --- little files that become much


def laughs(depth: int) -> str:
    """Nine aliases of nine aliases of nine …"""
    lines = ["a0: &a0 [lol]"]
    for level in range(1, depth):
        lines.append(f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def test_aliases_of_aliases_are_refused(tmp_path):
    """370 bytes made an error of 351 MB: its line is named, in little memory."""
    tracemalloc.start()
    try:
        said = refused(tmp_path / "meter.yaml", laughs(9))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert said.endswith("meter.yaml: line 3 has an alias of nested values: write them out")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a [1, [2]]\nb: *a"])
def test_no_alias_of_what_is_nested(tmp_path, text):
    """Also where it stands for itself."""
    assert "has an alias of nested values" in refused(tmp_path / "meter.yaml", text)


def test_a_plain_alias_is_a_value(tmp_path):
    """The same GPUs, written once."""
    path = tmp_path / "meter.yaml"
    path.write_text("power: {devices: &gpus [0, 1]}\nengine: {devices: *gpus}\nrecord: &r x\n")
    assert load(path).engine.devices == ("0", "1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"x: &a [{'1,' * 1000}]\nz: [{'*a,' * 50_000}]", "line 2 has one alias more than 100"),
        ("x: &a y\n" + "".join(f"k{n}: *a\n" for n in range(101)), "line 102 has one alias more"),
        (
            f"pricing: {{pue: {':'.join(['1'] * 100_000)}}}",
            "a number of 199999 characters, line 1, column 16",
        ),
        (f"pricing:\n  pue: {':'.join(['1'] * 1000)}.5", "a number of 2001 characters, line 2"),
        (f"pricing: {{pue: 0x{'f' * 200_000}}}", "a number of 200002 characters, line 1"),
    ],
)
def test_a_file_is_read_within_a_moment(tmp_path, text, says):
    """What took 15 s of a file of 256 kB: 50 million items by aliases, a number to the base 60."""
    started_s = time.process_time()
    assert says in refused(tmp_path / "meter.yaml", text)
    assert time.process_time() - started_s < 4


def test_a_pipe_is_read_and_one_without_a_writer_is_not_waited_for(tmp_path, monkeypatch):
    """`--config <(...)` works; a server must not wait for who never writes."""
    monkeypatch.setattr(sys.modules["meter.config.load"], "_PIPE_WITHIN_S", 0.1)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "nothing more came of it in 0 s: give a file" in told(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"pricing: {pue: 1.5}")
    assert "nothing more came of it" in told(path)  # the rest may still come
    os.write(writer, b"pricing: {pue: 1.5}")
    os.close(writer)
    assert load(path).pricing.pue == Decimal("1.5")
    os.close(reader)


def told(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#" * 300_000, "is larger than 262144 bytes: is it a file of settings?"),
        ("[" * 100_000, "is not YAML"),
        ("a: " * 50_000, "is not YAML"),
        ("? " * 50_000, "is not YAML"),
        ("&a " * 50_000, "is not YAML"),
        ("*" + "a" * 200_000, "is not YAML"),
        ("x" * 1000 + ": 1", "unknown setting"),
        ("? " + "x" * 200_000 + "\n: 1", "unknown setting"),
        ("http: {" + "x" * 1000 + ": 1}", "unknown setting"),
        ("{" + ",".join(f"k{n}: 1" for n in range(20_000)) + "}", "and 19980 more problems"),
        ("power: " + "x" * 200_000, "expected a section of keys"),
        ("power: [" + "x, " * 6000 + "]", "expected a section of keys, found a list of 6000"),
        ("log_level: [" + "x, " * 6000 + "]", "log_level"),
        ("x" * 1000 + ": 1\n" + "x" * 1000 + ": 2", "is given twice, in lines 1 and 2"),
        ("!!python/object/apply:os.system [echo]", "is not YAML"),
        ("1: 2", "1: unknown setting"),
        ("null: 2", "None: unknown setting"),
        ("pricing:\n  <<: 5", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_what_is_said_of_a_file_is_short(tmp_path, text, says):
    """Each problem on a line, twenty of them, values cut."""
    said = refused(tmp_path / "meter.yaml", text)
    assert says in said
    assert all(len(line) < 600 + len(str(tmp_path)) for line in said.splitlines())


def test_a_file_without_end_is_not_read_to_its_end():
    """``--config /dev/zero``."""
    with pytest.raises(ConfigError, match="is larger than 262144 bytes"):
        load(Path("/dev/zero"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """Bytes of another encoding."""
    path = tmp_path / "meter.yaml"
    path.write_bytes(b"record: \xff\xfe\n")
    with pytest.raises(ConfigError, match="is not YAML: 'utf-8' codec"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOULEMETER_PRICING", "[" * 50_000),
        ("JOULEMETER_PRICING", '{"pue": ' + "9" * 50_000 + "}"),
        ("JOULEMETER_PRICING", "x" * 50_000),
        ("JOULEMETER_PRICING", '{"pue": {"pue": {}}}'),
        ("JOULEMETER_HTTP__PORT", "9" * 50_000),
        ("JOULEMETER_HTTP__PORT__X", "1"),
        ("JOULEMETER_POWER__DEVICES", "1," * 50_000),
        ("JOULEMETER_LOG_LEVEL", "x" * 50_000),
        ("JOULEMETER_" + "X" * 50_000, "1"),
    ],
)
def test_what_is_said_of_a_variable_is_short(monkeypatch, name, value):
    """However long it is, and whatever it holds."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        load()
    assert len(str(raised.value)) < 700


def test_many_unknown_variables_are_counted(monkeypatch):
    """The first twenty are named."""
    for number in range(50):
        monkeypatch.setenv(f"JOULEMETER_QQQQ{number:02}", "1")
    with pytest.raises(ConfigError) as raised:
        load()
    lines = str(raised.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 30 more problems"


def test_the_command_says_it_without_a_traceback(tmp_path):
    """On one line, with exit code 2."""
    path = tmp_path / "meter.yaml"
    path.write_text(laughs(9))
    words = [sys.executable, "-m", "meter.cli", "config", "check", "--config", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"joulemeter: {path}: line 3 has an alias of nested values: write them out\n"
    )


# --- anything

KEYS = [key for key, _ in known_keys()]
NAMES = sorted({part for key in KEYS for part in key.split(".")})
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(max_size=8)
    | st.dates()
    | st.sampled_from(["auto", "EUR", "1e999999", "-0", "\0", "/", "/dev/null/x", "~", "..", "a,b"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | scalars, inner, max_size=4)
    ),
    max_leaves=12,
)
sections = st.dictionaries(
    st.sampled_from(sorted(Settings.model_fields)),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=5) | values,
    max_size=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sections | values)
def test_whatever_a_file_holds(tmp_path, held):
    """Settings that can be shown again, or a short error of ours."""
    path = tmp_path / "meter.yaml"
    path.write_text(yaml.safe_dump(held, allow_unicode=True), encoding="utf-8")
    try:
        found = load(path)
    except ConfigError as error:
        assert 0 < len(str(error)) <= LONGEST
    else:
        assert isinstance(found, Settings)
        assert found.model_dump_json()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.text("{}[]&*!|>-: \n\t#?,'\"%@`ab01", max_size=60))
def test_whatever_a_text_is(tmp_path, text):
    """Also one that is no YAML."""
    path = tmp_path / "meter.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(path)
    except ConfigError as error:
        assert 0 < len(str(error)) <= LONGEST


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([variable(key) for key in KEYS] + ["JOULEMETER_PRICING", "JOULEMETER_HTTP"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from(["NaN", "inf", "1e300", "-1", "true", "{}", "[]", '{"port": 1}', "null"]),
)
def test_whatever_a_variable_holds(name, value):
    """The same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        try:
            load()
        except ConfigError as error:
            assert 0 < len(str(error)) <= LONGEST
