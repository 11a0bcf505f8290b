"""Compiles the simulated card's ``libnvidia-ml.so.1`` with the machine's C compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"


class NoCompilerError(RuntimeError):
    """There is no C compiler on this machine."""


def build(directory: Path) -> Path:
    """Compile the library into ``directory`` (made if need be) and return its path.

    Built once per version of its source. Raises ``NoCompilerError`` where there is no ``cc``,
    ``gcc`` or ``clang``, ``RuntimeError`` with the compiler's words where it fails.
    """
    source = SOURCE.read_bytes()
    folder = directory / hashlib.sha256(source).hexdigest()[:12]
    library = folder / LIBRARY
    if library.exists():
        return library
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise NoCompilerError(
            "the simulated card needs a C compiler: install gcc (on Debian: apt-get install gcc "
            "libc6-dev)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{LIBRARY}.{os.getpid()}"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", f"-Wl,-soname,{LIBRARY}"]
    done = subprocess.run(
        [compiler, *options, "-o", str(fresh), str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{compiler} could not build {SOURCE.name}: {done.stderr.strip()}")
    fresh.replace(library)
    return library
