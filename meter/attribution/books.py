"""The accounts: every settled joule and every counted token, by whom and what for."""

from __future__ import annotations

from collections import defaultdict

from meter.attribution import passes
from meter.attribution.bill import Bill
from meter.attribution.curve import Ints
from meter.attribution.settled import Settled
from meter.model import Account, AccountKey, Quality, Receipt, TenantKey, TokenKey

#: Why joules are unattributed that came to no account in any other way. There are none, as far as
#: is known: this is what keeps the sum true if that is wrong.
NO_PAYER = "no_payer"
_ROUNDING = 1e-9


def unless_rounding(rest_j: float, of_j: float) -> float:
    """What is left of a sum when its parts are taken from it; 0 where that is only rounding."""
    return rest_j if rest_j > _ROUNDING * abs(of_j) else 0.0


class Books:
    """Sums that only grow. They are fed by passes and intervals, never by receipts."""

    def __init__(self) -> None:
        self.accounts: defaultdict[AccountKey, float] = defaultdict(float)
        self.unattributed: defaultdict[str, float] = defaultdict(float)
        self.tokens: defaultdict[TokenKey, int] = defaultdict(int)
        self.tenant_energy_j: defaultdict[TenantKey, float] = defaultdict(float)
        self.tenant_tokens: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._owed: defaultdict[TokenKey, int] = defaultdict(int)

    def add(
        self, engine: str, model: str, account: Account, quality: Quality, energy_j: float
    ) -> None:
        if energy_j:
            self.accounts[AccountKey(engine, model, account, quality)] += energy_j

    def unattribute(self, reason: str, quality: Quality, energy_j: float) -> None:
        if energy_j:
            self.unattributed[reason] += energy_j
            self.add("", "", Account.UNATTRIBUTED, quality, energy_j)

    def add_block(
        self, engine: str, model: str, quality: Quality, block: Settled, booked_j: float
    ) -> None:
        """Book settled passes: each phase pays its head count's share and its own work.

        ``booked_j``: what devices have booked on them; what no phase pays of it is unattributed.
        """
        rows = block.rows
        prefill_j = _sum(block, *rows[:, passes.P_HEADS : passes.R_HEADS].T)
        recompute_j = _sum(block, *rows[:, passes.R_HEADS : passes.D_HEADS].T)
        heads, tokens, context = rows[:, passes.D_HEADS : passes.EMITTED].T
        decode_j = block.fixed_j @ heads + (block.decode_j + block.expert_j) @ tokens
        decode_j += block.context_j @ context
        self.add(engine, model, Account.PREFILL, quality, prefill_j)
        self.add(engine, model, Account.RECOMPUTE, quality, recompute_j)
        self.add(engine, model, Account.DECODE, quality, float(decode_j))
        paid_j = prefill_j + recompute_j + float(decode_j)
        self.unattribute(NO_PAYER, quality, unless_rounding(booked_j - paid_j, booked_j))
        self.count(TokenKey(engine, model, "input"), int(rows[:, passes.P_TOKENS].sum()))
        self.count(TokenKey(engine, model, "output"), int(rows[:, passes.EMITTED].sum()))

    def count(self, key: TokenKey, tokens: int) -> None:
        """Count tokens; a correction downwards is owed and taken from later ones."""
        if tokens < 0:
            self._owed[key] -= tokens
            return
        paid = min(tokens, self._owed[key])
        self._owed[key] -= paid
        self.tokens[key] += tokens - paid

    def close(self, receipt: Receipt, bill: Bill) -> None:
        """A request is over: what only its end tells (cached and first tokens, its tenant)."""
        engine, model = receipt.engine, receipt.model or ""
        if receipt.cached_tokens:
            self.count(TokenKey(engine, model, "input_cached"), receipt.cached_tokens)
        if receipt.completion_tokens is not None:
            missing = receipt.completion_tokens - bill.decoded
            self.count(TokenKey(engine, model, "output"), missing)
        if receipt.tenant is not None:
            tenant = receipt.tenant
            self.tenant_energy_j[TenantKey(tenant, model)] += receipt.energy_j
            for token_type, tokens in (
                ("input", bill.prefilled),
                ("input_cached", receipt.cached_tokens),
                ("output", receipt.completion_tokens),
            ):
                if tokens:
                    self.tenant_tokens[tenant, model, token_type] += tokens


def _sum(block: Settled, heads: Ints, tokens: Ints, pairs: Ints) -> float:
    """Joules of prefill (or recomputed) work over a block."""
    own = (block.prefill_j + block.expert_j) @ tokens + block.pair_j @ pairs
    return float(block.fixed_j @ heads + own)
