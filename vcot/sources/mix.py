"""mix.yaml: several sources in one run, each with its own files and options, and with a weight where one is wanted.

    - source: viscot
      input: s3://data/viscot/metadata
      images: s3://data/viscot/cot_images_tar_split
      weight: 3
    - source: coco
      name: cells
      input: s3://data/bccd/instances.json
      absent: 2
      weight: 1

A part says what a run of that source alone would say on the command line, under the same names without dashes (`input`
and `images` for --input-uri and --images-uri), and is judged by the same rules. What the command line says holds for
every part that says nothing else.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

import yaml

from vcot.errors import SettingsError
from vcot.settings import Declared, flag, variable
from vcot.storage import NotFound, Store

SHORT = {"input_uri": "input", "images_uri": "images"}
"""Setting → what it is called in the file; all others keep their names."""
OWN = ("name", "weight")
"""What a part says of itself and no setting is for."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_BYTES = 1 << 20
S = TypeVar("S", bound=Declared)
Written = Mapping[str, Any]


@dataclass(frozen=True)
class Entry(Generic[S]):
    """One part: what its ids begin with, its share beside the others, and what a run of it alone would be given."""

    name: str
    weight: Fraction | None
    settings: S


def read(store: Store, uri: str, run: S, of_parts: Sequence[str]) -> tuple[tuple[Entry[S], ...], str]:
    """The parts that the file names, and the sha256 of the file.

    run: the settings of the whole run. of_parts: those settings that a part may say for itself.

    Raises:
        SettingsError: everything that is wrong with the file, a line each.
    """
    data = _fetched(store, uri)
    parts = _parsed(data, uri)
    keys = {SHORT.get(name, name): name for name in of_parts}
    wrong = [line for number, part in enumerate(parts, 1) for line in _strange(run, keys, number, part)]
    found: list[Entry[S]] = []
    for number, part in enumerate(parts, 1):
        try:
            found.append(_entry(run, keys, part))
        except SettingsError as error:
            wrong += [f"{_called(number, part)}: {line}" for line in str(error).splitlines()]
    wrong += _at_odds(parts)
    if wrong:
        raise SettingsError("\n".join(f"{uri}, {line}" for line in wrong))
    return tuple(found), hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------------------------------------- the file


def _fetched(store: Store, uri: str) -> bytes:
    try:
        with store.open_read(uri) as file:
            data = file.read(_MOST_BYTES + 1)
    except NotFound as error:
        raise SettingsError(f"--mix {error}") from None
    if len(data) > _MOST_BYTES:
        raise SettingsError(f"--mix {uri} is larger than {_MOST_BYTES >> 20} MiB; it should be a list of sources")
    return data


def _parsed(data: bytes, uri: str) -> list[Written]:
    """The parts as they are written. Raises SettingsError: that is no list of them."""
    try:
        twice = list(_twice(yaml.compose(data, yaml.SafeLoader)))
        parts = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{uri} is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise SettingsError(
            f"{uri} should be a list of parts, each beginning with '- source: …' and its other keys below that; "
            f"it is {repr(parts)[:120]}"
        )
    if twice:
        raise SettingsError("\n".join(f"{uri}, {line}" for line in twice))
    return parts


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Keys that stand twice in one part, as where the dash of the next one is forgotten; YAML would take the last."""
    for part in node.value if isinstance(node, yaml.SequenceNode) else ():
        keys = [key for key, _ in part.value] if isinstance(part, yaml.MappingNode) else []
        often = Counter(key.value for key in keys if isinstance(key, yaml.ScalarNode))
        for name in (name for name, times in often.items() if times > 1):
            lines = [str(key.start_mark.line + 1) for key in keys if key.value == name]
            yield f"lines {' and '.join(lines)}: {name} stands twice in one part; does a dash before it belong there?"


# --------------------------------------------------------------------------------------------------------- one part


def _strange(run: Declared, keys: Mapping[str, str], number: int, part: Written) -> Iterator[str]:
    """Keys that no part has."""
    kind = type(run)
    for key in (key for key in part if key not in (*OWN, *keys)):
        if key in kind.model_fields and key not in SHORT:
            yield f"{_called(number, part)}: {key} is one for all parts; give {flag(key)} (or {variable(kind, key)})"
        else:
            near = difflib.get_close_matches(str(key), [*OWN, *keys], n=1, cutoff=0.5)
            yield f"{_called(number, part)}: {key}: no such key{f'; did you mean {near[0]}?' if near else ''}"


def _entry(run: S, keys: Mapping[str, str], part: Written) -> Entry[S]:
    """Raises SettingsError: what is wrong with its values, a line each."""
    said = {keys[key]: value for key, value in part.items() if key in keys}
    given = {name: getattr(run, name) for name in run.model_fields_set - {"mix"}}
    wrong, settings = [], None
    try:
        settings = type(run).of(given | said)
    except SettingsError as error:
        wrong = [_as_in_the_file(line, keys) for line in str(error).splitlines()]
    name, weight = part.get("name"), part.get("weight")
    if "name" in part and not (isinstance(name, str) and _NAME.fullmatch(name)):
        wrong.append(f"name={name!r}: a name is made of letters, digits, dots, dashes and underscores")
    if weight is not None and not _is_weight(weight):
        wrong.append(f"weight={weight!r}: a weight is a number above 0, such as 1 or 0.5")
    if wrong or settings is None:
        raise SettingsError("\n".join(wrong))
    return Entry(_name(part), None if weight is None else Fraction(str(weight)), settings)


def _name(part: Written) -> Any:
    return part.get("name", part.get("source"))


def _is_weight(said: Any) -> bool:
    return isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said) and said > 0


def _as_in_the_file(line: str, keys: Mapping[str, str]) -> str:
    """What the command line would say of a setting, by its name in the file."""
    for key, name in keys.items():
        line = re.sub(rf"{flag(name)}(?![\w-])(?: \(or \w+\))?", key, line)
    return line


def _called(number: int, part: Written) -> str:
    name = _name(part)
    return f"part {number} ({name})" if isinstance(name, str) else f"part {number}"


# ------------------------------------------------------------------------------------------------ all of them together


def _at_odds(parts: Sequence[Written]) -> Iterator[str]:
    """What is right in each part, and wrong with all of them."""
    names = [_name(part) for part in parts]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        numbers = [str(number) for number, other in enumerate(names, 1) if other == name]
        if len(numbers) > 1:
            yield (
                f"parts {' and '.join(numbers)} are both called {name}, and ids of rows begin with that: "
                f"give one another name, as in name: {name}-2"
            )
    without = [str(number) for number, part in enumerate(parts, 1) if part.get("weight") is None]
    if 0 < len(without) < len(parts):
        those = f"part{'s' * (len(without) > 1)} {' and '.join(without)}"
        yield f"{those}: the weight is missing; all parts have one, or none has and all rows count"
