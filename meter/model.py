"""The vocabulary: small frozen values that cross the rooms of the house.

Conventions, everywhere:

* Times are ``CLOCK_MONOTONIC`` integer nanoseconds, named ``*_ns``; durations ``*_s`` or ``*_ns``.
* What a counter says is integer microjoules (``energy_uj``); what is computed from it is float
  joules (``*_j``).
* Unknown is ``None``, never zero.

Sources emit *events* (``Event`` below). The attribution core turns events into ``Receipt``s and
one immutable ``Snapshot`` of all accounts; every exporter reads that snapshot and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar, cast


class Quality(StrEnum):
    """How a figure came about. A total takes the worst quality of its parts."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    SIMULATED = "simulated"


_QUALITY_ORDER = (Quality.MEASURED, Quality.ESTIMATED, Quality.SIMULATED)


def worst(qualities: list[Quality]) -> Quality | None:
    """The worst of several qualities; ``None`` where there is none."""
    return max(qualities, key=_QUALITY_ORDER.index) if qualities else None


_Number = TypeVar("_Number", int, float)


def sum_known(values: Iterable[_Number | None]) -> _Number | None:
    """The sum, or ``None`` where one is unknown."""
    known = list(values)
    return None if None in known else sum(n for n in known if n is not None)


class Fidelity(StrEnum):
    """How the work was seen: the engine's own steps, a stream of chunks, or counters alone."""

    STEP = "step"
    STREAM = "stream"
    COUNTER = "counter"


class Phase(StrEnum):
    """What a request does in a step; the values are those of the trace format."""

    PREFILL = "p"
    DECODE = "d"
    RECOMPUTE = "r"
    ENCODER = "e"


class Account(StrEnum):
    """Where a joule ends up; the values are the ``phase`` label of the exported metrics."""

    PREFILL = "prefill"
    DECODE = "decode"
    RECOMPUTE = "recompute"
    IDLE = "idle"
    STARTUP = "startup"
    UNATTRIBUTED = "unattributed"


# --- what the sources say ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A device whose energy is read: a GPU board, or a CPU package.

    ``id`` is what readings name: the GPU's UUID, or ``cpu``. ``refresh_s`` is the counter's known
    refresh period (``None``: found from the readings; 0: every reading is exact at its time).
    ``boundary`` is ``gpu`` (board) or ``host`` (CPU package and DRAM). What work costs there
    depends on its ``driver`` version, power limit and ``clocks_mhz`` (SM, memory) as well.
    ``note``: what its figures are, where that is not the board's own counter for itself alone.
    ``claimed``: its joules are only what its engines take of something larger; nobody else's can be
    among them.
    """

    id: str
    name: str
    quality: Quality
    index: str = "0"
    boundary: str = "gpu"
    mem_bandwidth: float | None = None
    power_limit_w: float | None = None
    refresh_s: float | None = None
    driver: str | None = None
    clocks_mhz: tuple[int, int] | None = None
    note: str | None = None
    claimed: bool = False


class Experts(NamedTuple):
    """A mixture-of-experts model: routed experts in each layer, and how many one token uses."""

    total: int
    active: int


class Layout(NamedTuple):
    """How an engine spreads over devices: tensor, pipeline, data and expert parallel ranks."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine and the devices it owns; facts of its model where they are known.

    ``params``, ``active_params``: parameters (count); ``weight_bytes``, ``kv_bytes_per_token``:
    bytes; ``fidelity``: how its work is seen; ``experts``: ``None`` for a dense model, or where
    it is not known; ``layout``: ``None`` where it is not known. Where ``devices`` is empty,
    ``owns_none`` says that it owns none; else nobody has told yet which.
    """

    id: str
    devices: tuple[str, ...]
    model: str | None = None
    fidelity: Fidelity = Fidelity.STEP
    params: float | None = None
    active_params: float | None = None
    weight_bytes: float | None = None
    kv_bytes_per_token: float | None = None
    layers: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    engine_version: str | None = None
    experts: Experts | None = None
    layout: Layout | None = None
    owns_none: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One poll of a device's cumulative energy counter; ``t_ns`` is the middle of the call.

    ``energy_uj`` is ``None`` when the call failed; ``error`` then names why. ``power_w`` is the
    instantaneous power, for display and cross-check only: it is never attributed.
    ``latency_s`` is how long the call took, ``late_s`` how long after its deadline it began.
    A counter's first reading may say with ``missed_uj`` what moved before it, since somebody
    watched last, and with ``missed`` why nobody did (``meter_down``: that meter was killed): it is
    unattributed, for that reason. A later reading with ``missed`` and no ``missed_uj`` says it of
    what moved since the one before (``counter_silent``: its steps could not wait so long).
    """

    device: str
    t_ns: int
    energy_uj: int | None
    power_w: float | None = None
    latency_s: float | None = None
    late_s: float | None = None
    error: str | None = None
    missed: str | None = None
    missed_uj: int | None = None


class Work(NamedTuple):
    """What one step computed for one request.

    ``tokens``: tokens computed; ``context``: tokens already there before; ``kept``: tokens emitted
    where that differs from the rule (speculation), else ``None``.
    """

    request: str
    tokens: int
    context: int
    phase: Phase
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of an engine, from ``t0_ns`` to ``t1_ns``: when it has its output. A step
    that is scheduled while another runs begins where that one ends, so that steps do not overlap.

    In full form (``same`` false) ``work`` lists every participant. In change form (``same`` true)
    everyone who decoded in the engine's previous step, is not in ``drop`` and has not closed
    computes one token at one context more; ``work`` lists all other work, and overrides.
    ``seq`` counts an engine's steps from 0 within an ``epoch`` (one life of the engine).
    """

    engine: str
    epoch: int
    seq: int
    t0_ns: int
    t1_ns: int
    work: tuple[Work, ...]
    same: bool = False
    drop: tuple[str, ...] = ()
    dummy: bool = False

    @property
    def t_ns(self) -> int:
        return self.t1_ns


@dataclass(frozen=True, slots=True)
class RequestOpened:
    """The engine took a request. ``request`` is the engine's own id, unique within the engine.

    ``parent`` is the id the client saw: children of one ``n > 1`` request share it, and receipts
    are asked for by it. ``prompt_tokens`` where it is known at admission. ``missed``: why nobody
    heard it when it began (``meter_down``), where it began before ``t_ns``.
    """

    engine: str
    request: str
    t_ns: int
    model: str | None = None
    tenant: str | None = None
    parent: str | None = None
    prompt_tokens: int | None = None
    missed: str | None = None

    @property
    def client_id(self) -> str:
        """What the client knows it by."""
        return self.parent if self.parent is not None else self.request


@dataclass(frozen=True, slots=True)
class RequestClosed:
    """The engine is done with a request.

    ``cached_tokens``: prompt tokens found in the prefix cache. ``reason``: stop, length, abort,
    stop_or_abort (a stop string or the client ended it: the front end finds stop strings, and then
    aborts, so that the engine does not know which), error, repetition, lost …
    """

    engine: str
    request: str
    t_ns: int
    reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A change in an engine's life: ``up`` (first process), ``ready`` or ``down``.

    ``info``, where given, replaces what is known of the engine (model, parameters …).
    """

    engine: str
    t_ns: int
    event: str
    epoch: int = 0
    info: Engine | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Steps ``first_seq`` to ``last_seq`` (inclusive) of an engine were lost."""

    engine: str
    t_ns: int
    epoch: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Clock:
    """An anchor of the monotonic clock in UTC; ``utc_ns`` counts from the Unix epoch."""

    t_ns: int
    utc_ns: int


@dataclass(frozen=True, slots=True)
class DeviceFound:
    """A device from now on belongs to the installation (sources find devices at run time).

    ``engines``: which of those that are known own it from now on; ``None``: those with no device.
    ``learned``: what an earlier life had learned of it, as JSON values (``meter.attribution``'s
    ``to_facts``).
    """

    t_ns: int
    device: Device
    engines: tuple[str, ...] | None = None
    learned: tuple[Mapping[str, Any], ...] = ()


Event = Reading | Step | RequestOpened | RequestClosed | EngineEvent | Gap | Clock | DeviceFound


# --- what the core says ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one request took. Joules of the ``gpu`` boundary (or the CPU's, for a CPU engine).

    ``id`` is what the client saw (``RequestOpened.parent``, else the engine's id); ``requests`` are
    the engine's own ids of all that it covers. For ``n > 1`` the prompt counts once, completions
    are the children's sum, and ``children`` lists one receipt for each. ``final`` is false while
    the request runs or its last step is not settled. ``uncertainty_j`` is one standard deviation of
    the split (k = 1), ``None`` where it is not known (a rule of others); the instrument's own gain
    is apart. Token counts are ``None`` where the
    engine has not said. ``missed``: why joules of it may be missing (``unattributed`` has them):
    ``meter_down`` (it began before this meter heard the engine), ``lost_steps``. Where its engine
    owns no device that was ever read ``quality`` is ``None``: its joules are not known, and no
    zeros.
    """

    id: str
    engine: str
    model: str | None
    tenant: str | None
    opened_ns: int
    closed_ns: int | None
    reason: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    prefill_j: float
    decode_j: float
    recompute_j: float
    uncertainty_j: float | None
    fidelity: Fidelity
    quality: Quality | None
    final: bool
    requests: tuple[str, ...] = ()
    children: tuple[Receipt, ...] = ()
    missed: str | None = None

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j


class Progress(StrEnum):
    """Where a request under way stands; ``settling``: it ended, its last joules are pending."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    SETTLING = "settling"


class Running(NamedTuple):
    """A request that has no final receipt yet, at the settled watermark: its joules and tokens.

    ``id`` is the name in its receipt: children (``n > 1``) are one row, as they are one receipt.
    ``measured``: whether its joules are known at all, as in a receipt.
    """

    id: str
    engine: str
    model: str | None
    tenant: str | None
    opened_ns: int
    progress: Progress
    prompt_tokens: int | None
    output_tokens: int
    prefill_j: float
    decode_j: float
    recompute_j: float
    measured: bool = True

    @property
    def energy_j(self) -> float:
        return self.prefill_j + self.decode_j + self.recompute_j


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device at the settled watermark.

    ``measured_j`` is everything the counter moved since the first reading; ``pending_j`` the part
    of it that is in no account yet. ``coefficients`` and ``coefficient_sd`` map the names of the
    cost model (``static_w, F, a, q, b, c, e``: ``meter.attribution.coefficients``) to joules (watts
    for ``static_w``); an ``sd`` of ``None`` means nothing is known. Where engines of several models
    share the device there is ``static_w`` alone, and ``by_model`` holds the others with their sd.
    ``latency_s`` is how long the last call took; ``delay_s`` how late the counter shows what was
    drawn, ``smear_s`` the width of the window over which it averages, ``delay_sd_s`` the doubt of
    the delay: all ``None`` while not found.
    ``jumps``: changes that no such device could have drawn; like ``resets`` they are left out.
    ``counter_uj``: what the counter itself said last, microjoules.
    ``settled_ns``: until when its intervals are closed, and ``drawn_j`` all that they moved until
    then, by account. That is ahead of the snapshot's accounts: what stands on steps that are not
    settled counts, in the phases in which it would settle now. For charts over time.
    """

    device: Device
    measured_j: float
    pending_j: float
    power_w: float | None
    refresh_s: float | None
    latency_s: float | None
    coefficients: Mapping[str, float]
    coefficient_sd: Mapping[str, float | None]
    intervals: int
    resets: int
    last_reading_ns: int | None
    delay_s: float | None = None
    smear_s: float | None = None
    delay_sd_s: float | None = None
    jumps: int = 0
    counter_uj: int | None = None
    by_model: Mapping[str, Mapping[str, tuple[float, float | None]]] = field(default_factory=dict)
    settled_ns: int | None = None
    drawn_j: Mapping[Account, float] = field(default_factory=dict)

    @property
    def settled_j(self) -> float:
        return self.measured_j - self.pending_j


class AccountKey(NamedTuple):
    """Names one account. ``engine`` and ``model`` are empty for what belongs to no engine."""

    engine: str
    model: str
    account: Account
    quality: Quality


class TokenKey(NamedTuple):
    """Names one count of tokens; ``token_type`` is input, input_cached or output."""

    engine: str
    model: str
    token_type: str


class TenantKey(NamedTuple):
    tenant: str
    model: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at one settled watermark. Immutable; the same for all readers.

    ``accounts`` holds joules; with ``pending_j`` their sum is ``measured_j`` (conservation).
    ``receipts_open_j`` and ``receipts_closed_j`` are the sums over receipts, computed on their own
    path (running sums), so that they check the accounts and do not repeat them.
    There, a child (``n > 1``) that has ended is closed. ``receipts_open``, ``receipts_closed`` and
    ``requests`` (by engine, model and reason) count what clients sent.
    ``tokens`` counts tokens whose energy is in the accounts. ``host``: the same of what the engines
    claim of the host, where that is read beside their GPUs; in none of the figures here.
    """

    t_ns: int
    settled_ns: int | None
    accounts: Mapping[AccountKey, float] = field(default_factory=dict)
    unattributed: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[TokenKey, int] = field(default_factory=dict)
    requests: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    tenant_energy_j: Mapping[TenantKey, float] = field(default_factory=dict)
    tenant_tokens: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    devices: tuple[DeviceState, ...] = ()
    engines: tuple[Engine, ...] = ()
    measured_j: float = 0.0
    pending_j: float = 0.0
    receipts_open: int = 0
    receipts_open_j: float = 0.0
    receipts_closed: int = 0
    receipts_closed_j: float = 0.0
    running: Mapping[str, int] = field(default_factory=dict)
    late_events: int = 0
    lost_steps: int = 0
    host: Snapshot | None = None

    def total_j(self, *accounts: Account) -> float:
        """Joules in these accounts, over all engines and models."""
        return sum((j for key, j in self.accounts.items() if key.account in accounts), 0.0)

    @property
    def attributed_j(self) -> float:
        return self.total_j(Account.PREFILL, Account.DECODE, Account.RECOMPUTE)

    @property
    def quality(self) -> Quality | None:
        """The worst of its devices."""
        return worst([state.device.quality for state in self.devices])

    @property
    def conservation_error_j(self) -> float:
        """What is left when every account and ``pending_j`` is taken from what was measured."""
        return self.measured_j - self.pending_j - sum(self.accounts.values())


_T = TypeVar("_T")


def unfrozen(frozen: type[_T]) -> type[_T]:
    """A class whose values can become ``frozen``'s, at a quarter of what its own way costs.

    For those that are made by the hundred thousand: a frozen dataclass sets each field through
    ``object.__setattr__``. Its twin is not frozen and has the same slots (but no defaults), so that
    ``value.__class__ = frozen`` is allowed, and all that is missing.
    """
    names = [(field.name, Any) for field in fields(cast("Any", frozen))]
    return cast("type[_T]", make_dataclass("Unfrozen", names, slots=True))
