"""Blank and exchanged images, and guesses made without looking."""

from __future__ import annotations

import pytest
from PIL import Image as Pillow

from tests.evaluation.evaluation_samples import SIDE, by_text, drawn, frame, sample
from vcot.errors import InputError
from vcot.evaluation.ablations import image_of, partners, shown
from vcot.evaluation.baselines import NOT_ANNOTATED, NOTHING_NAMED, Baselines, guesses, subject
from vcot.evaluation.metrics import measure
from vcot.grounding import Box, Mention
from vcot.records import Image
from vcot.storage import Store
from vcot.storage.images import ImageError


def shared(name, digest):
    return sample(name, image=Image(uri=name, width=SIDE, height=SIDE, sha256=digest * 64))


# --- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_nobody_is_shown_its_own_image_and_the_seed_decides_whose(count):
    samples = [sample(f"{i}") for i in range(count)]
    for seed in range(5):
        other = partners(samples, seed)
        assert all(i != j for i, j in enumerate(other))
        assert sorted(other) == list(range(count))
        assert other == partners(samples, seed)
    assert count < 50 or partners(samples, 1) != partners(samples, 2)


def test_samples_without_an_image_keep_none_and_the_others_exchange_theirs():
    assert partners([by_text("t0"), sample("a"), by_text("t1"), sample("b")], 0) == [0, 3, 2, 1]


def test_samples_of_one_image_share_the_other_one_too():
    """Two questions about an image must not be given each other's, which is their own."""
    samples = [shared("a1", "a"), shared("a2", "a"), shared("b1", "b"), shared("c1", "c"), shared("c2", "c")]
    for seed in range(20):
        other = partners(samples, seed)
        assert all(samples[i].image.sha256 != samples[j].image.sha256 for i, j in enumerate(other))
        assert other[0] == other[1]
        assert other[3] == other[4]


def test_one_image_cannot_be_exchanged():
    with pytest.raises(InputError, match="at least two"):
        partners([shared("a1", "a"), shared("a2", "a")], 0)


def test_blank_is_uniform_and_shuffled_is_the_others_image_at_the_own_size(tmp_path):
    own = image_of(Store(), sample("a", None, image=drawn(tmp_path, "a", (10, 10, 60, 60), "red")))
    other = image_of(Store(), sample("b", None, image=drawn(tmp_path, "b", (30, 50, 90, 110), "blue", size=(80, 160))))
    blank, shuffled = shown("blank", own), shown("shuffled", own, other)
    assert shown("real", own) is own
    assert blank.size == shuffled.size == own.size == (160, 120)
    assert blank.getcolors() == [(160 * 120, (128, 128, 128))]
    assert shuffled.getpixel((120, 60))[2] > 200 > 100 > shuffled.getpixel((120, 60))[0]
    assert own.getpixel((35, 35)) == (255, 0, 0)


def test_an_image_of_another_size_is_scaled_as_a_whole():
    half = Pillow.new("RGB", (40, 40), "black")
    half.paste("white", (0, 0, 20, 40))
    wide = shown("shuffled", Pillow.new("RGB", (200, 100)), half)
    assert wide.getpixel((40, 50)) == (255, 255, 255)
    assert wide.getpixel((160, 50)) == (0, 0, 0)


def test_an_image_that_changed_since_it_was_annotated_is_refused(tmp_path):
    one = sample("a", None, image=drawn(tmp_path, "a", (10, 10, 60, 60), "red"))
    drawn(tmp_path, "a", (10, 10, 60, 60), "green")
    with pytest.raises(ImageError, match="sha256"):
        image_of(Store(), one)


# --- guesses -----------------------------------------------------------------------------------------

HOW_MANY = {"question": "How many levers are there?", "split": "train"}
TRAIN = [
    sample("t1", [(0, 0, 200, 200)], answers=["left"], split="train"),
    sample("t2", [(200, 200, 400, 600)], answers=["left"], split="train"),
    sample("t3", [(500, 500, 900, 900)], answers=["2"], label="lever", **HOW_MANY),
    sample("t4", [(500, 500, 900, 900)], answers=["2"], label="lever", **HOW_MANY),
    sample("t5", (), answers=["0"], **HOW_MANY),
]


def test_baselines_are_the_usual_answer_and_the_average_box():
    learned = Baselines.of(TRAIN)
    assert learned.answer("Where is the gear?") == "left"
    assert learned.answer("How many levers are there?") == "2"
    assert learned.answer("Never asked?") == "2"  # 2 and left are equally frequent; the first by alphabet
    assert learned.box("gear") == pytest.approx((0.1, 0.1, 0.3, 0.4))
    assert learned.box("lever") == pytest.approx((0.5, 0.5, 0.9, 0.9))
    assert learned.box("wheel") == pytest.approx((0.3, 0.3, 0.6, 0.65))
    assert learned.rows == 5


def test_guesses_are_scored_as_replies_are():
    test = [
        sample("gear", [(100, 100, 300, 400)], answers=["left"]),  # the average box exactly
        sample("lever", [(250, 250, 750, 750)], answers=["3"], question="How many levers are there?", label="lever"),
    ]
    found = measure(guesses(test, Baselines.of(TRAIN), frame)).figures
    assert found["mean-box"]["accuracy_at_50"].value == 0.5
    assert found["centre-box"]["accuracy_at_50"].value == 0.5
    assert found["whole-image"]["mean_iou"].value == pytest.approx((0.06 + 0.25) / 2)
    assert found["frequent-answer"]["answer_accuracy"].value == 0.5


def test_a_guessed_box_is_a_false_one_where_the_thing_is_absent():
    found = measure(guesses([sample("a", ()), sample("b")], Baselines.of(TRAIN), frame)).figures
    assert found["centre-box"]["precision"].count == 2
    assert found["centre-box"]["boxes_where_absent"].value == 1


def test_without_a_training_split_there_are_only_the_two_guesses_that_need_none():
    assert set(guesses([sample("a")], Baselines.of([]), frame)) == {"centre-box", "whole-image"}


def test_what_a_question_is_about():
    labels = ("cell", "white blood cell", "lever")
    absent = {"boxes": (), "label": "x"}
    assert subject(sample("a"), labels) == "gear"
    assert subject(sample("a", question="Where are white blood cells?", **absent), labels) == "white blood cell"
    assert subject(sample("a", question="Is there a gearlever?", **absent), labels) == NOTHING_NAMED
    assert subject(sample("a", None), labels) == NOT_ANNOTATED


def test_of_things_of_several_names_a_guess_shows_each_where_that_thing_usually_is():
    mentions = tuple(
        Mention(name, (Box(*box),)) for name, box in (("gear", (100, 100, 300, 400)), ("lever", (500, 500, 900, 900)))
    )
    both = sample("a").model_copy(update={"evidence": mentions})
    found = measure(guesses([both], Baselines.of(TRAIN), frame)).figures["mean-box"]
    assert (found["accuracy_at_50"].value, found["precision"].count) == (1, 2)
