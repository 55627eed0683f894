"""What a judge says of replies: each gets a Verdict beside what the rules say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vcot.distill.judge import Judge, ToJudge
from vcot.evaluation.config import Way
from vcot.evaluation.suites.base import Marked, Verdict


def judged(judge: Judge, replies: Mapping[Way, Sequence[Marked]]) -> tuple[dict[Way, list[Marked]], dict[str, Any]]:
    """The same replies with a Verdict each, and for the report who judged and what it cost. A reply that comes to no
    answer is worth 0 without a question.

    Raises as Asking.map does.
    """
    found = {way: [replace(one, verdict=Verdict(0.0)) for one in each] for way, each in replies.items()}
    places = [(each, place) for each in found.values() for place, one in enumerate(each) if one.answer]
    asked = [
        ToJudge(one.set, one.sample.id, one.sample.question, " or ".join(one.sample.answers), one.answer or "")
        for one in (each[place] for each, place in places)
    ]
    models = set[str]()
    for (each, place), (score, model) in zip(places, judge.scores(asked), strict=True):
        each[place] = replace(each[place], verdict=Verdict(score))
        models |= {model} - {""}
    about = {"model": judge.name, "address": judge.address, "answered_by": sorted(models)}
    return found, about | {"costs": judge.client.report.totals()}
