"""The settings in force as YAML that can be used as a file, each key under what it means."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from meter.config.settings import Settings

_WIDTH = 80


def commented(settings: Settings) -> str:
    """YAML in 80 columns; its first lines say how else a key can be set."""
    head = (
        "# A flag wins over a variable (JOULEMETER_<SECTION>__<KEY>),",
        "# and a variable over this file.",
    )
    return "\n".join([*head, *_section(settings, "")])


def _section(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:  # {field.description}"
            yield from _section(value, indent + "  ")
            continue
        yield from _comment(f"{field.description}{_takes(field)}", indent)
        # A JSON value is a YAML value, on one line.
        yield f"{indent}{name}: {json.dumps(section.model_dump(mode='json')[name])}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _takes(field: FieldInfo) -> str:
    """The words it takes, or its bounds, where it has some: from the definition itself."""
    if get_origin(field.annotation) is Literal:
        return f" One of {', '.join(map(str, get_args(field.annotation)))}."
    low = next((rule.ge for rule in field.metadata if isinstance(rule, Ge)), None)
    above = next((rule.gt for rule in field.metadata if isinstance(rule, Gt)), None)
    high = next((rule.le for rule in field.metadata if isinstance(rule, Le)), None)
    if low is not None and high is not None:
        return f" From {low:g} to {high:g}."
    if low is not None:
        return f" {low:g} or more."
    return f" More than {above:g}." if above is not None else ""
