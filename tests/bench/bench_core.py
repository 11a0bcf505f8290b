"""What the core costs: at full scale, over an hour, and by the size of the batch.

Events are made outside the timed part. What counts is the process's own CPU time (all threads) in
``feed``, and in ``snapshot`` and ``drain`` four times a simulated second, as the meter's writer
calls them; Python's collector runs as rarely as in the meter.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
from bench_figure import Figure
from bench_load import Fleet, Load

from meter.attribution import Attributor
from meter.runtime.collector import collect_rarely

BLOCK_S = 0.25
ENGINES = 8
SHARE_TARGET = 5.0
FLAT_TARGET = 2.0
BATCHES = (64, 512, 4096)
WARM_S = 30.0
_REPORT_S = 300.0
_SETTLED_S = 1200.0


@dataclass(slots=True)
class Metered:
    """A fleet and the core that meters it; CPU seconds spent, simulated seconds metered."""

    fleet: Fleet
    core: Attributor = field(init=False)
    feed_s: float = 0.0
    snapshot_s: float = 0.0
    drain_s: float = 0.0
    simulated_s: float = 0.0
    receipts: int = 0

    def __post_init__(self) -> None:
        collect_rarely()
        self.core = self.fleet.core()

    def block(self, profile: cProfile.Profile | None = None) -> None:
        """Meter the next quarter of a second."""
        events = self.fleet.block(BLOCK_S)
        feed = self.core.feed
        if profile:
            profile.enable()
        start = time.process_time()
        for event in events:
            feed(event)
        fed = time.process_time()
        self.core.snapshot()
        seen = time.process_time()
        self.receipts += len(self.core.drain())
        drained = time.process_time()
        if profile:
            profile.disable()
        self.feed_s += fed - start
        self.snapshot_s += seen - fed
        self.drain_s += drained - seen
        self.simulated_s += BLOCK_S

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / BLOCK_S)):
            self.block()

    def forget(self) -> None:
        """The warm-up is over: count from here."""
        self.feed_s = self.snapshot_s = self.drain_s = self.simulated_s = 0.0
        self.receipts = 0

    @property
    def cpu_s(self) -> float:
        return self.feed_s + self.snapshot_s + self.drain_s


def scale(seconds: float, warm_s: float = WARM_S) -> Iterator[Figure]:
    """8 engines × 1024 running × 40 steps/s with 5 % turnover a second: share of one core."""
    metered = Metered(Fleet(Load(), ENGINES))
    metered.run(warm_s)
    metered.forget()
    steps, closed = metered.fleet.steps, metered.fleet.closed
    metered.run(seconds)
    steps, closed = metered.fleet.steps - steps, metered.fleet.closed - closed
    percent = 100 / metered.simulated_s
    yield Figure("scale", "the core", percent * metered.cpu_s, "% of a core", SHARE_TARGET)
    yield Figure("scale", "… of it in feed", percent * metered.feed_s, "% of a core")
    yield Figure("scale", "… of it in snapshot", percent * metered.snapshot_s, "% of a core")
    yield Figure("scale", "… of it in drain", percent * metered.drain_s, "% of a core")
    yield Figure("scale", "per 1000 steps", 1e6 * metered.cpu_s / steps, "ms")
    yield Figure("scale", "per request that ended", 1e6 * metered.cpu_s / closed, "µs")
    yield Figure("scale", "steps a second and engine", steps / metered.simulated_s / ENGINES)
    yield from _sound(metered)


def _sound(metered: Metered) -> Iterator[Figure]:
    """What was measured was done right: all steps known, all joules in an account."""
    s = metered.core.snapshot()
    lost = s.lost_steps + s.late_events
    yield Figure("scale", "steps lost, events late", lost, "", 0.0)
    error = abs(s.conservation_error_j) / s.measured_j
    yield Figure("scale", "conservation error / measured", error, "", 1e-9)
    yield Figure("scale", "attributed / measured", s.attributed_j / s.measured_j)
    yield Figure("scale", "receipts", metered.receipts)


def profile(seconds: float, lines: int = 30) -> None:
    """Where the time of ``scale`` goes, by function."""
    metered = Metered(Fleet(Load(), ENGINES))
    metered.run(WARM_S)
    profiler = cProfile.Profile()
    for _ in range(round(seconds / BLOCK_S)):
        metered.block(profiler)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(lines)


def memory(minutes: float) -> Iterator[Figure]:
    """The same fleet for an hour: what the process holds, every five minutes."""
    metered = Metered(Fleet(Load(), ENGINES))
    process = psutil.Process()
    seen: list[tuple[float, float, int]] = []
    while metered.simulated_s < 60 * minutes:
        before_s, from_s = metered.cpu_s, metered.simulated_s
        metered.run(min(_REPORT_S, 60 * minutes - from_s))
        gc.collect()
        rss, blocks = process.memory_info().rss / 2**20, sys.getallocatedblocks()
        seen.append((metered.simulated_s, rss, blocks))
        minute = f"minute {metered.simulated_s / 60:g}"
        percent = 100 * (metered.cpu_s - before_s) / (metered.simulated_s - from_s)
        yield Figure("memory", f"{minute}: resident", rss, "MiB")
        yield Figure("memory", f"{minute}: blocks of Python's own", blocks)
        yield Figure("memory", f"{minute}: the core", percent, "% of a core", SHARE_TARGET)
    first = next((s for s in seen if s[0] >= min(_SETTLED_S, 20 * minutes)), seen[0])
    span = f"minute {first[0] / 60:g} to {seen[-1][0] / 60:g}"
    grown, more = (100 * (seen[-1][i] / first[i] - 1) for i in (1, 2))
    yield Figure("memory", f"resident, {span}", grown, "% more", FLAT_TARGET)
    yield Figure("memory", f"blocks, {span}", more, "% more", FLAT_TARGET)


def batch(seconds: float, warm_s: float = WARM_S) -> Iterator[Figure]:
    """One engine at 64, 512 and 4096 running, 3 requests replaced a second: cost per step.

    The three run in turns, so that a machine that is slow for a while is slow for all of them.
    """
    sizes = {n: Metered(Fleet(Load(running=n, turnover_per_s=3.0))) for n in BATCHES}
    steps: dict[int, int] = {}
    for n, metered in sizes.items():
        metered.run(warm_s)
        metered.forget()
        steps[n] = metered.fleet.steps
    for _ in range(round(seconds / BLOCK_S)):
        for metered in sizes.values():
            metered.block()
    per_step: dict[int, tuple[float, float]] = {}
    for n, metered in sizes.items():
        count = metered.fleet.steps - steps[n]
        per_step[n] = (metered.feed_s + metered.drain_s) / count, metered.cpu_s / count
        yield Figure("batch", f"feed, {n} running", 1e6 * per_step[n][0], "µs a step")
        shots = 1e6 * metered.snapshot_s * BLOCK_S / metered.simulated_s
        yield Figure("batch", f"snapshot, {n} running", shots, "µs each")
    small, big = per_step[BATCHES[0]], per_step[BATCHES[-1]]
    name = f"{BATCHES[-1]} running / {BATCHES[0]} running"
    yield Figure("batch", f"feed, {name}", big[0] / small[0], "", 1.2)
    yield Figure("batch", f"feed and snapshots, {name}", big[1] / small[1], "", 1.2)
