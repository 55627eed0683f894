"""The audit: a wrong mask fails by numbers, and a page shows what is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.tokens.base import WHERE, example, sample
from vcot.errors import InputError
from vcot.records.example import IGNORED, Example
from vcot.records.metadata import TokenizeShardMetadata
from vcot.records.shards import RowCounts
from vcot.tokens import Encoder
from vcot.tokens.rows import check_mask, histogram, numbers, pieces, report_page, view


@pytest.fixture(scope="module")
def good(toy_encoder: Encoder) -> Example:
    return example(toy_encoder, sample(question="Where is the red disc, <b>café 漢</b>?"))


def labels_of(good: Example, *replaced: Any) -> tuple[int, ...]:
    """With some labels before the learned part, or its first, replaced."""
    first = len(good.ids) - good.learned
    return (*good.labels[: first - 1], *replaced, *good.ids[first - 1 + len(replaced) :])


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda good: {"labels": good.ids}, r"s1#0: .*control tokens that are learned"),
        (lambda good: {"labels": labels_of(good)}, "not behind the assistant's header"),
        (lambda good: {"labels": labels_of(good, IGNORED, IGNORED)}, "not behind the assistant's header"),
        (lambda good: {"labels": (IGNORED,) * len(good.ids)}, "nothing of it is learned"),
        (lambda good: {"labels": (*good.labels[:-2], IGNORED, IGNORED)}, "not one piece up to the end"),
        (lambda good: {"ids": good.ids[:-2], "labels": good.labels[:-2]}, "that are learned are none"),
        (lambda good: {"labels": (*good.labels[1:], good.ids[-1])}, "another token than the one that stands there"),
        (lambda good: {"image_grids": ((1, 8, 8),)}, "12 places for visual tokens, its images give 16"),
        (lambda good: {"images": (), "image_grids": ()}, "its images give 0"),
    ],
)
def test_a_wrong_mask_is_refused(good: Example, processor: Any, harm: Any, line: str) -> None:
    check_mask(good, processor)
    with pytest.raises(InputError, match=line):
        check_mask(replace(good, **harm(good)), processor)


def test_pieces_put_together_are_the_whole_text_and_count_every_token(good: Example, processor: Any) -> None:
    found = pieces(good, processor)
    assert sum(piece.tokens for piece in found) == len(good.ids)
    text = "".join(piece.text for piece in found)
    assert "Where is the red disc, <b>café 漢</b>?" in text  # letters of several bytes are whole
    assert "<|image_pad|> × 12" in text
    assert "".join(piece.text for piece in found if piece.learned).endswith("top left<|im_end|>\n")


def test_boxes_of_the_page_come_from_the_learned_text(good: Example, toy_encoder: Encoder, processor: Any) -> None:
    one = view(good, (320, 240), toy_encoder.contract, processor)
    assert one.parsed.well_formed
    assert one.parsed.boxes == WHERE.boxes
    assert [image.size for image in one.images] == [(112, 84)]
    wrong = view(good, (320, 240), toy_encoder.contract.model_copy(update={"frame": {"name": "pixels"}}), processor)
    assert [str(fault.kind) for fault in wrong.parsed.faults] == ["outside"]  # 300 of 240 pixels: shown on the page


def test_the_page_escapes_what_people_wrote(good: Example, toy_encoder: Encoder, processor: Any) -> None:
    counts = TokenizeShardMetadata(splits={"train": 1}, lengths={len(good.ids): 1}, learned=good.learned)
    rows = RowCounts(rows=2, kept=1, written=1, rejected={"too-long": 1})
    with pytest.raises(InputError, match="nothing is learned in any of 1"):
        numbers(counts.model_copy(update={"learned": 0}), rows, toy_encoder.contract)
    found = numbers(counts, rows, toy_encoder.contract)
    html = report_page(found, [view(good, (320, 240), toy_encoder.contract, processor)])
    assert "<script" not in html
    assert "http" not in html
    assert "<b>café" not in html
    assert "too-long" in html


def test_bars_of_counts() -> None:
    bars = histogram({10: 5, 20: 4, 100: 1}, most=4)
    assert bars == [(10, 32, 9), (33, 55, 0), (56, 78, 0), (79, 100, 1)]
    assert histogram({7: 3}) == [(7, 7, 3)]
