"""What an engine does again and again without a step leaves nothing behind in the core."""

from __future__ import annotations

from meter.attribution import Attributor
from meter.model import (
    Device,
    Engine,
    EngineEvent,
    Quality,
    Reading,
    RequestClosed,
    RequestOpened,
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
