"""Rows broken at random, through every source: each is kept or refused with a reason, and nothing else happens."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.broken_rows import broken
from tests.fakes.rows import (
    AOKVQA,
    AOKVQA_DIRECT,
    ASKED,
    CUB,
    GQA,
    ONE_AND_TWO,
    REFCOCO,
    THOUGHT,
    Given,
    chat,
    messages,
    metadata,
    png,
    scienceqa_row,
    talk,
)
from vcot.datasets import DATASETS, read, rows_of_shard
from vcot.errors import InputError
from vcot.records import Reason, Rejection, Sample

MANY = 500
"""Of each of the nine forms."""
BOX = {"label": "cup", "boxes": [[1.5, 2, 30, 40], [50, 60, 70, 80]]}
OURS = {
    "version": 1, "id": "7", "image": {"uri": "a.png", "width": 200, "height": 100}, "question": "Where?",
    "context": "hint", "choices": ["left", "right"], "answers": ["left"], "reasoning": [["Here is the ", BOX, "."]],
    "evidence": [BOX], "origin": {"dataset": "mine", "split": "test", "row": "7", "licence": "CC0", "teacher": "me"},
}  # fmt: skip
INSIDE = base64.b64encode(png(20, 10)).decode()
SAID = messages("The <ref>cup</ref><box>[100, 200, 300, 400]</box> is there. Answer: left")
ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "viscot chat": ("viscot", [chat("[0.1, 0.2, 0.3, 0.4]", "[64, 48, 192, 175]"), CUB]),
    "viscot metadata": ("viscot", [metadata([[1, 2, 30, 40], [5, 6, 70, 80]], possible_answers=["pie"]), GQA]),
    "samples": ("samples", [OURS]),
    "messages": ("samples", [SAID, messages("left", image=f"data:image/png;base64,{INSIDE}")]),
    "talk": ("samples", [talk(ASKED, ("gpt", "21"), ("human", "And?"), ("gpt", "22"))]),
    "refcoco": ("refcoco", [REFCOCO]),
    "llava-cot": ("llava-cot", [talk(ASKED, ("reason", THOUGHT), ("gpt", "21"))]),
    "aokvqa": ("aokvqa", [AOKVQA | {"split": "train", "image_id": 299207, "direct_answers": AOKVQA_DIRECT}]),
    "scienceqa": ("scienceqa", [scienceqa_row() | {"image": f"data:image/png;base64,{INSIDE}"}]),
}


@pytest.fixture
def images(given: Given) -> Given:
    sizes = {
        "a.png": (200, 100), "vsr/a.jpg": (640, 480), "chartqa/1.png": (200, 100), "gqa/2331819.jpg": (500, 375),
        "COCO_train2014_000000533220.jpg": (640, 427), "train2017/000000299207.jpg": (640, 569),
        "cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg": (500, 357),
    }  # fmt: skip
    for path, size in sizes.items():
        given.image(path, *size)
    return given


def sound(results: Iterable[Sample | Rejection]) -> Counter[str]:
    """What became of them. What was kept is whole: it can be written, and read again as the same."""
    found: Counter[str] = Counter()
    for result in results:
        line = result.line()
        if isinstance(result, Rejection):
            assert result.reason in Reason
            assert Rejection.model_validate_json(line) == result
            found[result.reason.value] += 1
        else:
            assert Sample.model_validate_json(line) == result
            found["kept"] += 1
    return found


def gone_through(images: Given, source: str, path: Path, numbers: list[int]) -> Counter[str]:
    """What became of the rows of a file: of each one something, and of a row that holds several, of each of these."""
    context = images.context(source, str(path), **options(source))
    seen = list(read(rows_of_shard(context), context))
    found = sound(result for _, result in seen)
    of_rows = [int(row.id.split(":")[1].partition("#")[0]) for row, _ in seen]
    assert sorted(set(of_rows)) == numbers
    assert found.total() == len(seen)
    assert len(seen) == len(numbers) or DATASETS[source].expand is not None
    return found


def options(source: str) -> dict[str, Any]:
    return {"frame": "thousandths"} if source == "samples" else {}


@pytest.mark.parametrize("name", ROWS)
def test_broken_lines_are_each_kept_or_refused(images: Given, name: str) -> None:
    source, rows = ROWS[name]
    dice = random.Random(name)
    lines = [json.dumps(rows[0]).encode(), *(broken(dice, dice.choice(rows)) for _ in range(MANY))]
    lines = [line.replace(b"\n", b" ") for line in lines]
    path = images.folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = gone_through(images, source, path, [n for n, line in enumerate(lines, 1) if line.strip()])
    assert 0 < found["kept"] < MANY
    assert len(found) > 4


def test_annotations_of_coco(images: Given) -> None:
    dice = random.Random("coco")
    whole = {
        "categories": [{"id": n, "name": name} for n, name in enumerate(("WBC", "RBC", "Platelets"), 1)],
        "images": [{"id": n, "file_name": "a.png", "width": 200, "height": 100} for n in range(1, 400)],
        "annotations": [a | {"image_id": n, "iscrowd": 0} for n in range(1, 400) for a in ONE_AND_TWO],
    }  # fmt: skip
    outcomes: Counter[str] = Counter()
    for again in range(4):
        parts = [
            f'"{part}": [' + ", ".join(_of_coco(dice, row, 0.0 if part == "categories" else 0.7) for row in rows) + "]"
            for part, rows in whole.items()
        ]
        path = images.folder / f"{again}.json"
        path.write_text("{" + ", ".join(parts) + "}", errors="surrogatepass")
        outcomes += sound(images.outcomes("coco", str(path)))
    assert outcomes["kept"] > 100
    assert len(outcomes) > 5


def _of_coco(dice: random.Random, row: dict[str, Any], share: float) -> str:
    while dice.random() < share:
        line = broken(dice, row)
        try:
            if isinstance(json.loads(line), dict):
                return line.decode(errors="surrogatepass")
        except (ValueError, RecursionError):
            continue
    return json.dumps(row)


LARGE: dict[str, Callable[[], str]] = {
    "question": lambda: json.dumps(metadata([[1, 2, 30, 40]], question="x" * 20_000_000)),
    "cut off": lambda: '{"question": "' + "x" * 20_000_000,
    "digits": lambda: '{"question": ' + "7" * 20_000_000 + "}",
    "brackets": lambda: '{"question": ' + "[" * 20_000_000 + "}",
    "blank": lambda: " " * 20_000_000,
    "boxes": lambda: json.dumps(metadata([])).replace("[]", f"[{', '.join(['[1, 2, 30, 40]'] * 100_000)}]"),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_line_of_twenty_megabytes(images: Given, what: str) -> None:
    good = metadata([[1, 2, 30, 40]])
    results = images.outcomes("viscot", images.rows([good, LARGE[what](), good]))
    reason = {"boxes": "too-many-boxes", "question": "wrong-shape", "blank": None}.get(what, "not-json")
    assert sound(results) == {"kept": 2} | ({reason: 1} if reason else {})


def test_a_file_that_changes_while_it_is_read_stops_the_reading(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    rows = [metadata([[1, 2, 30, 40]], question=f"{n}?" * 20) for n in range(8_000)]
    for name in ("rows.jsonl", "rows.json"):
        path = Path(given.rows(rows, name))
        context = given.context("viscot", str(path))
        results = read(rows_of_shard(context), context)
        assert isinstance(next(results)[1], Sample)
        with path.open("r+b") as file:  # in place: the same file, which is open
            file.seek(path.stat().st_size - 200)
            file.write(b"7")
        with pytest.raises(InputError, match="has changed since this stage began; use another run name"):
            list(results)
