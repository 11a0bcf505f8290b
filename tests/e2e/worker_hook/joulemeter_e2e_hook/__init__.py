"""Test only: a vLLM plugin that drives a simulated card from the worker, and keeps the truth.

Theory of operation
-------------------
The end-to-end test needs a card whose true joules per request are known, on a machine that has no
card. This plugin sits in vLLM's *worker*, below everything that the meter looks at, and shares no
line with it. At each step's start it asks its own cost model (``cost.py``) what the batch takes in
joules, and its own model of this CPU (``clock.py``) how long the step should last. It posts
``static + joules / expected seconds`` to the card; the card runs at that power until the step
really ends, however long that is; then static power flows again. What was posted, when, and the
two models' terms for each request go to a log, from which ``truth.py`` works out true joules.

Everything is ``CLOCK_MONOTONIC``. Standard library only: it is put on ``PYTHONPATH`` and found by
vLLM through its entry point. It works by environment:

* ``E2E_HOOK_LOG``: where the log goes (JSON lines); without it the plugin does nothing;
* ``E2E_HOOK_CARD``: the card's control file, and ``E2E_HOOK_CARD_MODULE``: the Python
  file that knows how to write it; without them nothing is posted, the log is kept all the same.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_PATCHED = "_joulemeter_e2e_hook"


def register() -> None:
    """Hook the worker, if this process has one. vLLM calls this in each of its processes."""
    base = sys.modules.get("vllm.v1.worker.worker_base")
    if base is None or not os.environ.get("E2E_HOOK_LOG"):
        return
    wrapper = base.WorkerWrapperBase
    if not hasattr(wrapper, _PATCHED):
        setattr(wrapper, _PATCHED, True)
        wrapper.execute_model = _hooked(wrapper.execute_model)


def _hooked(execute_model: Any) -> Any:
    """``WorkerWrapperBase.execute_model`` with the hook around it.

    The step goes on in ``sample_tokens``, which reaches the inner worker past its wrapper: that
    worker's bound method is replaced at the first step. Threads start here, after any fork.
    """
    state: dict[str, Any] = {}

    def execute(wrapper: Any, scheduled: Any) -> Any:
        if not state:
            from .hook import Hook

            hook = state["hook"] = Hook.from_environment()
            sample = wrapper.worker.sample_tokens

            def sample_tokens(*args: Any, **kwargs: Any) -> Any:
                output = sample(*args, **kwargs)
                hook.ended()
                return output

            wrapper.worker.sample_tokens = sample_tokens
        state["hook"].began(scheduled)
        output = execute_model(wrapper, scheduled)
        if output is not None:  # the step ended here: nothing is left to sample
            state["hook"].ended()
        return output

    return execute
