"""The reorder buffer: in order of time, and never more than so many events."""

from __future__ import annotations

from meter.attribution.order import Reorder
from meter.model import Reading, RequestClosed

S = 1_000_000_000


def test_events_of_one_moment_do_not_pile_up_without_end() -> None:
    """While no source tells of a later time nothing would be released; whoever tells a million
    events of one moment has them taken, and what comes for that time later passes as late."""
    order = Reorder(held_max=1000)
    order.push(Reading("d", 10 * S, 1))
    released = []
    for k in range(3500):
        released += order.push(RequestClosed("0", f"r{k}", 10 * S - 1 - k % 7))
        assert len(order._new) + len(order._sorted) <= 1000
    released += order.flush()
    assert len(released) == 3501
    assert order.late > 0


def test_a_usual_window_is_not_cut() -> None:
    """Below the bound nothing comes out before its time."""
    order = Reorder(held_max=1000)
    order.push(Reading("d", 10 * S, 1))
    assert all(not order.push(RequestClosed("0", f"r{k}", 10 * S)) for k in range(900))
    assert order.late == 0
