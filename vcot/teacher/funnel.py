"""How many rows came how far, per source, and why the others did not: what a shard of distill says of itself.

`ShardMark.facts` of distill hold these numbers, and what was paid (bill.py); `summed` over all shards they stand in
report.json (vcot.records.distillation says what each name means). Rows to look at are no numbers: see
report/specimens.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vcot.records import Reason, Rejection, Sample

_PARSING = {
    Reason.TEACHER_FAILED, Reason.TEACHER_EMPTY, Reason.TEACHER_REFUSED, Reason.TEACHER_CUT_OFF,
    Reason.TEACHER_NOT_JSON, Reason.TEACHER_WRONG_SHAPE, Reason.TEACHER_UNREADABLE, Reason.TEACHER_UNGROUNDED,
    Reason.TEACHER_TOLD, Reason.TEACHER_INJECTED, Reason.TEACHER_REPEATS, Reason.TEACHER_OTHER_LANGUAGE,
    Reason.TEACHER_NO_CONCLUSION,
    Reason.DUPLICATE,
}  # fmt: skip
_BOXES = {
    Reason.BOX_MALFORMED, Reason.BOX_NOT_FINITE, Reason.BOX_INVERTED, Reason.BOX_EMPTY, Reason.BOX_OUTSIDE,
    Reason.BOX_TOO_SMALL, Reason.BOX_TOO_LARGE, Reason.TOO_MANY_BOXES, Reason.ANSWER_IN_LABEL,
    Reason.TEACHER_BOX_OFF_GOLD, Reason.TEACHER_BOX_UNSURE, Reason.TEACHER_BOX_NOT_SEEN, Reason.TEACHER_BOX_UNDETECTED,
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
        self._noted: dict[str, dict[str, dict[str, int]]] = {"refused": {}, "parts": {}, "flags": {}}

    def passed(self, sample: Sample) -> None:
        self._row(sample)["passed"] += 1

    def kept(self, sample: Sample, flags: Iterable[str] = (), parts: Iterable[Rejection] = ()) -> None:
        self._advance(sample, None)
        for flag in flags:
            self._note("flags", flag, sample)
        for part in parts:
            self._note("parts", part.reason.value, sample)

    def refused(self, sample: Sample, rejection: Rejection) -> None:
        self._advance(sample, rejection.reason)
        self._note("refused", rejection.reason.value, sample)

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

    def _note(self, kind: str, name: str, sample: Sample) -> None:
        noted = self._noted[kind].setdefault(sample.origin.dataset, {})
        noted[name] = noted.get(name, 0) + 1


def summed(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of several shards as one: numbers are added."""
    total: dict[str, Any] = {}
    for one in facts:
        _add(total, one)
    return total


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
