"""With the real core behind it: counters never fall, and the accounts close at every scrape."""

import random

import pytest
from export_samples import NS, TARIFF

from meter.attribution import Attributor
from meter.export.prometheus import make_registry
from meter.export.publisher import Publisher
from meter.export.state import Health
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

STEP_NS = 25_000_000
GPU = Device("GPU-0", "H100", Quality.SIMULATED, refresh_s=0.1)


def busy_engine(seed, seconds=20):
    """Requests that come, decode, end or are aborted, pauses, lost steps, a strange load."""
    rng = random.Random(seed)
    running: dict[str, list[int]] = {}
    energy_uj = 0
    yield EngineEvent("0", 0, "up")
    yield EngineEvent("0", NS, "ready")
    for k in range(seconds * NS // STEP_NS):
        t0, t1 = k * STEP_NS, (k + 1) * STEP_NS
        if t0 % 100_000_000 == 0:
            yield Reading("GPU-0", t0, energy_uj, power_w=200.0)
        pausing = (k // 100) % 3 == 2
        if t0 >= NS and not pausing and rng.random() < 0.2:
            name = f"r{k}"
            running[name] = [0, rng.randrange(2, 60)]
            yield RequestOpened(
                "0", name, t0, "m", rng.choice(["acme", None]), f"cmpl-{name}", rng.randrange(9, 99)
            )
        work = []
        for name, (done, _) in running.items():
            kind = Phase.PREFILL if done == 0 else Phase.DECODE
            work.append(Work(name, 30 if done == 0 else 1, 0 if done == 0 else 29 + done, kind))
        power_w = 100 + 40 * len(work) + (150 if k in range(400, 480) else 0) + rng.gauss(0, 5)
        energy_uj += int(power_w * STEP_NS / 1000)
        if not work:
            continue
        if rng.random() > 0.02:
            yield Step("0", 0, k, t0, t1, tuple(work))
        for name in list(running):
            running[name][0] += 1
            done, wanted = running[name]
            if done >= wanted or rng.random() < 0.003:
                del running[name]
                reason = "length" if done >= wanted else "abort"
                yield RequestClosed("0", name, t1, reason, 30, rng.choice([0, 16]), done)


@pytest.mark.parametrize("seed", range(3))
def test_counters_never_fall_and_the_accounts_close_at_every_scrape(seed):
    """Whatever happens: aborts, lost steps, a stranger on the GPU."""
    core = Attributor((GPU,), (Engine("0", ("GPU-0",), model="m"),))
    publisher = Publisher(TARIFF, 0)
    state = None
    registry = make_registry(lambda: state, lambda: 0)
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for number, event in enumerate(busy_engine(seed)):
        core.feed(event)
        if number % 25:
            continue
        state = publisher.publish(core.snapshot(), core.drain(), Health())
        now = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in registry.collect()
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }
        fallen = {key: (value, now.get(key)) for key, value in before.items()
                  if now.get(key, -1.0) < value}  # fmt: skip
        assert not fallen, f"seed {seed}, event {number}"
        before = now
        total = {
            name: sum(value for (sample, _), value in now.items() if sample == name)
            for name in ("joulemeter_energy_joules_total", "joulemeter_gpu_energy_joules_total")
        }
        accounts, hardware = total.values()
        assert accounts == pytest.approx(hardware, rel=1e-9, abs=1e-6)
    core.finish()
    last = publisher.publish(core.snapshot(), core.drain(), Health())
    assert last.snapshot.receipts_closed > 20
    histogram = last.request_energy["m", "0"]
    assert sum(histogram.counts) == last.snapshot.receipts_closed
