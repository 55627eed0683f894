"""Scores and figures by hand, and intervals that keep their promise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.evaluating import frame, said, sample, scored
from vcot.answers import Synonyms
from vcot.evaluation.metrics import METRICS, measure, score
from vcot.grounding import Box, Mention

# --- one reply, on a canvas of 1000 × 1000 pixels ------------------------------------------------------

GEAR = [100, 100, 300, 300]
GEARS = [GEAR, [400, 100, 600, 300], [700, 100, 900, 300]]
GRID = [[x, y, x + 100, y + 100] for y in range(0, 700, 100) for x in range(0, 800, 100)]
SIDE_BY_SIDE = [[0, 0, 100, 100], [40, 0, 140, 100]]


@pytest.mark.parametrize(
    ("predicted", "true", "matched", "ious"),
    [
        ([GEAR], [GEAR], 1, (1.0,)),
        ([GEAR] * 3, [GEAR], 1, (1.0,)),  # said three times: one hit, three predictions
        ([[100, 100, 900, 300]], GEARS, 0, (0.25, 0.0, 0.0)),  # one box around all of them
        ([[166, 100, 366, 300]], [GEAR], 1, (134 / 266,)),  # found from an IoU of 1/2 on
        ([[167, 100, 367, 300]], [GEAR], 0, (133 / 267,)),
        # As many pairs at 1/2 as possible: the best total IoU would leave one of them too weak.
        ([[20, 0, 120, 100], [40, 0, 140, 100]], SIDE_BY_SIDE, 2, (2 / 3, 1.0)),
        ([GEAR, [1, 1, 9, 9]], [], 0, ()),  # annotated as absent: every box is a false one
        ([GEAR], None, 0, ()),  # not annotated: counted, not judged
        # Sprayed boxes find no more than the first, as with referring expressions.
        (GRID, [GRID[30]], 1, (0.0,)),
        ([GRID[30], *GRID], [GRID[30]], 1, (1.0,)),
        # As many as are true count, and a box said again takes no place.
        ([GEARS[1], GEARS[1], GEARS[0], GEARS[2]], GEARS, 3, (1.0, 1.0, 1.0)),
        ([GEARS[1], [0, 900, 9, 909], [20, 900, 29, 909], GEARS[0]], GEARS, 2, (0.0, 1.0, 0.0)),
    ],
)
def test_boxes_are_paired_one_to_one(predicted, true, matched, ious):
    one = sample("a", true)
    found = score(said(predicted), one, frame(one))
    assert (found.predicted_boxes, found.matched, found.answer) == (len(predicted), matched, "right")
    assert found.true_boxes == (None if true is None else len(true))
    assert sorted(found.ious) == pytest.approx(sorted(ious))
    assert found.well_formed


@pytest.mark.parametrize(
    ("text", "faults", "answer"),
    [
        ("The <ref>gear</ref><box>[100, 100, 300, 3", {"unbalanced_tag"}, "absent"),
        ("The <ref>gear</ref><box>[100, 100, 300]</box>\nAnswer: left", {"wrong_count"}, "right"),
        ("The <ref>gear</ref><box>[300, 100, 100, 300]</box>\nAnswer: right", {"inverted"}, "wrong"),
        ("The <ref>gear</ref> is left.\nAnswer: left", {"no_box_text"}, "right"),
    ],
)
def test_what_cannot_be_read_is_a_fault_and_no_box(text, faults, answer):
    found = score(text, sample("a"), frame(sample("a")))
    assert (found.well_formed, set(found.faults), found.answer) == (False, faults, answer)
    assert (found.predicted_boxes, found.matched) == (0, 0)


@pytest.mark.parametrize(
    ("answers", "choices", "stated", "verdict"),
    [
        (("up",), ("up", "down"), "A. up", "right"), (("up",), ("up", "down"), "B", "wrong"),
        (("up",), ("up", "down"), "A or B", "unreadable"), (("up",), ("up", "down"), "sideways", "unreadable"),
        (("yes",), None, "Yes, there is.", "right"), (("yes",), None, "no", "wrong"),
        (("yes",), None, "yes and no", "unreadable"), (("yes",), None, "maybe", "unreadable"),
        (("5",), None, "five", "right"), (("5",), None, "many", "wrong"), (("5",), None, "5 or 6", "unreadable"),
        (("left",), None, "left", "right"), (("left",), None, "left or right", "wrong"),
    ],
)  # fmt: skip
def test_score_separates_wrong_from_unreadable_answers(answers, choices, stated, verdict):
    one = sample("a").model_copy(update={"answers": answers, "choices": choices})
    assert score(f"I see it.\nAnswer: {stated}", one, frame(one)).answer == verdict
    assert score("I see it.", one, frame(one)).answer == "absent"


RED, BLUE = [100, 100, 300, 300], [600, 600, 800, 800]


@pytest.mark.parametrize(
    ("reply", "synonyms", "matched", "misnamed", "ious"),
    [
        ([("red cup", RED), ("blue cup", BLUE)], [], 2, 0, (1, 1)),
        ([("red cup", BLUE), ("blue cup", RED)], [], 0, 2, (0, 0)),
        ([("The red cups", RED), ("BLUE_CUP", BLUE)], [], 2, 0, (1, 1)),  # case, article and number
        ([("", RED), ("", BLUE)], [], 0, 2, (0, 0)),
        ([("crimson mug", RED), ("blue cup", BLUE)], [], 1, 1, (0, 1)),
        ([("crimson mug", RED), ("blue cup", BLUE)], ["red cup=crimson mug"], 2, 0, (1, 1)),
        # Things of other names, and a name said again, take no place.
        ([("table", GEAR), ("red cup", RED), ("blue cup", BLUE), ("red cup", [1, 1, 9, 9])], [], 2, 0, (1, 1)),
    ],
)  # fmt: skip
def test_where_things_of_several_names_are_true_only_boxes_of_one_name_are_paired(
    reply, synonyms, matched, misnamed, ious
):
    cups = (Mention("red cup", (Box(*RED),)), Mention("blue cup", (Box(*BLUE),)))
    one = sample("a").model_copy(update={"evidence": cups})
    text = " and ".join(f"<ref>{label}</ref><box>{box}</box>" for label, box in reply) + "\nAnswer: left"
    found = score(text, one, frame(one), Synonyms.of(synonyms))
    assert (found.matched, found.misnamed, found.ious) == (matched, misnamed, ious)


@pytest.mark.parametrize(
    "labels", [("gear",) * 3, ("gear", "cog", "wheel"), ("",) * 3, ("lamp", "gear", "gear", "gear")]
)
def test_where_the_truth_has_one_name_none_is_needed(labels):
    """Boxes of other names take the places that are left, and no others."""
    boxes = [BLUE, *GEARS] if len(labels) == 4 else GEARS
    text = " ".join(f"<ref>{label}</ref><box>{box}</box>" for label, box in zip(labels, boxes, strict=True))
    one = sample("a", GEARS)
    assert score(f"{text}\nAnswer: left", one, frame(one)).ious == (1.0, 1.0, 1.0)


# --- figures -------------------------------------------------------------------------------------------


def figures(*scores):
    return measure({"it": scores}).figures["it"]


FIVE = (
    # exact, right answer
    scored("a", true_boxes=1, predicted_boxes=1, matched=1, ious=(1.0,)),
    # two true boxes, one found at IoU 0.6, the other under another name, three predicted; an answer nobody can read
    scored("b", true_boxes=2, predicted_boxes=3, matched=1, ious=(0.6, 0.0), answer="unreadable", misnamed=1),
    # malformed: no box can be read, no answer
    scored("c", true_boxes=1, predicted_boxes=0, ious=(0.0,), answer="absent", well_formed=False),
    # annotated as absent, and one box is drawn all the same
    scored("d", true_boxes=0, predicted_boxes=1),
    # evidence was never annotated; two boxes are drawn
    scored("e", true_boxes=None, predicted_boxes=2),
)

BY_HAND = {  # value, rows, what is counted below the line
    "answer_accuracy": (3 / 5, 5, 5),
    "answer_wrong": (1 / 5, 5, 5),
    "unreadable": (2 / 5, 5, 5),
    "answer_absent": (1 / 5, 5, 5),
    "accuracy_at_50": (2 / 4, 3, 4),  # of true boxes: 1 + 2 + 1
    "mean_iou": (1.6 / 4, 3, 4),
    "accuracy_at_50_parsed": (2 / 3, 2, 3),  # without c
    "mean_iou_parsed": (1.6 / 3, 2, 3),
    "precision": (2 / 5, 3, 5),  # of predicted boxes: 1 + 3 + 0 + 1; e is left out
    "recall": (2 / 4, 3, 4),
    "f1": (2 * 2 / (5 + 4), 4, 9),
    "all_boxes_right": (1 / 3, 3, 3),  # a, of a, b and c
    "misnamed": (1 / 4, 3, 4),
    "malformed": (1 / 5, 5, 5),
    "boxes_per_answer": (7 / 5, 5, 5),
    "no_box": (1 / 3, 3, 3),  # c, of a, b and c
    "boxes_where_absent": (1 / 1, 1, 1),
}


def test_every_figure_of_five_replies_by_hand():
    found = figures(*FIVE)
    assert found.keys() == METRICS.keys() == BY_HAND.keys()
    for name, expected in BY_HAND.items():
        assert (found[name].value, found[name].rows, found[name].count) == pytest.approx(expected), name


def test_where_nothing_can_be_measured_there_is_no_number():
    found = figures(scored("a", true_boxes=None, predicted_boxes=0), scored("b", true_boxes=None, predicted_boxes=0))
    for name in ("accuracy_at_50", "mean_iou", "precision", "recall", "f1", "boxes_where_absent"):
        assert (found[name].value, found[name].low, found[name].interval) == (None, None, "none")
    found = figures(scored("a", predicted_boxes=0, ious=(0.0,)), scored("b", predicted_boxes=0, ious=(0.0,)))
    assert (found["precision"].value, found["f1"].value) == (None, 0)


# --- intervals -----------------------------------------------------------------------------------------


def test_a_share_of_all_or_none_has_the_exact_interval_over_images():
    """Of Clopper and Pearson: none of fifty may still be seven per cent."""
    found = figures(*(scored(f"{i}", ious=(0.0,), answer="wrong") for i in range(50)))
    for name in ("answer_accuracy", "accuracy_at_50", "precision"):
        assert (found[name].value, found[name].low, found[name].interval) == (0, 0, "exact")
        assert found[name].high == pytest.approx(0.0711, abs=1e-4)
    assert found["answer_wrong"].low == pytest.approx(1 - 0.0711, abs=1e-4)
    found = figures(*(scored(f"{i}", true_boxes=None, answer="wrong", image=f"{i % 10}") for i in range(50)))
    assert found["answer_accuracy"].high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_four_rows_of_one_image_are_one_observation():
    """Each row four times over says no more than once: every interval and difference stays what it is."""
    rng = np.random.default_rng(5)
    once = [
        scored(f"{i}", answer=("wrong", "right")[right], matched=int(hit), ious=(0.7 * hit,), image=f"{i}")
        for i, (hit, right) in enumerate(zip(rng.random(40) < 0.7, rng.integers(0, 2, 40), strict=True))
    ]
    turned = [one.model_copy(update={"answer": "right" if n % 5 else "wrong"}) for n, one in enumerate(once)]
    often, turned_often = (
        [one.model_copy(update={"sample": f"{one.sample}-{n}"}) for one in each for n in range(4)]
        for each in (once, turned)
    )
    narrow = measure({"a": once, "b": turned}, [("a", "b")])
    wide = measure({"a": often, "b": turned_often}, [("a", "b")])
    for name in METRICS:
        for one, other in ((narrow.figures["a"], wide.figures["a"]), (narrow.differences, wide.differences)):
            mine, theirs = (each.get(("a", "b"), each)[name] for each in (one, other))
            assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.value, theirs.low, theirs.high)), name
            assert mine.images == theirs.images
    assert (wide.figures["a"]["answer_accuracy"].rows, wide.figures["a"]["answer_accuracy"].images) == (160, 40)


# --- differences ---------------------------------------------------------------------------------------


def test_a_difference_is_paired_row_by_row():
    """After is right wherever before was, and on one row in ten more: the pairing makes this sure."""
    before = [scored(f"{i}", answer="right" if i % 2 else "wrong") for i in range(100)]
    after = [scored(f"{i}", answer="right" if i % 2 or i % 10 == 0 else "wrong") for i in range(100)]
    paired = measure({"a": after, "b": before}, [("a", "b")]).differences["a", "b"]["answer_accuracy"]
    assert paired.value == pytest.approx(0.1)
    assert 0.03 < paired.low < paired.high < 0.18


def test_conditions_about_other_samples_are_not_compared():
    for other in ([scored("2"), scored("1")], [scored("1")]):
        with pytest.raises(ValueError, match="same samples"):
            measure({"a": [scored("1"), scored("2")], "b": other})


def test_a_difference_is_over_the_samples_that_both_were_asked():
    real = [scored(f"{n}", answer="right" if n < 9 else "wrong") for n in range(12)]
    blank = [scored(f"{n}", answer="right" if n % 2 else "wrong") for n in range(12)]
    some = [one if int(one.sample) >= 6 else None for one in blank]
    found = measure({"real": real, "blank": some}, [("real", "blank")], seed=3)
    alone = measure({"real": real[6:], "blank": blank[6:]}, [("real", "blank")], seed=3)
    assert [found.figures[name]["answer_accuracy"].rows for name in ("real", "blank")] == [12, 6]
    assert found.differences == alone.differences
