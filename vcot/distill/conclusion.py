"""What a text says of the row's answer: does it end in it, and does it tell it before anything was looked at?

    agrees("It is a red blood cell", row)                 the answer that a reply closes with
    fault_of("… So it is a red blood cell.", row)         the answer that its sentences lead to
    tells_answer("Yes, I see ", row) · gives_away("red disc", row)

More is let pass than where a model is scored (vcot.answers), because who is asked here knows the answer: a plural, an
article, words of the question around it. Another answer is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from vcot.answers import letter, same, singular
from vcot.distill import Fault
from vcot.distill.prose import HERE, REFERENCES, in_digits, sentences
from vcot.records import Reason, Sample

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
    """Why this prose, with names in the place of numbers, does not lead to the row's answer. The last clause that says
    what follows counts ("so …", "therefore …"), else the last sentence."""
    wanted = accepted(sample)
    said = _sentences(_marked(prose, wanted))
    if not said:
        return _NO_CONCLUSION
    at = next((n for n in reversed(range(len(said))) if _HENCE.search(said[n])), len(said) - 1)
    concluded, hence = said[at], [*_HENCE.finditer(said[at])]
    clause = concluded[hence[-1].end() :] if hence and concluded[hence[-1].end() :].strip(" .,:") else concluded
    yes_or_no = {found[1].casefold() for text in sample.answers if (found := _YES_OR_NO.match(text))}
    if yes_or_no:
        explicit = bool(hence) and hence[-1][0].casefold().startswith(("answer", "result", "conclusion"))
        fault = _polarity([concluded, said[-1]], clause, yes_or_no, sample.question, explicit=explicit)
        if fault is not None or all(len(_words(text)) == 1 for text in sample.answers):
            return fault
    named = _OPTION.search(clause)
    if named and sample.choices and letter(named[1], sample.choices):
        right = {letter(answer, sample.choices) for answer in sample.answers}
        return None if letter(named[1], sample.choices) in right else _another(concluded)
    if any(_held(clause, answer) for answer in wanted):
        return None
    if _GOES_ON.match(said[-1]) and any(_held(said[-1], answer) for answer in wanted):
        return None
    others = [choice for choice in sample.choices or () if choice not in wanted]
    rivals = [other for other in others if not any(_among(_words(one), _words(other)) for one in wanted)]
    another_number = any(_number(answer) is not None for answer in wanted) and _NUMBER.search(in_digits(clause))
    if another_number or any(_held(clause, rival) for rival in rivals):
        return _another(concluded)
    last = " ".join(said[max(at - 1, 0) :])
    if any(_retold(last, answer, sample.question) for answer in wanted):
        return None
    if (hence and _STATES.search(clause)) or any(_among(_words(answer), _words(clause)) for answer in wanted):
        return _another(concluded)
    if any(_held(last, answer) for answer in wanted):
        return None
    return _another(concluded) if hence else _NO_CONCLUSION


MARK = "\ue000"
"""Stands for the answer, letter by letter: its own full stops end no sentence, its own "so" concludes nothing."""


def _marked(prose: str, wanted: Sequence[str]) -> str:
    for answer in wanted:
        bare = answer.strip(" .!?") or answer.strip()
        if _number(answer) is None and (len(bare.split()) > 1 or not bare.isalnum()):
            words = r"\s+".join(map(re.escape, bare.split()))
            prose = re.sub(rf"(?<!\w){words}(?!\w)[!?]*", MARK, prose, flags=re.IGNORECASE)
    return prose


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


_NO_CONCLUSION = Fault(
    Reason.TEACHER_NO_CONCLUSION, "its last sentence does not say the answer in the answer's own words"
)

_HENCE = re.compile(
    r"\b(?:so(?! (?:that|many|much|far|long|called)\b)(?!-)|thus|therefore|hence|consequently|accordingly|"
    r"(?:answer|result|conclusion) is|conclude that|"
    r"(?:which|that|this) (?:means|makes|shows|gives|leaves|is why))\b[,:]?|[⇒→∴]",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"(?:it|its|this|that|he|she|they|these|those|there)\b", re.IGNORECASE)
"""A last sentence that speaks of what the one before it found."""
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

    def denied(text: str, start: int) -> bool:
        return _NOT.search(text[max(start - 30, 0) : start]) is not None

    if any(not denied(text, m.start()) for m in re.finditer(MARK, text)):
        return True
    wanted_number = _number(answer)
    if wanted_number is not None:
        text = in_digits(text)
        numbers, equals = [*_NUMBER.finditer(text)], text.rfind("=")
        numbers = [m for m in numbers if m.start() > equals >= 0] or numbers
        return any(_value(m[0]) == wanted_number and not denied(text, m.start()) for m in numbers)
    said, wanted = _spans(text), _words(answer)
    words, plain = [word for word, _ in said], _plain(text)
    for n in range(len(said) - len(wanted) + 1):
        if wanted and words[n : n + len(wanted)] == wanted and not denied(plain, said[n][1]):
            return True
    return _spelt_apart(words, wanted)


def _spelt_apart(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """ "e-mail" is "email": other words that make the same letters."""
    letters = "".join(wanted)
    for n in range(len(said)):
        end = n
        while end < len(said) and len("".join(said[n:end])) < len(letters):
            end += 1
        if len(letters) >= 4 and "".join(said[n:end]) == letters and list(said[n:end]) != list(wanted):
            return True
    return False


LONG = 5  # words of an answer that nobody repeats word for word; half of what it adds to the question must be said


def _retold(text: str, answer: str, question: str) -> bool:
    words = [word for word in _words(answer) if word not in _ASKING]
    new = {word for word in words if word not in _words(question)} or {*words}
    return len(_words(answer)) >= LONG and 2 * len(new & {*_words(text)}) >= len(new)


# --- does it say anything of what it points at?

_POINTING = set("the a an this that these those here there see and or with of at in on by from per to as".split())  # noqa: SIM905
_POINTING |= {"based", "according", "object", "objects", "region", "regions", "image", "picture"}


def only_points(prose_text: str) -> bool:
    """Return True if nothing but references to objects stands before the conclusion: "The [1]. So it is a dog.".

    References stand in it as ¤1¤. Sentences of other languages than English always say something.
    """
    parts = [prose_text[slice(*span)] for span in sentences(prose_text)]
    hences = [_HENCE.search(part) for part in parts]
    at = next((n for n in reversed(range(len(parts))) if hences[n]), None)
    if at is not None and (hence := hences[at]):
        parts[at] = parts[at][: hence.start()]
    elif len(parts) > 1 and HERE not in parts[-1]:
        del parts[-1]
    words = re.findall(r"\w+", REFERENCES.sub(" ", " ".join(parts)).casefold())
    return {*words} <= _POINTING


# --- yes or no

_YES_OR_NO = re.compile(r"\s*(yes|no)\b(?=\s*(?:[.,;:!]|\Z))", re.IGNORECASE)
_PLAINLY = re.compile(r"(?:\A|[\s,;:(\"'“])(yes|no)(?=\s*[.,;:!)\"'”–—-]|\s*\Z)", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:not|no|none|nothing|nobody|never|neither|without|cannot|absent|missing)\b|n['’]t\b", re.IGNORECASE
)
_ASKING = set("do does did can could will would has have had any some of to in on at with than for and or".split())  # noqa: SIM905
_ASKING |= _FILLERS


def _polarity(said: Sequence[str], clause: str, right: set[str], question: str, *, explicit: bool) -> Fault | None:
    """By the word; else by what becomes of the words of the question: said again in their order, or denied.

    `said`: the sentence that concludes, and the last one; `right`: "yes", "no" or both; `explicit`: whether it says
    "the answer is …".
    """
    plainly = [m[1].casefold() for text in (clause, *said) for m in _PLAINLY.finditer(text)]
    if plainly:
        return None if plainly[0] in right else _another(said[0])
    if explicit and MARK not in clause:
        return _another(said[0])
    asked = [word for word in _words(question) if word not in _ASKING]
    words = _words(clause)
    rest, again = words, 0
    for word in asked:
        if word in rest:
            rest, again = rest[rest.index(word) + 1 :], again + 1
    denied = _DENIED.search(clause) is not None
    if right == {"yes"} and denied and again > len(asked) / 2:
        return _another(said[0])
    if right == {"no"} and not denied and again == len(asked) > 0:
        return _another(said[0])
    said_so = (denied and "no" in right) or {*words} & {*asked} or MARK in clause
    return None if said_so else _NO_CONCLUSION


# --- words

_NUMBER = re.compile(r"(?<![\w.,:/-])(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?(?![:/-]?\d)(?![,.]\d)")
_WORD = re.compile(
    r"(?:(?<![\w)])-)?\d+(?:[.,:/-]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|[√°]"
)
"""Chinese and Japanese write no blanks: each sign is a word."""
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
    return singular(word) if len(word) > 3 else word


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "")).normalize()


def _number(answer: str) -> Decimal | None:
    """The number that an answer is, perhaps with a unit behind it."""
    found = re.fullmatch(
        rf"[$€£¥]?\s*({_NUMBER.pattern})\s*(?:%|[^\W\d_]{{0,12}}(?:\^\d)?|°\s*[CF]?)", _plain(answer).strip(" .")
    )
    return None if found is None else _value(found[1])


# --- is the answer told too early?


def gives_away(label: str, sample: Sample) -> bool:
    said, asked = _bare_words(label), _bare_words(sample.question)
    answers = [_bare_words(answer) for answer in accepted(sample)]
    return any(one and (one == said or (_among(one, said) and not _among(said, asked))) for one in answers)


def accepted(sample: Sample) -> list[str]:
    """The accepted answers, and the choices that letters among them stand for."""
    choices = sample.choices or ()
    letters = {letter(answer, choices) for answer in sample.answers}
    return [*sample.answers, *(c for n, c in enumerate(choices) if chr(ord("A") + n) in letters)]


_OPENING = re.compile(r"\s*(\w+)\s*(?:[.,:;!–—]|$)")  # one word that stands by itself at the beginning


def tells_answer(prose: str, sample: Sample) -> bool:
    """Whether prose names an accepted answer that the question does not hold. Answers of one short word (yes, no, 2,
    up) stand in innocent sentences too: they are told by "the answer is 2", and by "Yes, …"."""
    said, asked = _bare_words(prose), _bare_words(sample.question)
    opening = _OPENING.match(prose)
    alone = _bare_words(opening[1]) if opening else []

    def told(answer: list[str]) -> bool:
        if len("".join(answer)) > 3:
            return _among(answer, said) and not _among(answer, asked)
        return bool(answer) and (
            answer == alone or _among(["answer", "is", *answer], said) or _among(["answer", *answer], said)
        )

    return any(told(_bare_words(answer)) for answer in accepted(sample))


def _bare_words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _among(part: Sequence[str], words: Sequence[str]) -> bool:
    """Whether these words stand among the others side by side; no words do not."""
    return bool(part) and any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))
