"""What `make` and CI run: in which order, with what in the environment, and what they say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.grafana.promql import ROOT
from tests.grafana.server import program


def _script(directory: Path, name: str, text: str) -> Path:
    """An executable of that name."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _planned(*arguments: str) -> list[str]:
    """The commands that make would run, without the environment's creation."""
    command = [program("make"), "--no-print-directory", "-n", *arguments]
    clean = {k: v for k, v in os.environ.items() if k not in {"SECONDS", "MAKEFLAGS", "MFLAGS"}}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_test_ends_with_pytest_after_all_else() -> None:
    """Style and types first, then what the tests need, last the tests and their closing line."""
    lines = _planned("test")
    wanted = ["ruff check", "ruff format --check", "mypy", ".ci/tools", "vllm_cpu/setup.sh"]
    at = [next(i for i, line in enumerate(lines) if part in line) for part in wanted]
    assert at == sorted(at)
    assert lines[-1].endswith("-m pytest")


@pytest.mark.parametrize(
    ("arguments", "ending"), [(["SECONDS=7"], "demo --seconds 7"), ([], "demo")]
)
def test_demo_takes_seconds(arguments: list[str], ending: str) -> None:
    """``make demo SECONDS=7`` stops after seven seconds; without, it runs until Ctrl-C."""
    assert _planned("demo", *arguments)[-1].rstrip().endswith(ending)


def test_demo_installs_the_base_alone() -> None:
    """A stranger does not wait for the development tools."""
    assert not any("[dev]" in line for line in _planned("--always-make", "demo"))
    assert any("[dev]" in line for line in _planned("--always-make", "install"))


def test_ci_runs_make_test_without_a_keyboard(tmp_path: Path) -> None:
    """From anywhere, with CI=true, no stdin, and make's own exit code."""
    seen = tmp_path / "seen"
    _script(tmp_path, "make", f'echo "$CI $PWD $* <$(cat)>" >{seen}; exit 3')
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / ".ci" / "run"], cwd=tmp_path, env=environ, input="typed", text=True, check=False
    )
    assert done.returncode == 3
    assert seen.read_text() == f"true {ROOT} test <>\n"


def test_a_missing_tool_is_named_with_its_remedy(tmp_path: Path) -> None:
    """No root, no Debian: the tests that can run still run, and the rest is said."""
    done = subprocess.run(
        [ROOT / ".ci" / "tools", tmp_path, "no-such-program"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.startswith("Missing: no-such-program. ")
    assert "apt-get install" in done.stderr


def test_tools_that_are_there_need_nothing(tmp_path: Path) -> None:
    """No download, no word."""
    done = subprocess.run(
        [ROOT / ".ci" / "tools", tmp_path / "tools", "sh"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert not (tmp_path / "tools").exists()


def test_an_old_python_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """What was found, what is needed, and how to name another."""
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        _script(tmp_path, name, '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    # As not root, so that nothing is installed.
    _script(tmp_path, "id", "echo 1000")
    done = subprocess.run(
        [ROOT / ".ci" / "environment", tmp_path / "venv"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "3.11" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()
