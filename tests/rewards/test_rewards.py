"""What replies earn, by hand."""

from __future__ import annotations

import pytest

from vcot import rewards
from vcot.answers import Synonyms
from vcot.grounding import Box, FrameSpec, Mention, Trace, render_reply
from vcot.records import Image, Origin, Sample
from vcot.records.rollout import Rollout
from vcot.records.sample import Stored
from vcot.rewards import REWARDS
from vcot.rewards.answer import answer_reward
from vcot.rewards.boxes import box_reward, soft_f1_with_spare
from vcot.rewards.counts import counts_reward
from vcot.rewards.form import Rule, broken_rules, format_reward

SPEC = FrameSpec("thousandths")
GOOD = "I see the <ref>gear</ref><box>[100, 100, 300, 300]</box> turn.\nAnswer: up"


def sample(evidence=((100, 100, 300, 300),), answers=("up",), choices=None) -> Sample:
    return Sample(
        id="1",
        image=Image(uri="s3://bucket/1.png", width=1000, height=1000, sha256="0" * 64),
        question="Which way does the lever go?",
        choices=choices,
        answers=answers,
        evidence=None if evidence is None else tuple(Mention("gear", (Box(*box),)) for box in evidence),
        origin=Origin(dataset="scenes", split="train", row="1", licence="CC0-1.0"),
    )


def said(text: str, **more) -> Rollout:
    return Rollout(text=text, **more)


# --- format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (GOOD, []), ("<think>The <ref>gear</ref><box>[100, 100, 300, 300]</box> turns.</think><answer>up</answer>", []),
        ("Answer: up", [Rule.REASONING, Rule.MENTION]), ("It turns.\nAnswer: up", [Rule.MENTION]),
        (GOOD.replace("[100, 100, 300, 300]", "[300, 100, 100, 300]"), [Rule.MENTION, Rule.TAGS]),
        (GOOD.replace("turn.", "turn <ref>the lever</ref>."), [Rule.TAGS]),
        (GOOD.replace("</box>", ""), [Rule.MENTION, Rule.TAGS]),
        (GOOD.replace("300]</box>", "3000]</box>"), [Rule.MENTION, Rule.TAGS]),
        (GOOD.split("\n")[0], [Rule.ONE_ANSWER]), ("Answer: down\n" + GOOD, [Rule.ONE_ANSWER]),
        (GOOD + "\nI am sure.", [Rule.ENDS]), (GOOD + " <ref>it</ref><box>[1, 1, 2, 2]</box>", [Rule.PLAIN_ANSWER]),
        ("<think>" + GOOD, [Rule.ONE_THINK_BLOCK]), ("<think></think>\nAnswer: up", [Rule.REASONING, Rule.MENTION]),
        ("", [Rule.REASONING, Rule.MENTION, Rule.ONE_ANSWER]),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(text, broken):
    assert broken_rules(text, sample(), SPEC) == tuple(broken)
    assert format_reward(said(text), sample(), SPEC) == (not broken)
    assert format_reward(said(text), sample(), SPEC, graded=True) == pytest.approx(1 - len(broken) / len(Rule))


def test_a_box_is_demanded_unless_the_thing_is_absent_and_not_wanted_without_an_image():
    assert broken_rules("It turns.\nAnswer: up", sample(evidence=None), SPEC) == (Rule.MENTION,)
    assert format_reward(said("There is none.\nAnswer: no"), sample(evidence=()), SPEC) == 1
    asked = Sample.model_validate(sample(evidence=None).model_dump() | {"images": ()})
    assert format_reward(said("Gears that touch turn against each other.\nAnswer: up"), asked, SPEC) == 1
    assert broken_rules(GOOD, asked, SPEC) == (Rule.MENTION,)
    assert box_reward(said(GOOD), asked, SPEC) is None
    assert box_reward(said("Answer: up <box>[100, 100, 300, 300]</box>"), sample(), SPEC) == 0  # behind the answer
    assert answer_reward(said(GOOD), asked) == 1


# --- answer --------------------------------------------------------------------------------------------

RIGHT = "word " * 199 + "word"


@pytest.mark.parametrize(
    ("answer", "accepted", "choices", "similar", "reward"),
    [
        ("(B)", "up", ("down", "up"), False, 1), ("A", "up", ("down", "up"), False, 0),
        ("upp", "up", ("down", "up"), True, 0), ("A. C. Mank", "A. C. Monk", None, False, 0),
        ("A. C. Mank", "A. C. Monk", None, True, 0.9),  # a misread letter
        ("1235", "1234", None, True, 0),  # a number is right or wrong
        (RIGHT, RIGHT, None, False, 1), (RIGHT + "s.....", RIGHT + "s", None, False, 0),  # endless
        ("(A) down or (B) up", "up", ("down", "up"), False, 0), ("(B) not up", "up", ("down", "up"), False, 0),
        ("(A) (B)", "down", ("down", "up"), False, 0), ("no, yes", "no", None, False, 0),
        ("yes: or no", "yes", None, True, 0), ("A", "3.14", ("3.1", "3.14"), False, 0),
        ("B", "3.14", ("3.1", "3.14"), False, 1), ("A … actually, Answer: B", "up", ("down", "up"), False, 1),
        ("B, because it rises", "up", ("down", "up"), False, 1),
    ],
)  # fmt: skip
def test_the_answer_earns_its_rightness(answer, accepted, choices, similar, reward):
    row = sample(answers=(accepted,), choices=choices)
    assert answer_reward(said(f"Answer: {answer}"), row, similar=similar) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("answer", "reward"), [("1", 1), ("one", 1), ("It is 1.", 1), ("1, because I see it", 1), ("2", 0), ("1 or 2", 0)]
)
def test_counts_reads_the_number_as_the_answer_is_read(answer, reward):
    assert counts_reward(said(GOOD.replace("up", answer)), sample(answers=("1",)), SPEC) == reward


# --- boxes ---------------------------------------------------------------------------------------------

G1, G2, G3 = (100, 100, 300, 300), (400, 100, 600, 300), (700, 100, 900, 300)
CONTEXT, HULL, WHOLE = (700, 700, 900, 900), (100, 100, 900, 300), (0, 0, 1000, 1000)
SHIFTED, NEAR = (120, 120, 320, 320), [(100 + by, 100 + by, 300 + by, 300 + by) for by in (0, 5, 10)]
STRIPS = [(x, 600, x + 90, 690) for x in (0, 100, 200, 300, 400)]

# Made by hand on a canvas of 1000 × 1000: the true boxes, the predicted ones, and what soft F1 gives.
ROLLOUTS = {
    "1 true: exact": ([G1], [G1], 1.00), "1 true: shifted 20 px": ([G1], [SHIFTED], 0.68),
    "1 true: exact box three times": ([G1], [G1] * 3, 0.50), "1 true: 3 near-duplicates": ([G1], NEAR, 0.50),
    "1 true: exact + 1 context box": ([G1], [G1, CONTEXT], 0.67), "1 true: whole image": ([G1], [WHOLE], 0.04),
    "1 true: exact + 5 random": ([G1], [G1, *STRIPS], 0.29), "1 true: no box": ([G1], [], 0.00),
    "3 true: all exact": ([G1, G2, G3], [G1, G2, G3], 1.00), "3 true: only one, exact": ([G1, G2, G3], [G1], 0.50),
    "3 true: one of them, 3 near-duplicates": ([G1, G2, G3], NEAR, 0.33), "none true, none said": ([], [], 1.00),
    "3 true: hull of the three": ([G1, G2, G3], [HULL], 0.12), "none true, one said": ([], [G1], 0.00),
    "3 true: all + 3 random": ([G1, G2, G3], [G1, G2, G3, *STRIPS[:3]], 0.67),
}  # fmt: skip


def earned(case: str, **settings) -> float:
    true, predicted, _ = ROLLOUTS[case]
    trace = Trace(tuple(Mention("gear", (Box(*box),)) for box in predicted))
    text = render_reply(trace, "up", SPEC.on(1000, 1000))
    reward = box_reward(said(text), sample(evidence=true), SPEC, **settings)
    assert reward is not None
    return reward


@pytest.mark.parametrize("case", ROLLOUTS)
def test_hand_made_rollouts_earn_what_the_table_says(case):
    assert earned(case) == pytest.approx(ROLLOUTS[case][2], abs=0.0051)


def test_a_spare_box_costs_nothing_but_the_next_one_does():
    assert earned("1 true: exact + 1 context box", spare=1) == 1
    assert earned("1 true: exact box three times", spare=1) == pytest.approx(2 / 3)
    assert earned("1 true: exact + 5 random", spare=1) == pytest.approx(1 / 3)
    assert earned("3 true: only one, exact", spare=3) == 0.5  # it does not make up for a missing one
    assert soft_f1_with_spare([], [Box(*G1)], spare=3) == 0
    with pytest.raises(ValueError, match="got -1"):
        soft_f1_with_spare([], [], spare=-1)


@pytest.mark.parametrize(
    ("first", "second", "synonyms", "reward"),
    [
        (("red cup", "blue"), ("blue cup", "red"), [], 0),  # each shown where the other is
        (("A Red Cup", "red"), ("blue cups", "blue"), [], 1),
        (("mug", "red"), ("blue cup", "blue"), [], 0.5),
        (("mug", "red"), ("blue cup", "blue"), ["red cup=mug"], 1),
    ],
)
def test_a_box_earns_nothing_for_a_thing_of_another_name(first, second, synonyms, reward):
    places = {"red": [100, 100, 300, 300], "blue": [600, 600, 800, 800]}
    cups = tuple(Mention(f"{colour} cup", (Box(*box),)) for colour, box in places.items())
    text = " and ".join(f"<ref>{label}</ref><box>{places[colour]}</box>" for label, colour in (first, second))
    row = sample().model_copy(update={"evidence": cups})
    assert box_reward(said(f"{text}\nAnswer: up"), row, SPEC, synonyms=Synonyms.of(synonyms)) == reward


def test_of_several_ways_to_the_answer_the_nearest_is_what_boxes_are_held_against():
    ways = [tuple(Mention("gear", (Box(*box),)) for box in way) for way in ([G1, G2], [G1, G3])]
    row = sample().model_copy(update={"evidence": None, "reasoning": tuple(Trace(way) for way in ways)})

    def of(*boxes):
        trace = Trace(tuple(Mention("gear", (Box(*box),)) for box in boxes))
        return box_reward(said(render_reply(trace, "up", SPEC.on(1000, 1000))), row, SPEC)

    assert of(G1, G3) == of(G1, G2) == 1
    assert of(G1) == pytest.approx(2 / 3)
    assert of(G2, G3) == 0.5  # of each way one half: it is neither
    assert box_reward(said("up"), row.model_copy(update={"reasoning": ()}), SPEC) is None


def test_boxes_in_pixels_of_what_the_model_saw_are_read_where_the_image_was_shrunk():
    """A copy of 300 x 300 pixels is seen at 308 x 308, and the numbers of the reply are pixels of that."""
    small = Stored(uri="s3://bucket/small.jpg", width=300, height=300, sha256="1" * 64)
    row = sample()
    row = row.model_copy(update={"images": (row.image.model_copy(update={"stored": small}),)})
    spec = FrameSpec("resized_pixels", min_pixels=784, max_pixels=1280 * 784)
    text = "I see the <ref>gear</ref><box>[31, 31, 92, 92]</box> turn.\nAnswer: up"
    assert box_reward(said(text), row, spec) == pytest.approx(1, abs=0.02)
    assert format_reward(said(text), row, spec) == 1
    assert box_reward(said(text), sample(), spec) < 0.2  # of the original's pixels they would be another place


def test_a_reward_registers_itself_under_its_name():
    standard = {"format": format_reward, "answer": answer_reward, "boxes": box_reward}
    assert {name: REWARDS[name] for name in standard} == standard
    with pytest.raises(ValueError, match="two rewards are called boxes"):
        rewards.reward("boxes")(box_reward)
