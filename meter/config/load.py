"""Settings: flags > environment (``JOULEMETER_…``) > YAML file > default, in one frozen object.

In the environment a section and its key are joined by two underscores:
``JOULEMETER_PRICING__PUE=1.3``. Lists are comma-separated. Unknown keys and variables are errors
that name the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from meter.config.settings import Settings, known_keys

PREFIX = "JOULEMETER_"
CONFIG_VARIABLE = "JOULEMETER_CONFIG"
# Of the same prefix, but no settings: the socket's path, the demo's and the tests' own.
_OTHERS = (
    CONFIG_VARIABLE,
    "JOULEMETER_SOCKET",
    "JOULEMETER_CACHE",
    "JOULEMETER_DEMO_MODEL",
    "JOULEMETER_FAKE_NVML",
    "JOULEMETER_FAKE_NVML_INIT",
)
# Kubernetes sets these (``NAME=value``) in every pod beside a service called joulemeter…
_KUBERNETES = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=\w+://.*)"
)
_ALL = ": `joulemeter config show` has them all"


class ConfigError(ValueError):
    """Settings that cannot be used. One line per problem: field, what is wrong, the remedy."""


def load(path: Path | None = None, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings in force. ``flags`` maps dotted keys to values; ``None`` there is not given.

    ``path`` defaults to what ``JOULEMETER_CONFIG`` names. Raises ``ConfigError``.
    """
    path = path or _path_from_environment()
    values = {} if path is None else _read(path)
    _check_environment(os.environ)
    try:
        layered = _layered(values)(**_nested(flags or {}))
        return Settings.model_validate(layered.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors()))) from error
    except SettingsError as error:
        raise ConfigError(f"environment: {error}: give a plain value, lists by commas") from error


def _path_from_environment() -> Path | None:
    value = os.environ.get(CONFIG_VARIABLE)
    return Path(value) if value else None


def _layered(values: dict[str, Any]) -> type[BaseSettings]:
    """``Settings`` with its sources; a class, for pydantic-settings takes sources by class."""

    class Layered(Settings, BaseSettings):
        model_config = SettingsConfigDict(
            frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    return Layered


def _nested(flags: Mapping[str, object]) -> dict[str, Any]:
    """``{"http.port": 1}`` as ``{"http": {"port": 1}}``, without what was not given."""
    nested: dict[str, Any] = {}
    for dotted, value in flags.items():
        if value is None:
            continue
        *sections, key = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return nested


class _Loader(yaml.SafeLoader):
    """A key that stands twice in a mapping is an error; YAML's own would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key at all: YAML says so
            if key.value in lines:
                first = lines[key.value]
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                raise ConfigError(f"{key.value!r} is given twice, in {where}: keep one of the two")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    """The file's sections. Raises ``ConfigError``."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # safe: it makes plain values
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): give the path of a YAML file"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no text, no such date, too deep
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'pricing:', found a {type(values).__name__}"
        )
    return {str(key): value for key, value in values.items()}


def _check_environment(environ: Mapping[str, str]) -> None:
    """Unknown variables of our prefix; pydantic-settings passes over most of them in silence.

    A section's own name is known too, for it may hold JSON.
    """
    keys = [key for key, _ in known_keys()]
    variables = [*map(variable, keys), *_OTHERS]
    known = {*variables, *(variable(key.split(".")[0]) for key in keys)}
    unknown = (
        f"{name}: unknown variable{_suggest_variable(name, variables)}"
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX)
        and name.upper() not in known
        and not _KUBERNETES.fullmatch(f"{name.removeprefix(PREFIX)}={value}")
    )
    if problems := "\n".join(unknown):
        raise ConfigError(problems)


def _suggest_variable(name: str, variables: list[str]) -> str:
    """The nearest variable; where none is near, that of the nearest key (``PORT``, ``PUE``)."""
    nearest = difflib.get_close_matches(name.upper(), variables, 1, 0.85)
    if nearest:
        return f": did you mean {nearest[0]}?"
    dotted = name.removeprefix(PREFIX).lower().replace("__", ".")
    key = _nearest(dotted, [key for key, _ in known_keys()])
    return f": did you mean {variable(key)}?" if key else _ALL


def _suggest(dotted: str) -> str:
    keys = [key for key, _ in known_keys()]
    sections = {key.split(".")[0] for key in keys}
    nearest = _nearest(dotted, [*keys, *sorted(sections)])
    return f": did you mean {nearest}?" if nearest else _ALL


def _nearest(dotted: str, names: list[str]) -> str | None:
    """The name most alike, by all of its words or by the last, in whichever section that is."""
    alike = {name: sorted(_alike(dotted, name), reverse=True) for name in names}
    nearest = max(alike, key=alike.__getitem__)
    return nearest if alike[nearest][0] >= 0.6 else None


def _alike(dotted: str, name: str) -> tuple[float, float]:
    """From 0 to 1 each."""
    ours, last = dotted.rpartition(".")[2], name.rpartition(".")[2]
    part = 0.9 * (ours in last or last in ours)  # "hardware" means the hardware's price
    return _ratio(dotted, name), max(part, _ratio(ours, last))


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _explain(error: ErrorDetails) -> str:
    """One problem in one line: the field, what is wrong with it, and what it takes."""
    dotted = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{dotted}: unknown setting{_suggest(dotted)}"
    key = next((key for key, _ in known_keys() if dotted.startswith(key)), dotted)
    takes = dict(known_keys()).get(key)
    if takes is None:
        return f"{key}: expected a section of keys, found {error['input']!r}{_suggest(dotted)}"
    problem = error["msg"].removeprefix("Value error, ")
    return f"{key}: {problem}, found {error['input']!r}. {takes} Set {key} or {variable(key)}."


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")
