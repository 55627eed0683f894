"""Every source that brings rows, through the job: nothing lost, and the same whoever makes which shard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings, run
from tests.datasets import test_datasets_aokvqa as aokvqa
from tests.datasets import test_datasets_llava_cot as llava_cot
from tests.datasets import test_datasets_refcoco as refcoco
from tests.datasets import test_datasets_scienceqa as scienceqa
from tests.datasets.given import Given, png
from tests.datasets.parquet import write
from tests.jobs.test_convert import ROOT, convert, flags, made, no_settings_from_outside  # noqa: F401 (fixture)
from vcot.datasets import DATASETS
from vcot.errors import InputError, SettingsError


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")


def of_scienceqa(given: Given) -> dict[str, Any]:
    rows = [scienceqa.row(n, **({"image": None} if n % 3 == 0 else {})) for n in range(12)]
    for split in ("train", "test"):
        write(given.folder / f"sqa/{split}-00000-of-00001.parquet", rows, scienceqa.TYPES, group=5)
        rows = [scienceqa.row(n + 50) for n in range(6)]
    return {"input_uri": given.folder / "sqa", "max_rejected_share": 0.3}


def of_aokvqa(given: Given) -> dict[str, Any]:
    image = [{"bytes": png(200 + n // 2, 90), "path": None} for n in range(12)]
    more = [{"question": f"What is {n}?", "direct_answers": str(aokvqa.DIRECT)} for n in range(12)]
    rows = [aokvqa.ROW | more[n] | {"image": image[n]} for n in range(12)]
    uris = [
        write(given.folder / f"{split}-00000-of-00001.parquet", part, aokvqa.TYPES)
        for split, part in (("train", rows[:8]), ("validation", rows[8:]))
    ]
    return {"input_uri": ",".join(uris)}


def of_refcoco(given: Given) -> dict[str, Any]:
    given.image("COCO_train2014_000000533220.jpg", 640, 427)
    rows = [refcoco.ROW | {"sent_id": n, "expression": f"{n} bushes"} for n in range(20)]
    return {"input_uri": given.rows(rows), "images_uri": given.images}


def of_llava_cot(given: Given) -> dict[str, Any]:
    given.image("chartqa/1.png")
    rows = []
    for n in range(5):
        asked = [("human", f"<image>\nWhat is {n}{after}?") for after in "abc"]
        replied = ("gpt", llava_cot.STAGES)
        rows += [llava_cot.talk(asked[0], replied), llava_cot.talk(asked[1], replied, asked[2], replied)]
    return {"input_uri": given.rows(rows, "llava.json"), "images_uri": given.images}


def of_coco(given: Given) -> dict[str, Any]:
    """Of five images with a cup two have something of no category in the file, so that the cup is not counted."""
    names = [given.image(f"{n}.png", 100 + n, 90) for n in range(5)]
    file = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": float(n), "category_id": 1, "bbox": [1, 2, 30, 40]} for n in range(5)]
        + [{"image_id": n, "category_id": None, "bbox": [50, 2, 30, 40]} for n in (1, 3)],
    }
    path = given.folder / "coco" / "instances.json"
    path.parent.mkdir()
    path.write_text(json.dumps(file))
    return {"input_uri": path, "images_uri": given.images, "max_rejected_share": 0.2}


KEPT = {"scienceqa": 14, "aokvqa": 12, "refcoco": 20, "llava-cot": 15, "coco": 3 * 5 + 2}
REFUSED = {"scienceqa": {"no-image": 4}, "coco": {"annotation-unmatched": 2}}
SETTINGS = {
    "scienceqa": of_scienceqa, "aokvqa": of_aokvqa, "refcoco": of_refcoco, "llava-cot": of_llava_cot, "coco": of_coco,
}  # fmt: skip


@pytest.mark.parametrize("source", SETTINGS)
def test_the_shards_together_are_what_one_process_makes(given: Given, tmp_path: Path, source: str) -> None:
    settings = SETTINGS[source](given) | {
        "source": source, "num_shards": 3, "validation_share": 0.3, "stored_images_uri": tmp_path / "images",
    }  # fmt: skip
    told = convert(tmp_path / "one", **settings)
    parts = tmp_path / "parts"
    for part in ({"part": "prepare"}, *({"part": "shards", "shard": n} for n in (2, 0, 1)), {"part": "finish"}):
        loaded, _ = ConvertSettings.load(flags(run_uri=parts, **settings, **part))
        run(loaded)
    assert made(tmp_path / "one") == made(parts)
    refused = REFUSED.get(source, {})
    assert told["row_counts"]["kept"] == KEPT[source]
    assert told["row_counts"]["rejected"] == refused
    name = "refcocog" if source == "refcoco" else source
    assert told["datasets"].keys() == {name}
    assert told["datasets"][name]["rejected"] == refused
    page = (tmp_path / "one/convert/report.html").read_text()
    assert all(reason in page for reason in refused)


def test_scienceqa_without_a_word_about_its_rows_of_text_alone_says_how_many_they_are(
    given: Given, tmp_path: Path
) -> None:
    settings = of_scienceqa(given) | {"max_rejected_share": 0.05}
    with pytest.raises(InputError, match="4 no-image"):
        convert(tmp_path / "run", source="scienceqa", **settings)


def test_images_inside_rows_need_no_folder_and_paths_do(given: Given, tmp_path: Path) -> None:
    row = aokvqa.ROW | {"split": "train", "image_id": 7, "direct_answers": aokvqa.DIRECT}
    with pytest.raises(SettingsError, match="--images-uri is missing"):
        convert(tmp_path / "run", source="aokvqa", input_uri=given.rows([row]))


def test_refcoco_without_images_is_said_before_anything_is_read() -> None:
    with pytest.raises(SettingsError, match=r"--images-uri .* is missing: the folder with COCO's images of train2014"):
        ConvertSettings.load(flags(run_uri="r", source="refcoco", input_uri="x.jsonl"))


# ------------------------------------------------------------------------------------------------ docs/datasets.md

PAGE = (ROOT / "docs/datasets.md").read_text()


def test_every_source_is_offered_and_has_its_row_in_the_page_about_sources() -> None:
    offered = ConvertSettings.model_json_schema()["properties"]["source"]["anyOf"][0]["enum"]
    assert sorted(offered) == sorted(DATASETS)
    assert [name for name in offered if f"| `{name}` |" not in PAGE] == []


@pytest.mark.parametrize("command", re.findall(r"`python -m jobs\.convert ([^`]+)`", PAGE))
def test_the_commands_of_the_page_are_right(command: str) -> None:
    ConvertSettings.load([*command.split(), "--run-uri", "r"])


def test_the_three_lines_that_a_user_may_bring_are_read(given: Given) -> None:
    (lines,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    given.image("a.jpg", 200, 100)
    for line in lines.splitlines():
        sample = given.sample("samples", json.loads(line), frame="thousandths")
        assert sample.true_boxes
        assert sample.true_boxes[0].as_list() in ([10, 20, 50, 60], [20, 20, 60, 40])
