"""Do two labels name the same thing? Rewards and evaluation pair boxes by this rule.

Two labels are the same if they are equal once normalised as answers are (vcot.answers.normalise: without case, a
leading article, marks around them), with "_" and "-" as blanks and the last word in singular or plural; or if somebody
has declared them synonyms. Nothing else is: a "cup" is no "red cup", and "mug" is a "cup" only where that is declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from vcot.answers import normalise


@dataclass(frozen=True)
class Synonyms:
    """Names for one thing, in groups. Without any group: the rule alone."""

    groups: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, declared: Iterable[str]) -> Self:
        """From "wbc=leukocyte=white blood cell": all names of one thing.

        Raises:
            ValueError: an entry has less than two names, or a name stands in two entries.
        """
        rule, groups = cls(), list[tuple[str, ...]]()
        for entry in declared:
            names = tuple(name.strip() for name in entry.split("="))
            if len(names) < 2 or not all(names):
                raise ValueError(f"{entry!r} declares no synonyms; write name=other name, as in wbc=white blood cell")
            for name in names:
                if any(rule.same(name, other) for group in groups for other in group):
                    raise ValueError(f"{name!r} stands in two entries; write all names of a thing in one: a=b=c")
            groups.append(names)
        return cls(tuple(groups))

    def same(self, label: str, other: str) -> bool:
        if _alike(label, other):
            return True
        return any(
            any(_alike(label, name) for name in group) and any(_alike(other, name) for name in group)
            for group in self.groups
        )

    def distinct(self, labels: Iterable[str]) -> list[str]:
        """Of labels that are the same, the first."""
        found: list[str] = []
        for label in labels:
            if not any(self.same(label, other) for other in found):
                found.append(label)
        return found

    def pairable(self, predicted: Sequence[str], true: Sequence[str]) -> list[list[bool]] | None:
        """For the label of each predicted box (row) and of each true one (column), whether they may be paired.

        None: all may. Where the truth has one name, as when a question refers to one thing, none is needed. A true
        box that nobody named goes with every name.
        """
        if len(self.distinct(filter(None, true))) < 2:
            return None
        return [[not label or self.same(said, label) for label in true] for said in predicted]


NO_SYNONYMS = Synonyms()


def _alike(label: str, other: str) -> bool:
    a, b = _plain(label), _plain(other)
    return a == b or (bool(a and b) and (plural(a) == b or a == plural(b)))


def _plain(label: str) -> str:
    return normalise(label.replace("_", " ").replace("-", " "))


_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "wolf": "wolves",
    "bus": "buses", "shoe": "shoes", "canoe": "canoes", "cookie": "cookies", "movie": "movies", "sheep": "sheep",
    "broccoli": "broccolis", "taxi": "taxis", "skis": "skis", "scissors": "scissors",
    "trousers": "trousers", "fish": "fish",
}  # fmt: skip
_SINGULARS = {many: one for one, many in _PLURALS.items()}


def plural(noun: str) -> str:
    """The last word in the plural: "white blood cells", "people", "buses". English only."""
    before, _, last = noun.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return f"{before} {last}".strip()


def singular(noun: str) -> str:
    """The last word in the singular: "red discs" → "red disc". English only, and only its common forms."""
    before, _, last = noun.rpartition(" ")
    lower = last.casefold()
    if lower in _SINGULARS:
        last = _SINGULARS[lower]
    elif lower.endswith("ies") and len(last) > 4:
        last = f"{last[:-3]}y"
    elif lower.endswith(("sses", "shes", "ches", "xes", "zzes")) or (lower.endswith("oes") and len(last) > 4):
        last = last[:-2]
    elif lower.endswith("s") and not lower.endswith(("ss", "us", "is")) and len(last) > 2:
        last = last[:-1]
    return f"{before} {last}".strip()
