"""RefCOCO's suite and POPE's: rows that convert makes, figures by hand and against torchvision."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from tests.fakes.published import DATA, lines, marked_by, pointing, published
from tests.fakes.rows import POPE, REFCOCO, Given, instances
from vcot.datasets.coco import EXPRESSION_PHRASINGS
from vcot.evaluation.suites import SUITES
from vcot.records import Rejection, Sample

REF, POPE_SUITE = SUITES["refcoco"], SUITES["pope"]


def samples(results: list[Any]) -> list[Sample]:
    assert all(isinstance(one, Sample) for one in results), results
    return results


def figures(suite: Any, said: list[tuple[Sample, str]]) -> dict[str, Any]:
    marked = [marked_by(suite, text, one) for one, text in said]
    assert None not in marked
    return {result.set: result.values for result in suite.results(marked)}


# ------------------------------------------------------------------------------------------------------- RefCOCO


def test_published_expressions_are_found_as_torchvision_finds_them(given: Given) -> None:
    rows = lines(published("refcoco/refcocog_umd_val.jsonl"))[:300]
    for row in rows:
        given.image(row["img_path"], row["width"], row["height"])
    generator, said, edges = random.Random(0), [], []
    for one in samples(given.outcomes("refcoco", given.rows(rows))):
        assert one.true_boxes is not None
        box = one.true_boxes[0]
        by = generator.choice((0.0, 0.02, 0.08, 0.2, 0.3, 0.55)) * box.width
        edges.append([round(edge, 2) for edge in (box.x1, box.y1, max(box.x2 - by, box.x1 + 0.1), box.y2)])
        said.append((one, pointing(one, edges[-1])))
    true = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64)
    overlaps = box_iou(torch.tensor(edges, dtype=torch.float64), true).diagonal()
    values = figures(REF, said)["refcocog validation"]
    for at in (50, 75, 90):
        assert values[f"accuracy_at_{at}"] == (overlaps >= at / 100).double().mean().item()
    assert values["mean_iou"] == pytest.approx(overlaps.mean().item(), abs=1e-9)
    assert 0.3 < values["accuracy_at_90"] < values["accuracy_at_75"] < values["accuracy_at_50"] <= 1


@pytest.fixture
def garden(given: Given) -> Given:
    given.image(REFCOCO["img_path"], 640, 427)
    return given


@pytest.mark.parametrize("bbox", [None, []])
def test_an_expression_may_describe_nothing_in_the_image(garden: Given, bbox: Any) -> None:
    sample = garden.sample("refcoco", REFCOCO | {"bbox": bbox}, phrasings="one")
    assert (sample.evidence, sample.answers[0]) == ((), "no")
    assert sample.question == "Where is what this describes: a bush of plant behind middle woman?"
    without = {name: said for name, said in REFCOCO.items() if name != "bbox"}
    assert garden.reason("refcoco", without | {"dataset": "x"}) == "box-malformed"


def test_rejections_are_told_apart_from_boxes_and_from_what_cannot_be_read(garden: Given) -> None:
    absent = garden.sample("refcoco", REFCOCO | {"bbox": None})
    there = garden.sample("refcoco", REFCOCO)
    replies = {
        "I see nothing like it.\nAnswer: no": "rejected",
        "I see nothing like it.\nAnswer: There is no such bush.": "rejected",
        '```json\n[{"bbox_2d": null, "label": "bush"}]\n```': "rejected",
        "[]": "rejected",
        "<box>[10, 10, 40, 40]</box>\nAnswer: no": "boxes_where_absent",
        "The <ref>bush</ref><box>[10, 10, 40, 40]</box>.\nAnswer: left": "boxes_where_absent",
        "": "unreadable_where_absent",
        "The <ref>bush</ref><box>[10, 10, 40</box>.\nAnswer: left": "unreadable_where_absent",
        "Answer: north of it": "unreadable_where_absent",
    }
    names = ("rejected", "boxes_where_absent", "unreadable_where_absent")
    for text, kind in replies.items():
        values = figures(REF, [(absent, text), (there, pointing(there, REFCOCO["bbox"]))])["refcocog validation"]
        assert {name: values[name] for name in names} == {name: float(name == kind) for name in names}, text
        assert values["accuracy_at_50"] == 1  # of the one that is there


def test_sets_are_the_splits_as_they_are_published(garden: Given) -> None:
    def part(**changed: Any) -> str | None:
        return REF.sets(garden.sample("refcoco", REFCOCO | changed))

    assert part(dataset_name="jxu124/refcocoplus", split="testB") == "refcocoplus testB"
    assert part(dataset_name="jxu124/refcoco", split="testA") == "refcoco testA"
    assert part(split="test") == "refcocog test"
    # Other files of expressions, whatever they are called.
    assert part(dataset_name="x/ref-l4", split="test") == "ref-l4 test"
    for phrase in EXPRESSION_PHRASINGS:
        sample = garden.sample("refcoco", REFCOCO).model_copy(update={"question": phrase.format("bush")})
        origin = sample.origin.model_copy(update={"dataset": "mine"})
        assert REF.sets(sample.model_copy(update={"origin": origin})) == "mine validation"
    assert (
        REF.sets(samples(garden.outcomes("coco", instances(garden, [{"category_id": 1, "bbox": [1, 2, 3, 4]}])))[0])
        is None
    )


# ---------------------------------------------------------------------------------------------------------- POPE

#: What images show, of five categories.
SHOWN = ["ab", "ab", "ac", "acd", "e", "b"]


def scene(given: Given) -> str:
    images, annotations = [], []
    for number, shown in enumerate(SHOWN, 1):
        given.image(f"{number}.png", 100 + number, 80)
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [
            {"image_id": number, "category_id": "abcde".index(name) + 1, "bbox": [1, 1, 9, 9]} for name in shown
        ]
    names = [{"id": number, "name": name} for number, name in enumerate("abcde", 1)]
    return instances(given, annotations, images, {"categories": names})


def denied(results: list[Any], by: str) -> dict[int, list[str]]:
    """Image → what is asked about and not there, in order."""
    found: dict[int, list[str]] = {number: [] for number in range(1, len(SHOWN) + 1)}
    for one in samples(results):
        _, image, kind, category = one.id.split(":")
        assert kind == f"presence-{by}"
        assert one.answers == ("yes" if category in SHOWN[int(image) - 1] else "no",)
        assert (one.evidence == ()) == (one.answers == ("no",))
        if one.answers == ("no",):
            found[int(image)].append(category)
    return found


def test_popular_things_are_the_most_frequent_that_are_not_there(given: Given) -> None:
    # In images: a 4, b 3, c 2, d 1, e 1; of equal ones any.
    found = denied(given.outcomes("coco", scene(given), absent_by="popular", absent=2), "popular")
    assert [of_image[0] for of_image in found.values()] == ["c", "c", "b", "b", "a", "a"]
    assert {of_image[1] for of_image in found.values() if len(of_image) == 2} <= {"d", "e"}


def test_adversarial_things_are_those_that_stand_most_often_beside_what_is_there(given: Given) -> None:
    results = given.outcomes("coco", scene(given), absent_by="adversarial", absent=2)
    found = denied(results, "adversarial")
    assert found[1] == ["c", "d"]  # beside a or b: c twice, d once, e never
    assert {*found[3]} == {"b", "d"}  # beside a: b twice, d once; beside c: d once; e never
    assert found[6] == ["a"]
    assert found[4][0] == "b"


@pytest.mark.parametrize("by", ["random", "popular", "adversarial"])
def test_as_many_are_there_as_are_not_in_each_image_whatever_the_seed(given: Given, by: str) -> None:
    uri = scene(given)
    results = samples(given.outcomes("coco", uri, absent_by=by, absent=3, seed=1))
    counts = Counter((one.id.split(":")[1], one.answers[0]) for one in results)
    for number, shown in enumerate(SHOWN, 1):
        assert counts[str(number), "yes"] == counts[str(number), "no"] == min(len(shown), 5 - len(shown), 3)
    assert [one.id for one in results] == [
        one.id for one in given.outcomes("coco", uri, absent_by=by, absent=3, seed=2)
    ]
    assert {(POPE_SUITE.sets(one), one.origin.split) for one in results} == {(by, "test")}
    assert {one.question.split()[0] for one in results} <= {"Is", "Do"}


def test_questions_of_published_cells_are_balanced(given: Given) -> None:
    uri = published("bccd/instances.json")
    given.images = DATA / "bccd" / "images"
    results = samples(given.outcomes("coco", str(uri), absent_by="popular"))
    answers = Counter(one.answers[0] for one in results)
    assert answers["yes"] == answers["no"] > 20


@pytest.mark.parametrize(
    ("options", "said"),
    [({"questions": ("count",)}, "no presence"), ({"absent": 0}, "--absent=0 asks nothing")],
)
def test_balanced_questions_that_cannot_be_asked_are_refused(given: Given, options: Any, said: str) -> None:
    faults = list(given.context("coco", scene(given), absent_by="random", **options).own.faults())
    assert [said in fault for fault in faults] == [True]


def test_popes_own_files_are_sets_of_their_own(given: Given) -> None:
    given.image(POPE["image"], 640, 480)
    files = [given.rows([POPE, POPE | {"label": "no"}], f"coco_pope_{name}.json") for name in ("popular", "random")]
    results = samples(given.outcomes("pope", *files))
    assert [(POPE_SUITE.sets(one), one.answers, one.evidence, one.origin.split) for one in results] == [
        ("pope popular", ("yes",), None, "test"), ("pope popular", ("no",), (), "test"),
        ("pope random", ("yes",), None, "test"), ("pope random", ("no",), (), "test"),
    ]  # fmt: skip
    values = figures(POPE_SUITE, [(one, "Answer: yes") for one in results])
    assert (values["pope average"]["recall_yes"], values["pope average"]["precision_yes"]) == (1.0, 0.5)
    for changed, reason in (({"label": "maybe"}, "no-answer"), ({"text": ""}, "no-question")):
        (refused,) = given.outcomes("pope", given.rows([POPE | changed], "coco_pope_random.json"))
        assert isinstance(refused, Rejection)
        assert refused.reason.value == reason
    (refused,) = given.outcomes("pope", given.rows([POPE], "mine.json"))
    assert isinstance(refused, Rejection)
    assert "random, popular or adversarial; got 'mine'" in str(refused.detail)


def test_figures_of_yes_by_hand(given: Given) -> None:
    results = samples(given.outcomes("coco", scene(given), absent_by="random", absent=1))
    there = [one for one in results if one.answers == ("yes",)][:4]
    others = [one for one in results if one.answers == ("no",)][:4]
    # There: yes, yes, no, neither. Not there: yes, no, no, no.
    replies = ["yes", "Yes, there is one.", "no", "I cannot tell", "yes", "No.", "no", "there is none"]
    values = figures(
        POPE_SUITE, [(one, f"Answer: {said}") for one, said in zip([*there, *others], replies, strict=True)]
    )
    (found,) = [each for name, each in values.items() if name == "random"]
    assert found["answer_score"] == 4 / 8
    assert found["precision_yes"] == 2 / 3
    assert found["recall_yes"] == 2 / 4
    assert found["f1_yes"] == pytest.approx(2 / (3 / 2 + 4 / 2))
    assert found["yes_share"] == 3 / 8
    assert found["unreadable"] == 2 / 8  # "I cannot tell" and "there is none"
    always = figures(POPE_SUITE, [(one, "Answer: yes") for one in (*there, *others)])["random"]
    assert (always["answer_score"], always["f1_yes"], always["yes_share"]) == (0.5, pytest.approx(2 / 3), 1.0)


@pytest.mark.parametrize(
    ("reply", "share"), [("no, yes", None), ("yes or no", None), ("No idea.", None), ("No gears are visible.", 0.0)]
)
def test_pope_counts_contradictions_as_unreadable(given: Given, reply: str, share: float | None) -> None:
    results = samples(given.outcomes("coco", scene(given), absent_by="random", absent=1))
    values = figures(POPE_SUITE, [(one, f"Answer: {reply}") for one in results])["random"]
    assert (values["yes_share"], values["unreadable"]) == (0.0, 0.0 if share is not None else 1.0)
    assert values["answer_score"] == (0.0 if share is None else 0.5)
