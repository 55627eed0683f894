"""Every command of docs/suites.md, as it is written there, over files that lie as the page says they are downloaded.

VisCoT's and RefCOCO's rows are published ones, POPE's questions are about real photographs; other rows are in the shape
in which they are published, and images are drawn at their size. The rehearsal model is asked: that each suite has its
table, of all its rows, is what is tested, and no number says anything of a model.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from tests.fakes.convert import ROOT
from tests.fakes.published import lines, published
from tests.fakes.rows import (
    AOKVQA,
    AOKVQA_DIRECT,
    AOKVQA_TYPES,
    SCIENCEQA_TYPES,
    TREEBENCH,
    VSTAR,
    png,
    scienceqa_row,
    write_parquet,
    write_treebench,
)
from tests.storage.tars import in_chunks, tar
from vcot.datasets.coco import EXPRESSION_PHRASINGS, PHRASINGS
from vcot.evaluation.suites import SUITES
from vcot.grounding.ways import DIRECT
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("clean")

PAGE = (ROOT / "docs/suites.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SUBJECT = str(ROOT / "examples" / "rehearsal")
QUICK = ["--max-new-tokens", "32", "--conditions", "real", "--dtype", "float32", "--device", "cpu"]
# The model is not tuned, and many of its replies state no answer.
QUICK += ["--max-unusable-share", "1"]

Rows = dict[str, int]
"""Set of a suite → its rows."""


def commands(section: str) -> list[list[str]]:
    """Those of our stages, as words."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines() if line.startswith("python -m jobs.")]


# --- what is downloaded


def viscot() -> Rows:
    """Two rows of each set that lies here."""
    files = {}
    Path("viscot_benchmark/benchmark").mkdir(parents=True)
    for path in sorted(published("viscot/benchmark").glob("*.json")):
        rows = json.loads(path.read_text())[:2]
        sizes = lines(published(f"viscot/detection/{path.stem}.jsonl"))
        for row, said in zip(rows, sizes, strict=False):
            name = row["image"][0].replace("cot/", "cot_image_data/", 1)
            files[name] = png(said["width"], said["height"], comment=name)
        Path("viscot_benchmark/benchmark", path.name).write_text(json.dumps(rows))
    in_chunks(Store(), "cot_images_tar_split", tar(files), 5_000)
    return dict.fromkeys(("flickr30k", "gqa", "openimages", "sroie", "textvqa", "v7w", "vsr"), 2)


def refcoco() -> Rows:
    """RefCOCOg's validation split, and the same rows under the names of other splits."""
    rows = lines(published("refcoco/refcocog_umd_val.jsonl"))[:6]
    Path("train2014").mkdir()
    for row in rows:
        Path("train2014", row["img_path"]).write_bytes(png(row["width"], row["height"], comment=row["img_path"]))
    for file, name, split in (
        ("test/REC_refcoco_unc_testA", "refcoco", "testA"), ("test/REC_refcoco+_unc_testB", "refcocoplus", "testB"),
        ("test/REC_refcocog_umd_test", "refcocog", "test"), ("val/REC_refcocog_umd_val", "refcocog", "validation"),
    ):  # fmt: skip
        path = Path("REC", f"{file}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        said = [json.dumps(row | {"dataset_name": f"jxu124/{name}", "split": split}) for row in rows]
        path.write_text("\n".join(said))
    return dict.fromkeys(("refcoco testA", "refcocoplus testB", "refcocog test", "refcocog validation"), 6)


def choices() -> Rows:
    drawn = [{"bytes": png(200 + n, 90), "path": f"{n}.png"} for n in range(5)]
    rows = [AOKVQA | {"question": f"What is in mouth {n}?", "image": image} for n, image in enumerate(drawn)]
    answers = {"direct_answers": str(AOKVQA_DIRECT)}
    write_parquet(Path("data/validation-00000-of-00001.parquet"), [row | answers for row in rows], AOKVQA_TYPES)
    asked = [scienceqa_row(n) | {"question": f"Which state is {n}?"} for n in range(7)]
    asked[5:] = [row | {"image": None} for row in asked[5:]]
    write_parquet(Path("data/test-00000-of-00001.parquet"), asked, SCIENCEQA_TYPES)
    return {"aokvqa validation": 5, "scienceqa test": 5, "scienceqa test, by text": 2}


def pope() -> Rows:
    """Photographs of blood cells in the place of COCO's; cells that are there are asked about as often as others."""
    source = published("bccd/instances.json")
    said = json.loads(source.read_text())
    said["images"] = said["images"][:40]
    kept = {image["id"] for image in said["images"]}
    said["annotations"] = [one for one in said["annotations"] if one["image_id"] in kept]
    Path("annotations").mkdir()
    Path("annotations/instances_val2014.json").write_text(json.dumps(said))
    Path("val2014").symlink_to(source.parent / "images")
    shown = {(one["image_id"], one["category_id"]) for one in said["annotations"]}
    there, things = Counter(image for image, _ in shown), len(said["categories"])
    asked: list[dict[str, Any]] = []
    for image in said["images"][:4]:
        asked += [
            {"image": image["file_name"], "text": f"Is there a {thing} in the image?", "label": label}
            for thing, label in (("cell", "yes"), ("snowboard", "no"))
        ]
    Path("pope").mkdir()
    for absent_by in ("random", "popular", "adversarial"):
        own = [json.dumps({"question_id": number, **row}) for number, row in enumerate(asked, 1)]
        Path(f"pope/coco_pope_{absent_by}.json").write_text("\n".join(own))
    made = {"popular": sum(2 * min(many, things - many) for many in there.values())}
    return made | dict.fromkeys(("pope random", "pope popular", "pope adversarial"), len(asked))


def grounded_reasoning() -> Rows:
    write_treebench(Path("TreeBench.tsv"), [TREEBENCH | {"index": str(number)} for number in range(4)])
    for name in ("direct_attributes/sa_1", "direct_attributes/sa_2", "relative_position/sa_1"):
        place = Path("vstar_bench", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".jpg").write_bytes(png(400, 300, comment=name))
        place.with_suffix(".json").write_text(json.dumps(VSTAR))
    return {"treebench": 4, "vstar": 3}


DOWNLOADS: dict[str, Callable[[], Rows]] = {
    "viscot": viscot, "refcoco": refcoco, "aokvqa, scienceqa": choices, "pope": pope,
    "grounded-reasoning": grounded_reasoning,
}  # fmt: skip


# --- as they are typed


@pytest.mark.parametrize("section", DOWNLOADS)
def test_the_commands_of_a_suite_end_in_a_table_of_all_its_rows(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = DOWNLOADS[section]()
    found: Counter[str] = Counter()
    for _, _, module, *words in commands(SECTIONS[section]):
        words = [SUBJECT if word == "SUBJECT" else word for word in words]
        if module == "jobs.convert":
            run_convert(ConvertSettings.load(words)[0])
            continue
        settings = EvaluateSettings.load([*words, *QUICK])[0]
        run_evaluate(settings)
        (suite,) = json.loads(Path(settings.run_uri, "evaluate", "report.json").read_text())["suites"]
        assert suite["suite"] in section
        assert [way["way"] for way in suite["ways"]] == list(settings.ask)
        assert len({json.dumps([(one["set"], one["rows"]) for one in way["sets"]]) for way in suite["ways"]}) == 1
        for one in suite["ways"][0]["sets"]:
            assert one["figures"].keys() == {*SUITES[suite["suite"]].shown}
            if not one["mean_of"]:
                found[one["set"]] += one["rows"]
    assert found == wanted
    exported = {path.name: len(lines(path)) for path in Path().glob("runs/*/evaluate/*.jsonl")}
    treebench = {f"treebench-{way}.jsonl": 4 for way in ("direct", "reason", "ground")}
    assert exported == (treebench if section == "grounded-reasoning" else {})


def test_the_page_quotes_what_is_asked() -> None:
    flat = " ".join(PAGE.split())
    for said in (DIRECT, EXPRESSION_PHRASINGS[0].format("left guy"), PHRASINGS["presence"][0].format(a="a cat")):
        assert f'"{said}"' in flat


def test_every_suite_has_its_section_and_its_commands() -> None:
    assert [name for section in DOWNLOADS for name in section.split(", ")] == list(SUITES)
    assert [section for section in SECTIONS if commands(SECTIONS[section])] == list(DOWNLOADS)
    assert len(re.findall(r"^python -m jobs\.", PAGE, re.MULTILINE)) == sum(
        len(commands(SECTIONS[section])) for section in DOWNLOADS
    )
