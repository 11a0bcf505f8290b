"""What an engine does again and again without a step leaves nothing behind in the core."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from meter.attribution import Attributor
from meter.model import (
    Device,
    Engine,
    EngineEvent,
    Phase,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
    Step,
    Work,
)

MS = 1_000_000


def test_lives_and_requests_without_a_step_do_not_pile_up() -> None:
    """Five thousand start-ups and requests: what is settled is let go, and the sum holds."""
    core = Attributor([Device("d", "d", Quality.SIMULATED, refresh_s=0.0)], [Engine("0", ("d",))])
    for k in range(5000):
        t_ns = 10**9 + k * 10 * MS
        core.feed(EngineEvent("0", t_ns, "up", k))
        core.feed(EngineEvent("0", t_ns + MS, "ready", k))
        core.feed(RequestOpened("0", f"r{k}", t_ns + 2 * MS))
        core.feed(RequestClosed("0", f"r{k}", t_ns + 3 * MS))
        core.feed(EngineEvent("0", t_ns + 4 * MS, "down", k))
        core.feed(Reading("d", t_ns + 5 * MS, k * 1_000_000))
    engine = core._engines["0"]
    assert len(engine.startups) < 1500, "but for the last seconds"
    assert len(engine._idle) <= 1024
    assert len(engine.requests) < 1500
    core.finish()
    snapshot = core.snapshot()
    assert abs(snapshot.conservation_error_j) < 1e-9 * snapshot.measured_j


def named(k: int) -> list[str]:
    """A hundred names that no other step has."""
    return [f"request-{k}-{i}" for i in range(100)]


def decoding(core: Attributor, k: int, t_ns: int) -> None:
    work = tuple(Work(name, 1, 9, Phase.DECODE) for name in named(k))
    core.feed(Step("0", 0, k, t_ns, t_ns + 45 * MS, work, same=k % 2 == 1))


def prefilling(core: Attributor, k: int, t_ns: int) -> None:
    work = tuple(Work(name, 7, 0, Phase.PREFILL) for name in named(k))
    core.feed(Step("0", 0, k, t_ns, t_ns + 45 * MS, work))


def opening(core: Attributor, k: int, t_ns: int) -> None:
    for name in named(k):
        core.feed(RequestOpened("0", name, t_ns))
    decoding(core, k, t_ns)


@pytest.mark.parametrize("naming", [decoding, prefilling, opening])
def test_requests_that_are_named_and_never_closed_are_bounded(
    naming: Callable[[Attributor, int, int], None],
) -> None:
    """A trace may name a million: beyond the bound its steps are lost, and no joule is."""
    core = Attributor(
        [Device("d", "d", Quality.SIMULATED, refresh_s=0.0)], [Engine("0", ("d",))], open_max=1000
    )

    def play(first: int, last: int) -> None:
        for k in range(first, last):
            t_ns = 10**9 + k * 50 * MS
            core.feed(Reading("d", t_ns, k * 1_000_000))
            naming(core, k, t_ns)

    tracemalloc.start()
    play(0, 100)  # the window for events out of order is full by then
    before_bytes, _ = tracemalloc.get_traced_memory()
    play(100, 200)
    grown_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    tracemalloc.stop()
    assert grown_bytes < 1_000_000, "for 10,000 names"
    assert len(core.running()) == 1000
    core.finish()
    snapshot = core.snapshot()
    assert snapshot.lost_steps == 190
    assert snapshot.attributed_j > 5.0
    assert snapshot.unattributed["lost_steps"] > 180.0
    assert abs(snapshot.conservation_error_j) < 1e-9 * snapshot.measured_j


def test_where_requests_end_there_is_room_again() -> None:
    """Of all engines together; who is open already goes on being metered."""
    devices = [Device("d", "d", Quality.SIMULATED, refresh_s=0.0)]
    core = Attributor(devices, [Engine("0", ("d",)), Engine("1", ())], open_max=2)
    core.feed(RequestOpened("1", "other", 10**9))
    for k, (name, ends) in enumerate([("a", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 0), ("b", 1)]):
        t_ns = (k + 1) * 10**9
        core.feed(Reading("d", t_ns, k * 1_000_000))
        core.feed(Step("0", 0, k, t_ns, t_ns + 10**9, (Work(name, 1, 9, Phase.DECODE),)))
        if ends:
            core.feed(RequestClosed("0", name, t_ns + 10**9))
    core.feed(Reading("d", 7 * 10**9, 6_000_000))
    core.finish()
    assert core.snapshot().lost_steps == 1
    assert {receipt.id for receipt in core.drain()} == {"a", "b"}
    assert core.snapshot().attributed_j == pytest.approx(5.0)
