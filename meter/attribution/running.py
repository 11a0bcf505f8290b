"""The requests under way, as they stand at the settled watermark: for those who watch.

Cheap on purpose (a few microseconds a request): joules and tokens, without the doubt, which a
request's receipt has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from meter.attribution.bill import Bill
from meter.attribution.engine import EngineState, Request
from meter.model import Progress, RequestOpened, Running


def running(engine: EngineState, name_of: Callable[[RequestOpened], str]) -> Iterator[Running]:
    """Every request of an engine that has no final receipt yet, in order of opening."""
    accumulator = engine.accumulator
    for id, request in engine.requests.items():
        bill = accumulator.bills.get(id)
        opened = request.opened
        decoding_j, decoding = accumulator.open_segment(bill) if bill is not None else (0.0, 0)
        progress = _progress(request, bill)
        yield Running(
            id=name_of(opened),
            engine=engine.info.id,
            model=opened.model or engine.info.model,
            tenant=opened.tenant,
            opened_ns=opened.t_ns,
            progress=progress,
            prompt_tokens=opened.prompt_tokens,
            # The end of the prefill emits the first token; no decoding step does.
            output_tokens=bill.decoded + decoding + 1 if bill is not None and _emits(bill) else 0,
            prefill_j=bill.prefill_j if bill is not None else 0.0,
            decode_j=(bill.decode_j + decoding_j) if bill is not None else 0.0,
            recompute_j=bill.recompute_j if bill is not None else 0.0,
        )


def _emits(bill: Bill) -> bool:
    return bill.segment is not None or bill.decode_j > 0


def _progress(request: Request, bill: Bill | None) -> Progress:
    if request.closed is not None:
        return Progress.SETTLING
    if bill is None:
        return Progress.WAITING
    return Progress.DECODE if _emits(bill) else Progress.PREFILL
