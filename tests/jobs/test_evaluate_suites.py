"""evaluate --suite with the rehearsal base: which rows are asked, and figures by hand from the replies.

Images are drawn scenes, written down as the benchmarks write theirs; numbers on them say nothing about any model.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings, run
from vcot.errors import InputError, SettingsError
from vcot.evaluation.runner import Reply, read_replies
from vcot.evaluation.subjects import Finished
from vcot.evaluation.suites import SUITES
from vcot.grounding import Box, FrameSpec, iou, parse
from vcot.records import Folder, Sample, read_samples
from vcot.records.shards import EVALUATE
from vcot.storage import Store, join

BASE = Path(__file__).parents[2] / "examples" / "rehearsal"
ASK = {
    "subject": str(BASE), "conditions": "real", "max_new_tokens": 64, "max_unusable_share": 1.0,
    "per_device_eval_batch_size": 32,
    "dtype": "float32", "split": "test",
}  # fmt: skip


def samples_at(uri: str) -> list[Sample]:
    return list(read_samples(Store(), uri, Finished.at(Store(), uri).marker))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two sets of RefCOCO and one of POPE, about the same scenes."""
    place = tmp_path_factory.mktemp("rows")
    run_convert(ConvertSettings(run_uri=str(place / "drawn"), source="scenes", scenes=30, questions="point"))
    drawn = samples_at(str(place / "drawn" / "convert"))
    labels = sorted({mention.label for one in drawn for mention in one.evidence or ()})
    pointing, images, annotations = [], [], []
    for n, one in enumerate(drawn):
        assert one.image is not None
        name, size = Path(one.image.uri).name, {"width": one.image.width, "height": one.image.height}
        boxes = [box for mention in one.evidence or () for box in mention.boxes]
        label = one.evidence[0].label if one.evidence else ""
        origin = one.origin.model_copy(update={"dataset": "refcoco", "split": "test"})
        part = {"split": ("testA", "testB")[n % 2]}
        if len(boxes) < 2:  # the first box of a reply is the one that counts then
            pointing.append(one.model_copy(update={"origin": origin, "metadata": part}).line())
        images.append({"id": n, "file_name": name, **size})
        annotations += [
            {"id": len(annotations) + k, "image_id": n, "iscrowd": 0, "category_id": labels.index(label),
             "bbox": [box.x1, box.y1, box.width, box.height]}
            for k, box in enumerate(boxes)
        ]  # fmt: skip
    (place / "pointing.jsonl").write_bytes(b"".join(pointing))
    named = [{"id": n, "name": label} for n, label in enumerate(labels)]
    (place / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": named})
    )
    folder = str(place / "drawn" / "convert" / "images")
    parts = [
        {"source": "samples", "input": str(place / "pointing.jsonl"), "images": folder},
        {"source": "coco", "name": "pope", "input": str(place / "instances.json"), "images": folder,
         "absent_by": "random", "absent": 1, "phrasings": "one"},
    ]  # fmt: skip
    (place / "mix.yaml").write_text(json.dumps(parts))
    run_convert(ConvertSettings(run_uri=str(place / "run"), mix=str(place / "mix.yaml"), duplicates="keep"))
    return str(place / "run" / "convert")


def evaluate(run_uri: str, samples_uri: str, **settings: Any) -> dict[str, Any]:
    run(EvaluateSettings(run_uri=run_uri, samples_uri=samples_uri, **(ASK | settings)))
    found: dict[str, Any] = json.loads(Store().read(join(run_uri, "evaluate", "report.json")))
    return found


def replies_of(run_uri: str) -> dict[str, list[Reply]]:
    marker = Folder(Store(), run_uri, EVALUATE).marker()
    assert marker is not None
    found = defaultdict(list)
    for reply in read_replies(Store(), join(run_uri, "evaluate"), marker.shards):
        found[reply.way].append(reply)
    return found


def test_figures_of_suites_are_those_of_the_replies(rows: str, tmp_path: Path, capsys: Any) -> None:
    run_uri = str(tmp_path / "one")
    report = evaluate(run_uri, rows, suite="refcoco,pope", ask="ground,direct")
    by_id = {one.id: one for one in samples_at(rows)}
    refcoco, pope = report["suites"]
    assert (refcoco["suite"], pope["suite"]) == ("refcoco", "pope")
    said = replies_of(run_uri)
    for place, way in enumerate(("ground", "direct")):
        hits, boxed, answers = defaultdict(list), defaultdict(list), []
        for reply in said[way]:
            one = by_id[reply.score.sample]
            assert one.image is not None
            found = re.search(r"Answer: *(\w+)", reply.score.text)
            if ":presence-" in one.origin.row:
                answers.append((found[1].lower() if found else "", one.answers[0]))
                continue
            boxes = [Box(*box.as_list()) for box in parse(reply.score.text, one.frame(FrameSpec("thousandths"))).boxes]
            if one.true_boxes:
                overlap = iou(boxes[0], one.true_boxes[0]) if boxes else 0.0
                hits[one.metadata["split"]].append(overlap >= 0.5)
            else:
                boxed[one.metadata["split"]].append(bool(boxes))
        assert refcoco["ways"][place]["way"] == way
        sets = {each["set"]: each for each in refcoco["ways"][place]["sets"]}
        assert list(sets) == ["refcoco testA", "refcoco testB", "average"]
        for split in ("testA", "testB"):
            one = sets[f"refcoco {split}"]
            assert one["rows"] == len(hits[split]) + len(boxed[split])
            figure = one["figures"]["accuracy_at_50"]
            assert figure["value"] == pytest.approx(sum(hits[split]) / len(hits[split]), abs=1e-6)
            assert figure["count"] == len(hits[split])
            absent = one["figures"]["boxes_where_absent"]
            assert absent["count"] == len(boxed[split]) > 0
            assert absent["value"] == pytest.approx(sum(boxed[split]) / len(boxed[split]), abs=1e-6)
        both = [sets[f"refcoco {split}"]["figures"]["accuracy_at_50"]["value"] for split in ("testA", "testB")]
        mean = sets["average"]["figures"]["accuracy_at_50"]
        assert mean["value"] == pytest.approx(sum(both) / 2, abs=1e-6)
        assert (mean["low"], mean["of"], mean["count"]) == (None, "sets", 2)
        if way == "ground":
            assert mean["value"] > 0  # it does point
            assert any(0 < each["figures"]["mean_iou"]["low"] < 1 for each in sets.values() if not each["mean_of"])
        random = pope["ways"][place]["sets"][0]
        assert (random["set"], random["rows"]) == ("random", len(answers))
        right = sum(said == true for said, true in answers)
        assert random["figures"]["answer_score"]["value"] == pytest.approx(right / len(answers), abs=1e-6)
        yes = sum(said == "yes" for said, _ in answers)
        assert random["figures"]["yes_share"]["value"] == pytest.approx(yes / len(answers), abs=1e-6)
    # Rows of other suites are not asked.
    evaluate(str(tmp_path / "two"), rows, suite="pope", ask="direct")
    assert [r.score.sample for r in replies_of(str(tmp_path / "two"))["direct"]] == [
        r.score.sample for r in said["direct"] if ":presence-" in by_id[r.score.sample].origin.row
    ]
    assert {one["set"] for one in refcoco["published"]} == {"refcoco testA", "average"}
    assert {one["set"]: one["differs"] for one in refcoco["published"]} == {
        "refcoco testA": "", "average": "a mean of 8 sets; here it is of 2",
    }  # fmt: skip
    assert all(one["same_measure"] == (one["set"] == "refcoco testA") for one in refcoco["published"])
    (other,) = pope["published"]
    assert other["differs"] == "the same measure of other images and questions; a mean of 3 sets; here it is of 1"
    page = (tmp_path / "one" / "evaluate" / "report.html").read_text()
    assert "InternVL3.5-241B" in page
    assert "96.3 %" in page
    assert "the same measure of other images and questions" in page
    assert "refcoco: RefCOCO, +, g" in capsys.readouterr().out


def test_a_suite_without_rows_is_refused_before_a_model_is_loaded(rows: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--suite viscot: none of the \d+ samples of the split test is of it; their"
    ) as e:
        evaluate(str(tmp_path / "one"), rows, suite="pope,viscot")
    assert "their datasets are " in str(e.value)
    assert "docs/suites.md, a suite without its files" in str(e.value)
    assert not list(tmp_path.rglob("shards"))


def test_an_unknown_suite_is_refused_with_all_that_there_are(clean: None) -> None:
    with pytest.raises(SettingsError, match=r"no such suite: visco; there are viscot, refcoco, aokvqa"):
        EvaluateSettings.load(["--run-uri", "s3://b/runs/r", "--suite", "pope,visco"])
    help_text = str(EvaluateSettings.model_fields["suite"].description)
    assert all(name in help_text for name in SUITES)
