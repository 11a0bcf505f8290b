"""``joulemeter selftest``: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from meter.cli import app
from tests.truth.scenarios import build

runner = CliRunner()


def test_a_recorded_trace_is_judged(tmp_path):
    """Every promise with figure and limit, in text and in JSON; 0 where none is broken."""
    trace = build("moderate-h100-1", seconds=60.0).write(tmp_path)
    out = tmp_path / "out.json"
    done = runner.invoke(app, ["selftest", "--trace", str(trace), "--json", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text())
    assert told["exit_code"] == 0
    assert len(told["promises"]) >= 12
    for promise in told["promises"]:
        assert promise["says"] in done.output
        assert (promise["figure"] is None) == (promise["verdict"] == "not known")
    assert told["quality"] == "simulated"
    assert "(simulated)" in done.output
    assert len(told["devices"][0]["foreseen"]["factors"]) > 100


def test_what_cannot_be_run_exits_with_2(tmp_path):
    """A missing trace is named."""
    done = runner.invoke(app, ["selftest", "--trace", str(tmp_path / "none.jsonl")])
    assert done.exit_code == 2
    assert "no such trace file" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--demo", "--url", "http://127.0.0.1:1"], "leave out CMD, --url and --trace"),
        (["--demo", "--", "serve"], "leave out CMD, --url and --trace"),
        (["--pairs", "6", "--trace", "t.jsonl"], "give -- CMD or --demo"),
        (["--trace", "no/such/folder/t.jsonl", "--", "serve"], "there is no folder no/such/folder"),
        ([], "give -- CMD, --demo, --trace FILE"),
        (["--url", "http://127.0.0.1:1"], "--url URL with the --trace FILE"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said):
    """Before anything is started, with what to do."""
    done = runner.invoke(app, ["selftest", *words])
    assert done.exit_code == 2
    assert said in done.output
