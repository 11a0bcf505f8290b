"""Numpy starts no threads beside a server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_ASK = """
import os
before = dict(os.environ)
from meter.runtime.one_thread import import_numpy
import_numpy()
import numpy
print(len(os.listdir("/proc/self/task")), dict(os.environ) == before)
"""


def _asked(**environ: str) -> list[str]:
    usual = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", _ASK],
        env=usual | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: no threads anyway")
def test_numpy_starts_no_threads_and_children_inherit_nothing() -> None:
    """One thread, and an environment as before; who asks for more threads has them."""
    assert _asked() == ["1", "True"]
    assert _asked(OPENBLAS_NUM_THREADS="2") == ["2", "True"]
