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

from jobs.convert import ConvertSettings
from tests.fakes.convert import ROOT, in_parts, made, report, stage
from tests.fakes.rows import (
    AOKVQA,
    AOKVQA_DIRECT,
    AOKVQA_TYPES,
    ASKED,
    POPE,
    REFCOCO,
    SCIENCEQA_TYPES,
    STAGES,
    THOUGHT,
    TREEBENCH,
    VSTAR,
    Given,
    metadata,
    png,
    scienceqa_row,
    talk,
    write_parquet,
    write_treebench,
)
from tests.storage.tars import in_chunks, tar
from vcot.datasets import DATASETS
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("clean")
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
    rows = published(DATA / "refcoco/refcocog_umd_val.jsonl", 40, [REFCOCO])
    put("refcocog_umd_val.jsonl", rows)
    for row in rows:
        draw_png(f"train2014/{row['img_path']}", row["width"], row["height"])


def science() -> None:
    rows = [scienceqa_row(n) | {"question": f"{n}?"} | ({"image": None} if n % 2 else {}) for n in range(20)]
    for split, some in (("train", rows[:10]), ("validation", rows[10:14]), ("test", rows[14:])):
        write_parquet(Path(f"data/{split}-00000-of-00001-0123456789abcdef.parquet"), some, SCIENCEQA_TYPES)


def okvqa_of_the_hub() -> None:
    rows = [AOKVQA | {"question": f"{n}?", "image": {"bytes": png(200 + n, 90), "path": None}} for n in range(12)]
    for split, some in (("train", rows[:6]), ("validation", rows[6:9]), ("test", rows[9:])):
        answers = {"direct_answers": "[]", "correct_choice_idx": None} if split == "test" else {}
        said = [{"direct_answers": str(AOKVQA_DIRECT)} | row | answers for row in some]
        write_parquet(Path(f"data/{split}-00000-of-00001-0123456789abcdef.parquet"), said, AOKVQA_TYPES)


def okvqa_of_the_authors() -> None:
    for split in ("train", "val"):
        row = AOKVQA | {"split": split, "image_id": len(split), "direct_answers": AOKVQA_DIRECT}
        put(f"aokvqa_v1p0_{split}.json", [row])
        draw_png(f"coco/{split}2017/{len(split):012}.jpg", 640, 569)


def llava_cot_100k() -> None:
    put("train.jsonl", [talk(ASKED, ("gpt", STAGES))])
    draw_png("cot/chartqa/1.png", 200, 100)


def r1_onevision() -> None:
    said = ("gpt", f"<think>{THOUGHT}</think>21")
    row = talk(("human", "<image>How many?"), said, image=base64.b64encode(png(60, 50)).decode())
    types = {"id": pa.string(), "image": pa.string(), "conversations": pa.list_(TALK)}
    write_parquet(Path("R1-Onevision/llava-onevision/train-00000-of-00001.parquet"), [row], types)


def mine() -> None:
    Path("mine.jsonl").write_text(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
    draw_png("images/a.jpg", 200, 100)


def treebench() -> None:
    write_treebench(Path("TreeBench.tsv"), [TREEBENCH | {"index": str(number)} for number in range(4)])


def vstar() -> None:
    for name in ("direct_attributes/sa_1", "direct_attributes/sa_2", "relative_position/sa_1"):
        draw_png(f"vstar_bench/{name}.jpg", 400, 300)
        Path(f"vstar_bench/{name}.json").write_text(json.dumps(VSTAR))


def pope() -> None:
    Path("pope").mkdir()
    draw_png("val2014/COCO_val2014_000000310196.jpg", 640, 480)
    for name in ("random", "popular", "adversarial"):
        rows = [POPE, POPE | {"text": f"Is there a {name} thing in the image?", "label": "no"}]
        Path(f"pope/coco_pope_{name}.json").write_text("\n".join(map(json.dumps, rows)))


#: How a command begins that has told its source → what is to lie there.
DOWNLOADS: dict[str, Callable[[], None]] = {
    "viscot --input-uri metadata": viscot, "coco": coco, "refcoco": refcocog, "scienceqa": science,
    "aokvqa --input-uri data": okvqa_of_the_hub, "aokvqa --input-uri aokvqa_v1p0": okvqa_of_the_authors,
    "llava-cot --input-uri train.jsonl": llava_cot_100k, "llava-cot --input-uri R1-Onevision": r1_onevision,
    "treebench": treebench, "vstar": vstar, "pope": pope, "scenes --scenes": lambda: None,
    "scenes --world": lambda: None, "samples": mine,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_and_its_shards_one_by_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (download,) = [make for begin, make in DOWNLOADS.items() if command.startswith(f"--source {begin}")]
    download()
    words = [*command.split(), *(["--limit", "20"] if "--source scenes" in command else [])]
    settings, _ = ConvertSettings.load([*words, "--run-uri", "runs/one", "--num-shards", "3"])
    said = settings.model_dump(include=settings.model_fields_set - {"run_uri"})
    said |= {name: ",".join(value) for name, value in said.items() if isinstance(value, tuple)}
    stage("runs/one", **said, stored_images_uri="images-made")
    in_parts("runs/parts", **said, stored_images_uri="images-made")
    assert made("runs/one") == made("runs/parts")
    row_counts = report("runs/one")["row_counts"]
    assert row_counts["kept"] > 0
    assert row_counts["rows"] == row_counts["kept"] + sum(row_counts["rejected"].values())
    allowed = {"scienceqa": {"no-image"}, "aokvqa": {"no-answer"}}.get(settings.source or "", set())
    assert row_counts["rejected"].keys() <= allowed


def test_every_source_has_its_row_and_its_command(given: Given) -> None:
    assert len(COMMANDS) == len(DOWNLOADS) == PAGE.count("python -m jobs.convert --source ")
    offered = ConvertSettings.model_json_schema()["properties"]["source"]["anyOf"][0]["enum"]
    assert sorted(offered) == sorted(DATASETS)
    assert [name for name in offered if f"| `{name}` |" not in PAGE] == []


def test_the_mix_of_the_page_is_right(given: Given) -> None:
    path = given.folder / "mix.yaml"
    path.write_text(PAGE.partition("```yaml\n")[2].partition("```")[0])
    ConvertSettings.load(["--run-uri", "r", "--mix", str(path)])[0].validate_files()
