"""VisCoT (Shao et al. 2024, arXiv 2403.16999): questions with the boxes that answer them.

Three forms of the same rows, told apart by their fields:

- chat (`viscot_363k.json`, `benchmark/*.json`): two entries of `image` (the second with `###[x1, y1, x2, y2]`, the box
  in whole pixels of the original, truncated) and four turns (the second turn is the same box in fractions of the
  image padded to a square, three decimals). The two copies are combined: where all rows of a set can be of whole
  pixels, they are, and the integers are the box; else each edge is the middle of what both copies allow (the fractions
  are exact to 0.0005 of the longer side, the integers say which pixel). Copies that disagree refuse the row.
- metadata (`metadata/*.jsonl`): `bboxs`, float pixels, and the size of the image, which the image must have.
- detailed reasoning (`gqa_cot_train.jsonl`): metadata with `thought`, numbered steps without places, and `reasoning`,
  GQA's program. They become a trace in which the thing that the program ends at has its place; without a program, a
  sentence at the end points at the boxes.

The rows of the benchmark say split "val"; here that is the test split, and "train" is divided by what the image is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from vcot.datasets.base import ConversionContext, Form, Glance, dataset, numbers, same_size, text
from vcot.datasets.duplicate_questions import Question, asked
from vcot.datasets.images import TOPS, without_top
from vcot.datasets.inputs import Edges, Refused, Row
from vcot.datasets.quality import gives_away, label_for, names_a_choice
from vcot.grounding import Box, Frame, FrameSpec, Mention, Trace
from vcot.records import Image, Reason, Sample

_DECODE = json.JSONDecoder().decode
_BOX_SENTENCE = re.compile(
    r"Please (?:think step by step and )?provide the bounding box coordinates? of the region that can help you "
    r"answer the question better\.?\s*\Z",
    re.IGNORECASE,
)
_FOLDERS = {"textcap": "textvqa", "visual7w": "v7w"}
"""Sets whose images lie in another set's folder, or under another name than the set's own."""
_TEXT_SETS = frozenset(("docvqa", "dude", "infographicsvqa", "sroie", "textcap", "textvqa"))
"""Sets whose boxes surround text."""


def glance(row: Row, context: ConversionContext) -> Glance:
    said = _said(row)
    image = context.images.find(said.path)
    return Glance(image, Question(asked(said.question, None, said.choices), said.answers), _whole(said, image))


def _whole(said: _Said, image: Image) -> tuple[str, bool] | None:
    """The set of a chat row, and whether the true edges can be the whole pixels that its second copy says."""
    if said.copies is None or said.copies[1] is None:
        return None
    edges, truncated = _two_copies(_list(said.copies[0]), _list(said.copies[1]), image)
    if not all(map(math.isfinite, (*edges, *truncated))):
        return None
    exact_to = _exact_to(image)
    return said.dataset, all(abs(a - b) <= exact_to for a, b in zip(edges, truncated, strict=True))


@dataset(
    "viscot",
    "VisCoT: chat rows (viscot_363k.json, benchmark/*.json), metadata and reasoning (*.jsonl)",
    "--input-uri metadata --images-uri cot_images_tar_split",
    forms=(
        Form(frozenset(("dataset", "question_id", "image", "conversations")), "VisCoT's chat rows"),
        Form(frozenset(("image", "question", "answer", "bboxs")), "VisCoT's metadata"),
    ),
    needs_images="the folder with VisCoT's sets of images",
    splits={"train": None, "val": "test", "test": "test"},
    glance=glance,
    # What the rows' `cot/` is called in the archive as published, and where somebody has made another of it.
    in_archive=(*TOPS, ""),
    licence="Apache-2.0 (hub) or CC-BY-4.0 (paper); images keep their own",
)
def sample(row: Row, context: ConversionContext) -> Sample:
    said = _said(row)
    image = context.images.find(said.path)
    same_size(row.value, image)
    if said.copies is None:
        boxes = context.boxes(said.pixels, image)
    else:
        boxes = (_one_box(*said.copies, image, context, whole=said.dataset in context.prepared.whole_pixels),)
    steps = program(row.value.get("reasoning"))
    named = target(steps, said.answers)
    of_text = said.dataset in _TEXT_SETS
    evidence = Mention(named or label_for(said.question, said.answers, of_text=of_text), boxes)
    return Sample(
        id=row.id,
        images=(image,),
        question=said.question,
        choices=said.choices,
        answers=said.answers,
        reasoning=(grounded(said.thought or "", steps, named, evidence),) if said.thought or steps else (),
        evidence=(evidence,),
        origin=context.origin(row, image, said.dataset),
    )


class _Said(NamedTuple):
    """What a row says, whatever its form. Boxes are in `pixels`, or there are two `copies` of one, as written."""

    path: str
    dataset: str
    question: str
    answers: tuple[str, ...]
    pixels: Any = None
    copies: tuple[str, str | None] | None = None
    choices: tuple[str, ...] | None = None
    thought: str | None = None


def _said(row: Row) -> _Said:
    return _chat(row.value) if "conversations" in row.value else _metadata(row.value)


# ---------------------------------------------------------------------------------------------------- metadata


def _metadata(row: Mapping[str, Any]) -> _Said:
    dataset = text(row, "dataset", Reason.WRONG_SHAPE)
    answer = text(row, "answer", Reason.NO_ANSWER)
    others = [a.strip() for a in _texts(row, "possible_answers") if a.strip()]
    thought = row.get("thought")
    return _Said(
        path=image_path(text(row, "image", Reason.WRONG_SHAPE), dataset),
        dataset=dataset,
        question=_question(row, "question"),
        answers=tuple(dict.fromkeys([answer, *others])),
        pixels=row.get("bboxs", []),
        choices=_choices(row, answer),
        thought=thought.strip() if isinstance(thought, str) else None,
    )


def _choices(row: Mapping[str, Any], answer: str) -> tuple[str, ...] | None:
    """None where they lack the answer: Visual7W's own files list the wrong ones alone under that key."""
    options = tuple(_texts(row, "multiple_choices"))
    return options if options and names_a_choice(answer, options) else None


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    """None at all where the row has none. Raises Refused: they are no list of texts."""
    value = row.get(name)
    if value is None:
        return []
    if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
        raise Refused(Reason.WRONG_SHAPE, f"{name} are a list of texts; got {value!r:.120}")
    return value


# -------------------------------------------------------------------------------------------------------- chat


def _chat(row: Mapping[str, Any]) -> _Said:
    turns, images = row["conversations"], row.get("image")
    images = [images] if isinstance(images, str) else images
    if not (isinstance(images, list) and 1 <= len(images) <= 2 and set(map(type, images)) == {str}):
        raise Refused(Reason.WRONG_SHAPE, f"image is a path, or a path and path###[box]; got {images!r:.120}")
    if not (isinstance(turns, list) and list(map(type, turns)) == [dict] * 4):
        raise Refused(Reason.WRONG_SHAPE, "conversations are four turns: question, box, <image>, answer")
    if (spoken := [turn.get("from") for turn in turns]) != ["human", "gpt", "human", "gpt"]:
        raise Refused(Reason.WRONG_SHAPE, f"turns are of human, gpt, human, gpt; got {spoken!r:.120}")
    dataset = text(row, "dataset", Reason.WRONG_SHAPE)
    path, _, _ = images[0].partition("###")
    again, marked, suffix = images[-1].partition("###")
    if again != path:
        raise Refused(Reason.WRONG_SHAPE, f"both entries of image name one file; got {images!r:.160}")
    return _Said(
        path=image_path(path, dataset),
        dataset=dataset,
        question=_question(turns[0], "value"),
        answers=(text(turns[3], "value", Reason.NO_ANSWER),),
        copies=(text(turns[1], "value", Reason.NO_BOX), suffix if marked else None),
    )


def _list(written: str) -> list[Any]:
    try:
        read = _DECODE(written)
    except ValueError:
        read = None
    if not isinstance(read, list):
        raise Refused(Reason.BOX_MALFORMED, f"a box is written [x1, y1, x2, y2]; got {written!r:.80}")
    return read


def _one_box(of_square: str, of_pixels: str | None, image: Image, context: ConversionContext, *, whole: bool) -> Box:
    """The box of which a chat row has two copies: fractions of the padded square, and truncated pixels.

    whole: the true boxes of its set are of whole pixels, so that nothing was truncated.
    """
    if of_pixels is None:
        fractions = numbers(_list(of_square))
        return Box.from_padded_square(
            *fractions, width=image.width, height=image.height, overhang=context.options.overhang
        )
    edges, truncated = _two_copies(_list(of_square), _list(of_pixels), image)
    return context.box(list(truncated if whole else map(_between, edges, truncated, repeat(_exact_to(image)))), image)


def _two_copies(of_square: list[Any], of_pixels: list[Any], image: Image) -> tuple[Edges, Edges]:
    """Both in pixels. Raises Refused: they are further apart than truncation and rounding bring those of one box."""
    fractions, truncated = numbers(of_square), numbers(of_pixels)
    edges = _square(image.width, image.height).edges(*fractions)
    apart = 1 + _exact_to(image)
    for edge, whole in zip(edges, truncated, strict=True):
        if abs(edge - whole) > apart:
            raise Refused(
                Reason.BOX_COPIES_DISAGREE,
                f"{of_square} of the padded square are the pixels {[round(edge, 1) for edge in edges]} of "
                f"{image.width} x {image.height}, but the other copy says {of_pixels}",
                places=(edges, truncated),
            )
    return edges, truncated


def _exact_to(image: Image) -> float:
    """Pixels by which three decimals of the padded square may be off."""
    return 0.0005 * max(image.width, image.height) + 1e-6


@lru_cache(1_000)
def _square(width: int, height: int) -> Frame:
    return FrameSpec("padded_square").on(width, height)


def _between(edge: float, whole: float, exact_to: float) -> float:
    """The middle of what both copies allow.

    Truncation is towards zero: 3 was 3.0 … 3.99, −3 was −3.99 … −3.0, and 0 was either.
    """
    if not (math.isfinite(edge) and math.isfinite(whole)):
        return edge + whole  # Box names it
    low, high = whole - (whole <= 0), whole + (whole >= 0)
    # Where they do not meet, by a rounding of their own, the pixel counts: its border is the nearest place.
    allowed = [min(max(at, low), high) for at in (edge - exact_to, edge + exact_to)]
    return sum(allowed) / 2


def _question(row: Mapping[str, Any], name: str) -> str:
    """What is asked, without the image's place and without the sentence that asks for the box."""
    said = text(row, name, Reason.NO_QUESTION)
    question = _BOX_SENTENCE.sub("", said.replace("<image>", "")).strip()
    if not question:
        raise Refused(Reason.NO_QUESTION, f"nothing is asked in {said!r:.120}")
    return question


def image_path(image: str, dataset: str) -> str:
    """`<folder of the set>/<file>` of what a row calls its image: `cot/<set>/<file>`, the same without `cot/`, or the
    bare file.
    """
    folder, _, file = without_top(image).partition("/")
    if without_top(image) == image and not (file and folder in (dataset, _FOLDERS.get(dataset))):
        folder, file = dataset, image
    return f"{_FOLDERS.get(folder, folder)}/{file}"


# ------------------------------------------------------------------------------------------------- GQA's programs

# A program is a list of operations on objects of the scene: select("shirt (2)"), relate("person,wearing,s (1)") of what
# step 0 found, query("name"). The box of a row is round the object at which the program ends. `thought`, steps that
# GPT-4 wrote, names it in prose and without a place: where it first does, the place is inserted. What a box shows is
# thus told by the scene graph, never by the answer (a program says "_" where the name is what is asked).

_OBJECT = re.compile(r"\s*\((?:-|[\d,]+)\)\s*\Z")
"""The object's number at the end of an argument; "-" where the scene has none."""
_UNNAMED = "thing"


@dataclass(frozen=True)
class Step:
    """`on`: numbers of earlier steps whose objects it takes."""

    operation: str
    on: tuple[int, ...]
    argument: str


def program(said: Any) -> tuple[Step, ...]:
    """The steps of what a row calls `reasoning`; none where it is no whole program."""
    steps: list[Step] = []
    for entry in said if isinstance(said, list) else ():
        match entry:
            case {"operation": str(operation), "dependencies": [*on], "argument": str(argument)} if all(
                type(n) is int and 0 <= n < len(steps) for n in on
            ):
                steps.append(Step(operation.strip(), tuple(on), _OBJECT.sub("", argument).strip()))
            case _:
                return ()
    return tuple(steps)


def target(steps: Sequence[Step], answers: Sequence[str]) -> str | None:
    """The one object that a program ends at, by its name; None where there are several, or its name is the answer."""
    names = _names(steps)[-1] if steps else ()
    name = names[0] if len(names) == 1 else None
    return None if name is None or gives_away(name.casefold(), answers) else name


def grounded(thought: str, steps: Sequence[Step], named: str | None, evidence: Mention) -> Trace:
    """The written steps, or those of the program where there are none, with the evidence in its place.

    named: what the steps call the thing that the evidence shows. Where they do not, a sentence at their end points.
    """
    prose = thought or in_words(steps)
    found = _first(named, prose) if named else None
    if found is None:
        return Trace((f"{prose} The place to look at is the ".lstrip(), evidence, "."))
    return Trace((prose[: found.start()], Mention(found[0], evidence.boxes), prose[found.end() :]))


def _first(named: str, prose: str) -> re.Match[str] | None:
    """Where the thing is named first; where nobody says "white wall", the first "wall"."""
    words = named.split()
    tries = (" ".join(words[start:]) for start in range(len(words)))
    return next(filter(None, (re.search(rf"\b{re.escape(name)}\b", prose, re.IGNORECASE) for name in tries)), None)


def in_words(steps: Sequence[Step]) -> str:
    """A program in words."""
    names = _names(steps)
    sentences = (_sentence(step, [name or _UNNAMED for n in step.on for name in names[n]]) for step in steps)
    return " ".join(filter(None, sentences))


def _names(steps: Sequence[Step]) -> list[tuple[str | None, ...]]:
    """What the objects of each step are called, each once; None for one that the program does not name."""
    found: list[tuple[str | None, ...]] = []
    for step in steps:
        before = tuple(dict.fromkeys(name for n in step.on for name in found[n]))
        match step.operation.partition(" ")[0]:
            case "select":
                found.append((step.argument or None,))
            case "relate":
                name = step.argument.split(",")[0].strip()
                found.append((None if name in ("", "_") else name,))
            case "filter" if not step.argument.startswith("not("):
                found.append(tuple(name and f"{step.argument} {name}" for name in before))
            case _:
                found.append(before)
    return found


def _sentence(step: Step, earlier: Sequence[str]) -> str | None:
    others = " and the ".join(earlier) or _UNNAMED
    match step.operation.partition(" ")[0], step.argument.split(","):
        case "select", _:
            return f"Look for the {step.argument}."
        case "relate", [name, relation, "s"]:
            return f"Look for the {_named(name)} {relation.strip()} the {others}."
        case "relate", [name, relation, "o"]:
            return f"Look for the {_named(name)} that the {others} is {relation.strip()}."
        case "filter", _:
            negated = step.argument.startswith("not(")
            quality = f"not {step.argument[4:].rstrip(')')}" if negated else step.argument
            return f"Of the {others}, take the one that is {quality}."
        case "query", _:
            return f"Look at the {step.argument} of the {others}."
        case "exist", _:
            return f"See whether the {others} is there."
    return None


def _named(name: str) -> str:
    return _UNNAMED if name.strip() in ("", "_") else name.strip()
