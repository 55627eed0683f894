"""How far draws differ: planted cases, and what must hold of any draws."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.evaluating import frame as frame_of
from tests.fakes.evaluating import sample as sample_of
from vcot.evaluation.diversity import Rationale, distinct, diversity, of_draws, of_question, resemblance, same
from vcot.evaluation.runner import Reply
from vcot.grounding import Box, Mention, Trace
from vcot.grounding.tags import render_reply
from vcot.records import Completion, Score

SQUARES = [Box(x, y, x + 100, y + 100) for y in (0, 100, 200) for x in (0, 100, 200)]


def steps(*places: int, words: str = "red") -> Rationale:
    """A line for each square."""
    parts: list[Any] = []
    for place in places:
        parts += ["\n", Mention("square", (SQUARES[place],)), f" {words}"]
    return Rationale.of(Trace(tuple(parts)))


ROUTES = [steps(0, 1, 2), steps(0, 1, 4), steps(0, 3, 4), steps(0, 3, 6), steps(0, 4, 8), steps(0, 4, 5)]


def test_case_white_space_and_punctuation_do_not_part_rationales() -> None:
    plain = Rationale.of(Trace(("the disc is red so it is 3.5",)))
    assert plain == Rationale.of(Trace(("  The disc\n is RED; so (it) is “3.5”.",)))
    assert plain != Rationale.of(Trace(("the disc is red so it is -3.5",)))
    assert Rationale.of(Trace((" … ",))) == Rationale((), ())


def test_jittered_boxes_are_the_same_and_another_box_is_another_rationale() -> None:
    dice = random.Random(0)

    def jittered(one: Rationale) -> Rationale:
        moved = (Box(*(value + dice.uniform(0, 8) for value in box.as_list())) for box in one.boxes)
        return Rationale(one.words, tuple(moved))

    assert distinct([jittered(ROUTES[0]) for _ in range(8)]) == 1
    assert distinct([jittered(route) for route in ROUTES for _ in range(3)]) == len(ROUTES)
    assert not same(steps(0, 1), steps(1, 0))  # boxes pair off in their order
    assert not same(steps(0, 1), steps(0, 1, 2))
    assert not same(steps(0, 1), Rationale(steps(0, 1).words, steps(0).boxes))
    assert not same(steps(0, 1), steps(0, 1, words="blue"))


def test_resemblance_by_hand() -> None:
    # "square red", "red square", and two boxes, of which one is at the same place
    assert resemblance(steps(0, 1), steps(0, 3)) == pytest.approx((2 + 1) / (2 + 2 + 2 - 1))
    assert resemblance(Rationale(("a", "b", "c"), ()), Rationale(("b", "c", "d"), ())) == pytest.approx(1 / 3)
    assert resemblance(Rationale(("a",), ()), Rationale(("b",), ())) == 0
    assert resemblance(Rationale((), ()), Rationale((), ())) == 1


def test_all_alike_finds_one_of_the_known_reasonings() -> None:
    rows = [of_question(f"{n}", f"{n}", [ROUTES[0]] * 8, [True] * 8, ROUTES) for n in range(30)]
    found = diversity(rows)
    value = {name: figure.value for name, figure in found.figures.items()}
    assert value == {
        "distinct": 1 / 8, "distinct_rationales": 1, "self_similarity": 1, "coverage": pytest.approx(1 / 6),
        "coverage_of_many": pytest.approx(1 / 6),
    }  # fmt: skip
    assert found.draws == 8
    assert found.figures["self_similarity"].count == 30 * 28


def test_all_routes_found_is_a_coverage_of_one() -> None:
    draws = [*ROUTES, ROUTES[0], ROUTES[1]]
    found = diversity([of_question("a", "a", draws, [True] * 8, ROUTES), of_question("b", "b", draws, [True] * 8)])
    assert found.figures["coverage"].value == found.figures["coverage_of_many"].value == 1
    assert found.figures["distinct"].value == 6 / 8
    assert found.figures["coverage"].rows == 1  # the second has no known reasoning
    by_draws = {n: figures["coverage"].value for n, figures in found.by_draws.items()}
    assert by_draws == pytest.approx({1: 1 / 6, 2: 2 / 6, 4: 4 / 6, 8: 1})


def test_only_a_draw_with_a_right_answer_finds_a_reasoning() -> None:
    one = of_question("a", "a", [ROUTES[0], ROUTES[1], ROUTES[0]], [False, True, True], ROUTES[:3])
    assert one.found_by == (3, 2, None)
    found = diversity([one], [1, 2, 3])
    assert [figures["coverage"].value for figures in found.by_draws.values()] == pytest.approx([0, 1 / 3, 2 / 3])
    assert found.figures["coverage_of_many"].value is None  # three are not many
    assert diversity([of_question("a", "a", ROUTES[:2], [True] * 2, ROUTES[:1])]).figures["coverage"].value is None


def test_a_way_is_found_in_whatever_words_it_is_told_but_not_with_another_square() -> None:
    told = [steps(0, 1, 2, words="blue"), steps(0, 1, 8), steps(0, 1)]
    assert of_question("a", "a", told, [True] * 3, ROUTES[:2]).found_by == (1, None)
    in_words = [Rationale(("up", "left"), ()), Rationale(("up", "right"), ())]
    assert of_question("a", "a", in_words[:1], [True], in_words).found_by == (1, None)


def test_intervals_are_over_images() -> None:
    """Ten questions about one image are no more than one: all ten are alike."""
    many = [of_question(f"{n}", f"{n}", [ROUTES[0], ROUTES[n % 2]], [True] * 2, ROUTES[:2]) for n in range(40)]
    figure = diversity(many).figures["coverage"]
    assert figure.value == 0.75
    assert figure.low is not None
    assert figure.high is not None
    assert 0.6 < figure.low < 0.75 < figure.high < 0.9
    one = diversity([of_question(f"{n}", "one", [ROUTES[0], ROUTES[n % 2]], [True] * 2, ROUTES[:2]) for n in range(9)])
    assert (one.figures["coverage"].low, one.figures["coverage"].images) == (None, 1)


def test_of_nothing_nothing_is_measured() -> None:
    alone = diversity([of_question("a", "a", [ROUTES[0]], [True])])
    assert alone.figures["self_similarity"].value is None
    assert alone.figures["distinct"].value == 1
    assert diversity([]).by_draws == {}
    with pytest.raises(ValueError):
        of_question("a", "a", ROUTES[:2], [True])


some_rationales = st.lists(
    st.builds(
        lambda places, words: steps(*places, words=words),
        st.lists(st.integers(0, 8), max_size=3), st.sampled_from(["red", "Red.", "blue", "blue, up"]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@given(some_rationales, some_rationales, st.randoms(use_true_random=False))
def test_whatever_is_drawn(drawn: list[Rationale], known: list[Rationale], dice: random.Random) -> None:
    right = [dice.random() < 0.7 for _ in drawn]
    one = of_question("a", "a", drawn, right, known)
    assert 1 <= one.distinct <= one.draws == len(drawn)
    assert -1e-9 <= one.similarity <= one.pairs + 1e-9
    assert (one.distinct == 1) == (one.similarity == pytest.approx(one.pairs))
    for a in drawn:
        assert resemblance(a, a) == 1
        assert all(resemblance(a, b) == resemblance(b, a) and same(a, b) == same(b, a) for b in drawn)
    found = [one.found(2, n) for n in range(len(drawn) + 1)]
    assert found == sorted(found)
    assert found[-1] == one.found(2) <= one.known(2)
    order = list(range(len(drawn)))
    dice.shuffle(order)
    other = of_question("a", "a", [drawn[i] for i in order], [right[i] for i in order], known)
    assert (other.distinct, other.found(2)) == (one.distinct, one.found(2))
    assert other.similarity == pytest.approx(one.similarity)


def test_replies_are_read_in_their_frame_and_known_reasonings_as_the_way_asks() -> None:
    trace = [Trace(("one ", Mention("disc", (Box(0, 0, 40, 40 + n),)), " here")) for n in (0, 90)]
    sample = sample_of("a").model_copy(update={"reasoning": tuple(trace)})

    def reply(text: str, way: Any, right: bool = True) -> Reply:
        verdict = Score(
            sample=sample.id, image=None, answer="right" if right else "wrong", true_boxes=None, predicted_boxes=0,
            matched=0, well_formed=True, text=text,
        )  # fmt: skip
        said = Completion(text=text, model="subject", finish_reason="stop")
        return Reply(model="subject", way=way, condition="real", draw=1, completion=said, score=verdict)

    boxed = render_reply(trace[1], "up", frame_of(sample))
    draws: Any = {
        "ground": [[reply(boxed, "ground"), reply(boxed, "ground")]],
        "reason": [[reply("one disc here.\nAnswer: up", "reason")]],
        "direct": [[reply("Answer: up", "direct")]],
    }
    found = of_draws([sample], draws, frame_of, {"camera": ["north"]})
    assert [row["way"] for row in found] == ["ground", "reason"]
    assert [row["figures"]["coverage"]["value"] for row in found] == [0.5, 1]
    (part,) = found[0]["by_metadata"]["camera"]
    assert (part["value"], part["questions"], part["figures"]["distinct"]["value"]) == ("north", 1, 0.5)
