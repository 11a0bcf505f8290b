"""Tells the meter what the engine does, over the wire that vLLM's plugin uses.

``Wire`` is what the engine needs of ``meter.work.vllm.sender.Sender``. Steps go out in change form
where that says the same: those who decoded before and decode on are not named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from meter.model import Phase, Work

#: What the demo's engine says of its model: 8 billion parameters in bf16, as in Llama 3.1 8B.
MODEL = "simulated-8b"
FACTS: Mapping[str, object] = {
    "engine": "0",
    "model": MODEL,
    "engine_version": "joulemeter-demo",
    "params": 8.03e9,
    "active_params": 8.03e9,
    "weight_bytes": 16.06e9,
    "kv_bytes_per_token": 131072.0,
    "layers": 32,
    "heads": 32,
    "head_dim": 128,
    "dtype": "bfloat16",
}


class Wire(Protocol):
    """The sender, or a list in a test."""

    @property
    def wants_full(self) -> bool: ...
    def hello(self, facts: Mapping[str, object], event: str = "ready") -> None: ...
    def opened(
        self,
        t_ns: int,
        request: str,
        parent: str | None = None,
        prompt_tokens: int | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> None: ...
    def step(
        self,
        seq: int,
        t0_ns: int,
        t1_ns: int,
        work: Sequence[Sequence[object]],
        same: bool = False,
        drop: Sequence[str] = (),
    ) -> None: ...
    def closed(
        self,
        t_ns: int,
        request: str,
        reason: str | None,
        prompt: int | None = None,
        cached: int | None = None,
        completion: int | None = None,
    ) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Announcer:
    """Numbers the steps and finds what changed from one to the next."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._seq = 0
        self._decoded: dict[str, int] = {}  # id -> context it has in the next step

    def step(self, t0_ns: int, t1_ns: int, work: Sequence[Work]) -> None:
        """A step ended."""
        decoding = {row.request: row.context for row in work if row.phase is Phase.DECODE}
        if self._seq == 0 or self.wire.wants_full:
            self.wire.step(self._seq, t0_ns, t1_ns, [_row(row) for row in work])
        else:
            told = [_row(row) for row in work if not self._decodes_on(row)]
            drop = [request for request in self._decoded if request not in decoding]
            self.wire.step(self._seq, t0_ns, t1_ns, told, same=True, drop=drop)
        self._decoded = {request: context + 1 for request, context in decoding.items()}
        self._seq += 1

    def closed(
        self,
        t_ns: int,
        request: str,
        reason: str,
        prompt: int,
        cached: int | None,
        completion: int,
    ) -> None:
        """A request ended; the meter drops it from those who decode by itself."""
        self._decoded.pop(request, None)
        self.wire.closed(t_ns, request, reason, prompt, cached, completion)

    def _decodes_on(self, row: Work) -> bool:
        return row.phase is Phase.DECODE and self._decoded.get(row.request) == row.context


def _row(row: Work) -> tuple[str, int, int, str]:
    return (row.request, row.tokens, row.context, row.phase.value)
