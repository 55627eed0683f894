"""RefCOCO, RefCOCO+, RefCOCOg: an expression, and the one box in the image that it describes.

Rows as VisCoT publishes them for measuring: {"img_path": "COCO_train2014_….jpg", "expression", "bbox": [x1, y1, x2, y2]
in float pixels, "width", "height", "sent_id", "split"}. The images are COCO's train2014, in one folder.

The model is asked to point; what it answers in words is where in the image the box is.
"""

from __future__ import annotations

from vcot.datasets.base import (
    PLAIN_SPLITS,
    ConversionContext,
    Form,
    WordingOptions,
    dataset,
    hub_name,
    same_size,
    text,
)
from vcot.datasets.quality import NEUTRAL, gives_away
from vcot.datasets.repeats import asked
from vcot.datasets.row import Row
from vcot.grounding import Mention, place
from vcot.records import Reason, Sample

PHRASINGS = ("Where is what this describes: {}?", "Point at what this describes: {}.", "Find what this describes: {}.")
"""The first is the plainest. Expressions are no clean noun phrases ("left guy"), so no article."""


def asks(row: Row) -> tuple[str, str]:
    return "expression", asked(_expression(row), None, None)


@dataset(
    "refcoco",
    "expressions and the box that each describes (RefCOCO, RefCOCO+, RefCOCOg)",
    "--input-uri refcocog_umd_train.jsonl --images-uri train2014",
    options=WordingOptions,
    forms=(Form(frozenset(("img_path", "expression", "bbox", "sent_id")), "RefCOCO's expressions"),),
    needs_images="the folder with COCO's images of train2014",
    splits={**PLAIN_SPLITS, "testA": "test", "testB": "test"},
    asks=asks,
    called="refcoco",
    licence="CC-BY-4.0 (RefCOCOg), Apache-2.0 (RefCOCO, RefCOCO+); images: COCO, terms of Flickr",
)
def sample(row: Row, context: ConversionContext[WordingOptions]) -> Sample:
    said = row.value
    expression = _expression(row)
    image = context.images.find(text(said, "img_path", Reason.WRONG_SHAPE))
    same_size(said, image)
    box = context.box(said.get("bbox"), image)
    answer = place(box, image.width, image.height)
    return Sample(
        id=row.id,
        image=image,
        question=context.own.one_of(PHRASINGS, row.id, context.options.seed).format(expression),
        answers=(answer,),
        evidence=(Mention(NEUTRAL if gives_away(expression, [answer]) else expression, (box,)),),
        origin=context.origin(row, image, hub_name(row) or "refcoco"),
    )


def _expression(row: Row) -> str:
    written = text(row.value, "expression", Reason.NO_QUESTION)
    return written.rstrip(" .") or written
