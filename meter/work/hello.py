"""What an engine says of itself when it meets the meter, and again when that changes.

None of it is trusted: a fact that cannot be true counts as not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meter.model import Engine, Experts, Fidelity, Layout
from meter.trace import fields
from meter.trace.errors import LineError, shown

_LABEL_CHARACTERS, _DEVICES_CHARACTERS = 128, 4096


@dataclass(frozen=True, slots=True)
class Hello:
    """What an engine says of itself.

    ``pid`` is the scheduler's process: as the kernel says where it does (``None``: not visible
    here), else as the engine says, in its own PID namespace; ``cuda_visible_devices`` is that
    environment variable as the engine saw it (``None``: not set). Where it speaks in
    mid-life to one who has not heard it before, ``next_seq`` is the step that comes next,
    ``missed_steps`` how many nobody heard just before, ``open_requests`` how many it holds.
    """

    source: str
    engine: str = "0"
    model: str | None = None
    engine_version: str | None = None
    params: float | None = None
    active_params: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    ep: int | None = None
    experts_total: int | None = None
    experts_active: int | None = None
    pid: int | None = None
    cuda_visible_devices: str | None = None
    next_seq: int | None = None
    missed_steps: int | None = None
    open_requests: int | None = None

    def info(self, label: str, devices: tuple[str, ...] | None) -> Engine:
        """``devices``: those that it owns; ``None``: they are not known."""
        return Engine(
            id=label,
            devices=devices or (),
            model=self.model,
            fidelity=Fidelity.STEP,
            params=self.params,
            active_params=self.active_params,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            engine_version=self.engine_version,
            experts=self._experts(),
            layout=self._layout(),
            owns_none=devices == (),
        )

    def _experts(self) -> Experts | None:
        total, active = self.experts_total, self.experts_active
        if total is None or active is None or not 1 <= active <= total <= fields.RANKS_MAX:
            return None
        return Experts(total, active)

    def _layout(self) -> Layout | None:
        """Ranks that are not told apart count as one, as in a trace; none told: not known."""
        told = (self.tp, self.pp, self.dp, self.ep)
        known = [ranks for ranks in told if ranks is not None]
        if not known or not all(1 <= ranks <= fields.RANKS_MAX for ranks in known):
            return None
        return Layout(*(1 if ranks is None else ranks for ranks in told))


#: The devices that an engine owns; ``None``: that cannot be told yet.
DevicesOf = Callable[[Hello], tuple[str, ...] | None]

_TEXTS = ("engine", "model", "engine_version", "dtype", "cuda_visible_devices")
_RANKS = ("tp", "pp", "dp", "ep")
_JOINING = ("next_seq", "missed_steps", "open_requests")
_INTEGERS = (
    *("layers", "heads", "head_dim", "experts_total", "experts_active", "pid"),
    *(*_RANKS, *_JOINING),
)
_NUMBERS = ("params", "active_params", "weight_bytes", "kv_bytes_per_token")
_MOST = {"pid": fields.PID_MAX}


def read_hello(source: str, facts: Mapping[str, object]) -> Hello:
    """The facts that can be true; the others count as not known."""
    known: dict[str, Any] = {}
    for name, value in facts.items():
        try:
            if name in _TEXTS:
                known[name] = _fact(name, value)
            elif name in _INTEGERS:
                known[name] = fields.as_whole(value, name, most=_MOST.get(name, fields.NUMBER_MAX))
            elif name in _NUMBERS:
                known[name] = fields.as_amount(value, name)
        except (LineError, TypeError):
            known.pop(name, None)
    if not known.get("engine", "0"):
        del known["engine"]
    return Hello(source, **known)


def _fact(name: str, value: object) -> str:
    if name != "cuda_visible_devices":
        return text_of(value, _LABEL_CHARACTERS if name == "engine" else fields.TEXT_MAX)
    text = text_of(value, _DEVICES_CHARACTERS)
    if text != value:
        raise LineError(f"{name} {shown(value)} names no devices")
    return text


def text_of(value: Any, most: int = fields.TEXT_MAX) -> str:
    """A text that was chosen outside, made clean. Raises ``LineError`` for what is no text."""
    if type(value) is not str:
        raise LineError(f"{shown(value)} is not a text")
    return fields.clean(value, most)
