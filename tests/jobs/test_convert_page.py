"""Every command of docs/datasets.md, as it is written there, over files that lie as the page says they are downloaded.

VisCoT's and RefCOCO's rows are published ones where those lie beside the checkout; all images are drawn.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.datasets import test_datasets_aokvqa as aokvqa
from tests.datasets import test_datasets_llava_cot as llava_cot
from tests.datasets import test_datasets_refcoco as refcoco
from tests.datasets import test_datasets_scienceqa as scienceqa
from tests.datasets.given import png
from tests.datasets.parquet import write
from tests.datasets.test_datasets_viscot import metadata
from tests.jobs.test_convert import ROOT, flags, no_settings_from_outside, report  # noqa: F401 (fixture)
from tests.storage.tars import in_chunks, tar
from vcot.storage import Store

PAGE = (ROOT / "docs/datasets.md").read_text()
COMMANDS = re.findall(r"`python -m jobs\.convert (--source [^`]+)`", PAGE)
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data"))
TALK = pa.struct({"from": pa.string(), "value": pa.string()})


def put(path: str, rows: Iterable[Any]) -> None:
    lines = [json.dumps(row) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"[{','.join(lines)}]" if path.endswith(".json") else "".join(f"{line}\n" for line in lines))


def draw_png(path: str, width: int, height: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png(width, height, comment=path))


def published(path: Path, rows: int, otherwise: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not path.exists():
        return otherwise
    with path.open() as lines:
        return [json.loads(line) for line in itertools.islice(lines, rows)]


def viscot() -> None:
    made = [metadata([[1, 2, 30, 40]], question=f"What is {n}?") for n in range(40)]
    rows = published(DATA / "viscot/metadata/vsr_cot_train.jsonl", 40, made)
    put("metadata/vsr_cot_train.jsonl", rows)
    files = {f"cot_image_data/vsr/{r['image']}": png(r["width"], r["height"], comment=r["image"]) for r in rows}
    in_chunks(Store(), "cot_images_tar_split", tar(files), 5_000)


def coco() -> None:
    draw_png("train2017/000000000009.jpg", 640, 480)
    image = {"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}
    bowl = {"image_id": 9, "category_id": 51, "iscrowd": 0, "bbox": [10, 20, 30, 40]}
    whole = {"images": [image], "annotations": [bowl], "categories": [{"id": 51, "name": "bowl"}]}
    Path("annotations").mkdir()
    Path("annotations/instances_train2017.json").write_text(json.dumps(whole))


def refcocog() -> None:
    rows = published(DATA / "refcoco/refcocog_umd_val.jsonl", 40, [refcoco.ROW])
    put("refcocog_umd_val.jsonl", rows)
    for row in rows:
        draw_png(f"train2014/{row['img_path']}", row["width"], row["height"])


def science() -> None:
    rows = [scienceqa.row(n) | {"question": f"{n}?"} | ({"image": None} if n % 2 else {}) for n in range(20)]
    for split, some in (("train", rows[:10]), ("validation", rows[10:14]), ("test", rows[14:])):
        write(Path(f"data/{split}-00000-of-00001-0123456789abcdef.parquet"), some, scienceqa.TYPES)


def okvqa_of_the_hub() -> None:
    rows = [aokvqa.ROW | {"question": f"{n}?", "image": {"bytes": png(200 + n, 90), "path": None}} for n in range(12)]
    for split, some in (("train", rows[:6]), ("validation", rows[6:9]), ("test", rows[9:])):
        answers = {"direct_answers": "[]", "correct_choice_idx": None} if split == "test" else {}
        said = [{"direct_answers": str(aokvqa.DIRECT)} | row | answers for row in some]
        write(Path(f"data/{split}-00000-of-00001-0123456789abcdef.parquet"), said, aokvqa.TYPES)


def okvqa_of_the_authors() -> None:
    for split in ("train", "val"):
        row = aokvqa.ROW | {"split": split, "image_id": len(split), "direct_answers": aokvqa.DIRECT}
        put(f"aokvqa_v1p0_{split}.json", [row])
        draw_png(f"coco/{split}2017/{len(split):012}.jpg", 640, 569)


def llava_cot_100k() -> None:
    put("train.jsonl", [llava_cot.talk(llava_cot.ASKED, ("gpt", llava_cot.STAGES))])
    draw_png("cot/chartqa/1.png", 200, 100)


def r1_onevision() -> None:
    said = ("gpt", f"<think>{llava_cot.THOUGHT}</think>21")
    row = llava_cot.talk(("human", "<image>How many?"), said, image=base64.b64encode(png(60, 50)).decode())
    types = {"id": pa.string(), "image": pa.string(), "conversations": pa.list_(TALK)}
    write(Path("R1-Onevision/llava-onevision/train-00000-of-00001.parquet"), [row], types)


def mine() -> None:
    Path("mine.jsonl").write_text(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    draw_png("images/a.jpg", 200, 100)


#: How a command begins that has told its source → what is to lie there.
DOWNLOADS: dict[str, Callable[[], None]] = {
    "viscot --input-uri metadata": viscot, "coco": coco, "refcoco": refcocog, "scienceqa": science,
    "aokvqa --input-uri data": okvqa_of_the_hub, "aokvqa --input-uri aokvqa_v1p0": okvqa_of_the_authors,
    "llava-cot --input-uri train.jsonl": llava_cot_100k, "llava-cot --input-uri R1-Onevision": r1_onevision,
    "scenes": lambda: None, "samples": mine,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.convert import ConvertSettings, run

    monkeypatch.chdir(tmp_path)
    (download,) = [make for begin, make in DOWNLOADS.items() if command.startswith(f"--source {begin}")]
    download()
    few = ["--limit", "20"] if "--source scenes" in command else []
    settings, _ = ConvertSettings.load([*command.split(), "--run-uri", "runs/one", *few])
    run(settings)
    row_counts = report("runs/one")["row_counts"]
    assert row_counts["kept"] > 0
    assert row_counts["rows"] == row_counts["kept"] + sum(row_counts["rejected"].values())
    allowed = {"scienceqa": {"no-image"}, "aokvqa": {"no-answer"}}.get(settings.source or "", set())
    assert row_counts["rejected"].keys() <= allowed


def test_no_command_is_left_out() -> None:
    assert len(COMMANDS) == len(DOWNLOADS) == PAGE.count("python -m jobs.convert --source ")
