"""Which Samples are good enough to learn from: a table of checks, each a pure function of one Sample and the rules.

By default no box is refused for its size or shape. People drew them, and small ones are what documents are about: a
lower limit of 0.05 % of the picture, usual for boxes that a detector proposes, would take 12.8 % of InfographicsVQA,
7.9 % of DocVQA and 3.6 % of DUDE away; an upper one of 90 % takes 7.9 % of VSR and 4.1 % of Visual7W; and a line of
text may be 155 times as long as it is high (DUDE). The limits are for rows whose boxes a model proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from vcot.grounding import Mention, Trace
from vcot.records import Reason, Sample
from vcot.sources.labels import NEUTRAL, plain
from vcot.sources.row import Refused


@dataclass(frozen=True)
class Rules:
    """What is asked of a Sample. Limits of an area are shares of the picture by dataset; "" stands for all others.

    max_boxes: of the evidence. max_aspect: longer side by shorter. licences: patterns with * and ?; none: any.
    leaks: what becomes of a Sample whose label holds an answer.
    """

    min_area: Mapping[str, float] = field(default_factory=dict)
    max_area: Mapping[str, float] = field(default_factory=dict)
    max_boxes: int | None = None
    max_aspect: float | None = None
    licences: tuple[str, ...] = ()
    leaks: Literal["relabel", "refuse", "keep"] = "relabel"

    @cached_property
    def checks(self) -> tuple[tuple[Reason, Check], ...]:
        """Those of the table that these rules ask for: mostly none, and every row goes through here."""
        asked = (self.licences, self.max_boxes, self.min_area, self.max_area, self.max_aspect, self.leaks == "refuse")
        return tuple(check for check, wanted in zip(CHECKS, asked, strict=True) if wanted)


def judged(sample: Sample, rules: Rules) -> Sample:
    """The Sample, perhaps with other labels. Raises Refused: the reason of the first check that says no."""
    for reason, check in rules.checks:
        if (detail := check(sample, rules)) is not None:
            raise Refused(reason, detail)
    return relabelled(sample) if rules.leaks == "relabel" else sample


def _licence(sample: Sample, rules: Rules) -> str | None:
    licence = sample.origin.licence
    if not rules.licences or any(fnmatchcase(licence.casefold(), p.casefold()) for p in rules.licences):
        return None
    return f"the licence is {licence!r:.80}; --licences allows {', '.join(rules.licences)}"


def _count(sample: Sample, rules: Rules) -> str | None:
    boxes = sample.true_boxes or ()
    if rules.max_boxes is None or len(boxes) <= rules.max_boxes:
        return None
    return f"{len(boxes)} boxes; --max-boxes is {rules.max_boxes}"


def _small(sample: Sample, rules: Rules) -> str | None:
    return _area(sample, rules.min_area, "--min-box-area", lambda share, limit: share < limit)


def _large(sample: Sample, rules: Rules) -> str | None:
    return _area(sample, rules.max_area, "--max-box-area", lambda share, limit: share > limit)


def _area(sample: Sample, limits: Mapping[str, float], flag: str, beyond: Callable[[float, float], bool]) -> str | None:
    limit = limits.get(sample.origin.dataset, limits.get(""))
    if limit is None or sample.image is None:
        return None
    whole = sample.image.width * sample.image.height
    for box in sample.all_boxes():
        if beyond(box.area / whole, limit):
            return f"{box.as_list()} is {box.area / whole:.3%} of the picture; {flag} is {limit:.3%} here"
    return None


def _thin(sample: Sample, rules: Rules) -> str | None:
    if rules.max_aspect is None:
        return None
    for box in sample.all_boxes():
        width, height = box.x2 - box.x1, box.y2 - box.y1
        if (aspect := max(width / height, height / width)) > rules.max_aspect:
            return f"{box.as_list()} is {aspect:.1f} times as long as wide; --max-box-aspect is {rules.max_aspect:g}"
    return None


def _leak(sample: Sample, rules: Rules) -> str | None:
    if rules.leaks != "refuse":
        return None
    leaking = next((m.label for m in _mentions(sample) if tells(m.label, sample.answers)), None)
    return leaking and f"the label {leaking!r:.80} holds the answer: whoever names the place has answered"


Check = Callable[[Sample, Rules], str | None]
CHECKS: tuple[tuple[Reason, Check], ...] = (
    (Reason.LICENCE_NOT_ALLOWED, _licence),
    (Reason.TOO_MANY_BOXES, _count),
    (Reason.BOX_TOO_SMALL, _small),
    (Reason.BOX_TOO_LARGE, _large),
    (Reason.BOX_TOO_THIN, _thin),
    (Reason.ANSWER_IN_LABEL, _leak),
)
"""Reason → what is wrong with a Sample, or None; in the order in which they are asked, and of Rules.checks."""


# ------------------------------------------------------------------------------------------------------- labels


def tells(label: str, answers: Sequence[str]) -> bool:
    """Whether a label holds an answer, as words: "red bus" tells "Red.", not "re". Yes and no are told by no label."""
    said = f" {plain(label)} "
    return any(f" {words} " in said for a in answers if (words := plain(a)) not in ("", "yes", "no"))


def relabelled(sample: Sample) -> Sample:
    """The same Sample; what its label would have told is now called "region"."""
    labels = {mention.label for mention in _mentions(sample)} - {NEUTRAL}
    telling = {label for label in labels if tells(label, sample.answers)}
    if not telling:
        return sample

    def renamed(mention: Mention) -> Mention:
        return Mention(NEUTRAL, mention.boxes) if mention.label in telling else mention

    evidence = sample.evidence and tuple(map(renamed, sample.evidence))
    reasoning = tuple(
        Trace(tuple(part if isinstance(part, str) else renamed(part) for part in trace.parts))
        for trace in sample.reasoning
    )
    return sample.model_copy(update={"evidence": evidence, "reasoning": reasoning})


def _mentions(sample: Sample) -> list[Mention]:
    return [*(sample.evidence or ()), *(m for trace in sample.reasoning for m in trace.mentions)]


# ----------------------------------------------------------------------------------------------------- settings


def shares(written: Sequence[str]) -> dict[str, float]:
    """`0.0005`, or `0.0005,docvqa=0.0001` by dataset → {dataset or "": share of the picture}.

    Raises:
        ValueError: an entry is no share between 0 and 1.
    """
    found: dict[str, float] = {}
    for entry in written:
        name, _, number = entry.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1
        if not 0 <= share <= 1:
            raise ValueError(f"{entry!r} is no share of the picture; write 0.0005, or docvqa=0.0001 for one dataset")
        found[name.strip()] = share
    return found
