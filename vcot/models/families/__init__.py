"""Model families: what is true of all models of one architecture, in one file each, and one table.

    family_of(config)               of a loaded config.json, by its model_type
    family_in(folder)               of a base model's folder
    family_of_processor(processor)  of a loaded processor

A family says in which numbers its models write boxes, how an image becomes visual tokens, how tokens are counted, which
modules are which part of the model, and what its processor and its forward pass take. The rest of vcot asks it and
knows no family by name. A new one is a file with a class, a line in FAMILIES, and a maker in tests/fakes/families.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vcot.errors import InputError
from vcot.models.families.base import Family, Grid, Part
from vcot.models.families.internvl import InternVL
from vcot.models.families.qwen2_5_vl import Qwen25VL
from vcot.models.families.qwen2_vl import Qwen2VL
from vcot.models.families.qwen3_vl import Qwen3VL

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in (Qwen2VL(), Qwen25VL(), Qwen3VL(), InternVL())}
)
"""By the model_type of config.json."""


def family_of(config: Any, where: object = "this base") -> Family:
    """Of a configuration of transformers, or of what config.json holds.

    Raises InputError where it is none of FAMILIES; `where` names the base in its message.
    """
    found = str(config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None))
    if found not in FAMILIES:
        raise InputError(f"{where}: its model_type in config.json is {found!r}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[found]


def family_in(folder: Path) -> Family:
    """Of the base model in a local folder. Raises InputError as family_of, and where no config.json can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no model is described there: {error}") from None
    return family_of(config if isinstance(config, dict) else {}, folder)


def family_of_processor(processor: Any) -> Family:
    """Raises InputError where it is the processor of none of FAMILIES."""
    found = type(processor).__name__
    for family in FAMILIES.values():
        if family.processor_class == found:
            return family
    known = ", ".join(family.processor_class for family in FAMILIES.values())
    raise InputError(f"the base's processor is a {found}; supported are {known}")
