"""What `make` and CI run: in which order, with what in the environment, and what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.grafana.promql import ROOT
from tests.needs import program


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


def test_test_runs_every_test_after_all_else() -> None:
    """Style and types first, then what the tests need, last the tests: all but vLLM's, vLLM's."""
    lines = _planned("test")
    wanted = ["ruff check", "ruff format --check", "mypy", ".ci/tools", "vllm_cpu/setup.sh"]
    at = [next(i for i, line in enumerate(lines) if part in line) for part in wanted]
    assert at == sorted(at)
    assert lines[-2].rstrip().endswith("-m 'not vllm'")
    assert lines[-1].rstrip().endswith("-m pytest -m vllm")


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


def test_check_is_the_fast_tier() -> None:
    """Lint and types as in ``make test``; no test that is slow or needs vLLM."""
    lines = _planned("check")
    assert any("mypy" in line for line in lines)
    assert not any("vllm_cpu/setup.sh" in line for line in lines)
    assert "-m 'not vllm and not slow'" in lines[-1]


def _ci(tmp_path: Path, make: str, **environ: str) -> tuple[int, str, list[str]]:
    """Run ``.ci/run`` with another ``make``: its exit code, what it says, what make was asked."""
    seen = tmp_path / "seen"
    _script(tmp_path, "make", f'echo "$* CI=$CI in $PWD HOME=$HOME <$(cat)>" >>{seen}; {make}')
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "JOULEMETER_"))}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={**clean, "PATH": path, "TMPDIR": str(tmp_path), **environ},
        input="typed",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, seen.read_text().splitlines()


def test_ci_runs_everything_from_an_empty_home_without_a_keyboard(tmp_path: Path) -> None:
    """From anywhere, with CI=true and no stdin; the home is gone afterwards; times are printed."""
    code, said, asked = _ci(tmp_path, 'test -z "$(ls -A "$HOME")" || exit 9')
    assert code == 0
    words = [line.split(" CI=")[0] for line in asked]
    assert words == ["install", "tools", "vllm-versions", "check", "test", "test-vllm"]
    assert all(f"CI=true in {ROOT} HOME={tmp_path}/joulemeter-ci-" in line for line in asked)
    assert all(line.endswith("<>") for line in asked)
    assert [line.split(" took ")[0] for line in said.splitlines()[:-1]] == [
        "ci: download: environment",
        "ci: download: tools",
        "ci: download: vLLM, all versions",
        "ci: make check",
        "ci: make test",
        "ci: make test-vllm",
    ]
    assert "of them 0 s downloads" in said.splitlines()[-1]
    assert not list(tmp_path.glob("joulemeter-ci-*"))


def test_ci_ends_with_the_first_failure_and_its_code(tmp_path: Path) -> None:
    """Nothing after it is run, and the home is gone all the same."""
    code, _, asked = _ci(tmp_path, 'test "$*" != check || exit 3')
    assert code == 3
    assert asked[-1].startswith("check ")
    assert not list(tmp_path.glob("joulemeter-ci-*"))


def _tools(directory: Path, *programs: str, path: str | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [ROOT / ".ci" / "tools", directory, *programs],
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_missing_tool_is_a_failure_with_its_remedy(tmp_path: Path) -> None:
    """Where it can be fetched it is fetched; where it cannot no test must pretend to have run."""
    _script(tmp_path, "apt-get", "exit 100")
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, said, complaint = _tools(tmp_path / "cache", "no-such-program", "sh", path=path)
    assert (code, said) == (1, "")
    assert complaint.splitlines()[-1] == (
        "Missing: no-such-program. On Debian or Ubuntu: apt-get install no-such-program"
    )


def test_a_tool_is_fetched_into_a_cache_that_does_not_exist_yet(tmp_path: Path) -> None:
    """On a bare machine not even the folders above it are there."""
    for package_tool in ("dpkg-deb", "apt-get"):
        if shutil.which(package_tool) is None:
            pytest.skip(f"not for a machine without {package_tool}: unpacking Debian's Prometheus")
    inside = tmp_path / "package"
    for program_name in ("prometheus", "promtool"):
        (inside / "usr/bin").mkdir(parents=True, exist_ok=True)
        _script(inside / "usr/bin", program_name, "exit 0")
    (inside / "DEBIAN").mkdir()
    (inside / "DEBIAN/control").write_text(
        "Package: prometheus\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    built = tmp_path / "prometheus_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", inside, built], check=True, capture_output=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    _script(bin_, "apt-get", f'case "$*" in *download*) cp {built} . ;; *) exit 100 ;; esac')
    for needed in ("bash", "env", "mkdir", "mktemp", "rm", "dpkg-deb", "id", "cp", "tar"):
        (bin_ / needed).symlink_to(program(needed))
    cache = tmp_path / "home/.cache/joulemeter/tools"
    assert _tools(cache, "prometheus", "promtool", path=str(bin_)) == (0, "", "")
    assert os.access(cache / "usr/bin/prometheus", os.X_OK)
    assert _tools(cache, "prometheus", path=str(bin_)) == (0, "", ""), "again: nothing to do"


def test_tools_that_are_there_need_nothing(tmp_path: Path) -> None:
    """No download, no word."""
    assert _tools(tmp_path / "tools", "sh") == (0, "", "")
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
