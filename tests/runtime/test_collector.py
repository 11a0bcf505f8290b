"""Values that hold only each other are looked for rarely, and still found."""

from __future__ import annotations

import gc
import weakref

from meter.runtime.collector import collect_rarely


class _Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.ring = self


def test_rings_do_not_pile_up() -> None:
    """Of a hundred thousand dead rings most are gone without anybody asking."""
    before = gc.get_threshold()
    living: weakref.WeakSet[_Ring] = weakref.WeakSet()
    try:
        collect_rarely()
        for _ in range(100_000):
            living.add(_Ring())
        assert len(living) < 50_000
    finally:
        gc.set_threshold(*before)
