"""The ways to install that the README names, each followed as a stranger would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from meter import __version__
from tests.grafana.promql import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _run(*command: str | Path, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout, as they are, committed in a repository of their own."""
    listed = _run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    target = tmp_path_factory.mktemp("clone") / "joulemeter"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    _run("git", "init", "-q", target)
    _run("git", "-C", target, "add", "--all")
    _run("git", "-C", target, *who, "commit", "-q", "--no-verify", "-m", "as it is")
    return target


def _by_pip(what: str, tmp_path: Path) -> Path:
    venv.create(tmp_path / "venv", with_pip=True)
    _run(tmp_path / "venv/bin/python", "-m", "pip", "install", "-q", what)
    return tmp_path / "venv/bin"


def _by_pipx(what: str, tmp_path: Path) -> Path:
    places = {f"PIPX_{name}": str(tmp_path / name) for name in ("HOME", "BIN_DIR", "MAN_DIR")}
    _run(sys.executable, "-m", "pipx", "install", "--python", sys.executable, what, **places)
    return tmp_path / "BIN_DIR"


def _by_uv(what: str, tmp_path: Path) -> Path:
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    _run(sys.executable, "-m", "uv", "tool", "install", "--python", sys.executable, what, **places)
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("command", "install"),
    [("pip install .", _by_pip), ("pipx install .", _by_pipx), ("uv tool install .", _by_uv)],
)
def test_from_a_clone(command: str, install, clone: Path, tmp_path: Path) -> None:
    """Each gives the command, with the plugin that vLLM finds inside."""
    assert command in README
    programs = install(str(clone), tmp_path)
    assert _run(programs / "joulemeter", "--version").strip() == __version__
    placed = tmp_path / "beside"
    assert str(placed) in _run(programs / "joulemeter", "plugin", placed)


@pytest.mark.parametrize("install", [_by_pip, _by_pipx, _by_uv])
def test_from_the_address_of_a_repository(install, clone: Path, tmp_path: Path) -> None:
    """No clone is needed; git fetches it."""
    assert "pip install git+ADDRESS" in README
    programs = install(f"git+{clone.as_uri()}", tmp_path)
    assert _run(programs / "joulemeter", "--version").strip() == __version__


def test_nothing_says_that_it_is_on_pypi() -> None:
    """``pip install joulemeter`` would fetch somebody else's package, or none."""
    pages = [p for p in ROOT.rglob("*.md") if not {".venv", "node_modules"} & set(p.parts)]
    pages += [p for folder in ("meter", "deploy") for p in (ROOT / folder).rglob("*.py")]
    said = {str(p.relative_to(ROOT)) for p in pages if "pip install joulemeter" in p.read_text()}
    assert said == set()
