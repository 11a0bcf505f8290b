"""Runs seeded scenarios on the fake engine and writes down what the scheduler itself said.

    scenario.py SCENARIOS_JSON TRUTHS_JSON     (in the vLLM environment, plugin on the path)

One engine after the other. Prints ``half NAME`` when 150 steps of a scenario are done: a test may
keep its listener deaf until then.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import joulemeter_vllm
from fake_engine import VOCABULARY, FakeEngine, Setup

STEPS = 400


def prompt(engine: FakeEngine, prefixes: list[list[int]]) -> list[int]:
    """Sometimes one of a few shared prefixes, then something of its own; up to three budgets."""
    own = [engine.random.randrange(8, VOCABULARY) for _ in range(engine.random.randint(1, 90))]
    long = engine.random.random() < 0.1
    return engine.random.choice(prefixes) + (own * 6 if long else own)


def arrive(engine: FakeEngine, number: int, prefixes: list[list[int]]) -> int:
    """One client request, of one or two samples; the next number."""
    parent = f"chatcmpl-{number:x}"
    tokens = prompt(engine, prefixes)
    longest = engine.random.choice([1, 2, 8, 40, 120])
    more: dict[str, Any] = {"stop": ["x"], "detokenize": True} if number % 7 == 0 else {}
    children = 2 if engine.random.random() < 0.2 else 1
    for child in range(children):
        tag = f"{number:08x}"
        name = f"{child}_{parent}-{tag}" if children > 1 else f"{parent}-{tag}"
        engine.add(name, parent, tokens, longest, **more)
    return number + 1


def run(engine: FakeEngine, name: str, resets: bool) -> None:
    prefixes: list[list[int]] = [[]] + [
        [engine.random.randrange(8, VOCABULARY) for _ in range(length)] for length in (40, 64, 150)
    ]
    number = done = 0
    while done < STEPS or engine.busy:
        if done < STEPS and engine.random.random() < 0.35:
            number = arrive(engine, number, prefixes)
        live = [request for request, r in engine.requests.items() if not r.is_finished()]
        if live and engine.random.random() < 0.04:
            engine.abort([engine.random.choice(live)])  # before a step
        elif live and engine.random.random() < 0.04:
            engine.aborts.append(engine.random.choice(live))  # between a step and its result
        if resets and engine.random.random() < 0.03:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        engine.step()
        done += 1
        if done == 150:
            print("half", name, flush=True)


def truth(engine: FakeEngine) -> dict[str, Any]:
    return {
        "steps": engine.log,
        "requests": {
            name: {
                "parent": request._joulemeter_parent,
                "prompt": request.num_prompt_tokens,
                "cached": engine.cached.get(name, 0),
                "completion": request.num_output_tokens,
                "status": request.status.name,
                "stop": bool(request.sampling_params.stop),
                "preemptions": request.num_preemptions,
            }
            for name, request in engine.requests.items()
        },
        "tapped": "schedule" in engine.scheduler.__dict__,
    }


def drain(engine: FakeEngine) -> None:
    """An engine lives on after its last step, and so does what it has still to say."""
    sender = engine.scheduler._joulemeter_hook._tap._sender
    while sender.pending:
        time.sleep(0.01)


def main() -> None:
    joulemeter_vllm.register()
    joulemeter_vllm.register()  # a second time does no harm
    truths = {}
    for name, options in json.loads(sys.argv[1]).items():
        resets, seed = options.pop("resets", False), options.pop("seed")
        engine = FakeEngine(Setup(**options), seed)
        run(engine, name, resets)
        drain(engine)
        truths[name] = truth(engine)
        engine.scheduler.shutdown()  # so that the next one is the next life of engine 0
    Path(sys.argv[2]).write_text(json.dumps(truths), encoding="utf-8")


if __name__ == "__main__":
    main()
