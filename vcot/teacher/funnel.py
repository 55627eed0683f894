"""How many rows came how far, per source, and why the others did not: what a shard of distill says of itself.

`ShardMark.facts` of distill, and after `summed` the same names in report.json:

    rows      {"taught", "traces", "had_reasoning", "test_passed": rows (traces: traces)}
    funnel    {source: {"rows": all that came in,
                        "passed": had reasoning with places, or are of the test split; they are not asked about,
                        "asked": rows less passed, less those refused before anybody was asked,
                        "parsed": of asked, the reply could be read,
                        "boxes_accepted": of parsed, no box was refused,
                        "answer_agreed": of boxes_accepted, answer and evidence agree,
                        "kept": of answer_agreed, written to the shard}}
    refused   {source: {reason: {"count": rows, "examples": [at most 3 of EXAMPLE]}}}
    parts     the same, of parts that were refused (an alternative, an object, a pair) of rows that were kept
    flags     {source: {flag: {"count": rows, "examples": […]}}}: kept, and worth a look
                  answer-first: the first sentence states the answer
    trust     {"looks", "looks_refused": boxes that were looked at, and that the look refused,
               "decoys", "decoys_accepted": cut-outs that do not show the thing, and how many passed for it (the
               decoy rate is decoys_accepted / decoys),
               "second_proposals", "detections", "reanswers", "repairs": how often each was asked for}
    spent     {name: number}: what else the teacher counts (requests, tokens, …)
    examples  the first kept lessons: {"id", "source", "image": Image, "question", "answer", "reply": in thousandths,
               "reasoning": the Trace as JSON, boxes in pixels of the original, "evidence": Mentions or None}

    EXAMPLE   {"id", "part", "detail", "said": what the teacher said, "image": Image, "question", "answer"}

All numbers are sums of the shards' numbers; examples are the first ones in the order of shards and rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vcot.records import Reason, Rejection, Sample

EXAMPLES = 3
"""Kept of each reason and flag."""

SHOWN = 2000
"""Characters of one text of an example; all of it stands in the rejections."""

_PARSING = {
    Reason.TEACHER_EMPTY, Reason.TEACHER_REFUSED, Reason.TEACHER_CUT_OFF, Reason.TEACHER_NOT_JSON,
    Reason.TEACHER_WRONG_SHAPE, Reason.TEACHER_UNREADABLE, Reason.TEACHER_UNGROUNDED,
}  # fmt: skip
_BOXES = {
    Reason.BOX_MALFORMED, Reason.BOX_NOT_FINITE, Reason.BOX_INVERTED, Reason.BOX_EMPTY, Reason.BOX_OUTSIDE,
    Reason.BOX_TOO_SMALL, Reason.BOX_TOO_LARGE, Reason.ANSWER_IN_LABEL, Reason.TEACHER_BOX_OFF_GOLD,
    Reason.TEACHER_BOX_UNSURE, Reason.TEACHER_BOX_NOT_SEEN, Reason.TEACHER_BOX_UNDETECTED,
    Reason.TEACHER_CLAIMS_UNSUPPORTED, Reason.TEACHER_NOTHING_LEFT,
}  # fmt: skip
_ANSWER = {Reason.TEACHER_WRONG_ANSWER, Reason.TEACHER_EVIDENCE_FALLS_SHORT, Reason.TEACHER_ANSWER_FIRST}

TRUST = (
    "looks",
    "looks_refused",
    "decoys",
    "decoys_accepted",
    "second_proposals",
    "detections",
    "reanswers",
    "repairs",
)
STEPS = ("asked", "parsed", "boxes_accepted", "answer_agreed", "kept")


def reached(reason: Reason | None) -> int:
    """How many of STEPS a row passed that was refused for this reason; None: that was kept.

    The gates stand in this order, so a row that fell at one of them has passed those before it.
    """
    if reason is None:
        return len(STEPS)
    return next((n for n, group in enumerate((_PARSING, _BOXES, _ANSWER), 1) if reason in group), 0)


class Funnel:
    """The counts of one shard under way; rows come in their order."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, int]] = {}
        self._noted: dict[str, dict[str, dict[str, Any]]] = {"refused": {}, "parts": {}, "flags": {}}

    def passed(self, sample: Sample) -> None:
        self._row(sample)["passed"] += 1

    def kept(self, sample: Sample, flags: Iterable[str] = (), parts: Iterable[Rejection] = ()) -> None:
        self._advance(sample, None)
        for flag in flags:
            self._note("flags", flag, sample, Rejection(id=sample.id, stage="", reason=Reason.NO_REASONING))
        for part in parts:
            self._note("parts", part.reason.value, sample, part)

    def refused(self, sample: Sample, rejection: Rejection) -> None:
        self._advance(sample, rejection.reason)
        self._note("refused", rejection.reason.value, sample, rejection)

    def facts(self) -> dict[str, Any]:
        return {"funnel": self._rows, **self._noted}

    def _row(self, sample: Sample) -> dict[str, int]:
        counts = self._rows.setdefault(sample.origin.dataset, dict.fromkeys(("rows", "passed", *STEPS), 0))
        counts["rows"] += 1
        return counts

    def _advance(self, sample: Sample, reason: Reason | None) -> None:
        counts = self._row(sample)
        for step in STEPS[: reached(reason)]:
            counts[step] += 1

    def _note(self, kind: str, name: str, sample: Sample, rejection: Rejection) -> None:
        noted = self._noted[kind].setdefault(sample.origin.dataset, {}).setdefault(name, {"count": 0, "examples": []})
        noted["count"] += 1
        if len(noted["examples"]) < EXAMPLES:
            noted["examples"].append(example(sample, rejection))


def example(sample: Sample, rejection: Rejection) -> dict[str, Any]:
    return {
        "id": sample.id, "part": rejection.part, "detail": rejection.detail,
        "said": [text[:SHOWN] for text in rejection.said], "image": sample.image.model_dump(mode="json"),
        "question": sample.question, "answer": sample.answers[0],
    }  # fmt: skip


def summed(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of several shards as one: numbers are added, lists of examples go on until they are full."""
    total: dict[str, Any] = {}
    for one in facts:
        _add(total, one)
    return total


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            total[name] = [*total.get(name, []), *value][:EXAMPLES]
        else:
            total[name] = total.get(name, 0) + value
