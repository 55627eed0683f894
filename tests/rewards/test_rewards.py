from __future__ import annotations

import pytest

from vcot.answers import Synonyms
from vcot.grounding import Box, FrameSpec, Mention, Trace, render_reply
from vcot.records import Image, Origin, Sample
from vcot.records.sample import Stored
from vcot.rewards import Rule, answer_reward, box_reward, broken_rules, format_reward, soft_f1_with_spare

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


def by_text() -> Sample:
    return Sample.model_validate(sample(evidence=None).model_dump() | {"image": None})


class TestFormat:
    def test_a_good_reply_earns_all(self):
        assert format_reward(GOOD, sample(), SPEC) == format_reward(GOOD, sample(), SPEC, graded=True) == 1

    def test_think_and_answer_blocks_are_as_good(self):
        text = "<think>The <ref>gear</ref><box>[100, 100, 300, 300]</box> turns.</think><answer>up</answer>"
        assert broken_rules(text, sample(), SPEC) == ()

    @pytest.mark.parametrize(
        ("text", "broken"),
        [
            ("Answer: up", [Rule.REASONING, Rule.MENTION]),
            ("It turns.\nAnswer: up", [Rule.MENTION]),
            (GOOD.replace("[100, 100, 300, 300]", "[300, 100, 100, 300]"), [Rule.MENTION, Rule.TAGS]),
            (GOOD.replace("turn.", "turn <ref>the lever</ref>."), [Rule.TAGS]),
            (GOOD.replace("</box>", ""), [Rule.MENTION, Rule.TAGS]),
            (GOOD.replace("300]</box>", "3000]</box>"), [Rule.MENTION, Rule.TAGS]),
            (GOOD.split("\n")[0], [Rule.ONE_ANSWER]),
            ("Answer: down\n" + GOOD, [Rule.ONE_ANSWER]),
            (GOOD + "\nI am sure.", [Rule.ENDS]),
            (GOOD + " <ref>it</ref><box>[1, 1, 2, 2]</box>", [Rule.PLAIN_ANSWER]),
            ("<think>" + GOOD, [Rule.ONE_THINK_BLOCK]),
            ("<think></think>\nAnswer: up", [Rule.REASONING, Rule.MENTION]),
            ("", [Rule.REASONING, Rule.MENTION, Rule.ONE_ANSWER]),
        ],
    )
    def test_each_rule_can_be_broken(self, text, broken):
        assert broken_rules(text, sample(), SPEC) == tuple(broken)
        assert format_reward(text, sample(), SPEC) == 0
        assert format_reward(text, sample(), SPEC, graded=True) == pytest.approx(1 - len(broken) / len(Rule))

    def test_where_the_object_is_absent_no_box_is_demanded(self):
        assert format_reward("There is none.\nAnswer: no", sample(evidence=()), SPEC) == 1

    def test_without_an_image_no_box_is_wanted(self):
        asked = by_text()
        assert format_reward("Gears that touch turn against each other.\nAnswer: up", asked, SPEC) == 1
        assert broken_rules(GOOD, asked, SPEC) == (Rule.MENTION,)
        assert box_reward(GOOD, asked, SPEC) is None
        assert answer_reward(GOOD, asked) == 1

    def test_where_nobody_annotated_a_box_is_still_demanded(self):
        assert broken_rules("It turns.\nAnswer: up", sample(evidence=None), SPEC) == (Rule.MENTION,)


class TestAnswer:
    def test_the_option_counts_where_there_are_choices(self):
        assert answer_reward("Answer: (B)", sample(choices=("down", "up"))) == 1
        assert answer_reward("Answer: A", sample(choices=("down", "up"))) == 0

    def test_a_misread_letter_earns_its_similarity_if_asked_for_but_a_number_nothing(self):
        text = sample(answers=("A. C. Monk",))
        assert answer_reward("Answer: A. C. Mank", text) == 0
        assert answer_reward("Answer: A. C. Mank", text, similar=True) == pytest.approx(0.9)
        assert answer_reward("Answer: 1235", sample(answers=("1234",)), similar=True) == 0
        assert answer_reward("Answer: upp", sample(choices=("down", "up")), similar=True) == 0

    def test_an_endless_answer_is_wrong(self):
        right = "word " * 199 + "word"
        assert answer_reward("Answer: " + right, sample(answers=(right,))) == 1
        assert answer_reward("Answer: " + right + "s.....", sample(answers=(right + "s",))) == 0


G1, G2, G3 = (100, 100, 300, 300), (400, 100, 600, 300), (700, 100, 900, 300)
CONTEXT, HULL, WHOLE = (700, 700, 900, 900), (100, 100, 900, 300), (0, 0, 1000, 1000)


def moved(by):
    return tuple(edge + by for edge in G1)


def strips(*lefts):
    return [(x, 600, x + 90, 690) for x in lefts]


# Made by hand on a canvas of 1000 × 1000: the true boxes, the predicted ones, and what soft F1 gives.
ROLLOUTS = {
    "1 true: exact": ([G1], [G1], 1.00),
    "1 true: shifted 20 px": ([G1], [moved(20)], 0.68),
    "1 true: exact box three times": ([G1], [G1] * 3, 0.50),
    "1 true: 3 near-duplicates": ([G1], [moved(0), moved(5), moved(10)], 0.50),
    "1 true: exact + 1 context box": ([G1], [G1, CONTEXT], 0.67),
    "1 true: exact + 5 random": ([G1], [G1, *strips(0, 100, 200, 300, 400)], 0.29),
    "1 true: whole image": ([G1], [WHOLE], 0.04),
    "1 true: no box": ([G1], [], 0.00),
    "3 true: all exact": ([G1, G2, G3], [G1, G2, G3], 1.00),
    "3 true: only one, exact": ([G1, G2, G3], [G1], 0.50),
    "3 true: one of them, 3 near-duplicates": ([G1, G2, G3], [moved(0), moved(5), moved(10)], 0.33),
    "3 true: hull of the three": ([G1, G2, G3], [HULL], 0.12),
    "3 true: all + 3 random": ([G1, G2, G3], [G1, G2, G3, *strips(0, 100, 200)], 0.67),
}  # fmt: skip


def earned(case: str, **settings) -> float:
    true, predicted, _ = ROLLOUTS[case]
    trace = Trace(tuple(Mention("gear", (Box(*box),)) for box in predicted))
    reward = box_reward(render_reply(trace, "up", SPEC.on(1000, 1000)), sample(evidence=true), SPEC, **settings)
    assert reward is not None
    return reward


class TestBoxes:
    @pytest.mark.parametrize("case", ROLLOUTS)
    def test_hand_made_rollouts_earn_what_the_table_says(self, case):
        assert earned(case) == pytest.approx(ROLLOUTS[case][2], abs=0.0051)

    def test_a_spare_box_costs_nothing_but_the_next_one_does(self):
        assert earned("1 true: exact + 1 context box", spare=1) == 1
        assert earned("1 true: exact box three times", spare=1) == pytest.approx(2 / 3)
        assert earned("1 true: exact + 5 random", spare=1) == pytest.approx(1 / 3)

    def test_spare_boxes_do_not_make_up_for_missing_ones(self):
        assert earned("3 true: only one, exact", spare=3) == 0.5
        assert soft_f1_with_spare([], [Box(*G1)], spare=3) == 0

    def test_none_where_nobody_annotated_and_one_where_absence_was_annotated_and_kept(self):
        assert box_reward(GOOD, sample(evidence=None), SPEC) is None
        assert box_reward(GOOD, sample(evidence=()), SPEC) == 0
        assert box_reward("There is none.\nAnswer: no", sample(evidence=()), SPEC) == 1

    def test_a_box_behind_the_answer_earns_nothing(self):
        assert box_reward("Answer: up <box>[100, 100, 300, 300]</box>", sample(), SPEC) == 0

    def test_boxes_with_exchanged_labels_earn_nothing(self):
        """A red cup and a blue one, each shown where the other is."""
        red, blue = [100, 100, 300, 300], [600, 600, 800, 800]
        cups = (Mention("red cup", (Box(*red),)), Mention("blue cup", (Box(*blue),)))
        row = sample().model_copy(update={"evidence": cups})
        reply = "<ref>{}</ref><box>{}</box> and <ref>{}</ref><box>{}</box>\nAnswer: up"
        assert box_reward(reply.format("red cup", blue, "blue cup", red), row, SPEC) == 0
        assert box_reward(reply.format("A Red Cup", red, "blue cups", blue), row, SPEC) == 1
        assert box_reward(reply.format("mug", red, "blue cup", blue), row, SPEC) == 0.5
        mug = Synonyms.of(["red cup=mug"])
        assert box_reward(reply.format("mug", red, "blue cup", blue), row, SPEC, synonyms=mug) == 1

    def test_the_numbers_are_read_in_the_declared_frame(self):
        padded = "<ref>gear</ref><box>[0.1, 0.1, 0.3, 0.3]</box>\nAnswer: up"
        assert box_reward(padded, sample(), FrameSpec("padded_square")) == pytest.approx(1)
        assert box_reward(padded, sample(), SPEC) == 0

    def test_a_negative_spare_is_refused(self):
        with pytest.raises(ValueError, match="got -1"):
            soft_f1_with_spare([], [], spare=-1)


def test_boxes_in_pixels_of_what_the_model_saw_are_read_where_the_image_was_shrunk():
    """A copy of 300 x 300 pixels is seen at 308 x 308, and the numbers of the reply are pixels of that."""
    small = Stored(uri="s3://bucket/small.jpg", width=300, height=300, sha256="1" * 64)
    row = sample()
    row = row.model_copy(update={"image": row.image.model_copy(update={"stored": small})})
    spec = FrameSpec("resized_pixels", min_pixels=784, max_pixels=1280 * 784)
    text = "I see the <ref>gear</ref><box>[31, 31, 92, 92]</box> turn.\nAnswer: up"
    assert box_reward(text, row, spec) == pytest.approx(1, abs=0.02)
    assert format_reward(text, row, spec) == 1
    assert box_reward(text, sample(), spec) < 0.2  # of the original's pixels they would be another place
