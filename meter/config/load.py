"""Settings: flags > environment (``JOULEMETER_…``) > YAML file > default, in one frozen object.

In the environment a section and its key are joined by two underscores:
``JOULEMETER_PRICING__PUE=1.3``. Lists are comma-separated. Unknown keys are errors that name the
nearest known key.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from meter.config.settings import Settings, known_keys

PREFIX = "JOULEMETER_"
CONFIG_VARIABLE = "JOULEMETER_CONFIG"


class ConfigError(ValueError):
    """Settings that cannot be used. One line per problem: field, what is wrong, the remedy."""


def load(path: Path | None = None, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings in force. ``flags`` maps dotted keys to values; ``None`` there is not given.

    ``path`` defaults to what ``JOULEMETER_CONFIG`` names. Raises ``ConfigError``.
    """
    path = path or _path_from_environment()
    if path is not None:
        _check_file(path)
    _check_environment(os.environ)
    try:
        layered = _layered(path)(**_nested(flags or {}))
        return Settings.model_validate(layered.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors()))) from error
    except SettingsError as error:
        raise ConfigError(f"environment: {error}: give a plain value, lists by commas") from error


def _path_from_environment() -> Path | None:
    value = os.environ.get(CONFIG_VARIABLE)
    return Path(value) if value else None


def _layered(path: Path | None) -> type[BaseSettings]:
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
            file = YamlConfigSettingsSource(settings_cls, yaml_file=path)
            return init_settings, env_settings, file

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


def _check_file(path: Path) -> None:
    """That the file is there and is a YAML mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'pricing:', found a {type(values).__name__}"
        )


def _check_environment(environ: Mapping[str, str]) -> None:
    """Unknown sections in the environment; pydantic-settings passes over them in silence."""
    sections = {key.split(".")[0] for key, _ in known_keys()}
    for name in sorted(environ):
        section, nested, _ = name.removeprefix(PREFIX).partition("__")
        if not name.startswith(PREFIX) or section.lower() in sections:
            continue
        dotted = name.removeprefix(PREFIX).lower().replace("__", ".")
        keys = [key for key, _ in known_keys()]
        nearest = difflib.get_close_matches(dotted, keys, 1, 0.7)
        if nested or nearest or any(key.startswith(dotted) for key in keys):
            raise ConfigError(f"{name}: unknown setting{_suggest(dotted)}")


def _suggest(dotted: str) -> str:
    keys = [key for key, _ in known_keys()]
    nearest = difflib.get_close_matches(dotted, keys, 1, 0.4)
    if not nearest:  # by its last word alone, in whichever section that is
        last = {key.rpartition(".")[2]: key for key in keys}
        nearest = [last[n] for n in difflib.get_close_matches(dotted.rpartition(".")[2], last, 1)]
    return f": did you mean {nearest[0]}?" if nearest else ": `joulemeter config show` has them all"


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
