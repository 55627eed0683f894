"""What is scored: every answer that was drawn, after every rationale that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.evaluating import sample
from vcot.evaluation.rationales import rationales
from vcot.evaluation.runner import Reply
from vcot.evaluation.selection import question
from vcot.evaluation.voting import MEASURES, select
from vcot.records import Completion, Score

BASE = Path(__file__).parents[2] / "examples" / "rehearsal"


def test_each_answer_once_after_each_rationale():
    texts = ["A disc.\nAnswer: red", "No answer at all", "Two.\nAnswer: Blue.", "A disc.\nAnswer: the red"]
    found = rationales(texts, None)
    assert found.prefixes == ("A disc.\nAnswer:", None, "Two.\nAnswer:", "A disc.\nAnswer:")
    assert found.answers == (" red", " Blue.")
    assert found.distinct == ("A disc.\nAnswer:", "Two.\nAnswer:")


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("Seen.\n**Answer:** up", "Seen.\n**Answer:**"),
        ("Seen. The answer: up", "Seen. The answer:"),
        ("Seen: \\boxed{up}", "Seen: \nAnswer:"),
        ("<answer>up</answer>", "Answer:"),
        ("Answer: down? No.\nAnswer: up", "Answer: down? No.\nAnswer:"),
    ],
)
def test_a_rationale_ends_with_the_mark_of_its_answer(text, prefix):
    found = rationales([text], None)
    assert (found.prefixes, found.answers) == ((prefix,), (" up",))


def test_a_draw_that_an_earlier_version_kept_is_read_and_has_no_lacot():
    verdict = Score(
        sample="a", image=None, answer="right", true_boxes=None, predicted_boxes=0, matched=0, well_formed=True,
        text="A disc.\nAnswer: red",
    )  # fmt: skip
    said = Completion(text=verdict.text, model="subject", finish_reason="stop", tokens_out=2, logprobs=(-1.0, -2.0))
    kept: dict[str, Any] = {"model": "subject", "way": "ground", "condition": "real", "draw": 1}
    stored = Reply(**kept, answer_logprobs=(-2.0,), completion=said, score=verdict).model_dump_json()
    assert 'tokens":[' not in stored
    assert "rationale_tokens" not in stored
    found = select(question(sample("a"), [Reply.model_validate_json(stored)], None), measures=MEASURES)
    assert found.missing == {"lacot": "the tokens of rationales and answers were not counted"}
    assert found.chosen["marginal"] == 0


def test_what_a_model_said_is_read_as_it_said_it():
    """Its pointing tokens are such again; an image or an end, which it did not say, would break the prompt."""
    from vcot.tokens import Encoder, contract_of, load_processor

    processor = load_processor(BASE, min_pixels=56 * 56, max_pixels=112 * 112)
    encoder = Encoder(processor, contract_of(processor, mode="multimodal", frame="thousandths", max_length=512))
    name = processor.tokenizer.convert_tokens_to_ids
    ids = encoder.said("<|box_start|>(1,2)<|box_end|> <|image_pad|><|im_end|>")
    assert ids[0] == name("<|box_start|>")
    assert ids.count(name("<|box_end|>")) == 1
    assert not {*ids} & {name("<|image_pad|>"), name("<|im_end|>")}
    assert encoder.decode(ids) == "<|box_start|>(1,2)<|box_end|> <|image_pad|><|im_end|>"
    assert encoder.said("red", ended=True) == [*encoder.said("red"), name("<|im_end|>")]
    assert encoder.said("") == []
