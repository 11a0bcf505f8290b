"""The accounts: every settled joule and every counted token, by whom and what for."""

from __future__ import annotations

from collections import defaultdict

from meter.attribution.batch import Pass
from meter.model import Account, AccountKey, Quality, Receipt, TenantKey, TokenKey


class Books:
    """Sums that only grow. They are fed by passes and intervals, never by receipts."""

    def __init__(self) -> None:
        self.accounts: defaultdict[AccountKey, float] = defaultdict(float)
        self.unattributed: defaultdict[str, float] = defaultdict(float)
        self.tokens: defaultdict[TokenKey, int] = defaultdict(int)
        self.requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
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

    def add_pass(self, engine: str, model: str, quality: Quality, done: Pass) -> None:
        """Book a settled pass: each phase pays its head count's share and its own work."""
        fixed_j = (done.step_w + done.gap_j) / done.participants
        for account, totals in (
            (Account.PREFILL, done.prefill),
            (Account.RECOMPUTE, done.recompute),
        ):
            energy_j = (
                fixed_j * totals.requests
                + done.prefill_w * totals.tokens
                + done.pair_w * totals.pairs
            )
            self.add(engine, model, account, quality, energy_j)
        decode = done.decode
        energy_j = (
            fixed_j * decode.requests
            + done.decode_w * decode.tokens
            + done.context_w * decode.context
        )
        self.add(engine, model, Account.DECODE, quality, energy_j)
        self.count(TokenKey(engine, model, "input"), done.prefill.tokens)
        self.count(TokenKey(engine, model, "output"), done.emitted)

    def count(self, key: TokenKey, tokens: int) -> None:
        """Count tokens; a correction downwards is owed and taken from later ones."""
        if tokens < 0:
            self._owed[key] -= tokens
            return
        paid = min(tokens, self._owed[key])
        self._owed[key] -= paid
        self.tokens[key] += tokens - paid

    def close(self, receipt: Receipt, counted_output: int) -> None:
        """A request is over: what only its end tells (cached and first tokens, its tenant)."""
        engine, model = receipt.engine, receipt.model or ""
        self.requests[engine, model, receipt.reason or "unknown"] += 1
        if receipt.cached_tokens:
            self.count(TokenKey(engine, model, "input_cached"), receipt.cached_tokens)
        if receipt.completion_tokens is not None:
            missing = receipt.completion_tokens - counted_output
            self.count(TokenKey(engine, model, "output"), missing)
        if receipt.tenant is not None:
            tenant = receipt.tenant
            self.tenant_energy_j[TenantKey(tenant, model)] += receipt.energy_j
            for token_type, tokens in (
                ("input", receipt.prompt_tokens),
                ("output", receipt.completion_tokens),
            ):
                if tokens:
                    self.tenant_tokens[tenant, model, token_type] += tokens
