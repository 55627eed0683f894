"""How many rows came how far, per dataset, and why the others did not: what a shard of distill keeps for the report.

The counts stand in the marker of a shard (vcot.records.metadata says what each name means), beside what was paid;
examples to look at are put aside (vcot.reports.sampling).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vcot.grounding import Mention
from vcot.records import Folder, Reason, Rejection, Sample
from vcot.records.metadata import Checks
from vcot.reports.distillation import GATES, MEANING, SHOWN
from vcot.reports.rendering import shorten
from vcot.reports.sampling import ExampleSampler, ShownBox, ShownExample
from vcot.reports.statistics import summed

__all__ = ["Funnel", "TRUST", "reached", "summed"]

TRUST = tuple(Checks.model_fields)
STEPS = ("asked", "parsed", "boxes_accepted", "answer_agreed", "kept")

_LONGEST = 2000
"""Characters of a text; all of it stands in the shards and the rejections."""
_REPLIES = 6
"""Replies of one row, the last ones: what was refused is among them."""


def reached(reason: Reason | None) -> int:
    """How many of STEPS a row passed that was refused for this reason; None: that was kept.

    The gates stand in this order, so a row that fell at one of them has passed those before it.
    """
    if reason is None:
        return len(STEPS)
    return GATES.index(MEANING[reason][0]) if reason in MEANING else 0


class Funnel:
    """The counts and the examples of one shard under way."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter(taught=0, traces=0, had_reasoning=0, test_passed=0)
        self._funnel: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._noted: dict[str, defaultdict[str, Counter[str]]] = {
            kind: defaultdict(Counter) for kind in ("refused", "parts", "flags")
        }
        self._sampler = ExampleSampler(SHOWN)

    def passed(self, sample: Sample) -> None:
        """A row that needs no teacher."""
        self._rows["test_passed" if sample.origin.split == "test" else "had_reasoning"] += 1
        self._funnel[sample.origin.dataset].update(("rows", "passed"))

    def kept(
        self, sample: Sample, made: Sequence[Sample], flags: Sequence[str] = (), parts: Iterable[Rejection] = ()
    ) -> None:
        """A row, and what was made of it: itself with its reasoning, and new questions, whose evidence nobody drew."""
        self._rows.update(taught=1, traces=sum(len(one.reasoning) for one in made))
        self._funnel[sample.origin.dataset].update(("rows", *STEPS))
        self._noted["flags"][sample.origin.dataset].update(flags)
        for one in made:
            if self._sampler.wants(one.origin.dataset, "kept", one.id):
                shown = {"flags": tuple(flags), "reasoning": one.reasoning[:1]}
                mentions = one.reasoning[0].mentions
                self._sampler.add(_example(one, "kept", mentions, sample.evidence or ()).model_copy(update=shown))
        for part in parts:
            self._noted["parts"][sample.origin.dataset][part.reason.value] += 1
            self._show(sample, part, f"part:{part.reason}")

    def refused(self, sample: Sample, rejection: Rejection) -> None:
        self._funnel[sample.origin.dataset].update(("rows", *STEPS[: reached(rejection.reason)]))
        self._noted["refused"][sample.origin.dataset][rejection.reason.value] += 1
        self._show(sample, rejection, f"refused:{rejection.reason}")

    def _show(self, sample: Sample, rejection: Rejection, group: str) -> None:
        if self._sampler.wants(sample.origin.dataset, group, sample.id):
            evidence = sample.evidence or ()
            said = tuple(shorten(text, _LONGEST) for text in rejection.said[-_REPLIES:])
            shown = {"part": rejection.part, "detail": shorten(rejection.detail, _LONGEST), "said": said}
            self._sampler.add(_example(sample, group, evidence, evidence).model_copy(update=shown))

    def facts(self) -> dict[str, Any]:
        funnel = {
            name: {step: counts[step] for step in ("rows", "passed", *STEPS)} for name, counts in self._funnel.items()
        }
        noted = {kind: {name: dict(n) for name, n in found.items() if n} for kind, found in self._noted.items()}
        return {"rows": dict(self._rows), "funnel": funnel, **noted}

    def put_aside(self, folder: Folder, shard: int) -> None:
        self._sampler.put_aside(folder, shard)


def _example(sample: Sample, group: str, mentions: Sequence[Mention], annotated: Sequence[Mention]) -> ShownExample:
    """A row with the boxes of these mentions; those that are not `annotated` are the teacher's."""
    people = {box for mention in annotated for box in mention.boxes}
    unique = [(mention, number, box) for mention in dict.fromkeys(mentions) for number, box in enumerate(mention.boxes)]
    boxes = [
        ShownBox(label="" if number else mention.label, edges=tuple(box.as_list()), proposed=box not in people)
        for mention, number, box in unique
    ]
    return ShownExample(
        id=sample.id, dataset=sample.origin.dataset, group=group, image=sample.image,
        question=shorten(sample.question, _LONGEST), choices=tuple(shorten(c, _LONGEST) for c in sample.choices or ()),
        answers=(shorten(sample.answers[0], _LONGEST),), boxes=tuple(boxes),
    )  # fmt: skip
