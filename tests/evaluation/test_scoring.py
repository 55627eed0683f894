"""One reply, one Score: hand-made rollouts on a canvas of 1000 × 1000 pixels."""

from __future__ import annotations

import pytest

from tests.evaluation.evaluation_samples import frame, said, sample
from vcot.answers import Synonyms
from vcot.evaluation.scoring import score
from vcot.grounding import Box, Mention

G1 = [100, 100, 300, 300]
G3 = [G1, [400, 100, 600, 300], [700, 100, 900, 300]]


def judged(boxes, true=(G1,), answer="left", **more):
    one = sample("a", true, **more)
    return score(said(boxes, answer), one, frame(one))


def test_the_exact_box_is_found_and_the_right_answer_is_right():
    found = judged([G1])
    assert (found.answer, found.true_boxes, found.predicted_boxes, found.matched) == ("right", 1, 1, 1)
    assert found.ious == (1.0,)
    assert found.well_formed


def test_a_box_said_three_times_is_one_hit_and_three_predictions():
    found = judged([G1, G1, G1])
    assert (found.matched, found.predicted_boxes, found.ious) == (1, 3, (1.0,))


def test_one_box_around_three_things_finds_none_of_them():
    found = judged([[100, 100, 900, 300]], true=G3)
    assert found.matched == 0
    assert sorted(found.ious) == [0.0, 0.0, pytest.approx(0.25)]


@pytest.mark.parametrize(("shift", "matched"), [(66, 1), (67, 0)])
def test_a_box_counts_as_found_from_an_iou_of_one_half(shift, matched):
    moved = [100 + shift, 100, 300 + shift, 300]
    overlap = (200 - shift) / (200 + shift)  # two equal boxes moved along one axis
    found = judged([moved])
    assert found.ious == (pytest.approx(overlap),)
    assert found.matched == matched


def test_pairs_at_one_half_are_as_many_as_possible():
    """Two true boxes side by side and two predictions: the best total IoU would leave one pair too weak."""
    true = [[0, 0, 100, 100], [40, 0, 140, 100]]
    predicted = [[20, 0, 120, 100], [40, 0, 140, 100]]
    found = judged(predicted, true=true)
    assert found.matched == 2


def test_things_annotated_as_absent_make_every_box_a_false_one():
    found = judged([G1, [1, 1, 9, 9]], true=())
    assert (found.true_boxes, found.predicted_boxes, found.matched, found.ious) == (0, 2, 0, ())


def test_boxes_of_a_row_without_annotation_are_counted_and_not_judged():
    found = judged([G1], true=None)
    assert (found.true_boxes, found.predicted_boxes, found.matched, found.ious) == (None, 1, 0, ())


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
    one = sample("a")
    found = score(text, one, frame(one))
    assert not found.well_formed
    assert set(found.faults) == faults
    assert (found.predicted_boxes, found.matched, found.answer) == (0, 0, answer)


# --- labels ------------------------------------------------------------------------------------------

RED, BLUE = [100, 100, 300, 300], [600, 600, 800, 800]


def cups(*said, true=(("red cup", RED), ("blue cup", BLUE)), **more):
    """A row with evidence of several names, and a reply that says (label, box) pairs."""
    mentions = tuple(Mention(label, (Box(*box),)) for label, box in true)
    one = sample("a").model_copy(update={"evidence": mentions})
    text = " and ".join(f"<ref>{label}</ref><box>{box}</box>" for label, box in said) + "\nAnswer: left"
    return score(text, one, frame(one), **more)


def test_boxes_with_exchanged_labels_find_nothing():
    found = cups(("red cup", BLUE), ("blue cup", RED))
    assert (found.matched, found.ious, found.misnamed) == (0, (0.0, 0.0), 2)
    right = cups(("red cup", RED), ("blue cup", BLUE))
    assert (right.matched, right.ious, right.misnamed) == (2, (1.0, 1.0), 0)


def test_a_label_may_differ_in_case_article_and_number():
    found = cups(("The red cups", RED), ("BLUE_CUP", BLUE))
    assert (found.matched, found.ious) == (2, (1.0, 1.0))


def test_a_box_without_a_name_shows_none_of_several_things():
    assert cups(("", RED), ("", BLUE)).matched == 0


def test_declared_synonyms_are_one_name():
    said = ("crimson mug", RED), ("blue cup", BLUE)
    assert cups(*said).matched == 1
    found = cups(*said, synonyms=Synonyms.of(["red cup=crimson mug"]))
    assert (found.matched, found.ious, found.misnamed) == (2, (1.0, 1.0), 0)


@pytest.mark.parametrize("label", ["gear", "cog", ""])
def test_where_the_truth_has_one_name_none_is_needed(label):
    one = sample("a", [G1])
    found = score(f"<ref>{label}</ref><box>{G1}</box>\nAnswer: left", one, frame(one))
    assert (found.matched, found.ious) == (1, (1.0,))


# --- how many boxes ----------------------------------------------------------------------------------


def test_sprayed_boxes_find_no_more_than_their_first():
    grid = [[x, y, x + 100, y + 100] for y in range(0, 700, 100) for x in range(0, 800, 100)]
    true = grid[30]
    found = judged(grid, true=[true])
    assert (found.predicted_boxes, found.matched, found.ious) == (56, 1, (0.0,))
    assert judged([true, *grid], true=[true]).ious == (1.0,)  # the first one counts, as in referring expressions


def test_where_the_truth_has_one_name_boxes_of_other_names_take_the_places_that_are_left():
    one = sample("a", G3)
    named = ("gear", "cog", "wheel")
    reply = " ".join(f"<ref>{name}</ref><box>{list(box)}</box>" for name, box in zip(named, G3, strict=True))
    assert score(f"{reply}\nAnswer: left", one, frame(one)).ious == (1.0, 1.0, 1.0)


def test_as_many_boxes_count_as_are_true_and_a_box_said_again_takes_no_place():
    assert judged([G3[1], G3[1], G3[0], G3[2]], true=G3).ious == (1.0, 1.0, 1.0)
    assert judged([G3[1], [0, 900, 9, 909], [20, 900, 29, 909], G3[0]], true=G3).ious == (0.0, 1.0, 0.0)


def test_things_of_other_names_take_no_place():
    one = sample("a", [G1])
    text = f"The <ref>lamp</ref><box>{BLUE}</box> stands beside the <ref>gear</ref><box>{G1}</box>.\nAnswer: left"
    assert score(text, one, frame(one)).ious == (1.0,)
    found = cups(("table", [0, 0, 999, 999]), ("red cup", RED), ("blue cup", BLUE), ("red cup", [1, 1, 9, 9]))
    assert found.ious == (1.0, 1.0)
