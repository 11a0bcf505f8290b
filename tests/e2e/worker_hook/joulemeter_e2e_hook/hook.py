"""The hook itself: follows the worker's batches, posts power, writes the log."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

from .clock import Clock
from .cost import Cost, Part

_FLUSH_S = 0.5


class Hook:
    """One for a worker. ``began`` and ``ended`` bracket each step, in the worker's own thread."""

    def __init__(self, log_path: str, card: Any | None) -> None:
        self._card = card
        self._cost = Cost()
        self._clock = Clock()
        self._prompts: dict[str, int] = {}
        self._contexts: dict[str, int] = {}
        self._step: dict[str, Any] | None = None
        self._parts: list[Part] = []
        self._lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, args=(log_path,), daemon=True)
        self._writer.start()

    @classmethod
    def from_environment(cls) -> Hook:
        return cls(os.environ["E2E_HOOK_LOG"], _card())

    def began(self, scheduled: Any) -> None:
        """A step begins: post its power. ``scheduled`` is vLLM's ``SchedulerOutput``."""
        parts = self._follow(scheduled)
        if not parts:
            return
        t0_ns = time.monotonic_ns()
        joules = self._cost.step(parts, t0_ns / 1e9)
        seconds = self._clock.expect(parts)
        static_w = self._cost.static_at(t0_ns / 1e9)
        power_w = static_w + joules.total_j / seconds.total_s
        self._post(power_w, t0_ns)
        self._parts = parts
        self._step = {
            "t0_ns": t0_ns,
            "static_w": static_w,
            "power_w": power_w,
            "fixed_j": joules.fixed_j,
            "fixed_s": seconds.fixed_s,
            "work": [
                [part.request, part.tokens, part.context, int(part.prefill), own_j, own_s]
                for part, own_j, own_s in zip(parts, joules.own_j, seconds.own_s, strict=True)
            ],
        }

    def ended(self) -> None:
        """The step has ended: static power flows again."""
        step, self._step = self._step, None
        if step is None:
            return
        t1_ns = time.monotonic_ns()
        after_w = self._cost.static_at(t1_ns / 1e9)
        self._post(after_w, t1_ns)
        step["t1_ns"] = t1_ns
        step["after_w"] = after_w
        expected_s = step["fixed_s"] + sum(row[5] for row in step["work"])
        self._clock.learn(self._parts, expected_s, (t1_ns - step["t0_ns"]) / 1e9)
        self._lines.put(step)

    def _post(self, power_w: float, t_ns: int) -> None:
        if self._card is not None:
            self._card.post(0, power_w, t_ns)

    def _follow(self, scheduled: Any) -> list[Part]:
        """Keep each request's prompt and context; give what this step computes."""
        for new in scheduled.scheduled_new_reqs:
            self._prompts[new.req_id] = len(new.prompt_token_ids or ())
            self._contexts[new.req_id] = new.num_computed_tokens
        cached = scheduled.scheduled_cached_reqs
        self._contexts.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        parts = []
        for request, tokens in scheduled.num_scheduled_tokens.items():
            context = self._contexts[request]
            prefill = tokens > 1 or context < self._prompts[request]
            parts.append(Part(request, tokens, context, prefill))
        return parts

    def close(self) -> None:
        """Write what is still to be written. A worker that is killed loses half a second of it."""
        self._over.set()
        self._writer.join()

    def _write(self, path: str) -> None:
        """The log's thread: writing must not lengthen a step."""
        with open(path, "a", encoding="utf-8") as log:  # noqa: PTH123
            over = False
            while not over:
                over = self._over.wait(_FLUSH_S)
                while not self._lines.empty():
                    log.write(json.dumps(self._lines.get(), separators=(",", ":")) + "\n")
                log.flush()


def _card() -> Any | None:
    """The simulated card, written through the module that owns its format."""
    control, module = (os.environ.get(f"E2E_HOOK_{k}") for k in ("CARD", "CARD_MODULE"))
    if not control or not module:
        return None
    spec = importlib.util.spec_from_file_location("joulemeter_e2e_card", module)
    if spec is None or spec.loader is None:
        raise ImportError(f"the simulated card's module is not at {module}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up there
    spec.loader.exec_module(loaded)
    return loaded.Card.attach(control)
