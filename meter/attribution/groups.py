"""Which engine requests are one request to the client, and the receipts that are done.

Children of one ``n > 1`` request share a ``parent``. A request that is prefilled on one engine and
decoded on another has the same id (or parent) on both, where engines serve the same model: then a
closed request waits a second for the other engine to take it up.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence

from meter.attribution.receipts import joined
from meter.model import Engine, Receipt, RequestOpened

_HANDOVER_NS = 1_000_000_000
_RECENT_RECEIPTS = 4096

SoFar = Callable[[str, str], Receipt | None]

#: Engine requests of one client's request, by engine and id; ``None`` while one is open.
_Group = dict[tuple[str, str], Receipt | None]


class Groups:
    """Open groups by the client's id, and what became final.

    ``requests`` counts those by engine, model and reason.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._owner: dict[str, str] = {}  # engine request -> group, where their names differ
        self._waiting: deque[tuple[int, str]] = deque()
        self._final: list[Receipt] = []
        self._recent: OrderedDict[str, Receipt] = OrderedDict()
        self._handover: frozenset[str] = frozenset()
        self._several: set[str] = set()
        self.requests: Counter[tuple[str, str, str]] = Counter()

    @property
    def open_count(self) -> int:
        """Clients' requests that have no final receipt."""
        return len(self._groups)

    @property
    def several(self) -> bool:
        """Whether a client's request under way is more than one of an engine's."""
        return bool(self._several)

    def ended_parts(self) -> dict[str, list[Receipt]]:
        """Of those, by the client's id, the receipts that their parts have already."""
        return {
            id: [receipt for receipt in self._groups[id].values() if receipt is not None]
            for id in self._several
        }

    def engines(self, engines: Sequence[Engine]) -> None:
        """Learn who is there: engines of one model may hand requests over to each other."""
        models = [engine.model for engine in engines]
        self._handover = frozenset(e.id for e in engines if models.count(e.model) > 1)

    def open(self, event: RequestOpened) -> None:
        """An engine took a request."""
        id = event.client_id
        group = self._groups.setdefault(id, {})
        group[event.engine, event.request] = None
        if len(group) > 1:
            self._several.add(id)
        if event.request != id:
            self._owner[event.request] = id

    def name_of(self, opened: RequestOpened) -> str:
        """What an engine's request is called in its receipt: as the client calls it, if alone."""
        id = opened.client_id
        group = self._groups.get(id)
        return opened.request if group is not None and len(group) > 1 else id

    def close(self, receipt: Receipt, opened: RequestOpened) -> None:
        """An engine's request has its receipt; the client's may be complete with it."""
        id = opened.client_id
        group = self._groups.setdefault(id, {})
        group[receipt.engine, opened.request] = receipt
        if opened.request != id:
            self._remember(opened.request, receipt)
            self._owner.pop(opened.request, None)
        if None in group.values():
            return
        if receipt.engine in self._handover and receipt.closed_ns is not None:
            self._waiting.append((receipt.closed_ns, id))
        else:
            self._complete(id)

    def advance(self, now_ns: int) -> None:
        """Time goes on: what no other engine took up is complete."""
        while self._waiting and self._waiting[0][0] + _HANDOVER_NS <= now_ns:
            _, id = self._waiting.popleft()
            self._complete_if_done(id)

    def finish(self) -> None:
        """The input is over."""
        for _, id in self._waiting:
            self._complete_if_done(id)
        self._waiting.clear()

    def drain(self) -> list[Receipt]:
        """Receipts that became final since the last call."""
        final, self._final = self._final, []
        return final

    def find(self, id: str, so_far: SoFar) -> Receipt | None:
        """The receipt under a client's id or an engine's: final, or what is settled so far."""
        group = self._groups.get(id)
        if group is None:
            owner = self._groups.get(self._owner.get(id, ""))
            if owner is None:
                return self._recent.get(id)
            return next((so_far(*key) for key in owner if key[1] == id), None)
        found = [receipt or so_far(*key) for key, receipt in group.items()]
        children = [receipt for receipt in found if receipt is not None]
        return joined(id, children) if children else None

    def _complete_if_done(self, id: str) -> None:
        """Not done where another engine has taken the request up, or where it was done before."""
        group = self._groups.get(id)
        if group is not None and None not in group.values():
            self._complete(id)

    def _complete(self, id: str) -> None:
        children = self._groups.pop(id).values()
        receipt = joined(id, [child for child in children if child is not None])
        self._several.discard(id)
        self.requests[receipt.engine, receipt.model or "", receipt.reason or "unknown"] += 1
        self._remember(id, receipt)
        self._final.append(receipt)

    def _remember(self, id: str, receipt: Receipt) -> None:
        self._recent.pop(id, None)
        self._recent[id] = receipt
        if len(self._recent) > _RECENT_RECEIPTS:
            self._recent.popitem(last=False)
