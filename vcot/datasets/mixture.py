"""One run over several sources: the file that lists them (docs/datasets.md shows one), their shares, and what each
brought.

A part says what a run of that source alone would say on the command line, under the same names without dashes (`input`
and `images` for --input-uri and --images-uri), and is judged by the same rules. What the command line says holds for
every part that says nothing else.

Ids begin with the name of their part, `cells/instances.json:7:count:cup`, and so do the ids that rows give
themselves: files of the same name, or the same file in two parts, stay apart. Which rows of a part with a weight are
in the run is drawn for each row by the seed and its id alone, so that every process draws the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

from vcot.errors import SettingsError
from vcot.records import Rejection, Sample
from vcot.records.metadata import PartCounts
from vcot.records.reports import Portion
from vcot.reports.statistics import summed
from vcot.settings import Declared, flag, nearest, variable
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
    """One part of the file: its name, its weight, and what a run of it alone would be given."""

    name: str
    weight: Fraction | None
    settings: S


def shares(rows: Mapping[str, int], weights: Mapping[str, Fraction]) -> dict[str, float]:
    """Part → how much of it is in the largest mix with these proportions in which no row is twice.

    rows: how many each has, kept or not: what becomes of a row is not known before it is read.
    """
    most = min(rows[name] / weight for name, weight in weights.items())
    return {name: float(most * weight / rows[name]) for name, weight in weights.items()}


# --------------------------------------------------------------------------------------------------------- the file


def read(store: Store, uri: str, run: S, of_parts: Sequence[str]) -> tuple[tuple[Entry[S], ...], str]:
    """The parts that the file names, and the sha256 of the file.

    run: the settings of the whole run. of_parts: those settings that a part may say for itself.

    Raises SettingsError: everything that is wrong with the file, a line each.
    """
    import yaml  # which a run of one source need not wait for

    try:
        with store.open_read(uri) as file:
            data = file.read(_MOST_BYTES + 1)
    except NotFound as error:
        raise SettingsError(f"--mix {error}") from None
    if len(data) > _MOST_BYTES:
        raise SettingsError(f"--mix {uri} is larger than {_MOST_BYTES >> 20} MiB; it should be a list of sources")
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
    keys = {SHORT.get(name, name): name for name in of_parts}
    wrong = [f"{_called(*part)}: {line}" for part in enumerate(parts, 1) for line in _unknown_keys(run, keys, part[1])]
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


def _twice(node: Any) -> Iterator[str]:
    """Keys that stand twice in one part, as where the dash of the next one is forgotten; YAML would take the last."""
    import yaml

    for part in node.value if isinstance(node, yaml.SequenceNode) else ():
        lines_of = defaultdict(list)
        for key, _ in part.value if isinstance(part, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                lines_of[key.value].append(str(key.start_mark.line + 1))
        for name, lines in lines_of.items():
            if len(lines) > 1:
                where = " and ".join(lines)
                yield f"lines {where}: {name} stands twice in one part; does a dash before it belong there?"


def _unknown_keys(run: Declared, keys: Mapping[str, str], part: Written) -> Iterator[str]:
    kind = type(run)
    for key in (key for key in part if key not in (*OWN, *keys)):
        if key in kind.model_fields and key not in SHORT:
            yield f"{key} is one for all parts; give {flag(key)} (or {variable(kind, key)})"
        else:
            yield f"{key}: no such key{nearest(str(key), [*OWN, *keys])}"


def _entry(run: S, keys: Mapping[str, str], part: Written) -> Entry[S]:
    """Raises SettingsError: what is wrong with its values, a line each."""
    said = {keys[key]: value for key, value in part.items() if key in keys}
    given = {name: getattr(run, name) for name in run.model_fields_set - {"mix"}}
    wrong, settings = [], None
    try:
        settings = type(run).of(given | said)
    except SettingsError as error:
        said_of = str(error)
        for key, setting in keys.items():  # what the command line would say, by the names in the file
            said_of = re.sub(rf"{flag(setting)}(?![\w-])(?: \(or \w+\))?", key, said_of)
        wrong = said_of.splitlines()
    name, weight = part.get("name"), part.get("weight")
    if "name" in part and not (isinstance(name, str) and _NAME.fullmatch(name)):
        wrong.append(f"name={name!r}: a name is made of letters, digits, dots, dashes and underscores")
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (number and math.isfinite(weight) and weight > 0):
        wrong.append(f"weight={weight!r}: a weight is a number above 0, such as 1 or 0.5")
    if wrong or settings is None:
        raise SettingsError("\n".join(wrong))
    return Entry(part.get("name", part.get("source")), None if weight is None else Fraction(str(weight)), settings)


def _called(number: int, part: Written) -> str:
    name = part.get("name", part.get("source"))
    return f"part {number} ({name})" if isinstance(name, str) else f"part {number}"


def _at_odds(parts: Sequence[Written]) -> Iterator[str]:
    """What is right in each part, and wrong with all of them."""
    names = [part.get("name", part.get("source")) for part in parts]
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


# ---------------------------------------------------------------------------------------------------- what each brought


class MixtureCounts:
    """Part → rows kept, kept for training, refused by reason, and not drawn: of one shard."""

    def __init__(self) -> None:
        self._parts: defaultdict[str, dict[str, Any]] = defaultdict(
            lambda: {"kept": 0, "train": 0, "not_drawn": 0, "rejected": Counter()}
        )

    def add(self, part: str, result: Sample | Rejection) -> None:
        counts = self._parts[part]
        if isinstance(result, Rejection):
            counts["rejected"][result.reason.value] += 1
        else:
            counts["kept"] += 1
            counts["train"] += result.origin.split == "train"

    def leave_out(self, part: str) -> None:
        self._parts[part]["not_drawn"] += 1

    def counts(self) -> dict[str, PartCounts]:
        return {
            name: PartCounts(**counts | {"rejected": dict(sorted(counts["rejected"].items()))})
            for name, counts in sorted(self._parts.items())
        }


def portions(
    parts: Sequence[tuple[str, str, Fraction | None]], shards: Iterable[Mapping[str, PartCounts]]
) -> tuple[Portion, ...]:
    """Of all shards together.

    parts: name, source and weight of each. shards: part → its rows, of each shard.
    """
    nothing = {name: PartCounts() for name, _, _ in parts}
    counts = summed({name: found.model_dump() for name, found in one.items()} for one in (nothing, *shards))
    rows = {name: counts[name]["kept"] + sum(counts[name]["rejected"].values()) for name, _, _ in parts}
    all_rows, all_train = max(sum(rows.values()), 1), max(sum(found["train"] for found in counts.values()), 1)
    weights = sum(weight for _, _, weight in parts if weight is not None)
    return tuple(
        Portion(
            name=name, source=source, rows=rows[name] + (found := counts[name])["not_drawn"],
            not_drawn=found["not_drawn"], kept=found["kept"], rejected=dict(sorted(found["rejected"].items())),
            wanted=None if weight is None else float(weight / weights),
            drawn=rows[name] / all_rows, learned=found["train"] / all_train,
        )
        for name, source, weight in parts
    )  # fmt: skip
