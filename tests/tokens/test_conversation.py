"""Messages as people send them to a server: the ids that a Sample's question has, and the reply's text as it comes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from tests.tokens.base import SYSTEM, WHERE, encoder, sample
from tests.training.toy import by_text
from vcot.errors import InputError
from vcot.grounding import Trace
from vcot.grounding.tags import render
from vcot.records.sample import Turn
from vcot.tokens import Detokenizer, Encoder, Message

REPLY = "The <ref>red disc</ref><box>[100, 100, 300, 300]</box> is at the top left."


@pytest.fixture(scope="module")
def coder(processor: Any) -> Encoder:
    return encoder(processor)


@pytest.fixture(scope="module")
def by_turns(processor: Any) -> Encoder:
    return encoder(processor, roles=("rationale",), ways=("direct", "ground"))


def noise(width: int, height: int, seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def text(coder: Encoder, batch: dict[str, Any]) -> str:
    """With one token in the place of all those of an image."""
    return re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", coder.text_of(batch["input_ids"][0].tolist()))


def test_a_conversation_has_the_ids_and_pixels_of_the_sample_that_says_the_same(
    coder: Encoder, by_turns: Encoder
) -> None:
    first, second = noise(100, 60), noise(60, 110, seed=1)
    asked = sample(question="What is <|im_end|> there?")
    earlier = (Turn(role="user", said=Trace(("Where is it?",)), images=1), Turn(role="assistant", said=WHERE))
    later = sample().model_copy(update={"images": asked.images * 2, "turns": earlier})
    frame = later.frame(coder.contract.frame_spec)
    for ids in (coder, by_turns):
        for rationale in (False, True) if ids.between else (False,):
            given: Any = {"pointing": (ids.contract.frame_spec, "vcot"), "rationales": [rationale]}
            said = [
                Message("user", (first, "Where is it?")),
                Message("assistant", (render(WHERE, frame, "vcot"),)),
                Message("user", (second, "Where is the ", "red disc?")),
            ]
            assert same(ids.conversation(said, rationale=rationale), ids.prompts([later], [[first, second]], **given))
            one = [Message("user", (first, "What is <|im_end|> there?"))]
            assert same(ids.conversation(one, rationale=rationale), ids.prompts([asked], [[first]], **given))
    assert not same(by_turns.conversation(one, rationale=True), by_turns.conversation(one))


def test_a_system_message_and_texts_between_images_stand_where_they_were_said(coder: Encoder) -> None:
    image = noise(60, 60)
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    said = coder.conversation([Message("system", ("Be short.",)), Message("user", ("Look: ", image))])
    assert text(coder, said) == (
        f"<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nLook: {shown}<|im_end|>\n<|im_start|>assistant\n"
    )
    said = coder.conversation([Message("user", ("a",)), Message("user", ("b",))])
    asked = "".join(f"<|im_start|>user\n{letter}<|im_end|>\n" for letter in "ab")
    assert text(coder, said) == f"{SYSTEM}{asked}<|im_start|>assistant\n"


def test_nothing_that_a_user_says_is_a_control_token(coder: Encoder) -> None:
    plain = coder.conversation([Message("user", ("a",))])["input_ids"][0].tolist()
    said = coder.conversation([Message("user", ("<|im_end|><|image_pad|>",))])["input_ids"][0].tolist()
    for token in (coder.processor.image_token_id, coder.eos_token_ids[0]):
        assert said.count(token) == plain.count(token)


def test_a_template_that_drops_what_is_said_is_refused(processor: Any) -> None:
    coder, kept = encoder(processor), processor.chat_template
    each = "{% for message in messages"
    for template, says in (
        (kept.replace(f"{each} %}}", f"{each} if message.role != 'system' %}}"), "as it is"),
        ("{{ raise_exception('no system message') }}", "refuses this conversation: no system message"),
    ):
        processor.chat_template = template
        try:
            with pytest.raises(InputError, match=says):
                coder.conversation([Message("system", ("Be short.",)), Message("user", ("a",))])
        finally:
            processor.chat_template = kept


def test_prompts_are_joined_with_their_images(coder: Encoder) -> None:
    rows = [sample(), sample(question="Where?"), by_text(1)]
    images = [[noise(100, 60)], [noise(60, 110)], []]
    alone = [coder.prompts([row], [own]) for row, own in zip(rows, images, strict=True)]
    assert same(coder.joined(alone), coder.prompts(rows, images))
    assert "pixel_values" not in coder.joined(alone[2:])


# --- the text of a reply while its tokens come


def pieces(coder: Encoder, ids: list[int], **how: Any) -> list[str]:
    said = Detokenizer(coder, **how)
    return [*map(said.add, ids), said.rest()]


@settings(max_examples=300)
@given(st.data())
def test_pieces_are_together_what_the_whole_reply_is(coder: Encoder, by_turns: Encoder, data: st.DataObject) -> None:
    """Any tokens at all: parts of characters, control tokens, ends."""
    size = len(coder.processor.tokenizer)
    ends, between = coder.eos_token_ids, list(by_turns.between)
    token = st.integers(0, size - 1)
    turn = st.one_of(st.lists(token, max_size=12), st.text(max_size=6).map(lambda text: coder.said(text)))
    middles = [[], [ends[0]], [ends[1]], [ends[0], *between], [ends[0], *between[:1]]]
    ids = data.draw(turn) + data.draw(st.sampled_from(middles)) + data.draw(turn)
    assert "".join(pieces(coder, ids)) == coder.decode(ids)
    assert "".join(pieces(by_turns, ids)) == by_turns.decode(ids)


def test_a_character_is_sent_whole_and_tags_are_sent(coder: Encoder) -> None:
    said = "ü 红 🦓 <ref>red disc</ref>"
    sent = pieces(coder, coder.said(said))
    assert "".join(sent) == said
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in sent)
    assert "" in sent[:-1]  # the tokenizer knows bytes alone: a piece waits for the rest of its character
    assert {"<ref>", "</ref>"} <= {*sent}


def test_an_answer_follows_its_rationale_after_a_line_break(by_turns: Encoder) -> None:
    ids = by_turns.said(f"{REPLY}\nAnswer: top left", ended=True)
    sent = pieces(by_turns, ids)
    assert "".join(sent) == f"{REPLY}\nAnswer: top left"
    assert sent.count("\n") == 1
    alone = pieces(by_turns, by_turns.said("Answer: up", ended=True, rationale=False), rationale=False)
    assert "".join(alone) == "Answer: up"
