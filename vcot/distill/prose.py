"""What reasoning may not hold, told from its words alone: pure functions, nobody is asked.

    places as numbers · brackets left open · links and orders · that it was told · that it declines · itself again ·
    another language

Objects stand in the prose as their numbers in brackets. What the question, its choices or its answers hold may be
repeated: who asks for a telephone number gets one.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from vcot.distill import Fault
from vcot.records import Reason, Sample

HERE = "¤"  # stands for a reference to objects, where which they are does not matter

REFERENCES = re.compile(rf"{HERE}(?:\d+{HERE})?")


def fault_of(prose: str, sample: Sample) -> Fault | None:
    """The first thing that is wrong with it. References to objects stand in it as ¤1¤."""
    given = [sample.question, sample.context or "", *(sample.choices or ()), *sample.answers]
    bare = REFERENCES.sub(HERE, prose)
    return (
        _placed(bare, given)
        or _open(bare)
        or _unwanted(bare, given, sample)
        or _repeated(prose)
        or _in_another_language(bare, given)
    )


class Span(NamedTuple):
    start: int
    end: int


_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\s*\n\s*")


def sentences(text: str) -> list[Span]:
    """Where the sentences of a text stand, without the white space between them."""
    spans, start = [], len(text) - len(text.lstrip())
    for gap in _END.finditer(text):
        if start < gap.start():
            spans.append(Span(start, gap.start() + len(gap[0].rstrip())))
        start = max(start, gap.end())
    end = len(text.rstrip())
    return [*spans, Span(start, end)] if start < end else spans


def _first(pattern: re.Pattern[str], prose: str, given: Sequence[str]) -> str | None:
    """What a pattern finds in the prose and the row does not hold."""
    held = _squeezed(" ".join(given))
    return next((m[0].strip() for m in pattern.finditer(prose) if _squeezed(m[0]) not in held), None)


def _squeezed(text: str) -> str:
    return "".join(text.casefold().split())


# --- places as numbers

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()  # noqa: SIM905
_ONES += ["sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_VALUE = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(reversed(_ONES))})"
_IN_WORDS = re.compile(
    rf"\b(?:(?:{'|'.join(_ONES[1:10])}|a) hundred(?:(?: and)? {_BELOW_100})?|{_BELOW_100})\b", re.IGNORECASE
)

_N = r"[+-]?\d{1,9}(?:\.\d{1,9})?"
_OR = r"(?: ?[,;] ?| )"
_FOUR = rf"{_N}(?:{_OR}{_N}){{3}}"
_PAIR = rf"[\[(] ?{_N} ?[,;] ?{_N} ?[\])]"
_SIDE = r"(?:left|top|right|bottom)"
_WHOLE = r"(?:image|picture|photo(?:graph)?|frame|page|width|height|screen)"

# What nobody writes but to say where something is, or to have a program act on it.
_ALWAYS = re.compile(
    r"<\||</?[a-z][\w-]*(?: [\w-]+ ?=[^<>]*)? ?/?>"  # special tokens, tags; not a<b
    rf"|\[ ?{_FOUR} ?\]"
    # two corners; not (1, 2), (3, 4)
    rf"|{_PAIR} ?(?:[,;–-]|and|to)? ?{_PAIR}(?! ?[,;]? ?(?:and )?[\[(])(?<=\d\d\)|\d\d\])"
    r"|\b(?:bbox|bounding[ _-]box)(?:_2d)?\b[\"']? ?[=:]? ?(?:is |of |at )?[\[(]?\d"
    r"|\b(?:box|coordinates?)[\"']? ?[=:] ?[\[(]?\d"
    rf"|(?:{HERE} ?\(|{HERE} (?:is |lies |located )*(?:at|from) [\[(]?|"
    rf"\b(?:box|spans?|covers?|occupies|coordinates?)\b[^\w]{{0,2}} ?(?:of |from |is |are )?[\[(]?){_FOUR}\b"
    rf"(?!{_OR}{_N})"
    rf"|\bat [\[(]?{_N}(?: {_N}){{3}}\b"
    rf"|\b(?:at|spans?|covers?|within|in) [\[(]?0?\.\d+(?:{_OR}0?\.\d+){{3}}"
    rf"|\d ?(?:%|percent|per cent) (?:across\b|down the |(?:in )?from the {_SIDE}"
    rf"|(?:of|down|into|along) the {_WHOLE}\b)"
    r"|\bacross,? (?:from )?\d[^.%]{0,12}% ?[,;]? ?(?:and )?down\b",
    re.IGNORECASE,
)
_PIXELS = re.compile(r"\bpixels? ?(?:at |position )?[\[(]?\d|\b\d+ ?(?:px|pixels?)\b", re.IGNORECASE)
_ABOUT_PIXELS = re.compile(r"pixel|resolution|\bpx\b", re.IGNORECASE)
# Where a row is about a plane, small numbers are its points; large ones are those of an image.
_LARGE = r"[+-]?(?:\d{3,9}(?:\.\d+)?)"
_POINT = re.compile(
    rf"(?:{HERE} (?=\S* ?{_LARGE})|\bat|\baround|\bnear|\bposition(?:ed)?|\blocated|\bcoordinates?) ?"
    rf"(?:is |lies |stands |sits )?(?:at )?(?:around |about )?(?P<pair>{_PAIR})",
    re.IGNORECASE,
)
_ABOUT_A_PLANE = re.compile(
    r"\b(?:points?|coordinates?|vert(?:ex|ices)|midpoint|slope|graph(?:ed)?|function|plot(?:ted)?|axis|axes|parabola|"
    r"segment|quadrant|origin|grid|intersect\w*|cross(?:es|ing)?|interval|domain|range|vectors?|equations?|roots?|"
    rf"curve|line|f\(|solve|zeros?|intercepts?)|{_PAIR}|\b[xy]\b",
    re.IGNORECASE,
)
_KEYED = re.compile(
    rf"\b(?P<key>[xy][12]?|{_SIDE})(?: edge)?(?: ?[=:] ?| (?:is |from |at |of |= )?)(?P<value>{_N})", re.IGNORECASE
)


# NFKC would take x² for x2.
_RAISED = {c: f"^{n}" for n, c in enumerate(map(ord, "⁰¹²³⁴⁵⁶⁷⁸⁹"))}
_RAISED |= {c: f"_{n}" for n, c in enumerate(map(ord, "₀₁₂₃₄₅₆₇₈₉"))}


def in_digits(text: str) -> str:
    """Full-width digits, those of other scripts, and numbers in words, as the digits 0 to 9."""
    text = unicodedata.normalize("NFKC", text.translate(_RAISED)).replace("−", "-").replace("、", ",")
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)

    def value(found: re.Match[str]) -> str:
        total = 0
        for word in re.split(r"[ -]", found[0].casefold()):
            total = max(total, 1) * 100 if word == "hundred" else total + _VALUE.get(word, 0)
        return str(total)

    text = _IN_WORDS.sub(value, text)
    return re.sub(
        r"\b(\d) point ((?:\d ?)+)\b", lambda found: f"{found[1]}.{''.join(found[2].split())} ", text, flags=re.I
    )


def _placed(prose: str, given: Sequence[str]) -> Fault | None:
    """Coordinates or markup; not years, ranges, equations, telephone numbers, nor points of a plane."""
    prose, given = in_digits(prose), [in_digits(text) for text in given]
    plane = any(map(_ABOUT_A_PLANE.search, given))
    typed = _first(_ALWAYS, prose, given)
    if typed is None and not any(map(_ABOUT_PIXELS.search, given)):
        typed = _first(_PIXELS, prose, given)
    if typed is None:
        known = {number for text in given for number in re.findall(_N, text)}
        pairs = (m["pair"] for m in _POINT.finditer(prose) if not plane or re.search(_LARGE, m["pair"]))
        typed = next((pair for pair in pairs if not known & {*re.findall(_N, pair)}), None) or _keyed(prose, plane)
    if typed is None:
        return None
    return Fault(Reason.TEACHER_UNREADABLE, f"it typed {typed[:80]!r}: coordinates and markup are not allowed")


LARGE = 30  # from which a number beside x or y is that of an image rather than of a plane


def _keyed(prose: str, plane: bool) -> str | None:
    """x1=120, y1=80 and left 12, top 40; not x = 3 and y = 4."""
    found = list(_KEYED.finditer(prose))
    keys = {m["key"].casefold() for m in found}
    large = any(abs(float(m["value"])) >= LARGE for m in found)
    several = len(keys) >= 3 or {"x", "y"} <= keys or keys & {"x1", "y1", "x2", "y2"}
    if several and (large or (len(keys) >= 4 and not plane)):
        return "; ".join(m[0] for m in found)
    return None


# --- brackets left open

_OPTION = re.compile(r"(?:\A|[\s,;:])\w{1,3}\Z")
_EMPTY = re.compile(r"\[\s*\]|(?<!\w)\(\s*\)")


def _open(prose: str) -> Fault | None:
    """Of one kind are ( and [, for [0, 5) is an interval; "b)" names an option."""
    depth, where = 0, ""
    text = unicodedata.normalize("NFKC", prose)
    for at, char in enumerate(text):
        if char in ")]}" and depth == 0:
            if char == ")" and _OPTION.search(text, max(at - 4, 0), at):
                continue
            where = text[max(at - 20, 0) : at + 1]
            break
        depth += (char in "([{") - (char in ")]}")
    if depth:
        where = text[-40:]
    elif not where and (empty := _EMPTY.search(text)):
        where = text[max(empty.start() - 20, 0) : empty.end()]
    why = f"a bracket is left open, or closes or holds nothing, in {where!r}"
    return Fault(Reason.TEACHER_UNREADABLE, why) if where else None


# --- what is said


@cache
def _wordings() -> dict[str, re.Pattern[str]]:
    """wordings.toml: each of its lists as one pattern."""
    said = tomllib.loads(files("vcot.distill").joinpath("wordings.toml").read_text("utf-8"))
    patterns = {name: "|".join(wordings) for name, wordings in said["lists"].items()}
    for short, wording in said["short"].items():
        patterns = {name: pattern.replace(f"<{short}>", f"(?:{wording})") for name, pattern in patterns.items()}
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in patterns.items()}


_QUOTED = re.compile(r"“[^”]*”|\"[^\"]*\"|«[^»]*»|„[^“”]*[“”]|(?<!\w)['‘][^'’]*['’](?!\w)")
"""What the image says in its own words, in whatever language and to whomever."""


def _unwanted(prose: str, given: Sequence[str], sample: Sample) -> Fault | None:
    said, unquoted = _wordings(), _QUOTED.sub(" ", prose)
    injected = (
        _first(said["link"], prose, given)
        or _first(said["to_a_model"], prose, given)
        or _first(said["to_its_reader"], unquoted, given)
    )
    if injected is not None:
        return Fault(Reason.TEACHER_INJECTED, f"it holds a link, or an order to its reader: {injected[:80]!r}")
    told = _first(said["told"], unquoted, given)
    if told is not None:
        return Fault(Reason.TEACHER_TOLD, f"it says that it was told: {told[:80]!r}")
    if any(map(said["no_answer"].search, sample.answers)):
        return None
    declined = _first(said["declined"], unquoted, [sample.question])
    return None if declined is None else Fault(Reason.TEACHER_REFUSED, f"it declined: {declined[:80]!r}")


# --- the same once more

# From the repetition filter of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1): sentences in the place of its
# lines; of the n-grams the most frequent short ones and the repeated longest ones. Its shares are for documents, where
# a phrase that stands twice is nothing; here sentences that are built alike must pass ("The [1] is marked 35°. The [2]
# is marked 55°."), hence the count of a short n-gram. The libraries that have the filter (datatrove) bring word
# splitters of some hundred megabytes for what is a count.
REPEATED_SENTENCES = 0.30
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
TOP_COUNT = 4
REPEATED_NGRAMS = {10: 0.10}


def _repeated(prose: str) -> Fault | None:
    """Shares of characters, as there."""
    said = [" ".join(_words(prose[slice(*span)])) for span in sentences(prose)]
    twice = Counter(said)
    repeated = sum(len(sentence) * (count - 1) for sentence, count in twice.items())
    if repeated > REPEATED_SENTENCES * sum(map(len, said)):
        return Fault(Reason.TEACHER_REPEATS, f"it repeats a sentence: {max(twice, key=lambda one: twice[one])[:80]!r}")
    words = _words(prose)
    whole = sum(map(len, words))
    for n in (*TOP_NGRAMS, *REPEATED_NGRAMS):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = max(grams.items(), key=lambda item: item[1], default=((), 0))
        letters = sum(map(len, gram)) * count
        often = n in TOP_NGRAMS and count >= TOP_COUNT and letters > TOP_NGRAMS[n] * whole
        again = n in REPEATED_NGRAMS and count > 1 and letters - letters // count > REPEATED_NGRAMS[n] * whole
        if often or again:
            return Fault(Reason.TEACHER_REPEATS, f"it says {' '.join(gram)[:80]!r} {count} times")
    return None


def _words(text: str) -> list[str]:
    return re.findall(rf"{HERE}\d+{HERE}|[\w'’]+|[=+]", text.casefold())


# --- which language

SURE = 0.5  # of the detector, whose probabilities are calibrated: formulas and names score below 0.4
ENOUGH = 15  # letters from which a language can be told

HARDLY = 0.1
"""What is this improbable for the language that is wanted is not in it; its kin score more (Norwegian for Danish)."""


@cache
def _detector() -> Any:
    from py3langid.langid import (  # with numpy: what only reads settings has no use for it
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages_of(text: str) -> dict[str, float]:
    """Language (ISO 639-1) → how probable it is, the most probable first; {} where that is not clear enough."""
    letters = "".join(c if c.isalpha() or c in "'’" else " " for c in text)
    if sum(c.isalpha() for c in letters) < ENOUGH:
        return {}
    ranked = dict(_detector().rank(" ".join(letters.split())))
    return ranked if next(iter(ranked.values())) >= SURE else {}


def _in_another_language(prose: str, given: Sequence[str]) -> Fault | None:
    """Sentences in another language than the question, or words of a script that the row does not know. What is quoted,
    or stands in brackets as a name does, may be in any."""
    bare = _QUOTED.sub(" ", prose)
    for own in sorted(given[1:], key=len, reverse=True):  # an address in Kuala Lumpur stays as it is
        if len(own.split()) > 1:
            bare = re.sub(re.escape(own.strip(" .")), " ", bare, flags=re.IGNORECASE)
    scripts = _scripts(" ".join(given)) | {"LATIN", "GREEK"}
    if foreign := _scripts(re.sub(r"\([^()]*\)", " ", bare)) - scripts:
        return Fault(Reason.TEACHER_OTHER_LANGUAGE, f"it holds words in another script: {', '.join(sorted(foreign))}")
    wanted = next(iter(languages_of(given[0]) or languages_of(bare)), None)
    for said in (bare[slice(*span)] for span in sentences(bare)):
        found = languages_of(said)
        if wanted is not None and found and found[wanted] < HARDLY:
            fault = f"{said[:80]!r} is in another language ({next(iter(found))}, not {wanted})"
            return Fault(Reason.TEACHER_OTHER_LANGUAGE, fault)
    return None


_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA"}


def _scripts(text: str) -> set[str]:
    """Of letters that stand side by side; one by itself may be a symbol."""
    words = re.findall(r"[^\W\d_]{2,}", text)
    found = {unicodedata.name(c, "").split(" ")[0].split("-")[0] for word in words for c in word[:2] if c.isalpha()}
    return found | _EAST_ASIAN if found & _EAST_ASIAN else found
