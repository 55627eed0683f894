"""Figures by hand, and intervals that keep their promise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.evaluation_samples import scored
from vcot.evaluation.metrics import METRICS, measure, point


def figures(*scores):
    return measure({"it": scores}).figures["it"]


def values(*scores):
    return {name: figure.value for name, figure in figures(*scores).items()}


FIVE = (
    # exact, right answer
    scored("a", true=1, predicted=1, matched=1, ious=(1.0,)),
    # two true boxes, one found at IoU 0.6, the other under another name, three predicted; wrong answer
    scored("b", true=2, predicted=3, matched=1, ious=(0.6, 0.0), answer="wrong", misnamed=1),
    # malformed: no box can be read, no answer
    scored("c", true=1, predicted=0, ious=(0.0,), answer="absent", well_formed=False),
    # annotated as absent, and one box is drawn all the same
    scored("d", true=0, predicted=1),
    # evidence was never annotated; two boxes are drawn
    scored("e", true=None, predicted=2),
)


def test_every_figure_of_five_replies_by_hand():
    assert values(*FIVE) == {
        "answer_accuracy": pytest.approx(3 / 5),
        "answer_wrong": pytest.approx(1 / 5),
        "answer_absent": pytest.approx(1 / 5),
        "accuracy_at_50": pytest.approx(2 / 4),  # of true boxes: 1 + 2 + 1
        "mean_iou": pytest.approx(1.6 / 4),
        "accuracy_at_50_parsed": pytest.approx(2 / 3),  # without c
        "mean_iou_parsed": pytest.approx(1.6 / 3),
        "precision": pytest.approx(2 / 5),  # of predicted boxes: 1 + 3 + 0 + 1; e is left out
        "recall": pytest.approx(2 / 4),
        "f1": pytest.approx(2 * 2 / (5 + 4)),
        "misnamed": pytest.approx(1 / 4),
        "malformed": pytest.approx(1 / 5),
        "boxes_per_answer": pytest.approx(7 / 5),
        "no_box": pytest.approx(1 / 3),  # c, of a, b and c
        "boxes_where_absent": pytest.approx(1 / 1),
    }


def test_every_figure_says_on_how_many_rows_and_what_it_was_measured():
    found = figures(*FIVE)
    assert (found["answer_accuracy"].rows, found["answer_accuracy"].count) == (5, 5)
    assert (found["accuracy_at_50"].rows, found["accuracy_at_50"].count, found["accuracy_at_50"].of) == (
        3,
        4,
        "true boxes",
    )
    assert (found["precision"].rows, found["precision"].count) == (3, 5)
    assert (found["boxes_where_absent"].rows, found["boxes_where_absent"].count) == (1, 1)
    assert all(point(name, FIVE) == pytest.approx(figure.value) for name, figure in found.items())


def test_where_nothing_can_be_measured_there_is_no_number():
    found = figures(scored("a", true=None, predicted=0), scored("b", true=None, predicted=0))
    for name in ("accuracy_at_50", "mean_iou", "precision", "recall", "f1", "boxes_where_absent"):
        assert found[name].value is None
        assert (found[name].low, found[name].high, found[name].interval) == (None, None, "none")
    assert found["answer_accuracy"].value == 1


def test_without_a_prediction_there_is_no_precision_but_an_f1_of_zero():
    found = values(scored("a", predicted=0, ious=(0.0,)), scored("b", predicted=0, ious=(0.0,)))
    assert found["precision"] is None
    assert found["f1"] == 0


# --- intervals ---------------------------------------------------------------------------------------


def test_none_of_fifty_may_still_be_seven_per_cent():
    found = figures(*(scored(f"{i}", ious=(0.0,), answer="wrong") for i in range(50)))
    for name in ("answer_accuracy", "accuracy_at_50", "precision"):
        assert (found[name].value, found[name].low, found[name].interval) == (0, 0, "exact")
        assert found[name].high == pytest.approx(0.0711, abs=1e-4)
    assert found["answer_wrong"].low == pytest.approx(1 - 0.0711, abs=1e-4)


def test_one_row_has_a_value_and_hardly_an_interval():
    found = figures(scored("a", matched=1, ious=(0.8,)))
    assert (found["mean_iou"].value, found["mean_iou"].interval) == (pytest.approx(0.8), "none")
    assert found["accuracy_at_50"].interval == "exact"
    assert found["accuracy_at_50"].low == pytest.approx(0.025)


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_the_same():
    scores = [scored(f"{i}", answer="right" if i % 3 else "wrong") for i in range(60)]
    first, again, other = (measure({"it": scores}, seed=seed).figures["it"]["answer_accuracy"] for seed in (1, 1, 2))
    assert first == again
    assert other.low == pytest.approx(first.low, abs=0.03)


@pytest.mark.parametrize(("share", "rows"), [(0.5, 50), (0.1, 50)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(share, rows):
    """100 experiments with a known share; 95 % intervals of a bootstrap of 50 rows miss a little more than 5 %."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(100):
        right = rng.random(rows) < share
        scores = [scored(f"{i}", true=None, answer="right" if r else "wrong") for i, r in enumerate(right)]
        figure = measure({"it": scores}, seed=seed, resamples=300).figures["it"]["answer_accuracy"]
        hits += figure.low <= share <= figure.high
    assert 0.88 <= hits / 100 <= 0.995


def test_boxes_of_one_row_are_drawn_together():
    """Ten rows with ten boxes each, all right or all wrong: the interval is that of 10 rows, not of 100 boxes."""
    wide = [scored(f"{i}", true=10, predicted=10, matched=10 * (i % 2), ious=(float(i % 2),) * 10) for i in range(10)]
    narrow = [scored(f"{i}", matched=i % 2, ious=(float(i % 2),)) for i in range(100)]
    first, second = (measure({"it": each}).figures["it"]["accuracy_at_50"] for each in (wide, narrow))
    assert first.value == second.value == 0.5
    assert first.count == second.count == 100
    assert first.high - first.low > 2.5 * (second.high - second.low)


def clustered(rng, images: int, questions: int, spread: float = 0.35) -> list:
    """Questions about images that differ in how hard they are: one half right on average."""
    hard = np.clip(rng.normal(0.5, spread, images), 0, 1)
    return [
        scored(f"{i}-{q}", answer="right" if rng.random() < hard[i] else "wrong", true=None, image=f"image {i}")
        for i in range(images)
        for q in range(questions)
    ]


def test_four_rows_of_one_image_are_one_observation():
    """Each row four times over says no more than once: every interval stays what it is."""
    rng = np.random.default_rng(5)
    once = [
        scored(
            f"{i}", answer="right" if rng.random() < 0.6 else "wrong", matched=int(hit), ious=(0.7 * hit,), image=f"{i}"
        )
        for i, hit in enumerate(rng.random(40) < 0.7)
    ]
    often = [one.model_copy(update={"sample": f"{one.sample}-{n}"}) for one in once for n in range(4)]
    turned = [one.model_copy(update={"answer": "right" if n % 5 else "wrong"}) for n, one in enumerate(once)]
    turned_often = [one.model_copy(update={"sample": f"{one.sample}-{n}"}) for one in turned for n in range(4)]
    narrow = measure({"a": once, "b": turned}, [("a", "b")])
    wide = measure({"a": often, "b": turned_often}, [("a", "b")])
    for name in METRICS:
        for mine, other in (
            (narrow.figures["a"][name], wide.figures["a"][name]),
            (narrow.differences["a", "b"][name], wide.differences["a", "b"][name]),
        ):
            assert (mine.value, mine.low, mine.high) == pytest.approx((other.value, other.low, other.high)), name
            assert mine.images == other.images
    assert (wide.figures["a"]["answer_accuracy"].rows, wide.figures["a"]["answer_accuracy"].images) == (160, 40)


def test_where_all_rows_are_alike_images_are_counted_and_not_rows():
    rows = [scored(f"{i}", true=None, answer="wrong", image=f"{i % 10}") for i in range(50)]
    found = figures(*rows)["answer_accuracy"]
    assert found.interval == "exact"
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_intervals_of_many_questions_about_an_image_hold_the_truth_as_often_as_they_say():
    """100 experiments, 40 images with 4 questions each; drawn row by row, four in five intervals would."""
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(100):
        figure = measure({"it": clustered(rng, 40, 4)}, seed=seed, resamples=300).figures["it"]["answer_accuracy"]
        hits += figure.low <= 0.5 <= figure.high
    assert 0.89 <= hits / 100 <= 0.995


def test_rows_that_were_judged_without_naming_their_image_are_drawn_with_those_that_name_it():
    """One side of a comparison may know the images alone."""
    named = clustered(np.random.default_rng(1), 20, 4)
    plain = [one.model_copy(update={"image": None}) for one in named]
    found = measure({"named": named, "plain": plain}, [("named", "plain")]).figures
    assert found["named"] == found["plain"]


# --- differences -------------------------------------------------------------------------------------


def test_a_difference_is_paired_row_by_row():
    """After is right wherever before was, and on one row in ten more: the pairing makes this sure."""
    before = [scored(f"{i}", answer="right" if i % 2 else "wrong") for i in range(100)]
    after = [scored(f"{i}", answer="right" if i % 2 or i % 10 == 0 else "wrong") for i in range(100)]
    found = measure({"after": after, "before": before}, [("after", "before")])
    paired = found.differences["after", "before"]["answer_accuracy"]
    assert paired.value == pytest.approx(0.1)
    assert 0.03 < paired.low < paired.high < 0.18
    unpaired = found.figures["after"]["answer_accuracy"].low - found.figures["before"]["answer_accuracy"].high
    assert unpaired < 0 < paired.low


def test_from_none_to_all_is_a_sure_difference_without_any_draw():
    before = [scored(f"{i}", answer="wrong") for i in range(50)]
    after = [scored(f"{i}", answer="right") for i in range(50)]
    paired = measure({"a": after, "b": before}, [("a", "b")]).differences["a", "b"]["answer_accuracy"]
    assert (paired.value, paired.interval) == (1, "exact")
    assert 0.8 < paired.low < paired.high == 1


def test_conditions_about_other_samples_are_not_compared():
    with pytest.raises(ValueError, match="same samples"):
        measure({"a": [scored("1"), scored("2")], "b": [scored("2"), scored("1")]})


def test_a_difference_is_over_the_samples_that_both_were_asked():
    real = [scored(f"{n}", answer="right" if n < 9 else "wrong") for n in range(12)]
    blank = [scored(f"{n}", answer="right" if n % 2 else "wrong") for n in range(12)]
    some = [one if int(one.sample) >= 6 else None for one in blank]
    found = measure({"real": real, "blank": some}, [("real", "blank")], seed=3)
    alone = measure({"real": real[6:], "blank": blank[6:]}, [("real", "blank")], seed=3)
    assert [found.figures[name]["answer_accuracy"].rows for name in ("real", "blank")] == [12, 6]
    assert found.differences == alone.differences
