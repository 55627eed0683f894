"""Blank and exchanged images, and guesses made without looking."""

from __future__ import annotations

import pytest
from PIL import Image as Pillow

from tests.fakes.evaluating import SIDE, by_text, frame, sample
from vcot.errors import InputError
from vcot.evaluation.metrics import measure
from vcot.evaluation.runner import NOT_ANNOTATED, NOTHING_NAMED, Baselines, guesses, partners, shown, subject
from vcot.grounding import Box, Mention
from vcot.records import Image

# --- images --------------------------------------------------------------------------------------------


def about(digest, name):
    return sample(name, image=Image(uri=name, width=SIDE, height=SIDE, sha256=digest * 64))


@pytest.mark.parametrize("seed", range(2))
def test_nobody_is_shown_its_own_image_and_the_seed_decides_whose(seed):
    """Samples of one image share the other one, too: two questions about it must not be given each other's."""
    samples = [about(digest, f"{digest}{n}") for digest in "abcdef" for n in (1, 2)]
    other = partners(samples, seed)
    assert all(samples[i].image.sha256 != samples[j].image.sha256 for i, j in enumerate(other))
    assert other[::2] == other[1::2]
    assert sorted(samples[j].image.sha256 for j in other) == sorted(one.image.sha256 for one in samples)
    assert other == partners(samples, seed) != partners(samples, seed + 7)


def test_samples_without_an_image_keep_none_and_the_others_exchange_theirs():
    assert partners([by_text("t0"), sample("a"), by_text("t1"), sample("b")], 0) == [0, 3, 2, 1]
    with pytest.raises(InputError, match="at least two"):
        partners([about("a", "a1"), about("a", "a2")], 0)


def test_blank_is_uniform_and_shuffled_is_the_whole_of_the_other_at_the_own_size():
    own, half = Pillow.new("RGB", (200, 100), "red"), Pillow.new("RGB", (40, 40), "black")
    half.paste("white", (0, 0, 20, 40))
    blank, shuffled = shown("blank", own), shown("shuffled", own, half)
    assert shown("real", own) is own
    assert blank.size == shuffled.size == own.size
    assert blank.getcolors() == [(200 * 100, (128, 128, 128))]
    assert (shuffled.getpixel((40, 50)), shuffled.getpixel((160, 50))) == ((255, 255, 255), (0, 0, 0))


# --- guesses -------------------------------------------------------------------------------------------

HOW_MANY = {"question": "How many levers are there?", "split": "train"}
LEARNED = Baselines.of(
    [
        sample("t1", [(0, 0, 200, 200)], answers=["left"], split="train"),
        sample("t2", [(200, 200, 400, 600)], answers=["left"], split="train"),
        sample("t3", [(500, 500, 900, 900)], answers=["2"], label="lever", **HOW_MANY),
        sample("t4", [(500, 500, 900, 900)], answers=["2"], label="lever", **HOW_MANY),
        sample("t5", (), answers=["0"], **HOW_MANY),
    ]
)


def test_baselines_are_the_usual_answer_and_the_average_box():
    assert LEARNED.rows == 5
    # Of what was never asked: 2 and left are equally frequent; the first by alphabet.
    asked = {"Where is the gear?": "left", "How many levers are there?": "2", "Never asked?": "2"}
    assert {question: LEARNED.answer(question) for question in asked} == asked
    boxes = {"gear": (0.1, 0.1, 0.3, 0.4), "lever": (0.5, 0.5, 0.9, 0.9), "wheel": (0.3, 0.3, 0.6, 0.65)}
    for label, box in boxes.items():
        assert LEARNED.box(label) == pytest.approx(box)


def test_guesses_are_scored_as_replies_are():
    test = [
        sample("gear", [(100, 100, 300, 400)], answers=["left"]),  # the average box exactly
        sample("lever", [(250, 250, 750, 750)], answers=["3"], question="How many levers are there?", label="lever"),
    ]
    found = measure(guesses(test, LEARNED, frame)).figures
    assert found["mean-box"]["accuracy_at_50"].value == 0.5
    assert found["centre-box"]["accuracy_at_50"].value == 0.5
    assert found["whole-image"]["mean_iou"].value == pytest.approx((0.06 + 0.25) / 2)
    assert found["frequent-answer"]["answer_accuracy"].value == 0.5
    assert set(guesses(test, Baselines.of([]), frame)) == {"centre-box", "whole-image"}


def test_a_guessed_box_is_a_false_one_where_the_thing_is_absent():
    found = measure(guesses([sample("a", ()), sample("b")], LEARNED, frame)).figures
    assert (found["centre-box"]["precision"].count, found["centre-box"]["boxes_where_absent"].value) == (2, 1)


def test_of_things_of_several_names_a_guess_shows_each_where_that_thing_usually_is():
    places = {"gear": (100, 100, 300, 400), "lever": (500, 500, 900, 900)}
    both = sample("a").model_copy(
        update={"evidence": tuple(Mention(name, (Box(*box),)) for name, box in places.items())}
    )
    found = measure(guesses([both], LEARNED, frame)).figures["mean-box"]
    assert (found["accuracy_at_50"].value, found["precision"].count) == (1, 2)


@pytest.mark.parametrize(
    ("given", "about"),
    [
        ({}, "gear"),
        ({"boxes": (), "question": "Where are white blood cells?"}, "white blood cell"),
        ({"boxes": (), "question": "Is there a gearlever?"}, NOTHING_NAMED),
        ({"boxes": None}, NOT_ANNOTATED),
    ],
)
def test_what_a_question_is_about(given, about):
    assert subject(sample("a", **given), ("cell", "white blood cell", "lever")) == about
