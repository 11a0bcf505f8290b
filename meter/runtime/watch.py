"""Looks at the engines now and then, and says once what a person should know of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import structlog

from meter.export.state import State
from meter.runtime.find import environment_of, left_out
from meter.work.listener import Listener
from meter.work.wire import Source

#: Large models load for minutes; the plugin speaks when their loading begins.
SILENT_S = 180.0
HANGS_S = 30.0
TESTED = ((0, 20), (0, 33))


class Watch:
    """``look`` is called about twice a second, from one thread.

    ``state``: the last published one; ``last_ns``: when an engine was last heard of its work.
    """

    def __init__(
        self,
        listener: Listener | None,
        state: Callable[[], State | None],
        last_ns: Callable[[], int | None],
        pid: int | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        silent_s: float = SILENT_S,
    ) -> None:
        self._listener = listener
        self._state = state
        self._last_ns = last_ns
        self._now_ns = now_ns
        self._since_ns = now_ns()
        self._silent_s = silent_s
        self._silent = listener is not None
        self._hanging = False
        self._met: set[str] = set()
        self._log = structlog.get_logger("joulemeter.engine")
        self.pid = pid

    def look(self) -> None:
        sources = self._listener.sources if self._listener is not None else ()
        if sources:
            self._silent = False
        elif self._silent and self._now_ns() - self._since_ns > self._silent_s * 1e9:
            self._silent = False
            self._log.warning("no_engine_heard", reason=self._why_silent(), **_NO_ENGINE)
        self._met &= {source.name for source in sources}
        for source in sources:
            if source.name not in self._met and source.hello.engine_version:
                self._met.add(source.name)
                self._meet(source)
        self._look_for_a_hang()

    def _meet(self, source: Source) -> None:
        """Versions that were not tested are named; the plugin works where vLLM is alike. So is an
        engine whose process cannot be seen from here, where nothing else tells its devices."""
        hidden = source.peer is not None and source.pid is None
        if hidden and source.hello.cuda_visible_devices is None:
            self._log.warning("engine_hidden", engine=source.label, **_HIDDEN)
        found = re.fullmatch(r"vllm v?(\d+)\.(\d+).*", source.hello.engine_version or "")
        if found is None:
            return
        version = (int(found[1]), int(found[2]))
        if not TESTED[0] <= version <= TESTED[1]:
            first, last = (".".join(map(str, end)) for end in TESTED)
            self._log.warning(
                "untested_version",
                engine=source.label,
                version=source.hello.engine_version,
                tested=f"{first} to {last}",
            )

    def _look_for_a_hang(self) -> None:
        state, last_ns = self._state(), self._last_ns()
        running = sum(state.snapshot.running.values()) if state is not None else 0
        silent_s = 0.0 if last_ns is None else (self._now_ns() - last_ns) / 1e9
        hanging = running > 0 and silent_s > HANGS_S
        if hanging and not self._hanging:
            self._log.warning(
                "engine_hangs", requests=running, silent_s=round(silent_s), note="no step ends"
            )
        self._hanging = hanging

    def _why_silent(self) -> str:
        environ = environment_of(self.pid) if self.pid is not None else None
        return (environ and left_out(environ)) or "the plugin has not spoken"


_HIDDEN = {
    "reason": "its process is in a PID namespace that is not visible here",
    "lost": "which GPUs it uses, unless engine.devices says so: all are taken for its own",
    "remedy": "run the meter in the host's PID namespace (docker: --pid=host), or set "
    "engine.devices",
}
_NO_ENGINE = {
    "lost": "all but idle: no request has a receipt",
    "remedy": "is it vLLM 0.20 or later? Its log says whether `joulemeter meters this engine`",
}
