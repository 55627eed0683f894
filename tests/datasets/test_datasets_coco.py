"""COCO: which questions are asked of an image, and what their answers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.given import Given
from vcot import logging
from vcot.datasets import coco, scenes
from vcot.errors import InputError, SettingsError
from vcot.records import Rejection, Sample

CELLS = Path(__file__).parents[2] / "examples" / "blood-cells"


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


def asked(results: list[Sample | Rejection]) -> list[tuple[str, str, int | None]]:
    """Question, answer, number of boxes."""
    samples = [r for r in results if isinstance(r, Sample)]
    assert len(samples) == len(results)
    return [(s.question, s.answers[0], None if s.true_boxes is None else len(s.true_boxes)) for s in samples]


def test_questions_about_one_thing_about_several_and_about_what_is_not_there(given: Given) -> None:
    names = ("WBC=white blood cell", "RBC=red blood cell", "Platelets=platelet")
    results = given.outcomes("coco", instances(given, ONE_AND_TWO), phrasings="one", category_names=names)
    assert asked(results) == [
        ("Where is the white blood cell?", "top left", 1),
        ("How many white blood cells are there?", "1", 1),
        ("Point at every white blood cell.", "1", 1),
        ("Is there a white blood cell?", "yes", 1),
        ("How many platelets are there?", "2", 2),
        ("Point at every platelet.", "2", 2),
        ("Is there a platelet?", "yes", 2),
        ("Is there a red blood cell?", "no", 0),
    ]


@pytest.mark.parametrize(
    ("questions", "absent", "negatives"),
    [
        (("presence", "count"), 0, set()),
        (("presence",), 1, {("no", 0)}),
        (("count", "point"), 1, {("0", 0)}),
        (("where", "presence", "count", "point"), 9, {("no", 0), ("0", 0)}),
        (("where",), 9, set()),
    ],
)
def test_as_many_questions_about_what_is_not_there_as_are_wanted(
    given: Given, questions: Any, absent: int, negatives: set[tuple[str, int]]
) -> None:
    uri = instances(given, [{"category_id": 1, "bbox": [10, 20, 30, 40]}])
    found = asked(given.outcomes("coco", uri, phrasings="one", questions=questions, absent=absent))
    none = [(question, answer, boxes) for question, answer, boxes in found if not boxes]
    assert {(answer, boxes) for _, answer, boxes in none} == negatives
    assert len(none) == (min(absent, 2) if negatives else 0)
    assert len(set(none)) == len(none)


def test_boxes_are_edges_under_the_spoken_name(given: Given) -> None:
    (sample,) = given.outcomes(
        "coco", instances(given, ONE_AND_TWO), questions=("where",), category_names=("WBC=white blood cell",)
    )
    assert isinstance(sample, Sample)
    assert sample.evidence is not None
    assert [(m.label, [b.as_list() for b in m.boxes]) for m in sample.evidence] == [
        ("white blood cell", [[10, 20, 40, 60]])
    ]


@pytest.mark.parametrize("name", ["WBC", "white blood cell"])
def test_only_the_chosen_kinds_and_categories(given: Given, name: str) -> None:
    results = given.outcomes(
        "coco", instances(given, ONE_AND_TWO), phrasings="one", questions=("where", "count"), categories=(name,),
        category_names=("WBC=white blood cell",),
    )  # fmt: skip
    assert [question for question, _, _ in asked(results)] == [
        "Where is the white blood cell?",
        "How many white blood cells are there?",
    ]


def test_the_split_of_an_image_entry_is_believed_and_the_licence_looked_up(given: Given) -> None:
    images = []
    for n, split in enumerate(("train", "validation", "test", "val"), 1):
        given.image(f"{n}.png", 300 + n, 300)
        images.append({"id": n, "file_name": f"{n}.png", "split": split, "license": 4})
    annotations = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(1, 5)]
    uri = instances(given, annotations, images, {"licenses": [{"id": 4, "name": "MIT"}]})
    results = given.outcomes("coco", uri, questions=("where",), validation_share=0.0)
    origins = [r.origin for r in results if isinstance(r, Sample)]
    assert [o.split for o in origins] == ["train", "validation", "test", "validation"]
    assert {(o.dataset, o.licence) for o in origins} == {("cells", "MIT")}
    by_content = given.outcomes("coco", uri, questions=("where",), validation_share=0.0, splits="by-content")
    assert {r.origin.split for r in by_content if isinstance(r, Sample)} == {"train"}


def test_nobody_is_asked_to_count_a_crowd(given: Given) -> None:
    crowd = [*ONE_AND_TWO, {"category_id": 3, "bbox": [0, 0, 300, 100], "iscrowd": 1}]
    results = given.outcomes("coco", instances(given, crowd), phrasings="one")
    assert {question for question, _, _ in asked(results)} == {
        "Where is the WBC?", "How many WBCs are there?", "Point at every WBC.", "Is there a WBC?", "Is there a RBC?",
    }  # fmt: skip


def test_every_question_about_a_bad_box_is_refused_and_no_other(given: Given) -> None:
    bad = [ONE_AND_TWO[0], {"category_id": 3, "bbox": [250, 250, -10, 20]}]
    results = given.outcomes("coco", instances(given, bad), questions=("where", "count"), absent=0)
    assert [r.reason.value if isinstance(r, Rejection) else r.answers[0] for r in results] == [
        "top left", "1", "box-inverted", "box-inverted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([1, 2, 0, 4], "box-empty"),
        ([1, 2, 400, 4], "box-outside"),
        ([1, 2, 3], "box-malformed"),
        (None, "box-malformed"),
        ([1, 2, 10**400, 4], "box-not-finite"),
        ([1, 2, float("inf"), 4], "box-not-finite"),
    ],
)
def test_boxes_that_are_none(given: Given, bbox: Any, reason: str) -> None:
    uri = instances(given, [{"category_id": 1, "bbox": bbox}])
    (result,) = given.outcomes("coco", uri, questions=("count",), absent=0)
    assert isinstance(result, Rejection)
    assert result.reason.value == reason


def test_an_image_of_another_size_than_the_file_says(given: Given) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 600, "height": 300}]
    (result,) = given.outcomes("coco", instances(given, ONE_AND_TWO[:1], images), questions=("where",))
    assert isinstance(result, Rejection)
    assert result.reason.value == "image-size-differs"


def test_the_wording_depends_on_seed_and_row_alone(given: Given) -> None:
    uri = str(CELLS / "instances.json")
    given.images = CELLS / "images"

    def questions(seed: int) -> list[str]:
        results = given.outcomes("coco", uri, questions=("where",), categories=("white blood cell",), seed=seed)
        return [question for question, _, _ in asked(results)]

    first = questions(1)
    assert first == questions(1)
    assert first != questions(2)
    assert {q.split()[0] for q in first} == {"Where", "Find", "Point"}


def test_the_base_knows_these_wordings() -> None:
    """The rehearsal base has learned the phrases of drawn scenes."""
    known = {
        phrase.format("blob") for phrases in (scenes.WHERE, scenes.COUNT, scenes.POINT, scenes.PRESENCE)
        for phrase in phrases
    }  # fmt: skip
    ours = {
        phrase.format(one="blob", many=coco.plural("blob"), a="a blob")
        for phrases in coco.PHRASINGS.values()
        for phrase in phrases
    }
    assert ours <= known


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("white blood cell", "white blood cells"), ("person", "people"), ("bus", "buses"), ("bench", "benches"),
        ("wine glass", "wine glasses"), ("sheep", "sheep"), ("berry", "berries"), ("toy", "toys"), ("knife", "knives"),
    ],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert coco.plural(one) == many


def test_a_category_that_the_file_has_not_is_named_with_those_it_has(given: Given) -> None:
    with pytest.raises(SettingsError, match=r"no category 'leucocyte'; it has Platelets, RBC, WBC"):
        given.outcomes("coco", instances(given, ONE_AND_TWO), categories=("leucocyte",))


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_file_without_one_of_its_parts(given: Given, part: str) -> None:
    with pytest.raises(InputError, match=f"there are no {part} in it"):
        given.outcomes("coco", instances(given, ONE_AND_TWO, more={part: []}))


def test_a_file_that_is_cut_off(given: Given) -> None:
    uri = instances(given, ONE_AND_TWO)
    path = Path(uri)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match="is it cut off"):
        given.outcomes("coco", uri)


def test_rows_of_another_source(given: Given) -> None:
    with pytest.raises(InputError, match="--source viscot"):
        given.outcomes("coco", given.rows([{"question": "?"}]))


@pytest.mark.parametrize("image_id", [1, 1.0, "1"])
@pytest.mark.parametrize("category_id", [3, 3.0, "3"])
def test_ids_are_the_same_however_their_number_is_written(given: Given, image_id: Any, category_id: Any) -> None:
    written = [a | {"image_id": image_id, "category_id": category_id} for a in ONE_AND_TWO]
    images = [{"id": float(image_id), "file_name": "a.png", "license": 4.0}]
    more = {"categories": [{"id": 3.0, "name": "Platelets"}], "licenses": [{"id": 4, "name": "MIT"}]}
    (result,) = given.outcomes("coco", instances(given, written, images, more), questions=("count",), absent=0)
    assert isinstance(result, Sample)
    assert (result.answers, result.origin.licence) == (("3",), "MIT")


IS_THERE = {("Is there a WBC?", "yes"), ("Is there a Platelets?", "yes")}
OF_RBC = {"category_id": 2, "bbox": [50, 50, 9, 9]}
NOWHERE = [None, 99, float("nan"), "one", 1.5]


def with_unmatched(given: Given, annotation: dict[str, Any], **options: Any) -> tuple[set[tuple[str, str]], list[Any]]:
    """Question and answer of two images with one white cell and two platelets each, and what was refused."""
    given.image("b.png", 301, 300)
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate("ab", 1)]
    boxes = [a | {"image_id": n} for n in (1, 2) for a in ONE_AND_TWO]
    uri = instances(given, [*boxes, annotation], images)
    results = given.outcomes("coco", uri, phrasings="one", **options)
    found = {(f"{r.id.split(':')[1]} {r.question}", r.answers[0]) for r in results if isinstance(r, Sample)}
    return found, [r for r in results if isinstance(r, Rejection)]


@pytest.mark.parametrize("image_id", NOWHERE)
def test_an_annotation_of_no_image_leaves_its_category_uncounted_and_undenied(given: Given, image_id: Any) -> None:
    """It may be of either."""
    found, (refused,) = with_unmatched(given, OF_RBC | {"image_id": image_id}, absent=3)
    assert not {question for question, _ in found if "RBC" in question}
    assert {("1 How many WBCs are there?", "1"), ("2 Where is the WBC?", "top left")} < found
    assert (refused.id, refused.reason.value) == ("instances.json:annotation-7", "annotation-unmatched")
    assert "entry 7 of annotations: " in refused.detail
    assert "image_id" in refused.detail
    assert "--unmatched-annotations ignore" in refused.detail


def test_of_a_category_that_is_in_doubt_is_asked_only_whether_it_is_there(given: Given) -> None:
    found, _ = with_unmatched(given, OF_RBC | {"image_id": 99, "category_id": 1}, absent=3)
    assert {question for question, _ in found if "WBC" in question} == {"1 Is there a WBC?", "2 Is there a WBC?"}
    assert ("1 Is there a RBC?", "no") in found


@pytest.mark.parametrize("category_id", NOWHERE)
def test_an_annotation_of_no_category_leaves_its_image_uncounted(given: Given, category_id: Any) -> None:
    found, (refused,) = with_unmatched(given, OF_RBC | {"image_id": 2, "category_id": category_id}, absent=3)
    assert {one for one in found if one[0].startswith("2 ")} == {(f"2 {question}", yes) for question, yes in IS_THERE}
    assert {("1 How many WBCs are there?", "1"), ("1 Is there a RBC?", "no")} < found
    assert refused.reason.value == "annotation-unmatched"
    assert "category_id" in refused.detail


def test_an_annotation_without_either_leaves_all_images_uncounted(given: Given) -> None:
    found, (refused,) = with_unmatched(given, {"image_id": None, "bbox": [1, 2, 3, 4]}, absent=3)
    assert found == {(f"{image} {question}", yes) for image in (1, 2) for question, yes in IS_THERE}
    assert "it has no image_id and it has no category_id" in refused.detail


@pytest.mark.parametrize("wrong", [{"image_id": 99}, {"image_id": 1, "category_id": 99}])
def test_images_and_categories_can_have_been_left_out_on_purpose(
    given: Given, wrong: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.configure("json")
    found, refused = with_unmatched(given, OF_RBC | wrong, absent=3, unmatched_annotations="ignore")
    assert {("1 How many WBCs are there?", "1"), ("1 Is there a RBC?", "no")} < found
    assert refused == []
    said = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (said["annotations"], said["of_no_image"] + said["of_no_category"]) == (7, 1)


def test_an_image_without_an_id_is_refused(given: Given) -> None:
    """No annotation can be of it, so everything would be denied of it."""
    images = [{"id": 1, "file_name": "a.png"}, {"id": None, "file_name": "a.png"}, {"file_name": "a.png"}]
    results = given.outcomes("coco", instances(given, ONE_AND_TWO, images), questions=("presence",))
    refused = [(r.id, r.reason.value) for r in results if isinstance(r, Rejection)]
    assert refused == [("instances.json:image-2", "wrong-shape"), ("instances.json:image-3", "wrong-shape")]
    assert len(results) == 2 + 3


def test_where_nothing_can_be_asked_the_annotations_that_match_nothing_are_named(given: Given) -> None:
    written = [a | {"image_id": "000000000001"} for a in ONE_AND_TWO]
    with pytest.raises(
        InputError, match=r"can be asked of its images; entry 1 of annotations: image_id '0+1' is of no"
    ):
        given.outcomes("coco", instances(given, written), categories=("WBC", "Platelets"))


def test_a_second_image_of_one_id_is_refused_and_the_first_asked_about(given: Given) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}]
    uri = instances(given, [{"category_id": 1, "bbox": [10, 20, 30, 40]}], images)
    first, second = given.outcomes("coco", uri, questions=("where",))
    assert isinstance(first, Sample)
    assert isinstance(second, Rejection)
    assert (second.id, second.reason.value) == ("instances.json:1#2", "duplicate")


def test_a_faulty_box_is_told_in_the_words_of_the_file(given: Given) -> None:
    uri = instances(given, [{"category_id": 1, "bbox": [10, 20, 0, 40]}])
    (refused,) = (one for one in given.outcomes("coco", uri, absent=0, questions=("where",)))
    assert isinstance(refused, Rejection)
    assert "bbox [10, 20, 0, 40], which is [x, y, width, height] on an image of" in refused.detail
    assert "x1" not in refused.detail
