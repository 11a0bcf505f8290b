"""No thread of the meter dies unseen: what ends one is logged, and counted."""

from __future__ import annotations

import threading
from collections import Counter

import structlog


class Deaths:
    """Counts threads that an error has ended, by name, from its making until ``leave``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._log = structlog.get_logger("joulemeter")
        self._before, threading.excepthook = threading.excepthook, self._note

    def leave(self) -> None:
        if threading.excepthook == self._note:
            threading.excepthook = self._before

    def _note(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else "unknown"
        self.counts[name] += 1
        error = args.exc_value
        self._log.error(
            "thread_ended",
            thread=name,
            exc_info=(args.exc_type, error, args.exc_traceback) if error is not None else None,
            remedy="please report this",
        )
