"""The plugin inside vLLM: tells the meter what every step of the engine computed, and for whom.

vLLM finds ``register`` by its entry point and calls it in each of its processes; only where the
environment names the meter's socket does it do anything. Standard library and vLLM only, relative
imports only, so that a copy of this directory works beside any vLLM. It sends facts (ids, counts,
times), never text. It must not break the engine: see ``hook``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

SOCKET = "JOULEMETER_SOCKET"

# The sender of an EngineCore process that is still loading its model, if any.
_early: list[Any] = []


def register() -> None:
    """Entry point ``vllm.general_plugins``. Idempotent; never raises."""
    try:
        path = os.environ.get(SOCKET)
        if path:
            _register(path)
    except Exception:
        from .hook import LOG

        LOG.error("joulemeter's plugin could not start: the engine is not metered", exc_info=True)


def _register(path: str) -> None:
    from . import adapter

    if adapter.patch_scheduler_factory(lambda scheduler, config: _attach(path, scheduler, config)):
        _say_up(path)


def _say_up(path: str) -> None:
    """In an engine's own process: it is up, though it still loads. Elsewhere this is not known."""
    from . import adapter
    from .sender import Sender

    label = adapter.early_label(multiprocessing.current_process().name)
    if label is not None:
        sender = Sender(path)
        sender.hello({"engine": label, **adapter.process_facts()}, "up")
        _early.append(sender)


def _attach(path: str, scheduler: Any, config: Any) -> None:
    """Tap a new scheduler. Never raises."""
    from .hook import LOG, TAP, Hook

    try:
        from . import adapter
        from .sender import Sender
        from .tap import Tap

        if hasattr(scheduler, TAP):
            return
        adapter.patch_requests()
        adapter.patch_dummy_batch(time.monotonic_ns, _dummy)
        sender = _early.pop() if _early else Sender(path)
        sender.hello(adapter.engine_facts(config), "ready")
        Hook(scheduler, Tap(sender), time.monotonic_ns).install()
        LOG.info("joulemeter meters this engine (%s)", path)
    except Exception:
        LOG.error("joulemeter's plugin could not start: the engine is not metered", exc_info=True)


def _dummy(scheduler: Any, t0_ns: int, t1_ns: int) -> None:
    from .hook import TAP

    hook = getattr(scheduler, TAP, None)
    if hook is not None:
        hook.dummy(t0_ns, t1_ns)
