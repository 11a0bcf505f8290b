"""Puts a tap on one scheduler, and takes it off again at the first error of ours.

The scheduler's methods are shadowed by attributes of the instance. vLLM's own calls stand outside
every ``try``: its results and exceptions pass through unchanged, whatever happens here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .tap import Tap

# Below "vllm", so that vLLM's own log handler shows it.
LOG = logging.getLogger("vllm.joulemeter")

TAP = "_joulemeter_hook"


class Hook:
    """The tap on ``scheduler``. ``clock``: ``CLOCK_MONOTONIC`` in ns."""

    def __init__(self, scheduler: Any, tap: Tap, clock: Callable[[], int]) -> None:
        self._scheduler = scheduler
        self._tap = tap
        self._clock = clock
        self._wrappers: dict[str, Callable[..., Any]] = {}
        self.alive = True

    def install(self) -> None:
        for name, wrap in (
            ("add_request", self._wrap_add_request),
            ("schedule", self._wrap_schedule),
            ("update_from_output", self._wrap_update_from_output),
            ("shutdown", self._wrap_shutdown),
        ):
            if name == "shutdown" and not hasattr(self._scheduler, name):
                continue  # a scheduler of the user's own
            wrapper = wrap(getattr(self._scheduler, name))
            self._wrappers[name] = wrapper
            setattr(self._scheduler, name, wrapper)
        setattr(self._scheduler, TAP, self)

    def dummy(self, t0_ns: int, t1_ns: int) -> None:
        """A data-parallel pass with no request in it."""
        if self.alive:
            try:
                self._tap.dummy(t0_ns, t1_ns)
            except Exception:
                self.remove()

    def remove(self) -> None:
        """Called while handling an exception: leave the engine as it was, and say so, once."""
        if not self.alive:
            return
        self.alive = False
        for name, wrapper in self._wrappers.items():
            # Who has wrapped the method after us keeps calling ours, which then only passes on.
            if self._scheduler.__dict__.get(name) is wrapper:
                delattr(self._scheduler, name)
        LOG.error(
            "joulemeter's plugin failed and has removed itself: the engine goes on, unmetered. "
            "Please report this.",
            exc_info=True,
        )
        try:
            self._tap.release()
        except Exception:
            LOG.error("joulemeter's plugin could not say good-bye to the meter", exc_info=True)

    def _wrap_add_request(self, add_request: Callable[..., Any]) -> Callable[..., Any]:
        tap, clock = self._tap, self._clock

        def tapped_add_request(*args: Any, **kwargs: Any) -> Any:
            t_ns = clock()
            result = add_request(*args, **kwargs)
            if self.alive:
                try:
                    tap.added(args[0] if args else kwargs["request"], t_ns)
                except Exception:
                    self.remove()
            return result

        return tapped_add_request

    def _wrap_shutdown(self, shutdown: Callable[..., Any]) -> Callable[..., Any]:
        """vLLM is done with this scheduler; in one process another engine may follow."""
        tap = self._tap

        def tapped_shutdown(*args: Any, **kwargs: Any) -> Any:
            if self.alive:
                try:
                    self.alive = False
                    tap.release()
                except Exception:
                    LOG.error("joulemeter's plugin could not say good-bye", exc_info=True)
            return shutdown(*args, **kwargs)

        return tapped_shutdown

    def _wrap_schedule(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        tap, clock = self._tap, self._clock

        def tapped_schedule(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            if self.alive:
                try:
                    tap.scheduled(output, clock())
                except Exception:
                    self.remove()
            return output

        return tapped_schedule

    def _wrap_update_from_output(self, update: Callable[..., Any]) -> Callable[..., Any]:
        tap, clock, scheduler = self._tap, self._clock, self._scheduler

        def tapped_update_from_output(*args: Any, **kwargs: Any) -> Any:
            t_ns = clock()
            result = update(*args, **kwargs)
            if self.alive:
                try:
                    output = args[0] if args else kwargs["scheduler_output"]
                    model = args[1] if len(args) > 1 else kwargs["model_runner_output"]
                    tap.updated(output, model, t_ns, scheduler)
                except Exception:
                    self.remove()
            return result

        return tapped_update_from_output
