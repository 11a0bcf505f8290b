"""Numpy without threads of its own.

The core's matrices are some thousand rows by a few columns: BLAS's threads cost more there than
they save (a replay took up to twice as long), and the cores are the server's.
"""

from __future__ import annotations

import os

_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def import_numpy() -> None:
    """Import numpy, with one thread for BLAS unless the environment says how many.

    Call it before anything else imports numpy. The environment is as before afterwards: servers
    inherit it.
    """
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        import numpy  # noqa: F401
    finally:
        for name in added:
            del os.environ[name]
