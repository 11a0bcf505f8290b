"""What is installed is used: no requirement that nothing imports."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Where the module is not called as the package is.
MODULES = {"nvidia-ml-py": "pynvml", "promql-parser": "promql_parser", "pillow": "PIL"}


def package(requirement: str) -> str:
    """The name alone of ``name[extra]>=1``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found[0].lower()


def module(requirement: str) -> str:
    name = package(requirement)
    return MODULES.get(name, name.replace("-", "_"))


def imported(*folders: str) -> set[str]:
    """The first names of all that is imported under folders of the project."""
    names: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_what_the_meter_requires_it_imports():
    """``pydantic-settings[yaml]`` brings yaml along, which is imported too."""
    missing = {module(one) for one in PROJECT["dependencies"]} - imported("meter")
    assert missing == set()


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_what_an_extra_installs_the_meter_imports(extra):
    """An extra that installs nothing, or what nothing uses, promises what is not there."""
    modules = {module(one) for one in EXTRAS[extra]}
    assert modules
    assert modules - imported("meter") == set()


def test_what_development_installs_is_used():
    """Imported by what tests and builds, or a program that they or the house's commands run; what
    begins so serves another program: stubs for mypy, plugins for pytest."""
    used = imported("meter", "tests", "grafana", "deploy")
    files = [path for path in (*ROOT.iterdir(), *(ROOT / ".ci").rglob("*")) if path.is_file()]
    files += (ROOT / "tests").rglob("*.py")
    said = "".join(
        path.read_text(encoding="utf-8", errors="ignore")
        for path in files
        if path.name != "pyproject.toml"
    )
    unused = {
        package(one)
        for one in EXTRAS["dev"]
        if module(one) not in used
        and not package(one).startswith(("types-", "pytest-"))
        and not re.search(rf"\b({re.escape(package(one))}|{module(one)})\b", said)
    }
    assert unused == set()
