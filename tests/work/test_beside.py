"""A directory on PYTHONPATH is all that vLLM needs to find the plugin."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from meter.work import beside

PLUGIN = Path(beside.__file__).parent / "vllm"


def python(code: str, path: Path) -> str:
    """What a bare interpreter (no site-packages, so no meter) prints with ``path`` on its path."""
    env = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-S", "-W", "error", "-c", code]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_the_entry_point_is_found_and_loads_without_meter(tmp_path: Path) -> None:
    """As vLLM does it: by group name, in an interpreter that has never heard of meter."""
    found = python(
        "import sys, importlib.metadata as m\n"
        "[entry] = m.entry_points(group='vllm.general_plugins')\n"
        "entry.load()()\n"
        "print(entry.name, entry.value, m.version('joulemeter'))\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] in ('meter', 'joulemeter_vllm')))",
        beside.directory(tmp_path / "beside"),
    )
    first, modules = found.splitlines()
    assert first == f"joulemeter joulemeter_vllm:register {beside.__version__}"
    assert modules == "joulemeter_vllm", "without a socket in the environment it loads no more"


def test_all_of_it_loads_alone(tmp_path: Path) -> None:
    """Every module of the copy can be imported."""
    target = beside.directory(tmp_path)
    names = sorted(file.stem for file in PLUGIN.glob("*.py") if file.stem != "__init__")
    code = "".join(f"import joulemeter_vllm.{name}\n" for name in names) + "print('ok')"
    assert python(code, target) == "ok\n"
    assert {"adapter", "facts", "hook", "sender", "tap"} <= set(names)


def test_making_it_again_replaces_it(tmp_path: Path) -> None:
    target = beside.directory(tmp_path / "a" / "b")
    (target / "joulemeter_vllm" / "tap.py").write_text("broken(")
    assert beside.directory(target) == target
    assert (target / "joulemeter_vllm" / "tap.py").read_text() == (PLUGIN / "tap.py").read_text()


def test_the_plugin_imports_the_standard_library_vllm_and_itself() -> None:
    """Nothing else is there where it runs, and its package has another name there."""
    for file in PLUGIN.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                root = name.split(".")[0]
                assert root in sys.stdlib_module_names or root == "vllm", f"{file.name}: {name}"
