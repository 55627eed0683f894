"""A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718): questions that need knowledge, each with three rationales.

Two forms: the Parquet files of `HuggingFaceM4/A-OKVQA` (images inside; the list of direct answers is written as a
text; the file's name says the split) and the authors' `aokvqa_v1p0_*.json`, whose images are COCO's of 2017, below
the images' folder as `train2017/000000299207.jpg`.

The right choice is the first answer, what people answered directly follows it. A direct answer that names another of
the choices is left out: accepted, it would make a wrong choice right. The rationales are alternatives of one Sample.
Rows of the test files have no answers and are refused.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from vcot.answers import letter
from vcot.datasets.base import ConversionContext, Form, dataset, text
from vcot.datasets.row import Refused, Row
from vcot.datasets.scienceqa import choices, right
from vcot.grounding import Trace
from vcot.records import Image, Reason, Sample

_LONGEST = 10_000
"""Characters of a list that is written as a text."""


@dataset(
    "aokvqa",
    "questions with three rationales; Parquet, images inside, or JSON with COCO's images",
    "--input-uri aokvqa_v1p0_train.json --images-uri coco",
    forms=(Form(frozenset(("question", "choices", "rationales")), "A-OKVQA"),),
    columns=(
        "image", "question_id", "question", "choices", "correct_choice_idx", "direct_answers", "rationales", "split"
    ),
    called="aokvqa",
    licence="Apache-2.0; images: COCO, terms of Flickr",
)  # fmt: skip
def sample(row: Row, context: ConversionContext) -> Sample:
    said = row.value
    question = text(said, "question", Reason.NO_QUESTION)
    options = choices(said.get("choices"))
    first = right(options, said.get("correct_choice_idx"), "correct_choice_idx")
    image = _image(said, context)
    return Sample(
        id=row.id,
        image=image,
        question=question,
        choices=options,
        answers=_answers(first, _texts(said.get("direct_answers")), options),
        reasoning=tuple(Trace((rationale,)) for rationale in dict.fromkeys(_texts(said.get("rationales")))),
        origin=context.origin(row, image, "aokvqa"),
    )


def _image(said: Mapping[str, Any], context: ConversionContext) -> Image:
    if "image" in said:
        return context.images.of(said["image"])
    number, split = said.get("image_id"), said.get("split")
    if type(number) is not int or split not in ("train", "val", "test"):
        raise Refused(Reason.WRONG_SHAPE, f"image_id {number!r:.40} and split {split!r:.40} name no image of COCO")
    return context.images.find(f"{split}2017/{number:012}.jpg")


def _answers(first: str, direct: list[str], options: tuple[str, ...]) -> tuple[str, ...]:
    true = letter(first, options)
    return tuple(dict.fromkeys([first, *(a for a in direct if letter(a, options) in (None, true))]))


def _texts(said: Any) -> list[str]:
    """A list of texts, or a text that is written like one in Python."""
    if isinstance(said, str) and len(said) <= _LONGEST:
        try:
            said = ast.literal_eval(said.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise Refused(Reason.WRONG_SHAPE, f"a list of answers, written as a text; got {said!r:.80}") from None
    return [entry.strip() for entry in said if isinstance(entry, str) and entry.strip()] if type(said) is list else []
