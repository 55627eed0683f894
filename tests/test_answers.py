"""Which answers are the same, and which labels name the same thing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcot.answers import NO_SYNONYMS, Synonyms, anls, letter, normalise, number, plural, same, singular


@pytest.mark.parametrize(
    ("predicted", "accepted"),
    [
        ("up", "up"), ("Up.", "up"), ("  **up** ", "up"), ("The red gear", "red gear"), ("red  gear", "Red Gear"),
        ("5", "5.0"), ("five", "5"), ("Five.", "5"), ("1,234", "1234"), ("$1,234.50", "1234.5"),
        ("60%", "60 percent"), ("60%", "0.6"), ("3.14159", "3.14"), ("Yes, it is.", "yes"), ("No.", "no"),
        ("caf\u00e9", "cafe\u0301"), ("?", "?"),
    ],
)  # fmt: skip
def test_one_answer(predicted: str, accepted: str) -> None:
    assert same(predicted, [accepted])
    assert same(predicted, ["another", accepted])


@pytest.mark.parametrize(
    ("predicted", "accepted"),
    [
        ("25", "5"),  # "25" ends with "5" as a text, but 25 is not 5 as a number
        ("5", "25"), ("up and down", "up"), ("60%", "60"), ("60", "60%"), ("5.04", "5"), ("3.1", "3.14"),
        ("$5", "€5"), ("2019", "2020"), ("0123456789", "123456789"), ("12345678901234567890", "12345678901234567891"),
        ("5 gears", "5"), ("not yes", "yes"), ("yesterday", "yes"), ("", "up"), ("  ", " "), ("", ""), ("**", "up"),
    ],
)  # fmt: skip
def test_two_answers(predicted: str, accepted: str) -> None:
    assert not same(predicted, [accepted])


@settings(deadline=None, database=None, max_examples=60)
@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=4))
def test_no_text_breaks_it(predicted: str, accepted: str, choices: list[str]) -> None:
    assert same(predicted, [accepted], choices) in (True, False)
    assert same("", [accepted], choices) is False


CHOICES = ("up", "down", "dog", "5")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        *((text, "B") for text in (
            "B", "b", "(b)", "B.", "B)", "**B**", "Option B", "The answer is (B).", "The correct answer is: B",
            "B. down", "(B) down", "B: because it falls", "down", "Down.",
        )),
        ("the dog", "C"), ("five", "D"),
        ("A. down", None),  # A is up
        ("A dog runs", None), ("E", None), ("sideways", None), ("", None),
    ],
)  # fmt: skip
def test_an_option_is_recognised_by_its_letter_or_its_text(text: str, option: str | None) -> None:
    assert letter(text, CHOICES) == option
    assert same(text, ["down"], CHOICES) == same(text, ["B"], CHOICES) == (option == "B")


def test_letter_of_no_or_many_choices_is_no_error() -> None:
    assert [letter(text, ()) for text in ("A", "(A) up", "up", "")] == [None] * 4
    many = [f"thing {n}" for n in range(40)]
    assert [letter(text, many) for text in ("thing 39", "Z", "thing 1, because it is red")] == [chr(65 + 39), "Z", "B"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-2.5", -2.5), ("−3", -3), ("+7.", 7), (".5", 0.5), ("1,234,567.8", 1234567.8), ("1e3", 1000),
        ("60%", 0.6), ("12.5 per cent", 0.125), ("-$4", -4), ("zero", 0), ("Twenty", 20),
        *((text, None) for text in (
            "", ".", "-", "%", "5 gears", "007", "1,23", "12:30", "1/2", "1.2.3", "nan", "inf", "1_000", "٣", "up",
        )),
    ],
)  # fmt: skip
def test_what_is_a_number(text: str, value: float | None) -> None:
    assert number(text) == (None if value is None else pytest.approx(value))


def test_normalising_leaves_something_wherever_there_was_something() -> None:
    assert [normalise(text) for text in ("The Gear!", "a", "the", " ? ")] == ["gear", "a", "the", "?"]


def test_anls_of_published_cases_and_in_no_time_of_endless_ones() -> None:
    assert anls("A. C. Monk", "a. c.  monk") == 1
    assert anls("A. C. Mank", "A. C. Monk") == pytest.approx(0.9)
    assert anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert anls("25", "26") == 0  # one half is not above one half
    assert anls("", "") == anls("", "x") == 0
    started = time.process_time()
    assert anls("x" * 10**6, "up") == 0
    assert time.process_time() - started < 1


# --- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "other", "one"),
    [
        ("red cup", "Red Cup", True), ("the red cup", "red cups", True), ("person", "people", True), ("", "", True),
        ("white_blood_cell", "white blood cells", True), ("traffic-light", "Traffic light.", True),
        ("red cup", "blue cup", False), ("cup", "red cup", False), ("cup", "mug", False), ("cup", "", False),
        ("", "s", False), ("bus", "but", False),
    ],
)  # fmt: skip
def test_which_labels_are_one_name(label: str, other: str, one: bool) -> None:
    assert NO_SYNONYMS.same(label, other) == NO_SYNONYMS.same(other, label) == one


def test_synonyms_follow_the_same_rule_and_one_that_declares_nothing_is_refused() -> None:
    declared = Synonyms.of(["wbc=leukocyte=white blood cell", "cup=mug"])
    assert declared.same("WBCs", "a white-blood cell")
    assert not declared.same("wbc", "mug")
    for entries, fault in (
        (["wbc"], "'wbc' declares no synonyms; write name=other name"), (["wbc="], "'wbc=' declares no synonyms"),
        (["wbc=leukocyte", "Leukocytes=white blood cell"], "'Leukocytes' stands in two entries; write all names"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=fault):
            Synonyms.of(entries)


def test_names_are_needed_only_where_the_truth_has_several() -> None:
    assert NO_SYNONYMS.pairable(["x", ""], ["cup", "cups"]) is None
    assert NO_SYNONYMS.pairable(["x"], []) is None
    assert NO_SYNONYMS.pairable(["cups", ""], ["cup", "saucer"]) == [[True, False], [False, False]]
    assert NO_SYNONYMS.pairable(["cup"], ["cup", "saucer", ""]) == [[True, False, True]]
    assert Synonyms.of(["cup=saucer"]).pairable(["x"], ["cup", "saucer"]) is None


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("red disc", "red discs"), ("white blood cell", "white blood cells"), ("box", "boxes"), ("glass", "glasses"),
        ("dish", "dishes"), ("cherry", "cherries"), ("toy", "toys"), ("bus", "buses"), ("person", "people"),
        ("teddy bear", "teddy bears"), ("sheep", "sheep"), ("skis", "skis"), ("broccoli", "broccolis"),
        ("wine glass", "wine glasses"), ("knife", "knives"), ("TV", "TVs"), ("shoe", "shoes"), ("cookie", "cookies"),
    ],
)  # fmt: skip
def test_singular_and_plural_are_one_rule(one: str, many: str) -> None:
    assert (plural(one), singular(many)) == (many, one)
