"""ScienceQA (Lu et al. 2022, arXiv 2209.09513) as the Parquet files of `derek-thomas/ScienceQA`: school questions.

A row's hint and lecture become the context of the sample, in that order; its solution, written by people and without
places, is the reasoning. The right choice is the answer. The file's name says the split.

About half of the rows ask by text alone. They are refused ("no-image"), or become Samples without an image
(--without-image keep); a grey image in its place would teach a model not to look, and would be one image in
training and test.
"""

from __future__ import annotations

from typing import Any, Literal

from vcot.datasets.base import ConversionContext, Form, dataset, text
from vcot.datasets.images import there
from vcot.datasets.repeats import Asked
from vcot.datasets.row import Refused, Row
from vcot.grounding import Trace
from vcot.records import Reason, Sample
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
def sample(row: Row, context: ConversionContext[ScienceQAOptions]) -> Sample:
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
        image=image,
        question=question,
        context=before,
        choices=options,
        answers=(right(options, said.get("answer"), "answer"),),
        reasoning=(Trace((solution.strip(),)),) if isinstance(solution, str) and solution.strip() else (),
        origin=context.origin(row, image or Asked.of(question, before, options), "scienceqa"),
    )


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
