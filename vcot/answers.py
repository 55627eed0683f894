"""Are two answers the same (option letters, numbers, text)? Do two labels name the same thing?

Rewards and metrics stand on this page, so it is strict where being generous could be exploited: a part of an answer is
not the answer ("25" is not "5"), no answer is never right, and a "cup" is no "red cup".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, Self

_AROUND = " \t\n.,;:!?\"'`*“”‘’„«»"
_ARTICLE = re.compile(r"\A(?:the|an|a) (?=\S)")


def normalise(text: str) -> str:
    """The text as it is compared: without case, marks around it, a leading article, and double white space.

    "The red gear." and "red gear" are one answer. Where nothing would be left ("?", "…"), only white space and case go.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _ARTICLE.sub("", plain.strip(_AROUND)) or plain


def same(predicted: str, accepted: Sequence[str], choices: Sequence[str] | None = None) -> bool:
    """Whether the prediction is one of the accepted answers.

    With `choices`, both sides are first read as an option (letter or text) and then only the option counts.
    Numbers are compared as numbers, see `number`: within the rounding of the accepted one if that has decimals
    ("3.14" accepts 3.1416, "5" does not accept 5.04). To a "yes" or "no", a prediction may add an explanation
    after a comma or full stop. Everything else must be equal once normalised.
    """
    if not normalise(predicted):
        return False
    if choices:
        chosen = letter(predicted, choices)
        right = {letter(answer, choices) for answer in accepted} - {None}
        if chosen is not None and right:
            return chosen in right
    return any(_same_text(predicted, answer) for answer in accepted)


def _same_text(predicted: str, accepted: str) -> bool:
    said, true = _quantity(predicted), _quantity(accepted)
    if said is not None and true is not None:
        same_unit = not said.currency or not true.currency or said.currency == true.currency
        return same_unit and abs(said.value - true.value) <= true.tolerance
    plain, wanted = normalise(predicted), normalise(accepted)
    if wanted in ("yes", "no"):
        plain = re.split(r"[.,;:]", plain, maxsplit=1)[0]
    return plain == wanted != ""


# -------------------------------------------------------------------------------------------- option letters

_OPTION = re.compile(
    r"\s*(?:the )?(?:correct )?(?:answer|option|choice)?(?: is)?:?\s*"
    r"(?:\(([a-z])\)|([a-z])\s*[).:]|([a-z])\s*\Z)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)


def letter(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text names, as "A", "B", …; None if it names none or contradicts itself.

    Understood are the text of a choice, its letter ("b", "(B)", "B.", "Option B", "The answer is (B)"), and
    both ("B. up"); "A. up" where "up" is B is a contradiction. "A dog" is no letter.
    """
    by_text = _choice_with_text(text, choices)
    if by_text is not None:
        return by_text
    option = _OPTION.fullmatch(text.strip(" \t\n*"))
    if option is None:
        return None
    name = str(option[1] or option[2] or option[3]).upper()
    if ord(name) - ord("A") >= len(choices):
        return None
    rest = option[4].strip()
    return name if not rest or _choice_with_text(rest, choices) in (name, None) else None


def _choice_with_text(text: str, choices: Sequence[str]) -> str | None:
    for index, choice in enumerate(choices):
        if _same_text(text, choice):
            return chr(ord("A") + index)
    return None


# --------------------------------------------------------------------------------------------------- numbers

_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()  # noqa: SIM905
_WORDS += ["fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
_NUMERAL = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥]?)\s*"
    r"(?P<whole>0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*|)(?:\.(?P<decimals>\d*))?(?:e(?P<exponent>[+-]?\d{1,2}))?"
    r"\s*(?P<percent>%|percent|per cent|)",
    re.ASCII,
)


class _Quantity(NamedTuple):
    value: Decimal  # a float would take a telephone number for its neighbour
    tolerance: Decimal
    currency: str


def number(text: str) -> float | None:
    """The number that a text is, or None: "1,234" → 1234, "-2.5", "1e3", "$5" → 5, "seven" → 7, "60%" → 0.6.

    The whole text must be the number: "5 gears" is None. A percentage is hundredths, so "60%" is not 60: who
    is asked for a count and answers with a share is wrong. None too for what only looks like a number: "007"
    (a code), "1,23" (a decimal comma or a slip), "12:30".
    """
    quantity = _quantity(text)
    return None if quantity is None else float(quantity.value)


def _quantity(text: str) -> _Quantity | None:
    plain = unicodedata.normalize("NFKC", text).strip().casefold().replace("−", "-")
    plain = plain.strip("*\"'` ").removesuffix(".")
    if plain in _WORDS:
        return _Quantity(Decimal(_WORDS.index(plain)), Decimal(0), "")
    found = _NUMERAL.fullmatch(plain)
    if found is None or not (found["whole"] or found["decimals"]):
        return None
    decimals = found["decimals"] or ""
    shift = int(found["exponent"] or 0) - (2 if found["percent"] else 0)
    digits = f"{found['sign']}{found['whole'].replace(',', '') or 0}.{decimals}"
    # Half of the last decimal, where there are decimals: 3.14 stands for all that is rounded to it.
    rounding = Decimal(f"0.5e{shift - len(decimals)}") if decimals.strip("0") else Decimal(0)
    return _Quantity(Decimal(f"{digits}e{shift}"), rounding, found["currency"])


# ------------------------------------------------------------------------------------------------------ ANLS


def anls(a: str, b: str) -> float:
    """Average normalised Levenshtein similarity of one pair, 0..1 (Biten et al. 2019), without case.

    1 − distance / longer length if that is above one half, else 0. Nothing is similar to an empty text.
    """
    a, b = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in (a, b))
    longer, shorter = max(len(a), len(b)), min(len(a), len(b))
    if 2 * (longer - shorter) >= longer:  # each missing letter costs one; also true if both are empty
        return 0.0
    distance = _edits(a, b) / longer
    return 1.0 - distance if distance < 0.5 else 0.0


def _edits(a: str, b: str) -> int:
    """Levenshtein distance: the fewest letters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


# ---------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class Synonyms:
    """Names for one thing, in groups. Without any group: the rule alone.

    Two labels are the same if they are equal once normalised, with "_" and "-" as blanks and the last word in singular
    or plural; or if somebody has declared them synonyms. Nothing else is: "mug" is a "cup" only where that is declared.
    """

    groups: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, declared: Iterable[str]) -> Self:
        """From "wbc=leukocyte=white blood cell": all names of one thing. Raises ValueError: an entry has less than two
        names, or a name stands in two entries."""
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
