"""The command line: documented, thin, with stable exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from meter import __version__, cli
from meter.cli import app
from meter.config import Settings

TRACE = """\
{"type":"meta","version":1,"engines":{"0":{"devices":["GPU-0"],"model":"m"}},"devices":{"GPU-0":{"name":"H100","quality":"simulated","refresh_s":0.1}}}
{"type":"reading","t":0.0,"device":"GPU-0","energy_j":0}
{"type":"request","event":"open","id":"r1","t":0.0,"engine":"0","tenant":"acme","model":"m"}
{"type":"step","seq":0,"engine":"0","t0":0.0,"t1":0.05,"work":[["r1",512,0,"p"]]}
{"type":"step","seq":1,"engine":"0","t0":0.05,"t1":0.1,"work":[["r1",1,512,"d"]]}
{"type":"request","event":"close","id":"r1","t":0.1,"reason":"stop","prompt_tokens":512,"cached_tokens":0,"completion_tokens":2}
{"type":"reading","t":0.1,"device":"GPU-0","energy_j":40.0}
{"type":"reading","t":0.2,"device":"GPU-0","energy_j":52.0}
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the caller's reaches a test."""
    import os

    for name in list(os.environ):
        if name.startswith("JOULEMETER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def call():
    """Calls the command line and gives its result."""
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return path


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups too."""
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", ALL)
def test_every_command_and_option_has_help(name):
    """No command, argument or option without a word on it."""
    command = ALL[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", ALL)
def test_help_works_everywhere(call, name):
    """And exits with 0."""
    result = call(*name.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("name", ["run", "record"])
def test_help_names_the_settings_defaults(call, monkeypatch, name):
    """Those that a file or a variable may change."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = call(name, "--help").output
    settings = Settings()
    for value in (settings.http.port, settings.http.host, settings.power.source):
        assert f"[default: ({value})]" in shown
    assert f"[default: ({settings.log_level})]" in shown


def test_the_version_is_the_packages(call):
    """As text and as JSON, and as other programs are asked."""
    assert call("version").output.strip() == __version__
    assert (call("--version").exit_code, call("--version").output) == (0, f"{__version__}\n")
    assert json.loads(call("version", "--json").output) == {"version": __version__}


def test_config_show_is_a_file_that_can_be_used(call, tmp_path):
    """What is shown, read back, is the same settings; each key stands under its meaning."""
    file = tmp_path / "meter.yaml"
    file.write_text("pricing: {pue: 1.2, electricity_price_per_kwh: 0.3}\nengine: {devices: [0]}")
    shown = call("config", "show", "--config", str(file)).output
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert call("config", "show", "--config", str(again)).output == shown
    assert yaml.safe_load(shown)["pricing"]["pue"] == "1.2"
    assert "# Power usage effectiveness" in shown


def test_config_show_defaults(call):
    """As JSON, they are the object's."""
    shown = json.loads(call("config", "show", "--defaults", "--json").output)
    assert shown == Settings().model_dump(mode="json")


def test_config_check_says_that_all_is_well(call):
    """Exit code 0."""
    result = call("config", "check")
    assert result.exit_code == 0
    assert "valid" in result.output


@pytest.mark.parametrize("command", [("config", "check"), ("run",)])
def test_bad_settings_stop_with_2_and_the_remedy(call, tmp_path, command):
    """Before any server is started."""
    file = tmp_path / "meter.yaml"
    file.write_text("pricing: {peu: 1.2}")
    words = (*command, "--config", str(file), *(("true",) if command == ("run",) else ()))
    result = call(*words)
    assert result.exit_code == 2
    assert "did you mean pricing.pue?" in result.stderr


def test_run_needs_a_command(call):
    """Without one there is nothing to meter."""
    assert call("run").exit_code == 2


def test_replay_writes_receipts_and_summary(call, trace, tmp_path):
    """Every joule of the trace is in the summary, and the receipt has what was attributed."""
    receipts, summary = tmp_path / "r.jsonl", tmp_path / "s.json"
    result = call("replay", str(trace), "--receipts", str(receipts), "--summary", str(summary))
    assert result.exit_code == 0, result.output
    figures = json.loads(summary.read_text())
    parts = ("attributed_j", "idle_j", "startup_j", "unattributed_j", "pending_j")
    assert sum(figures[part] for part in parts) == pytest.approx(52.0)
    (line,) = map(json.loads, receipts.read_text().splitlines())
    assert line["id"] == "r1"
    assert line["energy_j"] == pytest.approx(figures["attributed_j"])
    assert "measured" in result.output
    assert json.loads(call("replay", str(trace), "--json").output) == figures


@pytest.fixture
def places(tmp_path):
    """Where nothing can be written, by kind, with what is said."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    return {
        "nowhere": (tmp_path / "nowhere" / "out", "there is no folder "),
        "below a file": (tmp_path / "file" / "out", "there is no folder "),
        "a folder": (tmp_path / "folder", "it is a folder"),
        "too long": (tmp_path / ("x" * 5000), "File name too long"),
    }


@pytest.mark.parametrize("kind", ["nowhere", "below a file", "a folder", "too long"])
@pytest.mark.parametrize(
    "words",
    [
        ["replay", "TRACE", "--receipts"],
        ["replay", "TRACE", "--summary"],
        ["report", "TRACE", "--html"],
        ["selftest", "--trace", "TRACE", "--json"],
        ["selftest", "--trace", "TRACE", "--html"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_said_before_the_work(call, tmp_path, places, words, kind):
    """Exit code 2 and one short line, no traceback; the trace is not even looked for: a replay may
    take minutes, and a self-test plays its load."""
    place, says = places[kind]
    trace = str(tmp_path / "none.jsonl")
    result = call(*[trace if word == "TRACE" else word for word in words], str(place))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"joulemeter: cannot write {words[-1]} '")
    assert says in line
    assert len(line) < 700


@pytest.mark.parametrize("option", ["--receipts", "--summary"])
def test_a_full_disk_is_named(call, trace, option):
    """What turns out only while it is written."""
    result = call("replay", str(trace), option, "/dev/full")
    assert result.exit_code == 2
    assert result.stderr == "joulemeter: cannot write it all: No space left on device\n"


def test_nothing_is_written_over_the_trace(call, trace, tmp_path):
    """By its name or another, nor one output over the other: it is as it was."""
    (tmp_path / "link").symlink_to(trace)
    out = str(tmp_path / "out")
    for words in (
        ["replay", str(trace), "--receipts", str(trace)],
        ["replay", str(trace), "--summary", str(tmp_path / "link")],
        ["replay", str(trace), "--receipts", out, "--summary", out],
        ["report", str(trace), "--html", str(trace)],
        ["selftest", "--trace", str(trace), "--json", str(trace)],
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert "it is also " in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert trace.read_text() == TRACE
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("policy", ["tokens", "time", "inflight"])
def test_replay_compares_policies(call, trace, policy):
    """The other rules run too."""
    assert call("replay", str(trace), "--policy", policy).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "luck"), "--policy: one of shapley, tokens, time, inflight, not 'luck'"),
        (("--calibration", "never"), "--calibration: one of whole, online, not 'never'"),
    ],
)
def test_an_unknown_choice_is_refused_by_name(call, trace, words, message):
    """Exit code 2, and what there is to choose from."""
    result = call("replay", str(trace), *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_bad_line_is_named_and_survived_unless_strict(call, trace):
    """By its number and reason."""
    trace.write_text(TRACE + '{"type":"reading","t":0.3}\n')
    result = call("replay", str(trace))
    assert result.exit_code == 0
    assert f"{trace}:9: " in result.stderr
    assert call("replay", str(trace), "--strict").exit_code == 2


FACTS = {
    "device": "GPU-0",
    "model": "m",
    "coefficients": dict.fromkeys(("static_w", "F", "a", "q", "b", "c", "e"), 1.0),
    "covariance": [[float(i == j) for i in range(7)] for j in range(7)],
    "noise": 0.03,
    "misfit": 0.002,
    "drift": 0.0,
    "intervals": 500,
    "converged": False,
    "window": {"delay_s": 0.0, "width_s": 0.0, "doubt_s": None},
    "pace": dict.fromkeys(("static_w", "F", "a", "q", "b", "c", "e"), 0.01),
}


def with_calibration(calibration):
    """The trace, recorded by a meter that began with this."""
    meta, rest = TRACE.split("\n", 1)
    return json.dumps(json.loads(meta) | {"calibration": calibration}) + "\n" + rest


@pytest.mark.parametrize("mode", ["online", "whole"])
def test_replay_begins_with_what_was_known(call, trace, mode):
    """A short trace has little to learn from: both modes use the calibration in its meta line."""
    without = json.loads(call("replay", str(trace), "--json", "--calibration", mode).output)
    trace.write_text(with_calibration({"learned": [FACTS]}))
    result = call("replay", str(trace), "--json", "--calibration", mode, "--strict")
    assert (result.exit_code, result.stderr) == (0, "")
    figures = json.loads(result.output)
    assert figures["coefficients"]["GPU-0"]["static_w"] == 1.0
    assert figures["coefficients"] != without["coefficients"]
    assert figures["conservation_error_j"] == pytest.approx(0, abs=1e-9)


def test_the_whole_of_a_long_trace_knows_better(call, trace):
    """From some seconds of steps on, ``whole`` learns from them alone."""
    long = TRACE.replace('"t1":0.1,', '"t1":6.1,').replace('"t":0.1,', '"t":6.1,')
    long = long.replace('"t":0.2,', '"t":6.2,')
    trace.write_text(long)
    without = json.loads(call("replay", str(trace), "--json").output)
    meta, rest = long.split("\n", 1)
    meta = json.dumps(json.loads(meta) | {"calibration": {"learned": [FACTS]}})
    trace.write_text(f"{meta}\n{rest}")
    assert json.loads(call("replay", str(trace), "--json").output) == without


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (5, "learned must be a list"),
        ({"learned": 5}, "learned must be a list"),
        ({"learned": ["x"]}, "it must be an object, not 'x'"),
        ({"learned": [FACTS | {"noise": -1}]}, "noise must not be below zero"),
        ({"learned": [FACTS | {"covariance": [[1]]}]}, "covariance must hold"),
        ({"learned": [FACTS | {"noise": 10**400}]}, "learned[0] is left out"),
        ({"learned": [{}]}, "window must be"),
    ],
)
def test_an_odd_calibration_is_a_bad_first_line(call, trace, calibration, reason):
    """Named and left out; the trace is replayed as if it said nothing."""
    without = call("replay", str(trace), "--json").output
    trace.write_text(with_calibration(calibration))
    result = call("replay", str(trace), "--json")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{trace}:1: calibration")
    assert reason in line
    figures = json.loads(result.stdout)
    assert figures == json.loads(without) | {"bad_lines": 1}
    assert call("replay", str(trace), "--strict").exit_code == 2


def test_a_calibration_of_another_kind_is_no_error(call, trace):
    """A field that is not known is passed over."""
    trace.write_text(with_calibration({"GPU-0": {"static_w": 115.5}}))
    result = call("replay", str(trace), "--strict")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"type":"reading","t":0.3,"device":"GPU-0","energy_j":9e6}\n'
            '{"type":"reading","t":0.4,"device":"GPU-0","energy_j":9000010}\n',
            "GPU-0: the counter jumped 1 times by more than the device can draw: that time is not "
            "covered",
        ),
        (
            '{"type":"reading","t":0.3,"device":"GPU-0","energy_j":0}\n'
            '{"type":"reading","t":0.4,"device":"GPU-0","energy_j":10}\n',
            "GPU-0: the counter went backwards 1 times: what it moved there is not covered",
        ),
        (
            '{"type":"step","seq":4,"engine":"0","t0":0.3,"t1":0.4,"work":[["r2",1,5,"d"]]}\n',
            "lost: 2 steps; the joules of that time are unattributed (lost_steps)",
        ),
    ],
)
def test_what_is_not_covered_is_said(call, trace, lines, said):
    """On stderr, in words; it is no bad line, so ``--strict`` does not refuse it."""
    trace.write_text(TRACE + lines)
    result = call("replay", str(trace), "--strict")
    assert result.exit_code == 0, result.output
    assert f"{trace}: {said}" in result.stderr.splitlines()


def test_late_events_are_said(call, trace):
    """A step whose time is after its successor's."""
    steps = (
        '{"type":"step","seq":3,"engine":"0","t0":0.11,"t1":0.13,"work":[["r2",1,9,"d"]]}\n'
        '{"type":"step","seq":2,"engine":"0","t0":0.14,"t1":0.16,"work":[["r2",1,8,"d"]]}\n'
    )
    trace.write_text(TRACE + steps)
    result = call("replay", str(trace))
    assert result.exit_code == 0
    assert "late: 1 event, after what came later had been used" in result.stderr


@pytest.mark.parametrize("text", ["", '{"type":"step"}\n', None])
def test_nothing_usable_exits_with_2(call, tmp_path, text):
    """Empty, without meta, or not there."""
    path = tmp_path / "trace.jsonl"
    if text is not None:
        path.write_text(text)
    result = call("replay", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith("joulemeter: ")


def test_the_module_runs_as_a_program():
    """``python -m meter.cli`` is the console script."""
    done = subprocess.run(
        [sys.executable, "-m", "meter.cli", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


def test_a_record_that_cannot_be_written_is_refused_before_the_server_starts(call, tmp_path):
    """Who asks for a trace must not find out at the end that there is none."""
    mark = tmp_path / "started"
    ended = call("record", str(tmp_path / "none" / "t.jsonl"), "--", "touch", str(mark))
    assert ended.exit_code == 2
    assert "there is no folder" in ended.output
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [["--", "CMD", "x"], ["CMD", "x"], ["t.jsonl", "--"], ["--port", "0", "--", "CMD", "x"]],
)
def test_record_without_a_trace_or_a_command_is_refused(call, tmp_path, words):
    """And does not write over the command, as if that were the trace's name."""
    command = tmp_path / "serve.sh"
    command.write_text("exit 0")
    ended = call("record", *(str(command) if word == "CMD" else word for word in words))
    assert ended.exit_code == 2
    assert "give TRACE -- CMD" in ended.stderr
    assert command.read_text() == "exit 0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TRACE", "--from", "-5m"], "a TRACE is told as a whole"),
        (["TRACE", "--to", "now"], "a TRACE is told as a whole"),
        (["--prometheus", "http://x", "--config", "TRACE"], "is priced already"),
        (["TRACE", "--prometheus", "http://x"], "one of the two"),
        ([], "one of the two"),
    ],
)
def test_what_a_report_has_no_use_for_is_refused(call, trace, words, said):
    """Rather than passed over: the page would be of another time than was asked for."""
    ended = call("report", *(str(trace) if word == "TRACE" else word for word in words))
    assert ended.exit_code == 2
    assert said in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["TRACE", "--config", "FILE", "--", "CMD", "--port", "8000"],
        ["--config", "FILE", "TRACE", "--", "CMD", "--port", "8000"],
        ["--config=FILE", "TRACE", "--", "CMD", "--port", "8000"],
    ],
)
def test_record_takes_its_options_before_and_behind_the_trace(call, monkeypatch, tmp_path, words):
    """What stands behind the dashes is the command's."""
    ran = []
    monkeypatch.setattr("meter.cli._run", lambda *given: ran.append(given))
    trace, config = tmp_path / "t.jsonl", tmp_path / "c.yaml"
    names = {"TRACE": str(trace), "FILE": str(config), "--config=FILE": f"--config={config}"}
    result = call("record", *(names.get(word, word) for word in words))
    assert result.exit_code == 0, result.output
    ((command, given_config, port, _, record, *_),) = ran
    assert (command, given_config, port, record) == (["CMD", "--port", "8000"], config, None, trace)


NO_URLS = ["ftp://x", "localhost:9401", "http://", "http://[::1", "http://x:99999", "", "http:// x"]


@pytest.mark.parametrize("url", NO_URLS)
@pytest.mark.parametrize(
    "words",
    [["top", "--once", "--url"], ["report", "--prometheus"], ["selftest", "--url"]],
    ids=lambda words: words[0],
)
def test_what_is_no_url_is_refused(call, words, url):
    """In one line that names the option and shows one that is."""
    result = call(*words, url)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"joulemeter: {words[-1]}: ")
    assert "http://127.0.0.1:8000" in line


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "1e300", "soon"])
@pytest.mark.parametrize("command", ["demo", "selftest"])
def test_seconds_that_nobody_can_mean_are_refused(call, command, value):
    """Before anything is started."""
    result = call(command, "--seconds", value)
    assert result.exit_code == 2
    assert "--seconds" in result.stderr


@pytest.mark.parametrize("value", ["-1", "65536", "99999", "1.5", "http"])
@pytest.mark.parametrize(
    "words", [["run"], ["attach"], ["record", "T"], ["demo"]], ids=lambda words: words[0]
)
def test_a_port_that_is_none_is_refused(call, words, value):
    """By its option's name."""
    result = call(*words, "--port", value, "--", "true")
    assert result.exit_code == 2
    assert "--port" in result.stderr


@pytest.mark.parametrize("value", ["-1", "101", "1000000000"])
def test_pairs_that_would_never_end_are_refused(call, value):
    result = call("selftest", "--demo", "--pairs", value)
    assert result.exit_code == 2
    assert "--pairs" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["record", "DIR", "--", "true"],
        ["record", "DIR/none/t", "--", "true"],
        ["record", "/proc/none", "--", "true"],
        ["demo", "--record", "DIR"],
        ["selftest", "--demo", "--json", "DIR"],
        ["selftest", "--demo", "--html", "DIR/none/page"],
        ["report", "FILE", "--html", "DIR"],
        ["replay", "TRACE", "--receipts", "DIR"],
        ["replay", "TRACE", "--summary", "DIR/none/s"],
        ["attach", "--socket", "DIR"],
        ["attach", "--socket", "FILE"],
        ["attach", "--socket", f"/{'x' * 200}"],
        ["plugin", "FILE"],
        ["plugin", "/proc/none"],
        ["plugin", "DIR/p", "--socket", "FILE"],
        ["replay", "FILE"],
        ["replay", "DIR"],
        ["report", "DIR"],
        ["config", "check", "--config", "FILE"],
        ["config", "check", "--config", "DIR"],
        ["doctor", "--config", "DIR"],
        ["run", "--config", "FILE", "--", "true"],
        ["run", "--config", "DIR/none", "--", "true"],
        ["report", "--prometheus", "http://127.0.0.1:1", "--from", "-99999999999999h"],
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_is_one_line(call, trace, tmp_path, words):
    """A folder for a file, no such folder, what cannot be written, bytes for text."""
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)) * 8)
    names = {"DIR": str(tmp_path), "FILE": str(binary), "TRACE": str(trace)}
    given = " ".join(words)
    for name, path in names.items():
        given = given.replace(name, path)
    result = call(*given.split(" "))
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("joulemeter: "), result.stderr
    assert len(result.stderr) < 2000


def test_each_line_of_an_error_says_whose_it_is(call, tmp_path):
    """A server and its shell write to the same terminal."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("http: {prot: 1}\npricing: {pue: 0.5}\n")
    lines = call("config", "check", "--config", str(wrong)).stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("joulemeter: ") for line in lines)


def test_what_can_be_written_is_left_as_it_was(tmp_path):
    """Whether it can be is tried, as root too, and nothing stays of the trial."""
    there, new = tmp_path / "there.html", tmp_path / "new.html"
    there.write_text("kept")
    assert cli._not_writable(there) is None
    assert cli._not_writable(new) is None
    assert there.read_text() == "kept"
    assert not new.exists()


def test_a_paragraph_of_help_is_not_broken_in_its_middle():
    """Beyond the first, a line's end in the source is one on the screen."""
    for command in app.registered_commands:
        for paragraph in (command.callback.__doc__ or "").split("\n\n")[1:]:
            assert len(paragraph.strip().splitlines()) <= 1, command.callback.__name__


@pytest.mark.parametrize("words", [["replay"], ["report"], ["attach"], ["top", "--once", "--url"]])
def test_an_error_is_short_whatever_was_given(call, words):
    """Of a word as long as a command line its beginning."""
    result = call(*words, "x" * 100_000)
    assert result.exit_code == 2
    assert result.output.startswith("joulemeter: ")
    assert len(result.output) < 2100
