"""Are two answers the same (option letters, numbers, text)? Do two labels name the same thing?

Rewards and metrics stand on this page, so it is strict where being generous could be exploited: a part of an answer is
not the answer ("25" is not "5"), no answer is never right, and a "cup" is no "red cup".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Self

_AROUND = " \t\n.,;:!?。\"'`*_“”‘’„«»"
_ARTICLE = re.compile(r"\A(?:the|an|a) (?=\S)")


def normalise(text: str) -> str:
    """The text as it is compared: without case, marks around it, a leading article, and double white space.

    "The red gear." and "red gear" are one answer. Where nothing would be left ("?", "…"), only white space and case go.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _ARTICLE.sub("", plain.strip(_AROUND)) or plain


def same(predicted: str, accepted: Sequence[str], choices: Sequence[str] | None = None) -> bool:
    """Return True if the prediction states one of the accepted answers, and no other answer.

    With `choices`, both sides are read as an option (see `letter`) and only the option counts; an accepted answer that
    is no option must be equal. Numbers are compared as numbers: within the rounding of the accepted one if that has
    decimals ("3.14" accepts 3.1416, "5" does not accept 5.04). See `yes_or_no` for yes and no. Everything else must be
    equal once normalised, except for a lead ("The answer is …") and a reason ("…, because …").
    """
    if not normalise(predicted):
        return False
    if choices:
        options = [letter(answer, choices) for answer in accepted]
        if any(options):
            chosen = letter(predicted, choices)
            others = [answer for answer, option in zip(accepted, options, strict=True) if option is None]
            return chosen in options if chosen else normalise(predicted) in map(normalise, others)
    return any(_same_text(predicted, answer) for answer in accepted)


def read_answer(text: str, accepted: Sequence[str], choices: Sequence[str] | None = None) -> str | None:
    """Return the answer that a text states, in the form in which it is compared; None if it cannot be read.

    `accepted` only says what kind of answer the question asks for: an option (its letter is returned), yes or no, a
    number, or text. A text that names no answer of that kind, or several, cannot be read. A text without any digit is
    a readable answer to a question about a number: it is wrong, but clear.
    """
    if choices and any(letter(answer, choices) for answer in accepted):
        exact = normalise(text) in map(normalise, accepted)
        return letter(text, choices) or (normalise(text) if exact else None)
    if all(normalise(answer) in ("yes", "no") for answer in accepted):
        return yes_or_no(text)
    if all(number(answer) is not None for answer in accepted):
        value = stated_number(text)
        if value is not None or any(char.isdigit() for char in text):
            return None if value is None else f"{value:g}"
    plain = normalise(bare(text))
    return plain if any(char.isalnum() for char in plain) or plain in map(normalise, accepted) else None


def _same_text(predicted: str, accepted: str) -> bool:
    plain, wanted = normalise(predicted), normalise(accepted)
    if wanted in ("yes", "no"):
        return yes_or_no(predicted) == wanted
    stated, true = _stated_quantity(predicted), _quantity(accepted)
    if stated is not None and true is not None:
        same_unit = not stated.currency or not true.currency or stated.currency == true.currency
        return same_unit and abs(stated.value - true.value) <= true.tolerance
    unexplained = predicted if true is not None else _without_reason(bare(predicted))
    return wanted != "" and wanted in (plain, normalise(bare(predicted)), normalise(unexplained))


# ------------------------------------------------------------------------------------- what surrounds an answer

_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|well|okay|sure|finally)\b,?\s+"
    r"|i(?:\s+(?:think|believe|choose|pick|select)|['’]d\s+say|\s+would\s+say|['’]ll\s+go\s+with)\s+(?:that\s+)?"
    r"|(?:the|my)?\s*(?:(?:final|correct|right|best|only)\s+)*(?:answer|option|choice)\s*(?:[:：=]|(?:is|would\s+be)\b\s*:?)\s*"
    r"|(?:it|this|that)(?:\s+is|['’]s)\s+(?=\S))",
    re.IGNORECASE,
)
_WRAPPED = re.compile(
    r"\$\$?(?P<math>[^$]+)\$\$?|\\[(\[](?P<display>[^\\]+)\\[)\]]|[(\[{<](?P<brackets>[^()\[\]{}<>]+)[)\]}>]"
)
_REASON = re.compile(r"[.,;]?\s+(?:(?:this|that|it)(?:\s+is|['’]s)\s+)?(?:because|due\s+to)\b", re.IGNORECASE)


def bare(text: str) -> str:
    """Return the text without a lead ("So the answer is …") and without quotes, bold marks, `$…$` or brackets round it.

    Case and punctuation inside stay. A text that is nothing but a lead stays as it is.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    for _ in range(8):
        shorter = plain.strip(" \t\"'`*_“”‘’„«»")
        if wrapped := _WRAPPED.fullmatch(shorter.rstrip(".")):
            shorter = next(inner for inner in wrapped.groups() if inner is not None)
        if (lead := _LEAD.match(shorter)) and lead.end() < len(shorter):
            shorter = shorter[lead.end() :]
        if shorter in ("", plain):
            break
        plain = shorter
    return plain


def _without_reason(text: str) -> str:
    """Return what stands before "because …"; the complete text if the reason offers an alternative ("or …")."""
    reason = _REASON.search(text)
    return text if reason is None or re.search(r"\bor\b", text[reason.end() :], re.I) else text[: reason.start()]


# ------------------------------------------------------------------------------------------------- yes and no

_YES_OR_NO = re.compile(
    r"(yes|no)\b(?:(?=\s*(?:\Z|[,;:!(–—-]|\.(?!\s*\d)))"
    r"|(?=\s+(?:it|its|this|that|there|they|he|she|the|i|we|you|because|since|as)\b)"
    r"|(?<=no)(?=\s+(?!doubt|idea|clue|question|way)(?:[\w-]+\s+){1,4}(?:is|are|was|were|can|could|exists?|appears?)\b))"
)
_YES_TOO = re.compile(r"\byes\b")
_NO_TOO = re.compile(
    r"\bno\b(?=\s*(?:[,;:!?/)]|\.(?!\s*\d)|\Z|(?:or|and|but|yes|maybe)\b))"
    r"|[.,;:!?/–—-]\s*no\s+(?:it|this|that|there|they|he|she|i)\b"
)


def yes_or_no(text: str) -> str | None:
    """Return "yes" or "no" if the text begins with it, perhaps with an explanation; None if it names both or neither.

    "No gears are visible" is no. "No. 5", "No idea" and "No parking" are neither.
    """
    plain = normalise(bare(text))
    if (stated := _YES_OR_NO.match(plain)) is None:
        return None
    opposite = _NO_TOO if stated[1] == "yes" else _YES_TOO
    return None if opposite.search(plain, stated.end()) else stated[1]


# -------------------------------------------------------------------------------------------- option letters


def letter(text: str, choices: Sequence[str]) -> str | None:
    """Return the option that a text names, as "A", "B", …; None if it names none, or more than one.

    Readers, in this order:
        1. the exact text of a choice ("3.14", "The dog."), also where choices are letters themselves;
        2. its letter at the beginning ("b", "(B)", "[B]", "Option B", "B, down", "B, because …");
        3. its text at the beginning, before an explanation ("down, because …").
    After 2 and 3, the rest of the text must neither claim another option ("or (B)", "(A) (B)", "A. down" where "down"
    is B) nor deny this one ("A, not red", "A is wrong"). Other options in an explanation are allowed.
    """
    if not choices:
        return None
    plain = bare(text)
    for exact in (text, plain):
        if (place := _exact_choice(exact, choices)) is not None:
            return _name(place)
    mentions = [*_mentions(plain, tuple(choices))]
    if not mentions or mentions[0].start or _denied(plain, mentions[0]) or not _stands_first(plain, mentions):
        return None
    chosen = mentions[0].place
    rest = plain[mentions[0].end :].strip(" ().:,;[]")
    if rest and (place := _exact_choice(rest, choices)) is not None:
        return _name(chosen) if place == chosen else None
    joined, denied = True, False
    for before, mention in pairwise(mentions):
        gap = plain[before.end : mention.start]
        denied = _denied(plain, mention) or (denied and _LISTED.fullmatch(gap) is not None)  # "not A or C"
        if mention.place == chosen:
            denied = denied if mention.marks else _WRONG.match(plain, mention.end) is not None
            if denied or _NOT_THAT.fullmatch(gap):
                return None
            joined = True
            continue
        claimed = (joined and _LISTED.fullmatch(gap)) or _CLAIM.search(gap) or (mention.marks and _OR.search(gap))
        if claimed and not denied:
            return None
        joined = False
    return _name(chosen)


class _Mention(NamedTuple):
    """An option in a text: by its letter (`marks`) or by its words."""

    place: int
    start: int
    end: int
    marks: bool


_REASONS = r"(?:is|because|since|as|due)\b"
_SENTENCE = r"(?:was|which|the|this|it|there|that|in|based|looking|according)\b"
"""What follows a letter that is no article."""
_NOT_THAT = re.compile(
    r"\W*(?:(?:it|this|that|which)(?:\s+is|\s+was|['’]s)\s+)?(?:not|never|no)(?:\s+(?:the|an?))?\W*", re.IGNORECASE
)
_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|than|rather|instead of|except|without|excluding)|n['’]t)"
    r"(?:\s+(?:be|the|an?|option|choice|answer))*[\s(\[]*\Z",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"[)\].:,]*\s*(?:(?:is|are|was|would\s+be)\s+)?"
    r"(?:(?:the\s+)?(?:wrong|incorrect|false)|not\s+(?:the\s+)?(?:correct|right|true|answer))\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    rf"{_WRONG.pattern}|[)\].:,]*\s*(?:(?:is|are|was|would\s+be|can|does)\s+not\b"
    r"|(?:is|are|was|ca|does)n['’]t\b|cannot\b)",
    re.IGNORECASE,
)
_LISTED = re.compile(r"(?:\W|\b(?:or|and|also|so|then|the|an?|option|choice|answer)\b)*", re.IGNORECASE)
_OR = re.compile(r"\b(?:or|but)\b(?:\s+(?:the|an?|option|choice|answer))*\W*\Z", re.IGNORECASE)
_CLAIM = re.compile(
    r"(?:\b(?:maybe|perhaps|possibly|probably|actually|also|(?:it|this|that|answer|option|choice)(?:\s+is|['’]s|\s*:)"
    r"|(?:could|may|might|can|must|should)(?:\s+also)?\s+be))(?:\s+(?:the|an?|option|choice|answer))*\W*\Z",
    re.IGNORECASE,
)


def _name(place: int) -> str:
    return chr(ord("A") + place)


def _exact_choice(text: str, choices: Sequence[str]) -> int | None:
    """Return the place of the choice that equals the text: as written, else normalised, else as a number.

    Numbers have no tolerance here, as 3.1 and 3.14 may be two choices. If several choices are equal in the first way
    that fits, the text is ambiguous, except that identical choices count as the first.
    """
    written, plain, value = " ".join(text.split()), normalise(text), _quantity(text)
    if not plain:
        return None
    written_choices = [" ".join(choice.split()) for choice in choices]
    if written in written_choices:
        return written_choices.index(written)
    same_text = [place for place, choice in enumerate(choices) if normalise(choice) == plain]
    if not same_text and value is not None:
        quantities = [_quantity(choice) for choice in choices]
        same_text = [place for place, other in enumerate(quantities) if other and value.equals(other)]
    return same_text[0] if len(same_text) == 1 else None


@lru_cache(maxsize=1024)
def _mention_pattern(choices: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of all options by letter or text; of several that begin at one place, the longest text first."""
    last = _name(min(len(choices), 26) - 1)
    upper, lower = f"[A-{last}]", f"[a-{last.lower()}]"
    texts = sorted(
        ((place, words) for place, choice in enumerate(choices) if len(words := _words(choice)) > 1 or words.isdigit()),
        key=lambda each: (-len(each[1]), each[0]),
    )
    by_text = "|".join(f"(?P<t{place}>{re.escape(words)})" for place, words in texts) or r"(?!)"
    return re.compile(
        rf"(?<![\w$€£¥])(?<!\d[.,])(?<![\s(]-)(?i:{by_text})(?!\w|[.,]\d|\s?%)"
        rf"|(?:\b(?i:option|choice|answer|letter)\s+)?[(\[](?P<bracketed>{upper}|{lower})[)\]]"
        rf"|\b(?i:option|choice|answer|letter)\s+(?P<named>{upper}|{lower})(?!\w|['’])"
        rf"|(?<![\w'’.$-])(?P<letter>{upper}|{lower})(?![\w'’+#]|-\w|\.\w)"
    )


def _words(choice: str) -> str:
    """Return the words of a choice as they may stand in a text."""
    plain = " ".join(unicodedata.normalize("NFKC", choice).split())
    return re.sub(r"\A(?:the|an|a) (?=\S)", "", plain.strip(_AROUND), flags=re.IGNORECASE) or plain


def _mentions(text: str, choices: tuple[str, ...]) -> Iterator[_Mention]:
    """Yield every option that the text names, in the order of the text. Articles and "I" are no letters."""
    for match in _mention_pattern(choices).finditer(text):
        kind = str(match.lastgroup)
        char = match[kind]
        if kind.startswith("t"):
            start = match.start()
            article = re.fullmatch(r"(?:the|an|a)\s+", text[:start], re.IGNORECASE)
            yield _Mention(int(kind[1:]), 0 if article else start, match.end(), marks=False)
        elif kind != "letter" or char.upper() not in "AI" or not _is_a_word(text, match):
            yield _Mention(ord(char.upper()) - ord("A"), match.start(), match.end(), marks=True)


def _is_a_word(text: str, match: re.Match[str]) -> bool:
    """Return True for the article "a" and the pronoun "I"."""
    following = re.match(r"\s+(?=\w)", text[match.end() : match.end() + 9])
    if following is None:
        return match[0] == "i"
    rest = text[match.end() + following.end() :]
    return match[0] != "A" or re.match(f"{_REASONS}|{_SENTENCE}|(?:and|or)\\b", rest, re.IGNORECASE) is None


def _denied(text: str, mention: _Mention) -> bool:
    before = text[max(mention.start - 40, 0) : mention.start]
    return _BEFORE.search(before) is not None or _AFTER.match(text, mention.end) is not None


def _stands_first(text: str, mentions: Sequence[_Mention]) -> bool:
    """Return True if the first mention is a statement of its own and not the first word of a sentence."""
    first = mentions[0]
    rest = text[first.end :]
    if not rest or rest[0] in ")].:,;/!。–—" or text[first.start] in "([" or re.match(r"\s*[(\[–—]|\s+-\s", rest):
        return True
    if re.match(rf"\s+(?:{_REASONS}|{_SENTENCE})" if first.marks else rf"\s+{_REASONS}", rest, re.IGNORECASE):
        return True
    return first.marks and len(mentions) > 1 and not text[first.end : mentions[1].start].strip()


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

    def equals(self, other: _Quantity) -> bool:
        """Return True for the same value and currency, without any tolerance."""
        return (self.value, self.currency) == (other.value, other.currency)


def number(text: str) -> float | None:
    """The number that a text is, or None: "1,234" → 1234, "-2.5", "1e3", "$5" → 5, "seven" → 7, "60%" → 0.6.

    The whole text must be the number: "5 gears" is None. A percentage is hundredths, so "60%" is not 60: who
    is asked for a count and answers with a share is wrong. None too for what only looks like a number: "007"
    (a code), "1,23" (a decimal comma or a slip), "12:30".
    """
    quantity = _quantity(text)
    return None if quantity is None else float(quantity.value)


def stated_number(text: str) -> float | None:
    """Return the number that a text states, also with a lead ("It is 5") or an explanation without other numbers."""
    quantity = _stated_quantity(text)
    return None if quantity is None else float(quantity.value)


_EXPLAINED = re.compile(r"[.;!]\s+(?=[^\W\d])|[.,;]?\s+(?:because|since|as|due\s+to)\b|\s*[(–—]", re.IGNORECASE)
_NUMBER_IN_TEXT = re.compile(rf"\d+(?:[.,]\d+)*|\b(?:{'|'.join(_WORDS[2:])})\b", re.IGNORECASE)


def _stated_quantity(text: str) -> _Quantity | None:
    plain = bare(text)
    for whole in (text, plain):
        if (quantity := _quantity(whole)) is not None:
            return quantity
    explained = _EXPLAINED.search(plain)
    if explained is None or (quantity := _quantity(plain[: explained.start()])) is None:
        return None
    others = (_quantity(other[0]) for other in _NUMBER_IN_TEXT.finditer(plain, explained.end()))
    return quantity if all(other is not None and quantity.equals(other) for other in others) else None


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
