from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcot.answers import anls, letter, normalise, number, same

unhurried = settings(deadline=None, database=None)


class TestSame:
    @pytest.mark.parametrize(
        ("predicted", "accepted"),
        [
            ("up", "up"),
            ("Up.", "up"),
            ("  **up** ", "up"),
            ("The red gear", "red gear"),
            ("red  gear", "Red Gear"),
            ("5", "5.0"),
            ("five", "5"),
            ("Five.", "5"),
            ("1,234", "1234"),
            ("$1,234.50", "1234.5"),
            ("60%", "60 percent"),
            ("60%", "0.6"),
            ("3.14159", "3.14"),
            ("Yes, it is.", "yes"),
            ("No.", "no"),
            ("caf\u00e9", "cafe\u0301"),
            ("?", "?"),
        ],
    )
    def test_is_the_same_answer(self, predicted, accepted):
        assert same(predicted, [accepted])

    @pytest.mark.parametrize(
        ("predicted", "accepted"),
        [
            ("25", "5"),  # "25" ends with "5" as a text, but 25 is not 5 as a number
            ("5", "25"),
            ("up and down", "up"),
            ("60%", "60"),
            ("60", "60%"),
            ("5.04", "5"),
            ("3.1", "3.14"),
            ("$5", "€5"),
            ("2019", "2020"),
            ("0123456789", "123456789"),
            ("12345678901234567890", "12345678901234567891"),
            ("5 gears", "5"),
            ("not yes", "yes"),
            ("yesterday", "yes"),
            ("", "up"),
            ("  ", " "),
            ("", ""),
            ("**", "up"),
        ],
    )
    def test_is_another_answer(self, predicted, accepted):
        assert not same(predicted, [accepted])

    def test_any_accepted_answer_will_do(self):
        assert same("couch", ["sofa", "couch"])
        assert not same("couch", [])

    @unhurried
    @given(st.text(max_size=20), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=4))
    def test_no_text_breaks_it(self, predicted, accepted, choices):
        assert same(predicted, [accepted], choices) in (True, False)
        assert same("", [accepted], choices) is False


class TestChoices:
    CHOICES = ("up", "down", "dog", "5")

    @pytest.mark.parametrize(
        ("text", "option"),
        [
            ("B", "B"),
            ("b", "B"),
            ("(b)", "B"),
            ("B.", "B"),
            ("B)", "B"),
            ("**B**", "B"),
            ("Option B", "B"),
            ("The answer is (B).", "B"),
            ("The correct answer is: B", "B"),
            ("B. down", "B"),
            ("(B) down", "B"),
            ("B: because it falls", "B"),
            ("down", "B"),
            ("Down.", "B"),
            ("the dog", "C"),
            ("five", "D"),
            ("A. down", None),  # A is up
            ("A dog runs", None),
            ("E", None),  # there are four
            ("sideways", None),
            ("", None),
        ],
    )
    def test_an_option_is_recognised(self, text, option):
        assert letter(text, self.CHOICES) == option

    def test_letter_and_text_of_one_option_are_the_same_answer(self):
        assert same("(B)", ["down"], self.CHOICES)
        assert same("down", ["B"], self.CHOICES)
        assert not same("A", ["down"], self.CHOICES)
        assert not same("A. down", ["down"], self.CHOICES)


class TestNumber:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("5", 5),
            ("-2.5", -2.5),
            ("−3", -3),
            ("+7.", 7),
            (".5", 0.5),
            ("1,234,567.8", 1234567.8),
            ("1e3", 1000),
            ("60%", 0.6),
            ("12.5 per cent", 0.125),
            ("-$4", -4),
            ("zero", 0),
            ("Twenty", 20),
        ],
    )
    def test_reads(self, text, value):
        assert number(text) == pytest.approx(value)

    @pytest.mark.parametrize(
        "text", ["", ".", "-", "%", "5 gears", "007", "1,23", "12:30", "1/2", "1.2.3", "nan", "inf", "1_000", "٣", "up"]
    )
    def test_does_not_take_for_a_number(self, text):
        assert number(text) is None


def test_normalising_leaves_something_wherever_there_was_something():
    assert [normalise(text) for text in ("The Gear!", "a", "the", " ? ", "A  b")] == ["gear", "a", "the", "?", "b"]


class TestAnls:
    def test_published_cases(self):
        assert anls("A. C. Monk", "a. c.  monk") == 1
        assert anls("A. C. Mank", "A. C. Monk") == pytest.approx(0.9)
        assert anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
        assert anls("25", "26") == 0  # one half is not above one half
        assert anls("", "") == anls("", "x") == 0

    def test_an_endless_prediction_costs_no_time(self):
        started = time.process_time()
        assert anls("x" * 10**6, "up") == 0
        assert time.process_time() - started < 1
