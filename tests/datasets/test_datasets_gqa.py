"""GQA's programs in VisCoT's rows with detailed reasoning: where the place goes, and under which name.

The first thought is one of the dataset's; the programs are in GQA's published form, written by this test.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.datasets.given import Given
from tests.datasets.test_datasets_viscot import GQA
from vcot.datasets import gqa
from vcot.grounding import Box, Mention
from vcot.records import Sample

THOUGHT = (
    "1. We are looking for someone who is wearing a shirt in the image. 2. First, let's identify all the people in the "
    "image. 3. Next, we need to determine who among the people is wearing a shirt. 4. After identifying the person, we "
    "can state the answer based on the observation from the image."
)


def steps(*written: tuple[str, list[int], str]) -> list[dict[str, Any]]:
    return [{"operation": name, "dependencies": on, "argument": argument} for name, on, argument in written]


WHO = steps(("select", [], "shirt (1231)"), ("relate", [0], "person,wearing,s (1229)"), ("query", [1], "name"))
APPLIANCE = steps(
    ("select", [], "cabinet (3588933)"),
    ("relate", [0], "appliance,to the right of,s (1564001)"),
    ("query", [1], "name"),
)
WALL = steps(
    ("select", [], "wall (722332)"), ("filter color", [0], "white"), ("relate", [1], "_,on,s (722335)"),
    ("query", [2], "name"),
)  # fmt: skip
HORSE = steps(
    ("select", [], "water (447019)"), ("relate", [0], "horse,on the edge of,s (447018)"),
    ("verify color", [1], "brown"), ("verify size", [1], "small"), ("and", [2, 3], ""),
)  # fmt: skip
BOTH = steps(("select", [], "cup (1)"), ("exist", [0], "?"), ("select", [], "plate (-)"), ("exist", [2], "?"),
             ("and", [1, 3], ""))  # fmt: skip


@pytest.fixture
def people(given: Given) -> Given:
    given.image("gqa/2331819.jpg", 500, 375)
    return given


def sample_of(given: Given, **changed: Any) -> Sample:
    return given.sample("viscot", GQA | {"thought": THOUGHT, "reasoning": WHO} | changed)


def test_the_place_goes_where_the_steps_first_name_what_the_program_ends_at(people: Given) -> None:
    sample = sample_of(people)
    (trace,) = sample.reasoning
    assert trace.text == THOUGHT  # not a word is changed
    before, mention, after = trace.parts
    assert isinstance(before, str)
    assert before.endswith("4. After identifying the ")
    assert isinstance(mention, Mention)
    assert (mention.label, [box.as_list() for box in mention.boxes]) == ("person", [[214, 0, 433, 374]])
    assert isinstance(after, str)
    assert after.startswith(", we can state")
    assert sample.evidence == (mention,)


def test_without_written_steps_the_program_is_told(people: Given) -> None:
    sample = sample_of(people, thought="")
    (trace,) = sample.reasoning
    assert trace.text == "Look for the shirt. Look for the person wearing the shirt. Look at the name of the person."
    assert [mention.label for mention in trace.mentions] == ["person"]


def test_a_name_that_is_the_answer_is_no_label(people: Given) -> None:
    program = steps(("select", [], "girl (1)"), ("query", [0], "name"))
    sample = sample_of(people, reasoning=program, thought="1. Find the girl.")
    assert [m.label for m in sample.evidence or ()] == ["person"]  # of the question "Who …?"
    (trace,) = sample.reasoning
    assert trace.text == "1. Find the girl. The place to look at is the person."


@pytest.mark.parametrize(
    ("program", "answer", "name"),
    [
        (WHO, "girl", "person"),
        (APPLIANCE, "microwave", "appliance"),
        (WALL, "image", None),  # what it is, is what is asked
        (WALL[:2], "yes", "white wall"),
        (HORSE, "no", "horse"),
        (BOTH, "yes", None),  # two things, and nobody says whose box it is
        (steps(("select", [], "car (1)"), ("filter color", [0], "not(red)"), ("exist", [1], "?")), "yes", "car"),
        (steps(("select", [], "car (1)"), ("query", [0], "color")), "red", "car"),
        (steps(("select", [], "red car (1)"), ("query", [0], "color")), "red", None),
        ([], "yes", None),
    ],
)
def test_what_a_program_ends_at(program: list[dict[str, Any]], answer: str, name: str | None) -> None:
    assert gqa.target(gqa.program(program), [answer]) == name


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (WALL, "Look for the wall. Of the wall, take the one that is white. Look for the thing on the white wall. "
               "Look at the name of the thing."),
        (HORSE, "Look for the water. Look for the horse on the edge of the water."),
        (steps(("select", [], "man (1)"), ("relate", [0], "hat,wearing,o (2)"), ("exist", [1], "?")),
         "Look for the man. Look for the hat that the man is wearing. See whether the hat is there."),
    ],
)  # fmt: skip
def test_a_program_in_words(program: list[dict[str, Any]], words: str) -> None:
    assert gqa.told(gqa.program(program)) == words


@pytest.mark.parametrize(
    "said",
    [
        None, "select", 7, {}, [1], [{"operation": "select"}],
        steps(("select", [0], "itself (1)")),  # type: ignore[list-item]
        steps(("select", [], "a (1)"), ("query", [5], "name")),
        steps(("select", [], "a (1)"), ("query", [True], "name")),
        steps(("select", [], "a (1)"), ("query", [-1], "name")),
    ],
)  # fmt: skip
def test_what_is_no_program_is_none(said: Any) -> None:
    assert gqa.program(said) == ()


def test_a_name_is_found_as_a_word_and_as_it_is_written() -> None:
    evidence = Mention("car", (Box(1, 2, 3, 4),))
    trace = gqa.grounded("See the cart. The Car is red.", (), "car", evidence)
    assert [mention.label for mention in trace.mentions] == ["Car"]
    assert trace.text == "See the cart. The Car is red."


def test_without_its_quality_a_thing_is_found_too() -> None:
    evidence = Mention("white wall", (Box(1, 2, 3, 4),))
    trace = gqa.grounded("Find a wall. Is the white wall empty?", (), "white wall", evidence)
    assert [mention.label for mention in trace.mentions] == ["white wall"]
    trace = gqa.grounded("Find the wall. It is white.", (), "white wall", evidence)
    assert [mention.label for mention in trace.mentions] == ["wall"]
