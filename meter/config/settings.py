"""Every setting, defined once: its type, its bounds, its default and what it means.

What is written here is what ``joulemeter config show`` explains and what an error quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from meter.pricing.tariff import PRICE_MAX, PUE_MAX

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")

#: No host's CPUs draw more.
CPU_W_MAX = 100_000.0
#: A host has fewer devices, and no name or path of any system is longer.
_NAMES_MAX = 256
_NAME_CHARS_MAX = 256
_PATH_CHARS_MAX = 4096
#: Digits of a price or a ratio: nobody's has more.
_DIGITS_MAX = 30


def _listed(value: object) -> object:
    """``a,b`` as it comes from the environment or a flag; a list as it comes from YAML."""
    if isinstance(value, str):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list | tuple):
        return value
    names = tuple(str(part) if _is_whole(part) else part for part in value)
    if len(names) > _NAMES_MAX:
        raise ValueError(f"expected at most {_NAMES_MAX} names")
    if any(not isinstance(name, str) or len(name) > _NAME_CHARS_MAX for name in names):
        raise ValueError(f"expected names of at most {_NAME_CHARS_MAX} characters, or numbers")
    return names


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> object:
    """``yes`` is a YAML boolean: it is no 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _text_to_decimal(value: object) -> object:
    """A YAML float as its shortest text, so that 0.3 is three tenths and not 0.299999…"""
    return str(value) if isinstance(_number(value), float) else value


def _path(value: object) -> object:
    """What may be a path: a text that a system takes for one."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("expected a path, and it is empty")
    if len(text) > _PATH_CHARS_MAX or "\0" in text:
        raise ValueError(f"expected a path of at most {_PATH_CHARS_MAX} characters without NUL")
    return value


def _file(value: Path) -> Path:
    if _is_folder(value):
        raise ValueError("expected a file, and it is a folder")
    return value


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _folder(value: Path) -> Path:
    try:
        other = value.exists() and not value.is_dir()
    except OSError:
        other = False
    if other:
        raise ValueError("expected a folder, and it is a file")
    return value


def _host(value: str) -> str:
    if len(value) > _NAME_CHARS_MAX or not value.isprintable() or " " in value:
        raise ValueError("expected a host's name or address")
    return value


def _currency(value: str) -> str:
    if len(value) != 3 or not value.isalpha() or not value.isupper():
        raise ValueError("expected a code of ISO 4217 in capitals, such as EUR or USD")
    return value


def _host_name(value: str) -> str:
    """A name without scheme, port and path: what is compared with a request's Host."""
    name = value.lower().removesuffix(".")
    if name != "*" and not _HOST_NAME.fullmatch(name.removeprefix("*.")):
        raise ValueError(
            "expected names without port, such as meter.example.com or *.svc.cluster.local"
        )
    return name


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_listed)
]
Money = Annotated[
    Decimal,
    BeforeValidator(_text_to_decimal),
    Field(allow_inf_nan=False, max_digits=_DIGITS_MAX),
]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Place = Annotated[Path, BeforeValidator(_path)]
File = Annotated[Place, AfterValidator(_file)]
Folder = Annotated[Place, AfterValidator(_folder)]


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        """``pricing:`` with nothing under it, or nothing but comments, sets nothing."""
        return {} if value is None else value


class PowerSettings(Section):
    """Where joules come from."""

    source: Literal["auto", "nvml", "cpu", "simulated"] = Field(
        default="auto",
        description="nvml: the GPUs' energy counters; cpu: this machine's CPU (RAPL, else an "
        "estimate); auto: nvml where there are GPUs, else cpu; simulated: the demo's card, without "
        "NVML.",
    )
    nvml_library: File | None = Field(
        default=None,
        description="Path of libnvidia-ml.so.1, where it is not the system's.",
    )
    devices: Names = Field(
        default=(),
        description="GPUs to meter, by index or UUID; default: those of the engine.",
    )
    rate_hz: Real = Field(
        default=50.0,
        ge=1.0,
        le=200.0,
        description="Readings per second and device (20 to 50 suit NVML).",
    )
    cpu_idle_w: Real = Field(
        default=20.0,
        ge=0.0,
        le=CPU_W_MAX,
        description="Power (W) of the idle CPU, for the estimate where RAPL cannot be read.",
    )
    cpu_max_w: Real = Field(
        default=100.0,
        gt=0.0,
        le=CPU_W_MAX,
        description="Power (W) of the fully busy CPU, for the estimate where RAPL cannot be read.",
    )

    powercap: Folder = Field(
        default=Path("/sys/class/powercap"),
        description="Where the kernel's powercap tree (RAPL) is.",
    )
    lock_directory: Folder | None = Field(
        default=None,
        description="Where the devices' locks are, by which one meter alone owns each, every "
        "user's in a folder of its own; all meters of a host must share it. Default: /dev/shm, for "
        "root /run.",
    )

    @field_validator("cpu_max_w")
    @classmethod
    def _above_idle(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("cpu_idle_w", 0.0):
            raise ValueError("expected more than power.cpu_idle_w")
        return value


class EngineSettings(Section):
    """The inference engine that is metered."""

    devices: Names = Field(
        default=(),
        description="The engine's GPUs, by index or UUID; default: CUDA_VISIBLE_DEVICES of the "
        "command, else all.",
    )


class CalibrationSettings(Section):
    """What is learned of the devices."""

    remember: bool = Field(
        default=True,
        description="Keep what was learned of each device, so that the next run begins with it.",
    )
    directory: Folder | None = Field(
        default=None,
        description="Where it is kept; default: $STATE_DIRECTORY (systemd's), else "
        "$XDG_STATE_HOME/joulemeter, else ~/.local/state/joulemeter.",
    )


class PricingSettings(Section):
    """Flat prices. What is not given is unknown, and its metrics are absent."""

    currency: Annotated[str, AfterValidator(_currency)] = Field(
        default="USD", description="Currency of all prices here, ISO 4217."
    )
    electricity_price_per_kwh: Annotated[Money, Field(ge=-PRICE_MAX, le=PRICE_MAX)] | None = Field(
        default=None, description="Price of a kilowatt-hour; may be negative."
    )
    pue: Annotated[Money, Field(ge=1, le=PUE_MAX)] | None = Field(
        default=None,
        description="Power usage effectiveness, facility energy / IT energy, 1 or more; without it "
        "electricity costs are a lower bound.",
    )
    hardware_price_per_hour: Annotated[Money, Field(ge=0, le=PRICE_MAX)] | None = Field(
        default=None, description="Price of an hour of all metered hardware together."
    )


class HttpSettings(Section):
    """Where metrics, receipts and the page are served."""

    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1", min_length=1, description="Address to listen on."
    )
    port: Annotated[int, BeforeValidator(_number)] = Field(
        default=29401,
        ge=0,
        le=65535,
        description="Port; 0 takes a free one. Where none is set and 29401 is taken, the next free "
        "one is used and told; one that is set and taken is an error.",
    )

    @property
    def port_is_set(self) -> bool:
        """By a flag, a variable or a file, and be it to the default."""
        return "port" in self.model_fields_set

    allowed_hosts: HostNames = Field(
        default=(),
        description="Names under which the port may be asked, beside addresses, localhost and this "
        "machine's own name: where Prometheus or a browser asks by another (a service of "
        "Kubernetes or compose, a proxy) it is answered 421. *.example.com allows all names below "
        "it, * any, which lets web pages of others read receipts (DNS rebinding).",
    )


class Settings(Section):
    """Everything that can be set."""

    power: PowerSettings = Field(default_factory=PowerSettings, description="Where joules are.")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="What is metered.")
    calibration: CalibrationSettings = Field(
        default_factory=CalibrationSettings, description="What is learned of the devices."
    )
    pricing: PricingSettings = Field(default_factory=PricingSettings, description="Flat prices.")
    http: HttpSettings = Field(default_factory=HttpSettings, description="The meter's own port.")
    record: File | None = Field(
        default=None,
        description="Write a trace of all events to this file (.gz and .zst compress).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning",
        description="The least severe of the meter's own messages that are shown.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="How they look on stderr: text, lines that begin with joulemeter:, as the "
        "server's own log has lines of text; or json, an object a line.",
    )


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key in dotted form with its description."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""
