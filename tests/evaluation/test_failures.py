"""Each reply that is not right in all has one cause, and the page shows pictures of each."""

from __future__ import annotations

import pytest

from tests.fakes.evaluating import frame, said, sample
from vcot.evaluation.failures import CAUSES, cause, failures
from vcot.evaluation.metrics import score

TRUE, LOOSE, ELSEWHERE = [100, 100, 300, 300], [150, 150, 450, 450], [600, 600, 900, 900]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (said([TRUE]), None),
        (said([TRUE], None), "format"),
        ("<ref>gear</ref><box>[1, 2</box>\nAnswer: left", "format"),
        (said([]), "format"),
        (said([ELSEWHERE], "right"), "wrong object"),
        (said([ELSEWHERE]), "right answer, wrong box"),
        (said([LOOSE]), "loose box"),
        (said([LOOSE], "right"), "loose box"),
        (said([TRUE], "right"), "right box, wrong answer"),
        (said([TRUE, ELSEWHERE]), "too many boxes"),
        (said([ELSEWHERE, TRUE]), "too many boxes"),
        (said([ELSEWHERE, TRUE], "right"), "right box, wrong answer"),
    ],
)
def test_a_reply_fails_for_one_cause(text, expected):
    one = sample("a")
    assert cause(score(text, one, frame(one))) == expected


@pytest.mark.parametrize(
    ("boxes", "text", "expected"),
    [
        ((), said([TRUE], "no"), "box of what is not there"),
        ((), said([], "no"), "wrong answer"),
        ((), said([]), None),
        (None, said([TRUE], "no"), "wrong answer"),
    ],
)
def test_where_nothing_is_there_or_nobody_marked_it_boxes_cannot_be_missed(boxes, text, expected):
    one = sample("a", boxes)
    assert cause(score(text, one, frame(one))) == expected


def test_a_way_without_boxes_is_judged_by_its_answers():
    one = sample("a")
    found = [cause(score(said([], answer), one, frame(one)), boxes=False) for answer in ("left", "right", None)]
    assert found == [None, "wrong answer", "format"]


def test_the_report_has_the_causes_that_there_are_the_most_frequent_first():
    texts = [said([TRUE])] * 5 + [said([LOOSE])] * 2 + [said([ELSEWHERE], "right")] * 3
    samples = [sample(f"row-{n}") for n in range(len(texts))]
    scores = [score(text, one, frame(one)) for text, one in zip(texts, samples, strict=True)]
    found = failures(scores, boxes=True, seed=0)
    assert [(row["cause"], row["share"]["value"]) for row in found] == [("wrong object", 0.3), ("loose box", 0.2)]
    assert found[0]["share"]["low"] < 0.3 < found[0]["share"]["high"]
    assert all(row["meaning"] == CAUSES[row["cause"]] for row in found)
