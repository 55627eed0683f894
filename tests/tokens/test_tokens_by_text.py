"""Questions by text alone beside those with an image: ids, masks, batches and the page."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tokens.base import SYSTEM, encoder, halves, png, sample
from vcot.grounding import Trace
from vcot.records.example import Example
from vcot.records.sample import Sample
from vcot.storage import images
from vcot.tokens.rows import check_mask

WHY = Trace(("Gears that touch turn against each other.",))


def by_text(**changes: Any) -> Sample:
    said = {"image": None, "evidence": None, "question": "Which way does it turn?", "answers": ("up",)}
    return sample(**(said | {"reasoning": (WHY,)} | changes))


def test_it_has_neither_an_image_nor_a_place_for_one(processor: Any) -> None:
    found = encoder(processor).example(by_text(), 0)
    assert isinstance(found, Example)
    check_mask(found, processor)
    assert (found.image, found.image_grid, found.shrunk) == (None, None, False)
    given, learned = halves(found, processor)
    assert given == f"{SYSTEM}<|im_start|>user\nWhich way does it turn?<|im_end|>\n<|im_start|>assistant\n"
    assert learned == "Gears that touch turn against each other.\nAnswer: up<|im_end|>\n"


def test_the_ids_are_those_of_the_chat_template_and_those_of_text_mode(processor: Any) -> None:
    row = by_text()
    found = encoder(processor).example(row, 0)
    assert isinstance(found, Example)
    said = [{"role": "user", "content": [{"type": "text", "text": row.question}]}]
    text = processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    prompt = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(found.ids[: len(prompt)]) == prompt == encoder(processor).prompt_ids(row)
    plain = encoder(processor, mode="text").example(row, 0)
    assert isinstance(plain, Example)
    assert plain.ids == found.ids


def test_a_sample_with_an_image_still_needs_it(processor: Any) -> None:
    with pytest.raises(ValueError, match="a multimodal example needs its image"):
        encoder(processor).example(sample(), 0)


def test_a_batch_of_both_holds_each_prompt_and_the_patches_of_those_that_have_an_image(processor: Any) -> None:
    coder, data = encoder(processor), png()
    image = images.decode(data, "a.png").pixels
    rows, shown = [by_text(), sample(data), by_text(question="Why?")], [None, image, None]
    batch = coder.prompts(rows, shown)
    for row, ids, mask in zip(rows, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        assert [token for token, kept in zip(ids, mask, strict=True) if kept] == coder.prompt_ids(row)
    assert batch["image_grid_thw"].tolist() == coder.prompts(rows[1:2], shown[1:2])["image_grid_thw"].tolist()
    assert batch["mm_token_type_ids"].sum(1).tolist() == [0, 12, 0]
    alone = coder.prompts([rows[0], rows[2]], [None, None])
    assert alone.keys() == {"input_ids", "attention_mask", "mm_token_type_ids"}
