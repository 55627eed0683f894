"""TreeBench, V*, A-OKVQA and ScienceQA: rows in their published shape, choices, boxes, and TreeBench's own form."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from tests.fakes.evaluating import sample as drawn
from tests.fakes.published import marked_by
from tests.fakes.rows import (
    AOKVQA,
    AOKVQA_DIRECT,
    AOKVQA_TYPES,
    SCIENCEQA_TYPES,
    TREEBENCH,
    TREEBENCH_COLUMNS,
    VSTAR,
    Given,
    png,
    scienceqa_row,
    write_parquet,
    write_treebench,
)
from vcot.errors import InputError
from vcot.evaluation.suites import SUITES
from vcot.evaluation.suites.grounded_reasoning import treebench_line
from vcot.records import Rejection, Sample

SUITE = SUITES["grounded-reasoning"]


def table(given: Given, rows: list[dict[str, Any]], columns: Sequence[str] = TREEBENCH_COLUMNS) -> str:
    path = given.folder / "TreeBench.tsv"
    write_treebench(path, rows, columns)
    return str(path)


def tree(given: Given, **changed: Any) -> Sample | Rejection:
    (found,) = given.outcomes("treebench", table(given, [TREEBENCH | changed]))
    return found


# ------------------------------------------------------------------------------------------------- what convert reads


def test_a_row_of_treebench(given: Given) -> None:
    sample = tree(given)
    assert isinstance(sample, Sample)
    assert sample.question == TREEBENCH["question"]
    assert (sample.choices, sample.answers) == (("left", "right", "up", "down"), ("right",))
    assert [box.as_list() for box in sample.true_boxes or ()] == [[10, 20, 60, 70], [100, 110, 150, 160]]
    assert sample.image is not None
    assert (sample.image.width, sample.image.height) == (200, 180)
    assert (sample.origin.dataset, sample.origin.split) == ("treebench", "test")
    assert sample.metadata == {"category": "Perception/Attributes"}
    assert SUITE.sets(sample) == "treebench"


def test_other_forms_of_treebench(given: Given) -> None:
    given.image("a.png", 200, 180)
    labelled = [{"label": "red car", "bbox": [10, 20, 60, 70]}, {"bbox": [1, 2, 3, 4]}]
    said = TREEBENCH | {"image": "a.png", "target_instances": labelled, "E": None, "F": None}
    sample = given.sample("treebench", said)
    assert [mention.label for mention in sample.evidence or ()] == ["red car", "region"]
    assert sample.origin.split == "test"
    for nothing in ("", "[]", None):
        assert given.sample("treebench", said | {"target_instances": nothing}).evidence is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answer": "E"}, "no-answer"), ({"answer": ""}, "no-answer"), ({"answer": "right"}, "no-answer"),
        ({"B": ""}, "wrong-shape"), ({"question": " "}, "no-question"), ({"image": ""}, "no-image"),
        ({"image": "abc"}, "image-not-an-image"), ({"target_instances": "[[10, 20, 60"}, "box-malformed"),
        ({"target_instances": "[[10, 20, 60, 700]]"}, "box-outside"), ({"target_instances": "7"}, "box-malformed"),
    ],
)  # fmt: skip
def test_refused_rows_of_treebench(given: Given, changed: dict[str, Any], reason: str) -> None:
    refused = tree(given, **changed)
    assert isinstance(refused, Rejection)
    assert refused.reason.value == reason


def test_a_table_without_its_columns_is_refused(given: Given) -> None:
    with pytest.raises(InputError, match="no column answer, no target_instances"):
        given.outcomes("treebench", table(given, [TREEBENCH], ["index", "image", "question", *"ABCD"]))


def vstar(given: Given, name: str = "direct_attributes/sa_1", **changed: Any) -> None:
    given.image(f"{name}.jpg", 400, 300)
    said = VSTAR | changed
    (given.images / f"{name}.json").write_text(json.dumps(said, indent=2))


def test_folders_of_vstar(given: Given) -> None:
    for number in range(12):
        vstar(given, f"direct_attributes/sa_{number}")
    vstar(given, "relative_position/sa_1")
    (given.images / "relative_position" / "notes.jsonl").write_text("{}\n")
    folders = [str(given.images / name) for name in ("direct_attributes", "relative_position")]
    results = given.outcomes("vstar", *folders)
    samples = [one for one in results if isinstance(one, Sample)]
    assert len(samples) == len(results) == 13
    assert {one.answers for one in samples} == {("red",)}
    assert (
        len({(one.choices or ()).index("red") for one in samples}) > 2
    )  # the first option is not always the right one
    assert {tuple(sorted(one.choices or ())) for one in samples} == {("blue", "green", "red", "white")}
    assert [(m.label, m.boxes[0].as_list()) for m in samples[0].evidence or ()] == [
        ("umbrella", [10, 20, 40, 60]), ("dog", [200, 100, 250, 160]),
    ]  # fmt: skip
    assert {(SUITE.sets(one), one.origin.split) for one in samples} == {("vstar", "test")}
    assert samples[-1].metadata == {"category": "relative_position"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"options": ["red"]}, "wrong-shape"), ({"bbox": [[10, 20, 30, 40]]}, "wrong-shape"),
        ({"bbox": [[10, 20, 30], [1, 2, 3, 4]]}, "box-malformed"), ({"question": ""}, "no-question"),
    ],
)  # fmt: skip
def test_refused_files_of_vstar(given: Given, changed: dict[str, Any], reason: str) -> None:
    vstar(given, **changed)
    (refused,) = given.outcomes("vstar", str(given.images / "direct_attributes"))
    assert isinstance(refused, Rejection)
    assert refused.reason.value == reason
    (given.images / "direct_attributes" / "sa_1.jpg").unlink()
    (missing,) = given.outcomes("vstar", str(given.images / "direct_attributes"))
    assert isinstance(missing, Rejection)
    assert missing.reason.value == "image-missing"


# ------------------------------------------------------------------------------------------------------- measures


def reply(boxes: list[list[float]], answer: str) -> str:
    return "I see <ref>region</ref>" + "".join(f"<box>{box}</box>" for box in boxes) + f".\nAnswer: {answer}"


TRUE = [[10, 20, 60, 70], [100, 110, 150, 160]]


@pytest.mark.parametrize(
    ("boxes", "f1", "best"),
    [
        (TRUE, 1.0, 1.0),
        (TRUE[:1], 2 / 3, 0.5),
        ([], 0.0, 0.0),
        ([*TRUE, *TRUE], 2 * 2 / 6, 1.0),  # boxes twice: recall alone does not see it
        ([[10, 20, 60, 45], TRUE[1]], 1.0, 0.75),
        ([[0, 0, 200, 180]], 0.0, 2500 / 36000),
    ],
)
def test_boxes_one_to_one_and_treebenchs_own_measure(given: Given, boxes: Any, f1: float, best: float) -> None:
    sample = tree(given)
    assert isinstance(sample, Sample)
    marked = marked_by(SUITE, reply(boxes, "B"), sample)
    assert marked is not None
    (found,) = SUITE.results([marked])
    assert found.values["f1"] == pytest.approx(f1)
    assert found.values["best_iou"] == pytest.approx(best)
    if boxes:
        overlaps = box_iou(torch.tensor(TRUE, dtype=torch.float64), torch.tensor(boxes, dtype=torch.float64))
        assert found.values["best_iou"] == pytest.approx(overlaps.max(dim=1).values.mean().item())
    assert found.values["answer_score"] == 1.0


def scorer(line: Mapping[str, Any]) -> tuple[float, bool]:
    """What TreeBench's scorer makes of a line, after its description: the mean best overlap of boxes that are written
    in whole numbers without blanks inside <think>, and whether the letter inside <answer> is the right one."""
    thought = re.search(r"<think>(.*?)</think>", line["prediction"], re.DOTALL)
    inside = re.findall(r"<box>(.*?)</box>", thought[1] if thought else line["prediction"], re.DOTALL)
    found = [re.match(r"\[(\d+),(\d+),(\d+),(\d+)\]", each.strip()) for each in inside]
    boxes = [[float(number) for number in each.groups()] for each in found if each]
    true = torch.tensor(ast.literal_eval(line["target_instances"]), dtype=torch.float64)
    overlap = box_iou(true, torch.tensor(boxes, dtype=torch.float64)).max(dim=1).values.mean() if boxes else 0.0
    chosen = re.search(r"<answer>(.*?)</answer>", line["prediction"])
    return float(overlap), chosen is not None and chosen[1] == line["answer"]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[10.4, 20.6, 60, 70]], "B"), ([[99.6, 10, 100, 10.2], [98.5, 111, 149.5, 160]], "up"), (TRUE, "right"),
        (TRUE[1:], "no idea"), ([], "B"), ([], ""),
    ],
)  # fmt: skip
def test_what_treebenchs_scorer_reads_of_the_exported_line_is_what_the_report_says(
    given: Given, boxes: list[list[float]], said: str
) -> None:
    sample = tree(given)
    assert isinstance(sample, Sample)
    text = reply(boxes, said).replace("<ref>region", "<ref>a </think> & <b> region")
    marked = marked_by(SUITE, text, sample)
    assert marked is not None
    line = treebench_line(marked)
    assert line is not None
    (found,) = SUITE.results([marked])
    assert scorer(line) == (pytest.approx(found.values["best_iou"]), found.values["answer_score"] == 1)
    assert (line["category"], line["answer"]) == ("Perception/Attributes", "B")
    assert scorer(line | {"prediction": text})[0] == 0  # of the reply as it came it reads no box
    other = marked_by(SUITE, text, sample.model_copy(
        update={"origin": sample.origin.model_copy(update={"dataset": "vstar"})}
    ))  # fmt: skip
    assert other is not None
    assert treebench_line(other) is None


def independent_letter(said: str) -> str | None:
    found = re.fullmatch(r"(?:the answer is )?\(?([a-f])\)?[.:]?(?: .*)?", said.strip(), re.IGNORECASE)
    return found[1].upper() if found else None


@pytest.mark.parametrize(
    "said",
    ["B", "(b)", "B.", "B. food", "the answer is (B)", "A", "C. popsicle stick", "E", "7", "(D)"],
)
def test_choices_are_those_of_an_independent_reader(said: str) -> None:
    one = drawn("a", None, answers=("food",), choices=("toothpick", "food", "popsicle stick", "cigarette"))
    one = one.model_copy(update={"origin": one.origin.model_copy(update={"dataset": "aokvqa", "split": "validation"})})
    marked = marked_by(SUITES["aokvqa"], f"Answer: {said}", one)
    assert marked is not None
    assert (marked.set, marked.worth) == ("aokvqa validation", float(independent_letter(said) == "B"))


def test_rows_of_aokvqa_and_scienceqa_as_convert_writes_them(given: Given) -> None:
    image = {"image": {"bytes": png(100, 80), "path": "a.png"}, "direct_answers": str(AOKVQA_DIRECT)}
    uri = write_parquet(given.folder / "validation-00000-of-00001.parquet", [AOKVQA | image], AOKVQA_TYPES)
    (asked,) = given.outcomes("aokvqa", uri)
    assert isinstance(asked, Sample)
    aokvqa, values = SUITES["aokvqa"], []
    for said in ("cigarette", "D", "smoke", "food", None):  # "smoke" is accepted, and no choice
        marked = marked_by(aokvqa, "I see." if said is None else f"Answer: {said}", asked)
        assert marked is not None
        values.append(marked.worth)
    assert values == [1.0, 1.0, 0.0, 0.0, 0.0]
    rows = [scienceqa_row(0), scienceqa_row(1, image=None)]
    uri = write_parquet(given.folder / "test-00000-of-00001.parquet", rows, SCIENCEQA_TYPES)
    found = [SUITES["scienceqa"].sets(one) for one in given.outcomes("scienceqa", uri, without_image="keep")]  # type: ignore[arg-type]
    assert found == ["scienceqa test", "scienceqa test, by text"]
