"""What came over the wire and was not taken: counted by reason, and said now and then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

_SAY_EVERY_S = 60.0

#: Each reason, and what may be done.
REMEDIES: Mapping[str, str] = {
    "unreadable": "who else writes to the meter's socket?",
    "record": "is the engine's plugin of this meter's version, and its clock this host's?",
    "stray": "who speaks has never said hello here: start it anew",
    "user": "run meter and engine as one user, or the meter as root",
    "engines": "end engines that are not needed, or use a meter for each group of them",
    "requests": "too many requests are open: does their engine tell their ends?",
    "names": "later models, tenants and reasons are called `other`",
    "defect": "please report this",
}


class Refusals:
    """Counts what is refused; each reason is logged at once, then once a minute at most."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._now_s = now_s
        self._said_s: dict[str, float] = {}
        self._said: Counter[str] = Counter()
        self._log = structlog.get_logger("joulemeter.wire")

    def add(self, reason: str, detail: str, **words: object) -> None:
        """``reason`` is one of ``REMEDIES``; ``detail`` is short, whatever was sent."""
        self.counts[reason] += 1
        now_s = self._now_s()
        if now_s - self._said_s.get(reason, -_SAY_EVERY_S) < _SAY_EVERY_S:
            return
        times = self.counts[reason] - self._said[reason]
        self._said_s[reason], self._said[reason] = now_s, self.counts[reason]
        self._log.warning(
            "not_taken", what=reason, why=detail, times=times, remedy=REMEDIES[reason], **words
        )
