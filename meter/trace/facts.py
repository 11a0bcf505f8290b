"""What a trace says of devices and engines: in meta, on ``device`` lines, in ``info``."""

from __future__ import annotations

from typing import Any

from meter.model import Device, Engine, Experts, Fidelity, Layout, Quality
from meter.trace import fields
from meter.trace.errors import LineError, shown


def present(**values: Any) -> dict[str, Any]:
    """Those that are known."""
    return {name: value for name, value in values.items() if value is not None}


def device_facts(device: Device) -> dict[str, Any]:
    return present(
        name=fields.clean(device.name),
        quality=str(device.quality),
        index=device.index,
        boundary=device.boundary,
        mem_bandwidth=device.mem_bandwidth,
        power_limit_w=device.power_limit_w,
        refresh_s=device.refresh_s,
        claimed=device.claimed or None,
    )


def device_of(id: str, facts: fields.Line) -> Device:
    """Raises ``LineError``."""
    try:
        return Device(
            id=id,
            name=_text(facts, "name", id),
            quality=_quality(facts),
            index=_text(facts, "index", "0"),
            boundary=_text(facts, "boundary", "gpu"),
            mem_bandwidth=fields.amount(facts, "mem_bandwidth"),
            power_limit_w=fields.amount(facts, "power_limit_w"),
            refresh_s=fields.amount(facts, "refresh_s"),
            claimed=fields.flag(facts, "claimed"),
        )
    except LineError as error:
        raise LineError(f"device {shown(id)}: {error}") from None


def engine_facts(engine: Engine) -> dict[str, Any]:
    return present(
        devices=list(engine.devices),
        model=None if engine.model is None else fields.clean(engine.model),
        fidelity=str(engine.fidelity),
        params=engine.params,
        active_params=engine.active_params,
        weight_bytes=engine.weight_bytes,
        kv_bytes_per_token=engine.kv_bytes_per_token,
        layers=engine.layers,
        heads=engine.heads,
        head_dim=engine.head_dim,
        engine_version=engine.engine_version,
        experts=None if engine.experts is None else engine.experts._asdict(),
        layout=None if engine.layout is None else engine.layout._asdict(),
    )


def engine_of(id: str, facts: fields.Line) -> Engine:
    """Raises ``LineError``."""
    try:
        return Engine(
            id=id,
            devices=tuple(fields.as_text(d, "devices") for d in fields.rows(facts, "devices")),
            model=fields.optional_text(facts, "model"),
            fidelity=_fidelity(facts),
            params=fields.amount(facts, "params"),
            active_params=fields.amount(facts, "active_params"),
            weight_bytes=fields.amount(facts, "weight_bytes"),
            kv_bytes_per_token=fields.amount(facts, "kv_bytes_per_token"),
            layers=fields.count(facts, "layers"),
            heads=fields.count(facts, "heads"),
            head_dim=fields.count(facts, "head_dim"),
            engine_version=fields.optional_text(facts, "engine_version"),
            experts=_experts(facts),
            layout=_layout(facts),
        )
    except LineError as error:
        raise LineError(f"engine {shown(id)}: {error}") from None


def _text(facts: fields.Line, name: str, default: str) -> str:
    said = fields.optional_text(facts, name)
    return default if said is None else said


def _quality(facts: fields.Line) -> Quality:
    value = facts.get("quality", "measured")
    try:
        return Quality(value)
    except ValueError:
        raise LineError(f"quality {shown(value)} is none of {', '.join(Quality)}") from None


def _fidelity(facts: fields.Line) -> Fidelity:
    value = facts.get("fidelity", "step")
    try:
        return Fidelity(value)
    except ValueError:
        raise LineError(f"fidelity {shown(value)} is none of {', '.join(Fidelity)}") from None


def _experts(facts: fields.Line) -> Experts | None:
    said = _object(facts, "experts")
    if said is None:
        return None
    total, active = (_rank(said, "experts", name) for name in Experts._fields)
    if total is None or active is None or active > total:
        raise LineError(
            f'experts {shown(said)} is not {{"total": N, "active": K}} with K from 1 to N'
        )
    return Experts(total, active)


def _layout(facts: fields.Line) -> Layout | None:
    said = _object(facts, "layout")
    if said is None:
        return None
    return Layout(*(_rank(said, "layout", name) or 1 for name in Layout._fields))


def _object(facts: fields.Line, name: str) -> fields.Line | None:
    value = facts.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise LineError(f"{name} {shown(value)} is not an object")


def _rank(said: fields.Line, of: str, name: str) -> int | None:
    value = said.get(name)
    return None if value is None else fields.as_whole(value, f"{of}.{name}", 1, fields.RANKS_MAX)
