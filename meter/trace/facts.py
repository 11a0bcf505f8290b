"""What a trace says of devices and engines: in meta, on ``device`` lines, in ``info``."""

from __future__ import annotations

from typing import Any

from meter.model import Device, Engine, Experts, Fidelity, Layout, Quality
from meter.trace import fields
from meter.trace.errors import LineError, shown

_DEVICES_MAX = 256
_REFRESH_S_MIN = 1e-4
_REFRESH_S_MAX = 600.0


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
            mem_bandwidth=_known(facts, "mem_bandwidth", 1e6, 1e16),
            power_limit_w=_known(facts, "power_limit_w", 0.1, 1e6),
            refresh_s=_refresh_s(facts),
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
        owns_none=engine.owns_none or None,
    )


def engine_of(id: str, facts: fields.Line) -> Engine:
    """Raises ``LineError``."""
    try:
        devices = _devices(facts)
        return Engine(
            id=id,
            devices=devices,
            model=fields.optional_text(facts, "model"),
            fidelity=_fidelity(facts),
            params=_known(facts, "params", 1.0, 1e16),
            active_params=_known(facts, "active_params", 1.0, 1e16),
            weight_bytes=_known(facts, "weight_bytes", 1.0, 1e17),
            kv_bytes_per_token=_known(facts, "kv_bytes_per_token", 1e-3, 1e12),
            layers=fields.count(facts, "layers", fields.RANKS_MAX) or None,
            heads=fields.count(facts, "heads", fields.RANKS_MAX) or None,
            head_dim=fields.count(facts, "head_dim", fields.RANKS_MAX) or None,
            engine_version=fields.optional_text(facts, "engine_version"),
            experts=_experts(facts),
            layout=_layout(facts),
            owns_none=fields.flag(facts, "owns_none") and not devices,
        )
    except LineError as error:
        raise LineError(f"engine {shown(id)}: {error}") from None


def _devices(facts: fields.Line) -> tuple[str, ...]:
    """Each once."""
    said = fields.rows(facts, "devices")
    if len(said) > _DEVICES_MAX:
        raise LineError(f"devices: {len(said)} are named, and {_DEVICES_MAX} is the most")
    return tuple(dict.fromkeys(fields.as_text(device, "devices") for device in said))


def _known(facts: fields.Line, name: str, least: float, most: float) -> float | None:
    """A number that a data sheet may have; some say 0 where they do not know it."""
    value = fields.real(facts, name)
    if not value:
        return None
    if not least <= value <= most:
        raise LineError(f"{name} {shown(facts[name])} is not from {least:g} to {most:g}")
    return value


def _refresh_s(facts: fields.Line) -> float | None:
    """0: the counter moves all the time."""
    value = fields.real(facts, "refresh_s")
    if value and not _REFRESH_S_MIN <= value <= _REFRESH_S_MAX:
        span = f"0, nor from {_REFRESH_S_MIN:g} to {_REFRESH_S_MAX:g}"
        raise LineError(f"refresh_s {shown(facts['refresh_s'])} is neither {span}")
    return value


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
