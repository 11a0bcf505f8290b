"""Settings: flags > environment (``JOULEMETER_…``) > YAML file > default, in one frozen object.

In the environment a section and its key are joined by two underscores:
``JOULEMETER_PRICING__PUE=1.3``. Lists are comma-separated. Unknown keys and variables are errors
that name the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import select
import stat
import time
from collections.abc import Hashable, Iterable, Mapping
from itertools import islice
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
_FILE_BYTES_MAX = 1 << 18
# For what is no file: `--config <(...)`, or a pipe into which nobody writes.
_PIPE_WITHIN_S = 2.0
_ALIASES_MAX = 100
# YAML's numbers may have any base, and take seconds to read where they are long.
_NUMBER_CHARACTERS = 64
_PROBLEMS_MAX = 20
_SHOWN = 80
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
        errors = error.errors(include_url=False, include_context=False)
        raise ConfigError(_together(map(_explain, errors), len(errors))) from error
    except (SettingsError, RecursionError) as error:
        said = _cut(str(error))
        raise ConfigError(f"environment: {said}: give a plain value, lists by commas") from error


def _together(problems: Iterable[str], count: int) -> str:
    """One a line: the first ones, and how many more there are."""
    told = list(islice(problems, _PROBLEMS_MAX))
    if count > len(told):
        told.append(f"and {count - len(told)} more problems")
    return "\n".join(told)


def _cut(text: str, most: int = _SHOWN) -> str:
    """As it may stand in a message: on one line, and short."""
    text = text[: most + 1].replace("\n", " ")
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _found(value: object) -> str:
    """A value as it was found, and short: it may be nested, or of megabytes."""
    if isinstance(value, str):
        return _cut(repr(value[:_SHOWN]))
    if value and isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        return _cut(repr(value))
    except ValueError:  # of thousands of digits
        return "a number out of all range"


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
    """A key that stands twice in a mapping is an error; YAML's own would take the last.

    An alias may stand for a value or a plain list: of nested ones a few lines are worth gigabytes.
    """

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
        self._aliases += alias
        if self._aliases > _ALIASES_MAX:
            raise ConfigError(f"line {line} has one alias more than {_ALIASES_MAX}: write them out")
        node: yaml.Node | None = super().compose_node(parent, index)
        if alias and not _is_plain(node):
            raise ConfigError(f"line {line} has an alias of nested values: write them out")
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _NUMBER_CHARACTERS:
            problem = f"a number of {len(node.value)} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key at all: YAML says so
            if key.value in lines:
                first = lines[key.value]
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                name = _found(key.value)
                raise ConfigError(f"{name} is given twice, in {where}: keep one of the two")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _is_plain(node: yaml.Node | None) -> bool:
    if isinstance(node, yaml.SequenceNode):
        return node.end_mark is not None and all(  # without it, it stands for itself
            isinstance(inner, yaml.ScalarNode) for inner in node.value
        )
    return isinstance(node, yaml.ScalarNode)


def _read(path: Path) -> dict[str, Any]:
    """The file's sections. Raises ``ConfigError``."""
    try:
        text = _bytes_of(path)
        if len(text) > _FILE_BYTES_MAX:
            raise ConfigError(f"is larger than {_FILE_BYTES_MAX} bytes: is it a file of settings?")
        values = yaml.load(text.decode("utf-8"), _Loader)  # safe: it makes plain values
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): give the path of a YAML file"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {_marked(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no text, no such date, too deep
        raise ConfigError(f"{path}: is not YAML: {_cut(str(error))}") from error
    except Exception as error:  # PyYAML's constructors raise what they meet, such as KeyError
        raise ConfigError(f"{path}: is not YAML: {_cut(repr(error))}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected sections such as 'pricing:', found a {type(values).__name__}"
        )
    return {_key(key): value for key, value in values.items()}


def _bytes_of(path: Path) -> bytes:
    """The file's beginning. Of a pipe or a terminal what comes within so long: the server waits."""
    text = b""
    deadline_s = time.monotonic() + _PIPE_WITHIN_S
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
        waits_for_writer = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        while len(text) <= _FILE_BYTES_MAX:
            piece = file.read(_FILE_BYTES_MAX + 1 - len(text))
            if piece:
                text += piece
                waits_for_writer = False
                continue
            if piece == b"" and not waits_for_writer:
                break
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([file], [], [], left_s)[0]:
                raise ConfigError(f"nothing more came of it in {_PIPE_WITHIN_S:.0f} s: give a file")
            waits_for_writer = False
    return text


def _marked(error: yaml.MarkedYAMLError) -> str:
    """On one line, with its place."""
    said = _cut(error.problem or error.context or "it cannot be read")
    mark = error.problem_mark or error.context_mark
    return f"{said}, line {mark.line + 1}, column {mark.column + 1}" if mark else said


def _key(key: object) -> str:
    return key if isinstance(key, str) else _found(key)


def _check_environment(environ: Mapping[str, str]) -> None:
    """Unknown variables of our prefix; pydantic-settings passes over most of them in silence.

    A section's own name is known too, for it may hold JSON.
    """
    keys = [key for key, _ in known_keys()]
    variables = [*map(variable, keys), *_OTHERS]
    known = {*variables, *(variable(key.split(".")[0]) for key in keys)}
    unknown = [
        name
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX)
        and name.upper() not in known
        and not _KUBERNETES.fullmatch(f"{name.removeprefix(PREFIX)}={value}")
    ]
    if unknown:
        said = (
            f"{_cut(name)}: unknown variable{_suggest_variable(name[:_SHOWN], variables)}"
            for name in unknown
        )
        raise ConfigError(_together(said, len(unknown)))


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
    dotted = ".".join(_cut(str(part)) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{dotted}: unknown setting{_suggest(dotted)}"
    key = next((key for key, _ in known_keys() if dotted.startswith(key)), dotted)
    takes = dict(known_keys()).get(key)
    if takes is None:
        return (
            f"{key}: expected a section of keys, found {_found(error['input'])}{_suggest(dotted)}"
        )
    problem = _cut(error["msg"].removeprefix("Value error, "), 160)
    found = _found(error["input"])
    return f"{key}: {problem}, found {found}. {takes} Set {key} or {variable(key)}."


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")
