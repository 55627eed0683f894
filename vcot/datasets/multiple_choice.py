"""Questions with choices, from Parquet files of the hub: ScienceQA and A-OKVQA.

ScienceQA (Lu et al. 2022, arXiv 2209.09513) as the Parquet files of `derek-thomas/ScienceQA`: school questions.

A row's hint and lecture become the context of the sample, in that order; its solution, written by people and without
places, is the reasoning. The right choice is the answer. The file's name says the split.

About half of the rows ask by text alone. They are refused ("no-image"), or become Samples without an image
(--without-image keep).

A-OKVQA (Schwenk et al. 2022, arXiv 2206.01718): questions that need knowledge, each with three rationales.

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
from typing import Any, Literal

from vcot.answers import letter
from vcot.datasets.base import ConversionContext, Form, dataset, text
from vcot.datasets.duplicate_questions import Asked
from vcot.datasets.images import there
from vcot.datasets.inputs import Refused, Row
from vcot.grounding import Trace
from vcot.records import Image, Reason, Sample
from vcot.settings import Options, setting


class ScienceQAOptions(Options):
    without_image: Literal["refuse", "keep"] = setting(
        "refuse", "scienceqa: rows that ask by text alone; keep: they become Samples whose image is null"
    )


@dataset(
    "scienceqa",
    "school questions with hint, lecture and solution; Parquet, images inside",
    "--input-uri data --without-image keep",
    options=ScienceQAOptions,
    forms=(Form(frozenset(("question", "choices", "lecture")), "ScienceQA"),),
    columns=("image", "question", "choices", "answer", "hint", "lecture", "solution", "split"),
    called="scienceqa",
    licence="CC-BY-SA-4.0 (hub) or CC-BY-NC-SA-4.0 (authors)",
)
def scienceqa(row: Row, context: ConversionContext[ScienceQAOptions]) -> Sample:
    said = row.value
    question = text(said, "question", Reason.NO_QUESTION)
    options = choices(said.get("choices"))
    by_text = context.own.without_image == "keep" and not there(said.get("image"))
    image = None if by_text else context.images.of(said.get("image"))
    background = [part.strip() for name in ("hint", "lecture") if isinstance(part := said.get(name), str)]
    before = "\n\n".join(filter(None, background)) or None
    solution = said.get("solution")
    return Sample(
        id=row.id,
        images=() if image is None else (image,),
        question=question,
        context=before,
        choices=options,
        answers=(right(options, said.get("answer"), "answer"),),
        reasoning=(Trace((solution.strip(),)),) if isinstance(solution, str) and solution.strip() else (),
        origin=context.origin(row, image or Asked.of(question, before, options), "scienceqa"),
    )


# ------------------------------------------------------------------------------------------------------- A-OKVQA

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
def aokvqa(row: Row, context: ConversionContext) -> Sample:
    said = row.value
    question = text(said, "question", Reason.NO_QUESTION)
    options = choices(said.get("choices"))
    first = right(options, said.get("correct_choice_idx"), "correct_choice_idx")
    image = _image(said, context)
    return Sample(
        id=row.id,
        images=(image,),
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


# ------------------------------------------------------------------------------------------------- what both share


def choices(said: Any) -> tuple[str, ...]:
    """Raises Refused: there are fewer than two, or one is empty."""
    if isinstance(said, list) and len(said) > 1 and all(isinstance(choice, str) and choice.strip() for choice in said):
        return tuple(choice.strip() for choice in said)
    raise Refused(Reason.WRONG_SHAPE, f"choices are two texts or more; got {said!r:.80}")


def right(options: tuple[str, ...], number: Any, name: str) -> str:
    """The choice with this number, from 0. Raises Refused: there is none (test files hide it)."""
    if type(number) is int and 0 <= number < len(options):
        return options[number]
    raise Refused(Reason.NO_ANSWER, f"{name} is the number of a choice, 0 to {len(options) - 1}; got {number!r:.40}")
