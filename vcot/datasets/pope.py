"""POPE (Li et al. 2023, arXiv 2305.10355): is there a …? As the three files of its authors, `coco_pope_random.json`,
`…_popular` and `…_adversarial`: lines of `image`, `text` and `label` about COCO's images of val2014.

A file is called after how the things that are not there were chosen. Where the others are is not told. The same
questions about what is there are in all three files. A benchmark: all rows are of the test split.

`--source coco --absent-by …` makes such questions of any file of instances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vcot.datasets.base import ConversionContext, Form, dataset, text
from vcot.datasets.inputs import Refused, Row, found_in, row_of
from vcot.records import Reason, Sample

_FILE = re.compile(r"random|popular|adversarial")
_COLUMNS = ("question_id", "image", "text", "label")


def rows(context: ConversionContext) -> Iterator[Row]:
    for source in context.inputs:
        found = (row_of(source, number, one) for number, one in found_in(context.store, source, _COLUMNS))
        yield from (Row(row.id, {**row.value, "split": "test"}, row.fault) for row in found)


@dataset(
    "pope",
    "POPE's own questions: is there a …?",
    "--input-uri pope --images-uri val2014 --duplicates keep",
    rows=rows,
    forms=(Form(frozenset(_COLUMNS), "POPE's questions"),),
    columns=_COLUMNS,
    needs_images="the folder with COCO's images of val2014",
    called="pope",
    licence="states none; images: COCO, terms of Flickr",
)
def pope(row: Row, context: ConversionContext) -> Sample:
    name = context.file_of(row).rpartition("/")[2]
    said, absent_by = row.value, _FILE.search(name)
    if absent_by is None:
        why = f"a file is called after random, popular or adversarial; got {name!r:.80}"
        raise Refused(Reason.WRONG_SHAPE, why)
    answer = text(said, "label", Reason.NO_ANSWER).lower()
    if answer not in ("yes", "no"):
        raise Refused(Reason.NO_ANSWER, f"label should be yes or no; got {answer!r:.40}")
    image = context.images.find(text(said, "image", Reason.WRONG_SHAPE))
    return Sample(
        id=row.id,
        images=(image,),
        question=text(said, "text", Reason.NO_QUESTION),
        answers=(answer,),
        evidence=() if answer == "no" else None,
        metadata={"absent by": absent_by[0]},
        origin=context.origin(row, image, "pope"),
    )
