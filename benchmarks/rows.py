"""Fixed rows to train on, out of the repository alone: Samples with their reasoning, and the bytes of their images.

    scenes   drawn scenes (vcot.datasets.scenes), short replies
    cells    the photographs of examples/blood-cells
    long     texts of 20 to 600 words, none to two images of 56 to 448 pixels a side
    visual   one JPEG of about a thousand visual tokens, some three hundred tokens of text

Each is a pure function of a seed. `examples` and `chat_rows` make of the same Samples what our training and TRL's read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from vcot.datasets.scenes.drawing import draw_scene
from vcot.datasets.scenes.objects import SceneSpec, ask
from vcot.distill import DistilledReasoning
from vcot.distill.template import TemplateTeacher
from vcot.grounding import Box, Mention, Trace, place
from vcot.records import Image, Origin, Sample
from vcot.records.example import Example, Examples, ExampleSink
from vcot.storage.images import decode
from vcot.tokens import Encoder, contract_of, load_processor, prompt_text

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "examples" / "blood-cells"
WORDS = [
    "the", "red", "yellow", "green", "blue", "white", "black", "disc", "square", "ring", "star", "left", "right", "top",
    "bottom", "of", "is", "at", "and", "I", "see", "no", "one", "that", "more", "than", "it", "here", "cell",
]  # fmt: skip


@dataclass(frozen=True)
class RowSet:
    """samples: each with one reasoning. data: URI → the image's bytes. max_pixels: of an image as the model sees it."""

    name: str
    samples: tuple[Sample, ...]
    data: dict[str, bytes]
    max_pixels: int


def scenes(rows: int) -> RowSet:
    data: dict[str, bytes] = {}
    samples = []
    kinds: Any = ("where", "count", "presence")
    for number in range(rows):
        dice = np.random.default_rng([1, number])
        scene = draw_scene(dice, SceneSpec())
        question = ask(dice, scene, kinds[number % 3])
        image = _kept(data, f"scene-{number}", scene.image, "PNG")
        edges = partial(Box.from_pixels, width=image.width, height=image.height, overhang=1e-3)
        pointings = [part for part in question.reasoning if not isinstance(part, str)]
        mentions = tuple(Mention(part.label, tuple(edges(*box) for box in part.boxes)) for part in pointings)
        samples.append(_taught(_sample("scenes", number, (image,), question.text, question.answer, mentions)))
    return RowSet("scenes", tuple(samples), data, 112 * 112)


def cells(rows: int) -> RowSet:
    """Where is the one white blood cell? At most 186 rows; those asked of more than one cell are left out."""
    told = json.loads((CELLS / "instances.json").read_text())
    boxes: dict[int, list[Any]] = {}
    for annotation in told["annotations"]:
        if annotation["category_id"] == 2:
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    data: dict[str, bytes] = {}
    samples = []
    for entry in told["images"]:
        found = boxes.get(entry["id"], [])
        if len(found) != 1 or len(samples) == rows:
            continue
        name, (x, y, w, h) = entry["file_name"], found[0]
        data[name] = (CELLS / "images" / name).read_bytes()
        image = _image(name, data[name], entry["width"], entry["height"])
        box = Box.from_pixels(x, y, x + w, y + h, width=image.width, height=image.height, overhang=1)
        where = place(box, image.width, image.height)
        mentions = (Mention("white blood cell", (box,)),)
        samples.append(
            _taught(_sample("cells", entry["id"], (image,), "Where is the white blood cell?", where, mentions))
        )
    return RowSet("cells", tuple(samples), data, 112 * 112)


def long(rows: int) -> RowSet:
    """Every sixth row without an image, every sixth with two; lengths spread evenly over their logarithms."""
    data: dict[str, bytes] = {}
    samples = []
    for number in range(rows):
        dice = np.random.default_rng([2, number])
        images = tuple(
            _kept(data, f"long-{number}-{place}", _noise(dice, 56 * 8 ** dice.random(2)), "JPEG")
            for place in range({0: 0, 1: 2}.get(number % 6, 1))
        )
        words = int(20 * 30 ** dice.random())
        samples.append(_told("long", number, images, dice, words))
    return RowSet("long", tuple(samples), data, 448 * 448)


def visual(rows: int, tokens: int = 1000, words: int = 100) -> RowSet:
    """Images of 0.7 to 1.28 times `tokens` visual tokens of 28 x 28 pixels; texts of half to one and a half `words`."""
    data: dict[str, bytes] = {}
    samples = []
    for number in range(rows):
        dice = np.random.default_rng([3, number])
        area, ratio = tokens * 28 * 28 * (0.7 + 0.58 * dice.random()), 0.6 + 0.8 * dice.random()
        sides = np.array([(area * ratio) ** 0.5, (area / ratio) ** 0.5])
        image = _kept(data, f"visual-{number}", _noise(dice, sides), "JPEG")
        samples.append(_told("visual", number, (image,), dice, int(words * (0.5 + dice.random()))))
    return RowSet("visual", tuple(samples), data, round(1.28 * tokens) * 28 * 28)


ROW_SETS: dict[str, Callable[[int], RowSet]] = {"scenes": scenes, "cells": cells, "long": long}


def _told(name: str, number: int, images: tuple[Image, ...], dice: Any, words: int) -> Sample:
    text = " ".join(str(word) for word in dice.choice(WORDS, words))
    sample = _sample(name, number, images, f"What do you see in number {number}?", "no", None)
    return sample.model_copy(update={"reasoning": (Trace((text,)),)})


def _noise(dice: Any, sides: Any) -> PILImage.Image:
    """Smooth colours with grain, so that a JPEG of it is neither empty nor noise alone."""
    width, height = (int(side) for side in sides)
    coarse = PILImage.fromarray(dice.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    grain = dice.integers(-12, 13, (height, width, 1))
    smooth = np.asarray(coarse.resize((width, height), PILImage.Resampling.BICUBIC), dtype=np.int16)
    return PILImage.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def _kept(data: dict[str, bytes], name: str, image: PILImage.Image, form: str) -> Image:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, form)
    data[name] = buffer.getvalue()
    return _image(name, data[name], image.width, image.height)


def _image(name: str, data: bytes, width: int, height: int) -> Image:
    return Image(uri=name, width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def _sample(
    name: str, number: int, images: tuple[Image, ...], question: str, answer: str, evidence: Any
) -> Sample:  # fmt: skip
    origin = Origin(dataset=name, split="train", row=str(number), licence="CC0-1.0")
    return Sample(
        id=f"{name}:{number}", images=images, question=question, answers=(answer,), evidence=evidence, origin=origin
    )


def _taught(sample: Sample) -> Sample:
    found = TemplateTeacher(phrasings=1).teach_row(sample)
    assert isinstance(found, DistilledReasoning), found
    return sample.model_copy(update={"reasoning": found.traces})


# --- what the two trainers read ----------------------------------------------------------------------------


def encoder_of(base: Path, rows: RowSet, **of_contract: Any) -> Encoder:
    """With 4 to as many visual tokens of an image as the rows ask for; nothing is made smaller to fit."""
    processor = load_processor(base, min_pixels=56 * 56, max_pixels=rows.max_pixels)
    contract = contract_of(processor, mode="multimodal", frame="thousandths", max_length=1 << 14, **of_contract)
    return Encoder(processor, contract)


def examples(rows: RowSet, encoder: Encoder, path: Path) -> Examples:
    """As tokenize writes them, in a Parquet file at `path`."""
    sink = ExampleSink(path)
    for sample in rows.samples:
        data = [rows.data[image.uri] for image in sample.images]
        example = encoder.example(sample, 0, [decode(some, sample.id) for some in data], data)
        assert isinstance(example, Example), example
        sink.write(example)
    sink.close()
    return Examples([path])


def chat_rows(rows: RowSet, encoder: Encoder, made: Examples) -> Any:
    """A `datasets.Dataset` with prompt, completion and images, as TRL's vision collator takes them.

    The completion is what the examples teach, as text; images are bytes that are decoded when they are asked for.
    """
    import datasets

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    columns: dict[str, list[Any]] = {"images": [], "prompt": [], "completion": []}
    for sample, example in zip(rows.samples, made, strict=True):
        reply = encoder.decode([label for label in example.labels if label >= 0])
        columns["images"].append([{"bytes": data, "path": None} for data in example.images])
        columns["prompt"].append(turn("user", prompt_text(sample)))
        columns["completion"].append(turn("assistant", reply))
    text = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), "prompt": datasets.List(text), "completion": datasets.List(text)}
    )
    return datasets.Dataset.from_dict(columns, features=features)
