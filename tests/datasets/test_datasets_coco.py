"""COCO, RefCOCO and drawn scenes: which questions are asked of an image, and what their answers are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.fakes.rows import ONE_AND_TWO, REFCOCO, Given, instances
from vcot import logging
from vcot.datasets import coco
from vcot.datasets.scenes import objects as scenes
from vcot.errors import InputError, SettingsError
from vcot.grounding import place
from vcot.records import Rejection, Sample

CELLS = Path(__file__).parents[2] / "examples" / "blood-cells"
WBC = {"category_id": 1, "bbox": [10, 20, 30, 40]}


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
    assert isinstance(results[0], Sample)
    assert [(m.label, [b.as_list() for b in m.boxes]) for m in results[0].evidence or ()] == [
        ("white blood cell", [[10, 20, 40, 60]])
    ]


@pytest.mark.parametrize(
    ("questions", "absent", "negatives"),
    [
        (("presence", "count"), 0, set()),
        (("count", "point"), 1, {("0", 0)}),
        (("where", "presence", "count", "point"), 9, {("no", 0), ("0", 0)}),
        (("where",), 9, set()),
    ],
)
def test_as_many_questions_about_what_is_not_there_as_are_wanted(
    given: Given, questions: Any, absent: int, negatives: set[tuple[str, int]]
) -> None:
    found = asked(given.outcomes("coco", instances(given, [WBC]), phrasings="one", questions=questions, absent=absent))
    none = [each for each in found if not each[2]]
    assert {(answer, boxes) for _, answer, boxes in none} == negatives
    assert len(none) == len(set(none)) == (min(absent, 2) if negatives else 0)


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


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([250, 250, -10, 20], "box-inverted"),
        ([1, 2, 0, 4], "box-empty"),
        ([1, 2, 400, 4], "box-outside"),
        ([1, 2, 3], "box-malformed"),
        (None, "box-malformed"),
        ([1, 2, 10**400, 4], "box-not-finite"),
    ],
)
def test_questions_about_a_bad_box_are_refused_in_the_words_of_the_file_and_no_others(
    given: Given, bbox: Any, reason: str
) -> None:
    uri = instances(given, [ONE_AND_TWO[0], {"category_id": 3, "bbox": bbox}])
    *kept, refused = given.outcomes("coco", uri, questions=("count",), absent=0)
    assert [one.answers for one in kept if isinstance(one, Sample)] == [("1",)]
    assert isinstance(refused, Rejection)
    assert refused.reason.value == reason
    assert "which is [x, y, width, height] on an image of" in refused.detail
    assert "x1" not in refused.detail


def test_an_image_of_another_size_than_the_file_says(given: Given) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 600, "height": 300}]
    (result,) = given.outcomes("coco", instances(given, ONE_AND_TWO[:1], images), questions=("where",))
    assert isinstance(result, Rejection)
    assert result.reason.value == "image-size-differs"


def test_wording_depends_on_seed_and_row_alone_and_the_base_has_learned_all_of_it(given: Given) -> None:
    given.images = CELLS / "images"

    def questions(seed: int) -> list[str]:
        uri, which = str(CELLS / "instances.json"), {"questions": ("where",), "categories": ("white blood cell",)}
        return [question for question, _, _ in asked(given.outcomes("coco", uri, seed=seed, **which))]

    first = questions(1)
    assert first == questions(1)
    assert first != questions(2)
    assert {q.split()[0] for q in first} == {"Where", "Find", "Point"}
    taught = (scenes.WHERE, scenes.COUNT, scenes.POINT, scenes.PRESENCE)
    ours = (phrase.format(one="blob", many="blobs", a="a blob") for each in coco.PHRASINGS.values() for phrase in each)
    assert set(ours) <= {phrase.format("blob") for phrases in taught for phrase in phrases}


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"categories": ("leucocyte",)}, {}, r"no category 'leucocyte'; it has Platelets, RBC, WBC"),
        ({}, {"images": []}, "there are no images in it"),
        ({}, {"annotations": []}, "there are no annotations in it"),
        ({}, {"categories": []}, "there are no categories in it"),
        ({"categories": ("WBC",)}, {"annotations": [WBC | {"image_id": "0001"}]},
         r"can be asked of its images; entry 1 of annotations: image_id '0+1' is of no"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_asked_about(given: Given, options: Any, more: Any, said: str) -> None:
    with pytest.raises((InputError, SettingsError), match=said):
        given.outcomes("coco", instances(given, ONE_AND_TWO, more=more), **options)


def test_files_that_are_cut_off_or_no_coco(given: Given) -> None:
    path = Path(instances(given, ONE_AND_TWO))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(InputError, match="is it cut off"):
        given.outcomes("coco", str(path))
    with pytest.raises(InputError, match="--source viscot"):
        given.outcomes("coco", given.rows([{"question": "?"}]))


@pytest.mark.parametrize(("image_id", "category_id"), [(1, 3.0), (1.0, "3"), ("1", 3)])
def test_ids_are_the_same_however_their_number_is_written(given: Given, image_id: Any, category_id: Any) -> None:
    written = [a | {"image_id": image_id, "category_id": category_id} for a in ONE_AND_TWO]
    images = [{"id": float(image_id), "file_name": "a.png", "license": 4.0}]
    more = {"categories": [{"id": 3.0, "name": "Platelets"}], "licenses": [{"id": 4, "name": "MIT"}]}
    (result,) = given.outcomes("coco", instances(given, written, images, more), questions=("count",), absent=0)
    assert isinstance(result, Sample)
    assert (result.answers, result.origin.licence) == (("3",), "MIT")


def test_images_without_an_id_or_with_that_of_another_are_refused(given: Given) -> None:
    """No annotation can be of one without, so everything would be denied of it."""
    images = [{"id": 1, "file_name": "a.png"}, {"id": None, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}]
    results = given.outcomes("coco", instances(given, ONE_AND_TWO, images), questions=("presence",))
    refused = [(r.id, r.reason.value) for r in results if isinstance(r, Rejection)]
    assert refused == [("instances.json:image-2", "wrong-shape"), ("instances.json:1#3", "duplicate")]
    assert len(results) == 2 + 3


# ------------------------------------------------------------------------------ annotations that match nothing

IS_THERE = "Is there a WBC?", "Is there a Platelets?"
OF_RBC = {"category_id": 2, "bbox": [50, 50, 9, 9]}
NOWHERE = [None, 99, float("nan"), "one"]


def with_unmatched(given: Given, annotation: dict[str, Any], **options: Any) -> tuple[set[tuple[str, str]], list[Any]]:
    """Question and answer of two images with one white cell and two platelets each, and what was refused."""
    given.image("b.png", 301, 300)
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate("ab", 1)]
    boxes = [a | {"image_id": n} for n in (1, 2) for a in ONE_AND_TWO]
    uri = instances(given, [*boxes, annotation], images)
    results = given.outcomes("coco", uri, phrasings="one", absent=3, **options)
    found = {(f"{r.id.split(':')[1]} {r.question}", r.answers[0]) for r in results if isinstance(r, Sample)}
    return found, [r for r in results if isinstance(r, Rejection)]


@pytest.mark.parametrize(
    ("annotation", "about", "asked_still", "said"),
    [
        # Of no image: it may be of either, and a category in doubt is asked only whether it is there.
        *((OF_RBC | {"image_id": none}, "RBC", set(), "image_id") for none in NOWHERE),
        (OF_RBC | {"image_id": 99, "category_id": 1}, "WBC", {"1 Is there a WBC?", "2 Is there a WBC?"}, "image_id"),
        *((OF_RBC | {"image_id": 2, "category_id": none}, "2 ", {f"2 {there}" for there in IS_THERE}, "category_id")
          for none in NOWHERE),
        ({"image_id": None, "bbox": [1, 2, 3, 4]}, "", {f"{n} {there}" for n in (1, 2) for there in IS_THERE},
         "it has no image_id and it has no category_id"),
    ],
)  # fmt: skip
def test_an_annotation_of_no_image_or_no_category_leaves_uncounted_and_undenied_what_it_may_show(
    given: Given, annotation: dict[str, Any], about: str, asked_still: set[str], said: str
) -> None:
    found, (refused,) = with_unmatched(given, annotation)
    assert {question for question, _ in found if about in question} == asked_still
    sure = {("1 How many WBCs are there?", "1"), ("2 Where is the WBC?", "top left"), ("1 Is there a RBC?", "no")}
    assert {one for one in sure if about not in one[0]} <= found
    assert (refused.id, refused.reason.value) == ("instances.json:annotation-7", "annotation-unmatched")
    assert all(each in refused.detail for each in ("entry 7 of annotations: ", said, "--unmatched-annotations"))


@pytest.mark.parametrize("wrong", [{"image_id": 99}, {"image_id": 1, "category_id": 99}])
def test_images_and_categories_can_have_been_left_out_on_purpose(
    given: Given, wrong: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.configure("json")
    found, refused = with_unmatched(given, OF_RBC | wrong, unmatched_annotations="ignore")
    assert {("1 How many WBCs are there?", "1"), ("1 Is there a RBC?", "no")} < found
    assert refused == []
    said = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (said["annotations"], said["of_no_image"] + said["of_no_category"]) == (7, 1)


# ------------------------------------------------------------------------- categories that are not to be trusted


def questions_of(given: Given, uri: str, **options: Any) -> dict[str, set[tuple[str, str]]]:
    """Image id → questions and answers."""
    found: dict[str, set[tuple[str, str]]] = {}
    for result in given.outcomes("coco", uri, phrasings="one", absent=9, **options):
        if isinstance(result, Sample):
            found.setdefault(result.id.split(":")[1], set()).add((result.question, result.answers[0]))
    return found


def test_coco_asks_nothing_about_a_category_that_only_groups(given: Given) -> None:
    """As Roboflow exports its root: it has no annotations, and every other category names it as supercategory."""
    names = {0: ("Cells", "none"), 1: ("Platelets", "cells"), 2: ("RBC", "cells"), 3: ("dust", "none")}
    categories = [{"id": n, "name": name, "supercategory": above} for n, (name, above) in names.items()]
    uri = instances(given, [{"category_id": 2, "bbox": [10, 10, 60, 60]}], more={"categories": categories})
    asked_of = questions_of(given, uri)["1"]
    assert not [question for question, _ in asked_of if "ells" in question]
    assert {("Is there a RBC?", "yes"), ("Is there a Platelets?", "no"), ("How many dusts are there?", "0")} <= asked_of


def test_coco_denies_no_category_of_which_a_subcategory_shows(given: Given) -> None:
    names = {1: ("vehicle", ""), 2: ("car", "vehicle"), 3: ("taxi", "car"), 4: ("person", "person")}
    categories = [{"id": n, "name": name, "supercategory": above} for n, (name, above) in names.items()]
    images = [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)]
    for n in (1, 2, 3):
        given.image(f"{n}.png", 300, 300 + n)
    annotations = [
        {"image_id": image, "category_id": category, "bbox": [9 * category, 2, 8, 40]}
        for image, category in ((1, 3), (2, 4), (3, 1), (3, 2))
    ]
    asked_of = questions_of(given, instances(given, annotations, images, {"categories": categories}))
    about = {n: {(q, a) for q, a in asked_of[n] if "vehicle" in q} for n in asked_of}
    assert about["1"] == set()  # a taxi is a vehicle
    assert not [q for q, _ in asked_of["1"] if " car" in q]
    assert {answer for _, answer in about["2"]} in ({"no"}, {"0"}, {"no", "0"})
    assert ("Is there a person?", "yes") in asked_of["2"]  # its own supercategory, as COCO has it
    assert about["3"] == {("Is there a vehicle?", "yes")}  # of how many, nothing is sure


def test_coco_with_federated_labels_denies_what_was_verified(given: Given) -> None:
    """LVIS: each image lists the categories that were verified to be absent, and those not annotated exhaustively."""
    given.image("b.png", 301, 300)
    images = [
        {"id": 1, "file_name": "a.png", "neg_category_ids": [2], "not_exhaustive_category_ids": [3]},
        {"id": 2, "file_name": "b.png", "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]
    boxes = [*ONE_AND_TWO, *(one | {"image_id": 2} for one in ONE_AND_TWO[1:])]
    asked_of = questions_of(given, instances(given, boxes, images), absent_by=None)
    assert {pair for pair in asked_of["1"] if "RBC" in pair[0]} == {("Is there a RBC?", "no")}
    assert {pair for pair in asked_of["1"] if "Platelets" in pair[0]} == {("Is there a Platelets?", "yes")}
    assert ("Where is the WBC?", "top left") in asked_of["1"]
    assert not [pair for pair in asked_of["2"] if "BC" in pair[0]]  # nobody has looked for them
    assert ("How many Plateletses are there?", "2") in asked_of["2"]
    only = questions_of(given, instances(given, boxes, images), absent_by="random")
    assert only == {"1": {("Is there a WBC?", "yes"), ("Is there a RBC?", "no")}} or only == {
        "1": {("Is there a Platelets?", "yes"), ("Is there a RBC?", "no")}
    }


def test_coco_cleans_category_names_and_refuses_empty_ones(given: Given) -> None:
    written = ["traffic_light", " hour  glass ", "USB stick", "N/A", "", None, "<box>", "<|image_pad|>", "_", 3, "{a}"]
    categories = [{"id": n, "name": name} for n, name in enumerate(written, 1)]
    annotations = [{"category_id": n, "bbox": [20 * n, 10, 15, 15]} for n in range(1, len(written) + 1)]
    uri = instances(given, annotations, more={"categories": categories})
    results = given.outcomes("coco", uri, phrasings="one", questions=("where", "presence"))
    samples = [result for result in results if isinstance(result, Sample)]
    assert {sample.question for sample in samples} == {
        "Where is the traffic light?", "Is there a traffic light?", "Where is the hour glass?",
        "Is there an hour glass?", "Where is the USB stick?", "Is there a USB stick?", "Where is the 3?",
        "Is there a 3?",
    }  # fmt: skip
    assert {mention.label for sample in samples for mention in sample.evidence or ()} == {
        "traffic light", "hour glass", "USB stick", "3",
    }  # fmt: skip
    refused = {r.id: r for r in results if isinstance(r, Rejection)}
    assert sorted(refused) == sorted(f"instances.json:annotation-{n}" for n in (4, 5, 6, 7, 8, 9, 11))
    assert {r.reason.value for r in refused.values()} == {"wrong-shape"}
    assert "'None', which is no name to ask about" in refused["instances.json:annotation-6"].detail
    names = ("N/A=lamp", "traffic light=signal")
    named = given.outcomes(
        "coco", uri, questions=("where",), category_names=names, unmatched_annotations="ignore"
    )  # fmt: skip
    assert {m.label for r in named if isinstance(r, Sample) for m in r.evidence or ()} >= {"lamp", "signal"}
    assert all(isinstance(result, Sample) for result in named)


@pytest.mark.parametrize("article", ["a", "an"])
def test_with_article_follows_the_sound_of_the_name(article: str) -> None:
    names = {
        "a": "unicorn|unicycle|uniform|union jack|unique vase|unit|university|unisex sign|USB stick|utensil|urinal|UFO"
        "|euro|US flag|one-way sign|7|100|herb",
        "an": "unidentified object|unimportant thing|uninflated ball|unironed shirt|umbrella|urn|usher|utter mess"
        "|hourglass|heirloom|honor guard|8|11|18|8-ball|80s car|apple|onion",
    }
    assert [coco.with_article(name) for name in names[article].split("|")] == [
        f"{article} {name}" for name in names[article].split("|")
    ]


def test_coco_stops_where_every_box_is_below_a_pixel(given: Given) -> None:
    fractions = [{"category_id": 1, "bbox": [0.1, 0.1, 0.3, 0.25]}, {"category_id": 3, "bbox": [0.4, 0.3, 0.2, 0.3]}]
    with pytest.raises(InputError, match="every bbox is smaller than one pixel, so they are probably fractions"):
        given.outcomes("coco", instances(given, fractions))
    results = given.outcomes(
        "coco", instances(given, [*ONE_AND_TWO, *fractions[:1]]), questions=("presence",), absent=0
    )
    (refused,) = [result for result in results if isinstance(result, Rejection)]
    assert (refused.reason.value, "WBC" in refused.id) == ("box-too-small", True)


@pytest.mark.parametrize(
    "rotated",
    [{"bbox": [10, 20, 30, 40], "attributes": {"occluded": False, "rotation": 30.0}}, {"bbox": [10, 20, 30, 40, 0.5]},
     {"bbox": [10, 20, 30, 40], "rotation": 90}, {"bbox": [10, 20, 30, 40], "angle": -1.5}],
)  # fmt: skip
def test_coco_refuses_rotated_boxes(given: Given, rotated: dict[str, Any]) -> None:
    """A bbox beside an angle, as CVAT writes it, is of the box before it was turned."""
    uri = instances(given, [rotated | {"category_id": 1}, *ONE_AND_TWO[1:]])
    results = given.outcomes("coco", uri, absent=0)
    refused = [result for result in results if isinstance(result, Rejection)]
    assert {(r.reason.value, "WBC" in r.id) for r in refused} == {("box-malformed", True)}
    assert all("is a rotated box; replace it by the upright box around it" in r.detail for r in refused)
    assert len(results) - len(refused) == 3  # of the platelets


@pytest.mark.parametrize("turn", [0, 0.0, 180, 360])
def test_coco_reads_boxes_that_are_turned_onto_themselves(given: Given, turn: float) -> None:
    uri = instances(given, [ONE_AND_TWO[0] | {"attributes": {"rotation": turn}}])
    (result,) = given.outcomes("coco", uri, questions=("where",), absent=0)
    assert isinstance(result, Sample)


def test_coco_names_exif_where_sides_are_exchanged(given: Given) -> None:
    buffer, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = 6  # of a camera that was held upright
    Pillow.new("RGB", (40, 30)).save(buffer, "JPEG", exif=exif)
    given.image("turned.jpg", data=buffer.getvalue())
    images = [{"id": 1, "file_name": "turned.jpg", "width": 40, "height": 30}]
    (refused,) = given.outcomes("coco", instances(given, ONE_AND_TWO[:1], images), questions=("where",))
    assert isinstance(refused, Rejection)
    assert refused.reason.value == "image-size-differs"
    assert "has 30 x 40 (upright, as EXIF turns it; if the boxes are of the image as it is" in refused.detail


# ------------------------------------------------------------------------------------------------------- RefCOCO


@pytest.fixture
def garden(given: Given) -> Given:
    given.image("COCO_train2014_000000533220.jpg", 640, 427)
    return given


def test_refcoco_expressions_are_answered_by_pointing(garden: Given) -> None:
    sample = garden.sample("refcoco", REFCOCO, phrasings="one")
    assert sample.question == "Where is what this describes: a bush of plant behind middle woman?"
    assert sample.answers == ("top",)
    (mention,) = sample.evidence or ()
    assert (mention.label, mention.boxes[0].as_list()) == ("a bush of plant behind middle woman", REFCOCO["bbox"])
    assert (sample.origin.dataset, sample.origin.split) == ("refcocog", "validation")
    says_it = garden.sample("refcoco", REFCOCO | {"expression": "the bush at the top", "split": "testB"})
    assert ([m.label for m in says_it.evidence or ()], says_it.origin.split) == (["region"], "test")
    rows = garden.rows([REFCOCO | {"sent_id": n} for n in range(30)])
    wordings = [question for question, _, _ in asked(garden.outcomes("refcoco", rows))]
    assert wordings == [question for question, _, _ in asked(garden.outcomes("refcoco", rows, readers=4))]
    assert len(set(wordings)) == 3


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"expression": " "}, "no-question"),
        ({"bbox": "none"}, "box-malformed"),
        ({"bbox": [285.04, 23.29]}, "box-malformed"),
        ({"bbox": [285.04, 23.29, 724.78, 146.4]}, "box-outside"),
        ({"bbox": [0.44, 0.05, 0.66, 0.34]}, "box-too-small"),
        ({"width": 427, "height": 640}, "image-size-differs"),
        ({"img_path": "COCO_train2014_000000000001.jpg"}, "image-missing"),
        ({"split": "dev"}, "wrong-shape"),
    ],
)
def test_refused_rows_of_refcoco(garden: Given, changed: dict[str, Any], reason: str) -> None:
    assert garden.reason("refcoco", REFCOCO | changed) == reason


# -------------------------------------------------------------------------------------------------- drawn scenes


def test_drawn_scenes_are_the_same_in_every_run_and_others_with_another_seed(tmp_path: Path) -> None:
    def drawn(seed: int, readers: int) -> list[Sample]:
        given = Given(tmp_path / f"{seed}-{readers}")
        results = given.outcomes(
            "scenes", scenes=3, seed=seed, readers=readers, questions=("where", "count", "presence")
        )
        return [r for r in results if isinstance(r, Sample)]

    where, count, presence = samples = drawn(1, 1)
    assert [s.id for s in samples] == ["scene:000000", "scene:000001", "scene:000002"]
    assert all(Path(s.image.uri).exists() for s in samples)
    if where.true_boxes:
        assert where.answers == (place(where.true_boxes[0], where.image.width, where.image.height),)
    assert count.answers == (str(len(count.true_boxes or ())),)
    assert presence.answers == ("yes" if presence.true_boxes else "no",)
    digests = [s.image.sha256 for s in samples]
    assert digests == [s.image.sha256 for s in drawn(1, 3)]
    assert not {s.image.sha256 for s in drawn(2, 1)} & set(digests)
