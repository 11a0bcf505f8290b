"""The requests under way, as they stand at the settled watermark: for those who watch.

Cheap on purpose (a few microseconds a request): joules and tokens, without the doubt, which a
request's receipt has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from meter.attribution.bill import Bill
from meter.attribution.engine import EngineState
from meter.model import Progress, Receipt, Running

_NO_BILL = Bill()


def running(engine: EngineState, measured: bool = True) -> Iterator[Running]:
    """Every request of an engine that has no receipt yet, in order of opening, under the name that
    the client knows. ``measured``: whether a device of the engine was ever read."""
    bills, decoding_of = engine.accumulator.bills, engine.accumulator.open_segments()
    for id, request in engine.requests.items():
        bill, opened = bills.get(id, _NO_BILL), request.opened
        decoding_j, decoding = decoding_of(bill.segment) if bill.segment is not None else (0.0, 0)
        emits = bill.segment is not None or bill.decode_j > 0
        if request.closed is not None:
            progress = Progress.SETTLING
        elif bill is _NO_BILL:
            progress = Progress.WAITING
        else:
            progress = Progress.DECODE if emits else Progress.PREFILL
        yield Running(  # in order: by name takes twice as long, and there may be thousands
            opened.client_id,
            engine.info.id,
            opened.model or engine.info.model,
            opened.tenant,
            opened.t_ns,
            progress,
            opened.prompt_tokens,
            # The end of the prefill emits the first token; no decoding step does.
            bill.decoded + decoding + 1 if emits else 0,
            bill.prefill_j,
            bill.decode_j + decoding_j,
            bill.recompute_j,
            measured,
        )


def together(rows: Sequence[Running], ended: Mapping[str, Sequence[Receipt]]) -> list[Running]:
    """One row for what the client sent: of children (``n > 1``), also on several ranks, and of
    engines that hand over.

    ``ended``: by the client's id, the receipts of parts that are over.
    """
    found: dict[str, Running] = {}
    for row in rows:
        other = found.get(row.id)
        found[row.id] = row if other is None else _sum(other, row)
    for id, receipts in ended.items():
        for receipt in receipts:
            if id in found:
                found[id] = _with(found[id], receipt)
    return list(found.values())


# From the one that says most of a request as a whole.
_ORDER = (Progress.DECODE, Progress.PREFILL, Progress.WAITING, Progress.SETTLING)


def _sum(one: Running, other: Running) -> Running:
    return one._replace(
        engine=other.engine,
        opened_ns=min(one.opened_ns, other.opened_ns),
        progress=min(one.progress, other.progress, key=_ORDER.index),
        output_tokens=_counted(one, other.engine, one.output_tokens) + other.output_tokens,
        prefill_j=one.prefill_j + other.prefill_j,
        decode_j=one.decode_j + other.decode_j,
        recompute_j=one.recompute_j + other.recompute_j,
        measured=one.measured or other.measured,
    )


def _with(row: Running, part: Receipt) -> Running:
    completed = _counted(part, row.engine, part.completion_tokens or 0)
    return row._replace(
        opened_ns=min(row.opened_ns, part.opened_ns),
        output_tokens=row.output_tokens + completed,
        prefill_j=row.prefill_j + part.prefill_j,
        decode_j=row.decode_j + part.decode_j,
        recompute_j=row.recompute_j + part.recompute_j,
        measured=row.measured or part.quality is not None,
    )


def _counted(part: Running | Receipt, engine: str, tokens: int) -> int:
    """One token of another engine is what it handed over: the next one's prompt. Of more, it is a
    child on another rank."""
    return tokens if part.engine == engine or tokens > 1 else 0
