"""What a teacher ends in: is it the row's answer?

    agrees("It is a red blood cell", row)                 the answer that a reply closes with
    fault_of("… So it is a red blood cell.", row)         the answer that its sentences lead to

More is let pass than where a model is scored (vcot.answers), because who is asked here knows the answer: a plural, an
article, words of the question around it. Another answer is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from vcot.answers import letter, same
from vcot.records import Reason, Sample
from vcot.teacher.anchors import sentences
from vcot.teacher.objects import accepted
from vcot.teacher.prose import in_digits
from vcot.teacher.structured import Fault

_LEAD = re.compile(
    r"\A(?:so |thus |therefore,? )?"
    r"(?:the (?:right |correct |final )?answer is|(?:it|this|that|he|she|there)(?: is|['’]s)|"
    r"(?:they|these|those|there)(?: are|['’]re)):? ",
    re.IGNORECASE,
)
_FILLERS = set("it is are was were s re this that these those they there so the an a he she".split())  # noqa: SIM905


def agrees(answer: str, sample: Sample) -> bool:
    """Whether this answer, and nothing else, is one that the row accepts."""
    bare = _LEAD.sub("", " ".join(answer.split()))
    if any(same(text, sample.answers, sample.choices) for text in (answer, bare)):
        return True
    said, asked = _words(bare), set(_words(sample.question)) | _FILLERS
    wanted = [_words(text) for text in accepted(sample)]
    return any(words and words == [w for w in said if w in words or w not in asked] for words in wanted)


def fault_of(prose: str, sample: Sample) -> Fault | None:
    """Why this prose, with names in the place of numbers, does not lead to the row's answer."""
    said = _sentences(prose)
    if not said:
        return _no_conclusion()
    at = next((n for n in reversed(range(len(said))) if _HENCE.search(said[n])), len(said) - 1)
    concluded = said[at]
    hence = [*_HENCE.finditer(concluded)]
    clause = concluded[hence[-1].end() :] if hence and _words(concluded[hence[-1].end() :]) else concluded
    if {text.casefold().strip(" .") for text in sample.answers} & {"yes", "no"}:
        return _yes_or_no([concluded, said[-1]], clause, sample)
    named = _OPTION.search(clause)
    if named and sample.choices and letter(named[1], sample.choices):
        right = {letter(answer, sample.choices) for answer in sample.answers}
        return None if letter(named[1], sample.choices) in right else _another(concluded)
    wanted = accepted(sample)
    if any(_held(clause, answer) for answer in wanted):
        return None
    rivals = [c for c in sample.choices or () if c not in wanted and not any(_in(_words(w), _words(c)) for w in wanted)]
    if any(_held(clause, rival) for rival in rivals) or any(_other_number(clause, answer) for answer in wanted):
        return _another(concluded)
    if (hence and _STATES.search(clause)) or any(_mentions(clause, answer) for answer in wanted):
        return _another(concluded)
    if any(_held(" ".join(said[max(at - 1, 0) :]), answer) for answer in wanted):
        return None
    return _another(concluded) if hence else _no_conclusion()


_ABBREVIATED = re.compile(
    r"(?<!\w)(?:[A-Z]|Dr|Mr|Mrs|Ms|St|No|vs|Prof|Inc|Jr|Sr|Co|Ltd|approx|ca|Fig|Mt|Dept|Ave|[A-Z]\.[A-Z]|[ap]\.m)\.\Z"
)


def _sentences(prose: str) -> list[str]:
    """With "J. R. Miller" in one."""
    said: list[str] = []
    for span in sentences(prose):
        one = prose[slice(*span)]
        if said and _ABBREVIATED.search(said[-1]):
            one = f"{said.pop()} {one}"
        said.append(one)
    return said


def _another(concluded: str) -> Fault:
    return Fault(Reason.TEACHER_WRONG_ANSWER, f"it concludes another answer than the row's: {concluded[-120:]!r}")


def _no_conclusion() -> Fault:
    return Fault(Reason.TEACHER_NO_CONCLUSION, "its last sentence does not say the answer in the answer's own words")


_HENCE = re.compile(
    r"\b(?:so|thus|therefore|hence|consequently|accordingly|(?:answer|result|conclusion) is|conclude that|"
    r"(?:which|that|this) (?:means|makes|shows|gives|leaves|is why))\b[,:]?|[⇒→∴]",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"\b(?:is|are|was|were|be|reads?|says?|equals?|belongs?|has|have|had|must)\b|['’]s\b|=", re.IGNORECASE
)
"""A clause that says what something is, and so the answer, or another."""
_OPTION = re.compile(r"(?:\A|\b(?:answer|option|choice|is|be)) ?:? ?\(?([A-Z])\)?(?=[.,:)]|\s*\Z)")
_NOT = re.compile(
    r"(?:\b(?:not|never|neither|nor|than|rather|instead of|without)|n['’]t)(?:\s+(?:the|an?|of|by|from|in|on))*\s*\Z",
    re.I,
)


def _held(text: str, answer: str) -> bool:
    """Whether the text says this answer, and does not deny it."""
    if _number(answer) is not None:
        numbers = [*_NUMBER.finditer(in_digits(text))]
        text, equals = in_digits(text), in_digits(text).rfind("=")
        if equals >= 0 and (last := [m for m in numbers if m.start() > equals]):
            numbers = last
        return any(
            _value(m[0]) == _number(answer) and not _NOT.search(text[max(m.start() - 30, 0) : m.start()])
            for m in numbers
        )
    said, wanted = _spans(text), _words(answer)
    for n in range(len(said) - len(wanted) + 1):
        if wanted and [word for word, _ in said[n : n + len(wanted)]] == wanted:
            start = said[n][1]
            if not _NOT.search(_plain(text)[max(start - 30, 0) : start]):
                return True
    if len(wanted) >= 4:
        return len({word for word, _ in said} & set(wanted)) >= ENOUGH_WORDS * len(set(wanted))
    squeezed = "".join(wanted)
    return len(squeezed) >= 4 and squeezed in "".join(word for word, _ in said) and not _mentions(text, answer)


ENOUGH_WORDS = 0.75
"""Share of a long answer's words that say it in other order or number."""


def _mentions(text: str, answer: str) -> bool:
    """Whether its words stand in the text at all."""
    return _in(_words(answer), _words(text))


def _in(part: Sequence[str], words: Sequence[str]) -> bool:
    return bool(part) and any(list(words[n : n + len(part)]) == list(part) for n in range(len(words) - len(part) + 1))


def _other_number(clause: str, answer: str) -> bool:
    """A number that is not the answer, where the answer is one."""
    return _number(answer) is not None and _NUMBER.search(in_digits(clause)) is not None


# ------------------------------------------------------------------------------------------------------------ yes or no

_PLAINLY = re.compile(r"(?:\A|[\s,;:(\"'“])(yes|no)(?=\s*[.,;:!)\"'”–—-]|\s*\Z)", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:not|no|none|nothing|nobody|never|neither|without|cannot|absent|missing)\b|n['’]t\b", re.IGNORECASE
)
_ASKING = set("do does did can could will would has have had any some of to in on at with than for and or".split())  # noqa: SIM905
_ASKING |= _FILLERS


def _yes_or_no(said: Sequence[str], clause: str, sample: Sample) -> Fault | None:
    """By the word; else by what becomes of the words of the question: said again in their order, or denied."""
    yes = any(text.casefold().strip(" .") == "yes" for text in sample.answers)
    plainly = [m[1].casefold() for text in (clause, *said) for m in _PLAINLY.finditer(text)]
    if plainly:
        return None if (plainly[0] == "yes") == yes else _another(said[0])
    asked = [word for word in _words(sample.question) if word not in _ASKING]
    words, rest = _words(clause), list(_words(clause))
    again = 0
    for word in asked:
        if word in rest:
            rest, again = rest[rest.index(word) + 1 :], again + 1
    denied = _DENIED.search(clause) is not None
    if (yes and denied and again > len(asked) / 2) or (not yes and not denied and again == len(asked) > 0):
        return _another(said[0])
    return None if (denied and not yes) or set(words) & set(asked) else _no_conclusion()


# ---------------------------------------------------------------------------------------------------------------- words

_NUMBER = re.compile(r"(?<![\w.,:/-])(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?(?![:/-]?\d)(?![,.]\d)")
_WORD = re.compile(r"(?:(?<![\w)])-)?\d+(?:[.,:/-]\d+)*|[^\W\d_]+|[²³√π°]")
_ARTICLES = re.compile(r"\b(?:the|an|a|A(?= [a-z])|The|An)\b(?=\s)")


def _plain(text: str) -> str:
    text = in_digits(text).replace("–", "-").replace("’", "'")
    return _ARTICLES.sub(lambda found: " " * len(found[0]), text)


def _spans(text: str) -> list[tuple[str, int]]:
    return [(_folded(m[0]), m.start()) for m in _WORD.finditer(_plain(text))]


def _words(text: str) -> list[str]:
    return [word for word, _ in _spans(text)]


def _folded(word: str) -> str:
    """Singular, in lower case; numbers as they are compared."""
    if word[-1].isdigit():
        return str(_value(word) if _NUMBER.fullmatch(word) else word)
    word = word.casefold()
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "oes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "")).normalize()


def _number(answer: str) -> Decimal | None:
    """The number that an answer is, perhaps with a unit behind it."""
    found = re.fullmatch(
        rf"[$€£¥]?\s*({_NUMBER.pattern})\s*(?:%|[^\W\d_]{{0,12}}(?:\^\d)?|°\s*[CF]?)", _plain(answer).strip(" .")
    )
    return None if found is None else _value(found[1])
