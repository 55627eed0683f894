"""Rows of every dataset, as it is published, and a folder of drawn images for them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vcot.datasets import DATASETS, ConversionContext, prepare, read, rows_of_shard
from vcot.datasets.base import ConversionOptions, Prepared
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import find
from vcot.datasets.parallel import Workers
from vcot.datasets.quality import QualityOptions
from vcot.records import Folder, Rejection, Sample
from vcot.storage import Store

ALONE = Workers(1, Path(), lambda: None)
"""No process beside this one."""


@cache
def _black(width: int, height: int) -> bytes:
    return zlib.compress(bytes((1 + (width + 7) // 8) * height), 1)


def png(width: int, height: int, comment: str = "") -> bytes:
    """A black image of any size in pixels, one bit each: small, and made faster than Pillow would.

    comment: makes it another file than others of its size.
    """
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    said = [(b"tEXt", b"Comment\0" + comment.encode())] if comment else []
    chunks = ((b"IHDR", header), *said, (b"IDAT", _black(width, height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def scene(seed: int, quality: int = 90, size: int = 96) -> bytes:
    """An image like no other; of one seed they are nearly the same at any quality and size."""
    noise = Image.frombytes("L", (8, 8), hashlib.shake_128(str(seed).encode()).digest(64))
    buffer = io.BytesIO()
    noise.resize((96, 96), Image.Resampling.BICUBIC).resize((size, size)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def informed(context: ConversionContext, folder: Folder, *, look: bool, readers: int = 1) -> ConversionContext:
    """The context of a run of one source that knows what all shards must."""
    (found,) = prepare.informed([context], folder, look=look, workers=ALONE, readers=readers)
    return found


class Given:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)

    def image(self, path: str, width: int = 100, height: int = 80, data: bytes | None = None) -> str:
        target = self.images / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(width, height) if data is None else data)
        return path

    def rows(self, rows: list[Any], name: str = "rows.jsonl") -> str:
        target = self.folder / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        target.write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "".join(f"{line}\n" for line in lines))
        return str(target)

    def context(self, source: str, *uris: str, **options: Any) -> ConversionContext:
        """options: of the dataset, of every dataset, or fields of Prepared."""

        def of(kind: Any, names: Any) -> Any:
            return kind(**{name: options.pop(name) for name in list(options) if name in names})

        store, dataset = Store(), DATASETS[source]
        context: ConversionContext = ConversionContext(
            dataset, store, find(store, uris), DatasetImages(store, str(self.images), str(self.folder / "made")),
            self.folder,
            of(dataset.options, dataset.options.model_fields),
            of(ConversionOptions, ConversionOptions.model_fields), of(QualityOptions, QualityOptions.model_fields),
            of(Prepared, Prepared.model_fields),
        )  # fmt: skip
        assert not options, options
        return context

    def outcomes(self, source: str, *uris: str, readers: int = 1, **options: Any) -> list[Sample | Rejection]:
        """Of the rows of these files."""
        context = self.context(source, *uris, **options)
        return [result for _, result in read(rows_of_shard(context), context, readers=readers)]

    def outcome(self, source: str, row: Any, **options: Any) -> Sample | Rejection:
        """Of one row."""
        (result,) = self.outcomes(source, self.rows([row]), **options)
        return result

    def sample(self, source: str, row: Any, **options: Any) -> Sample:
        result = self.outcome(source, row, **options)
        assert isinstance(result, Sample), result
        return result

    def reason(self, source: str, row: Any, **options: Any) -> str:
        result = self.outcome(source, row, **options)
        assert isinstance(result, Rejection), result
        return result.reason.value


# --- Parquet, as the hub publishes it

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def write_parquet(path: Path, rows: list[dict[str, Any]], types: dict[str, Any], group: int = 100) -> str:
    """`types`: column → its type. `group`: rows of a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=pa.schema([pa.field(name, kind) for name, kind in types.items()]))
    pq.write_table(table, path, row_group_size=group)
    return str(path)


# --- rows

ASK = "Please provide the bounding box coordinate of the region that can help you answer the question better."
CUB = {
    "dataset": "cub", "split": "val", "question_id": 7,
    "image": [
        "cot/cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg",
        "cot/cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg###[141, 87, 397, 298]",
    ],
    "conversations": [
        {"from": "human", "value": f"<image>\nDoes the bird in the image have blue breast and dagger bill? {ASK}"},
        {"from": "gpt", "value": "[0.282, 0.316, 0.794, 0.738]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "No"},
    ],
}  # fmt: skip
SROIE = {
    "question": "What is the date in the invoice shown in the picture?", "answer": "13/10/2017",
    "image": "X51006555072.jpg", "width": 592, "height": 982, "bboxs": [[48, 429, 177, 451]],
    "dataset": "sroie", "split": "train",
}  # fmt: skip
GQA = {
    "question": "Who is wearing a shirt?", "answer": "girl", "full_answer": "The girl is wearing a shirt.",
    "image": "2331819.jpg", "width": 500, "height": 375, "bboxs": [[214, 0, 433, 374]], "dataset": "gqa",
    "split": "train",
    "thought": "1. We are looking for someone who is wearing a shirt in the image. 2. First, let's identify all the "
    "people in the image.",
}  # fmt: skip


def chat(text: str, ints: str | None, dataset: str = "vsr", **changed: Any) -> dict[str, Any]:
    path = "cot/vsr/a.jpg"
    turns = [f"<image>\nWhat is there? {ASK}", text, "<image>", "cake"]
    return {
        "dataset": dataset, "split": "train", "question_id": 0,
        "image": [path, path if ints is None else f"{path}###{ints}"],
        "conversations": [
            {"from": who, "value": turn} for who, turn in zip(("human", "gpt") * 2, turns, strict=True)
        ],
    } | changed  # fmt: skip


def metadata(bboxs: Any, **changed: Any) -> dict[str, Any]:
    return {
        "question": "What is there?", "answer": "cake", "image": "a.jpg", "width": 640, "height": 480,
        "bboxs": bboxs, "dataset": "vsr", "split": "train",
    } | changed  # fmt: skip


def instances(given: Given, annotations: list[dict[str, Any]], images: Any = None, more: Any = None) -> str:
    """Three categories, and by default one image of 300 × 300."""
    given.image("a.png", 300, 300)
    path = given.folder / "cells" / "instances.json"
    path.parent.mkdir(exist_ok=True)
    data = {
        "categories": [{"id": n, "name": name} for n, name in enumerate(("WBC", "RBC", "Platelets"), 1)],
        "images": images or [{"id": 1, "file_name": "a.png", "width": 300, "height": 300}],
        "annotations": [{"image_id": 1, "iscrowd": 0} | a for a in annotations],
    } | (more or {})
    path.write_text(json.dumps(data))
    return str(path)


ONE_AND_TWO = [
    {"category_id": 1, "bbox": [10, 20, 30, 40]},
    {"category_id": 3, "bbox": [200, 210, 50, 60]},
    {"category_id": 3, "bbox": [100.5, 110, 20, 20]},
]


REFCOCO = {
    "img_path": "COCO_train2014_000000533220.jpg", "expression": "a bush of plant behind middle woman",
    "bbox": [285.04, 23.29, 424.78000000000003, 146.4], "dataset_name": "jxu124/refcocog", "height": 427, "width": 640,
    "image_id": 533220, "sent_id": 61, "split": "validation",
}  # fmt: skip


POPE = {
    "question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
    "label": "yes",
}  # fmt: skip


AOKVQA_DIRECT = ["cigarette"] * 8 + ["cigar", "smoke"]
AOKVQA_RATIONALES = [
    "He's smoking while riding.",
    "The motorcyclist has a lit cigarette in his mouth while he rides on the street.",
    "The man is smoking.",
]
AOKVQA: dict[str, Any] = {
    "question_id": "22jbM6gDxdaMaunuzgrsBB", "question": "What is in the motorcyclist's mouth?",
    "choices": ["toothpick", "food", "popsicle stick", "cigarette"], "correct_choice_idx": 3,
    "difficult_direct_answer": False, "rationales": AOKVQA_RATIONALES,
}  # fmt: skip
AOKVQA_TYPES = {
    "image": IMAGE, "question_id": pa.string(), "question": pa.string(), "choices": pa.list_(pa.string()),
    "correct_choice_idx": pa.int8(), "direct_answers": pa.string(), "difficult_direct_answer": pa.bool_(),
    "rationales": pa.list_(pa.string()),
}  # fmt: skip


SCIENCEQA_TYPES = {
    "image": IMAGE, "question": pa.string(), "choices": pa.list_(pa.string()), "answer": pa.int8(),
    "hint": pa.string(), "task": pa.string(), "grade": pa.string(), "subject": pa.string(), "topic": pa.string(),
    "category": pa.string(), "skill": pa.string(), "lecture": pa.string(), "solution": pa.string(),
}  # fmt: skip


def scienceqa_row(n: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": png(100 + n, 80), "path": "image.png"},
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "task": "closed choice", "grade": "grade2", "subject": "social science", "topic": "geography",
        "category": "Geography", "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions, or main directions.",
        "solution": "To find the answer, look at the compass rose. Look at which way the north arrow is pointing. "
        "West Virginia is farthest north.",
    } | changed  # fmt: skip


STAGES = (
    "<SUMMARY> I will read the chart. </SUMMARY>\n\n<CAPTION> A bar chart. </CAPTION>\n\n"
    "<REASONING> The tallest bar is 21. </REASONING>\n\n<CONCLUSION> 21 </CONCLUSION>"
)
THOUGHT = "I will read the chart.\n\nA bar chart.\n\nThe tallest bar is 21."


def talk(*turns: tuple[str, Any], image: Any = "chartqa/1.png", **more: Any) -> dict[str, Any]:
    return {"id": "x", "image": image, "conversations": [{"from": who, "value": said} for who, said in turns]} | more


ASKED = ("human", "<image>\nHow many leaders were killed?")


def messages(reply: str, question: Any = "Where is the cup?", image: str = "a.png") -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]}


TREEBENCH_COLUMNS = (
    "index", "image", "question", *"ABCDEF", "answer", "category", "target_instances", "multi-choice options",
)  # fmt: skip
TREEBENCH = {
    "index": "0", "question": 'Which way does the "red" car\tdrive?\nLook closely.', "A": "left", "B": "right",
    "C": "up", "D": "down", "E": "", "F": "", "answer": "B", "category": "Perception/Attributes",
    "target_instances": "[[10, 20, 60, 70], [100, 110, 150, 160]]", "multi-choice options": "A. left\nB. right",
}  # fmt: skip
VSTAR = {
    "target_object": ["umbrella", "dog"], "bbox": [[10, 20, 30, 40], [200, 100, 50, 60]],
    "question": "What is the colour of the umbrella?", "options": ["red", "blue", "green", "white"],
}  # fmt: skip


def write_treebench(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = TREEBENCH_COLUMNS) -> None:
    """The table that its authors publish; images are drawn."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({"image": base64.b64encode(png(200 + number, 180)).decode(), **row})
