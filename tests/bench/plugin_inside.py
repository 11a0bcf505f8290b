"""Times the plugin on vLLM's real scheduler. Runs in the vLLM environment; see plugin_cost.py.

plugin_inside.py MODEL STEPS RUNNING…      prints one JSON object a batch size
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import joulemeter_vllm
from fake_engine import VOCABULARY, FakeEngine, Setup

PROMPT = 200
LONGEST = 500
ALONE = 3000


class Stopwatch:
    """Collects how long each call of a function takes, in ns."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.ns: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter_ns()
        result = self._function(*args, **kwargs)
        self.ns.append(time.perf_counter_ns() - start)
        return result


def freeze() -> None:
    """What ``EngineCore`` does when it is ready: the heap so far is never collected again."""
    gc.collect()
    gc.freeze()


def arrive(engine: FakeEngine, number: int, longest: int) -> None:
    prompt = [engine.random.randrange(8, VOCABULARY) for _ in range(PROMPT)]
    name = f"chatcmpl-{number:032x}"
    engine.add(f"{name}-{number:08x}", name, prompt, longest)


def measure(model: str, running: int, steps: int) -> dict[str, float]:
    """``running`` requests, each replaced when it ends: mean and tail of what a step costs."""
    engine = FakeEngine(
        Setup(
            model,
            asynchronous=True,
            blocks=50 * running + 64,
            running=running,
            budget=8192,
            stop_share=0.0,
        ),
        seed=running,
    )
    scheduler = engine.scheduler
    tap = scheduler._joulemeter_hook._tap
    tap.scheduled, tap.updated = Stopwatch(tap.scheduled), Stopwatch(tap.updated)
    schedule = scheduler.schedule = Stopwatch(scheduler.schedule)
    update = scheduler.update_from_output = Stopwatch(scheduler.update_from_output)
    number = 0
    filled = steady = 0
    frozen = False
    while steady < steps:
        if filled and not frozen:
            freeze()
            frozen = True
        while len(scheduler.requests) < running:
            arrive(engine, number, engine.random.randint(1, LONGEST))
            number += 1
        engine.step()
        engine.log.clear()
        if filled < running + 50:
            filled += running if len(scheduler.running) >= running else 1
            continue
        steady += 1
    return summary(tap, schedule, update, steps) | {"alone_us": alone_us(model, running)}


def summary(tap: Any, schedule: Stopwatch, update: Stopwatch, steps: int) -> dict[str, float]:
    """Medians and the 99th percentile over the last ``steps`` steps, µs."""
    plugin = [
        a + b for a, b in zip(tap.scheduled.ns[-steps:], tap.updated.ns[-steps:], strict=True)
    ]
    both = [a + b for a, b in zip(schedule.ns[-steps:], update.ns[-steps:], strict=True)]
    own = [whole - part for whole, part in zip(both, plugin, strict=True)]
    return {
        "plugin_us": statistics.median(plugin) / 1e3,
        "plugin_p99_us": sorted(plugin)[int(0.99 * len(plugin))] / 1e3,
        "scheduler_us": statistics.median(own) / 1e3,
        "share": statistics.median(plugin) / statistics.median(own),
    }


def alone_us(model: str, running: int) -> float:
    """The plugin's own cost of a step that changes nobody, in a loop where only it runs."""
    engine = FakeEngine(
        Setup(model, blocks=130 * running + 64, running=running, budget=8192, stop_share=0.0), 1
    )
    for number in range(running):
        arrive(engine, number, 1500)
    while not engine.log or {work[0] for work in engine.log[-1].values()} != {1}:
        engine.step()
    engine.step()
    outputs: list[Any] = []
    tap = engine.scheduler._joulemeter_hook._tap
    told = tap.scheduled
    tap.scheduled = lambda output, t_ns: (outputs.append(output), told(output, t_ns))
    engine.step()
    output, taken = outputs[-1], []
    for _ in range(ALONE):
        start = time.perf_counter_ns()
        told(output, start)
        tap.updated(output, None, start, engine.scheduler)
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken[ALONE // 3 :]) / 1e3


def main() -> None:
    joulemeter_vllm.register()
    model, steps = sys.argv[1], int(sys.argv[2])
    for running in map(int, sys.argv[3:]):
        print(json.dumps({"running": running} | measure(model, running, steps)), flush=True)


if __name__ == "__main__":
    main()
