"""VisCoT: real rows of each form, the two copies of a box, the quirks of the dataset, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datasets.given import Given, informed, png
from vcot.datasets import DATASETS, read, rows_of_shard
from vcot.grounding import Mention
from vcot.records import Folder, Rejection
from vcot.records.shards import CONVERT
from vcot.storage import Store

ASK = "Please provide the bounding box coordinate of the region that can help you answer the question better."
CUB = {
    "dataset": "cub", "split": "val", "question_id": 7,
    "image": [
        "cot/cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg",
        "cot/cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg###[141, 87, 397, 298]",
    ],
    "conversations": [
        {"from": "human", "value": f"<image>\nDoes the bird in the image have blue breast and dagger bill? {ASK}"},
        {"from": "gpt", "value": "[0.282, 0.316, 0.794, 0.738]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "No"},
    ],
}  # fmt: skip
SROIE = {
    "question": "What is the date in the invoice shown in the picture?", "answer": "13/10/2017",
    "image": "X51006555072.jpg", "width": 592, "height": 982, "bboxs": [[48, 429, 177, 451]],
    "dataset": "sroie", "split": "train",
}  # fmt: skip
GQA = {
    "question": "Who is wearing a shirt?", "answer": "girl", "full_answer": "The girl is wearing a shirt.",
    "image": "2331819.jpg", "width": 500, "height": 375, "bboxs": [[214, 0, 433, 374]], "dataset": "gqa",
    "split": "train",
    "thought": "1. We are looking for someone who is wearing a shirt in the image. 2. First, let's identify all the "
    "people in the image.",
}  # fmt: skip


def chat(text: str, ints: str | None, dataset: str = "vsr", **changed: Any) -> dict[str, Any]:
    path = "cot/vsr/a.jpg"
    turns = [f"<image>\nWhat is there? {ASK}", text, "<image>", "cake"]
    return {
        "dataset": dataset, "split": "train", "question_id": 0,
        "image": [path, path if ints is None else f"{path}###{ints}"],
        "conversations": [
            {"from": who, "value": turn} for who, turn in zip(("human", "gpt") * 2, turns, strict=True)
        ],
    } | changed  # fmt: skip


def metadata(bboxs: Any, **changed: Any) -> dict[str, Any]:
    return {
        "question": "What is there?", "answer": "cake", "image": "a.jpg", "width": 640, "height": 480,
        "bboxs": bboxs, "dataset": "vsr", "split": "train",
    } | changed  # fmt: skip


@pytest.fixture
def vsr(given: Given) -> Given:
    given.image("vsr/a.jpg", 640, 480)
    return given


# ------------------------------------------------------------------------------------------- three forms, real rows


def test_a_chat_row(given: Given) -> None:
    given.image("cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg", 500, 357)
    sample = given.sample("viscot", CUB)
    assert sample.question == "Does the bird in the image have blue breast and dagger bill?"
    assert sample.answers == ("No",)
    assert sample.evidence is not None
    (mention,) = sample.evidence
    assert mention.label == "bird"
    assert mention.boxes[0].as_list() == pytest.approx([141, 87, 397, 298], abs=0.26)
    assert (sample.image.width, sample.image.height) == (500, 357)
    assert (sample.origin.dataset, sample.origin.split, sample.origin.row) == ("cub", "test", "rows.jsonl:1")


def test_a_metadata_row(given: Given) -> None:
    given.image("sroie/X51006555072.jpg", 592, 982)
    sample = given.sample("viscot", SROIE, validation_share=0.0)
    assert sample.evidence is not None
    assert [(m.label, [b.as_list() for b in m.boxes]) for m in sample.evidence] == [("date", [[48, 429, 177, 451]])]
    assert sample.reasoning == ()
    assert sample.origin.split == "train"
    assert "Apache-2.0" in sample.origin.licence


def test_steps_without_places_are_closed_by_a_sentence_that_points(given: Given) -> None:
    given.image("gqa/2331819.jpg", 500, 375)
    sample = given.sample("viscot", GQA)
    (trace,) = sample.reasoning
    assert trace.text.startswith("1. We are looking for someone")
    assert [box.as_list() for box in trace.boxes] == [[214, 0, 433, 374]]
    assert trace.text.endswith("The place to look at is the person.")


def test_other_accepted_answers_and_choices_are_kept(vsr: Given) -> None:
    row = metadata([[1, 2, 30, 40]], possible_answers=["Cake", "cake"], multiple_choices=["cake", "pie"])
    sample = vsr.sample("viscot", row)
    assert sample.answers == ("cake", "Cake")
    assert sample.choices == ("cake", "pie")


# ----------------------------------------------------------------------------------- the two copies of a chat box

WORKED = [
    # width, height, true box, chat string, un-padded
    (1695, 2200, (74, 398, 404, 1118), "0.148, 0.181, 0.298, 0.508", (73.6, 398.2, 403.6, 1117.6)),
    (500, 357, (141, 87, 397, 298), "0.282, 0.316, 0.794, 0.738", (141, 87, 397, 298)),
    (931, 1870, (86, 208, 840, 257), "0.297, 0.111, 0.700, 0.137", (86.4, 207.6, 840.0, 256.2)),
    (391, 500, (217, 343, 242, 393), "0.542, 0.686, 0.592, 0.786", (217, 343, 242, 393)),
    (969, 2221, (221.31, 600.86, 931.42, 1301.99), "0.382, 0.271, 0.701, 0.586", (222.4, 601.9, 930.9, 1301.5)),
    (500, 375, (2, 0, 390, 282), "0.004, 0.124, 0.780, 0.688", (2, 0, 390, 282)),
]


@pytest.mark.parametrize(("width", "height", "true", "written", "plain"), WORKED)
def test_fractions_alone_are_un_padded(
    given: Given, width: int, height: int, true: Any, written: str, plain: Any
) -> None:
    given.image("vsr/a.jpg", width, height)
    sample = given.sample("viscot", chat(f"[{written}]", None))
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == pytest.approx(plain, abs=0.06)


@pytest.mark.parametrize(("width", "height", "true", "written", "plain"), WORKED)
def test_both_copies_together_are_within_a_pixel_of_the_truth(
    given: Given, width: int, height: int, true: Any, written: str, plain: Any
) -> None:
    given.image("vsr/a.jpg", width, height)
    sample = given.sample("viscot", chat(f"[{written}]", str([int(edge) for edge in true])))
    assert sample.true_boxes is not None
    for edge, exact in zip(sample.true_boxes[0].as_list(), true, strict=True):
        assert int(exact) <= edge <= int(exact) + 1


@pytest.mark.parametrize(
    ("ints", "x1"),
    [
        ("[10, 20, 310, 120]", 10.16),  # 9.68 to 10.32 by the fraction, 10 to 11 by the integer: the middle of both
        ("[9, 20, 310, 120]", 9.84),  # … and 9 to 10
        ("[11, 20, 310, 120]", 11.0),  # 1 px off, which rounding and truncation explain: the integer's pixel
        ("[11.3, 20, 310, 120]", 11.3),  # just at the bound of 1 + 0.0005 · 640 px
    ],
)
def test_an_edge_is_the_middle_of_what_both_copies_allow(vsr: Given, ints: str, x1: float) -> None:
    sample = vsr.sample("viscot", chat("[0.015625, 0.15625, 0.484375, 0.3125]", ints))
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].x1 == pytest.approx(x1)


@pytest.mark.parametrize(
    "ints", ["[11.33, 20, 310, 120]", "[8, 20, 310, 120]", "[10, 20, 310, 150]", "[10, 100, 310, 200]"]
)
def test_copies_of_different_boxes_are_refused(vsr: Given, ints: str) -> None:
    assert vsr.reason("viscot", chat("[0.015625, 0.15625, 0.484375, 0.3125]", ints)) == "box-copies-disagree"


def test_a_negative_integer_was_truncated_towards_zero_and_is_cut_at_the_border(vsr: Given) -> None:
    # x1 = -0.006 · 640 = -3.84, which truncates to -3
    sample = vsr.sample("viscot", chat("[-0.006, 0.3, 0.5, 0.6]", "[-3, 112, 320, 304]"))
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == pytest.approx([0, 112, 320, 304], abs=0.2)


def test_where_a_whole_set_can_be_of_whole_pixels_the_integers_are_the_boxes(given: Given) -> None:
    for path in ("vsr/a.jpg", "gqa/a.jpg", "gqa/b.jpg"):
        given.image(path, 640, 480, png(640, 480, path))
    ints, source = "[64, 112, 320, 304]", DATASETS["viscot"]
    rows = [
        chat("[0.1, 0.3, 0.5, 0.6]", ints),
        chat("[0.1, 0.3, 0.5, 0.6]", ints, "gqa", image=["cot/gqa/a.jpg", f"cot/gqa/a.jpg###{ints}"]),
        chat("[0.101, 0.3, 0.5, 0.6]", ints, "gqa", image=["cot/gqa/b.jpg", f"cot/gqa/b.jpg###{ints}"]),
    ]
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    desk = informed(source, given.desk("viscot", given.rows(rows), near_duplicates=0), folder, look=True)
    assert desk.prepared.whole_pixels == ["vsr"]
    found = [sample.true_boxes for _, sample in read(rows_of_shard(desk), desk)]
    assert [boxes[0].x1 for boxes in found] == [64, pytest.approx(64.16, abs=0.01), pytest.approx(64.64, abs=0.01)]


def test_without_the_second_copy_a_box_may_leave_the_image_by_the_overhang(vsr: Given) -> None:
    assert vsr.sample("viscot", chat("[-0.007, 0.3, 0.5, 0.6]", None)).true_boxes
    assert vsr.reason("viscot", chat("[-0.02, 0.3, 0.5, 0.6]", None)) == "box-outside"


# ------------------------------------------------------------------------------------------------------- quirks


@pytest.mark.parametrize(
    ("dataset", "image", "path"),
    [
        ("textcap", "cot/textvqa/1.jpg", "textvqa/1.jpg"),
        ("textcap", "cot/textcap/1.jpg", "textvqa/1.jpg"),
        ("textcap", "1.jpg", "textvqa/1.jpg"),
        ("v7w", "cot/v7w/v7w_1.jpg", "v7w/v7w_1.jpg"),
        ("visual7w", "v7w_1.jpg", "v7w/v7w_1.jpg"),
        ("visual7w", "cot/visual7w/v7w_1.jpg", "v7w/v7w_1.jpg"),
        ("cub", "001.Black_footed_Albatross/x.jpg", "cub/001.Black_footed_Albatross/x.jpg"),
        ("emotic", "cot/emotic/emodb_small/images/x.jpg", "emotic/emodb_small/images/x.jpg"),
        ("infographicsvqa", "30.jpeg", "infographicsvqa/30.jpeg"),
    ],
)
def test_where_the_images_of_a_set_lie(given: Given, dataset: str, image: str, path: str) -> None:
    given.image(path, 640, 480)
    sample = given.sample("viscot", metadata([[1, 2, 30, 40]], dataset=dataset, image=image))
    assert sample.image.uri.endswith(f"/images/{path}")
    assert sample.origin.dataset == dataset


@pytest.mark.parametrize("wording", [ASK, ASK.replace("provide", "think step by step and provide"), ASK.upper()])
def test_the_sentence_that_asks_for_the_box_is_no_part_of_the_question(vsr: Given, wording: str) -> None:
    row = chat("[0.1, 0.3, 0.5, 0.6]", None)
    row["conversations"][0]["value"] = f"<image>\nWhat is there? {wording}"
    assert vsr.sample("viscot", row).question == "What is there?"


def test_a_list_of_boxes_stays_a_list_and_repeated_ones_count_once(vsr: Given) -> None:
    sample = vsr.sample("viscot", metadata([[1, 2, 30, 40], [50.5, 60, 70, 80], [1, 2, 30, 40]]))
    assert sample.true_boxes is not None
    assert [box.as_list() for box in sample.true_boxes] == [[1, 2, 30, 40], [50.5, 60, 70, 80]]


@pytest.mark.parametrize(
    ("question", "answer", "dataset", "label"),
    [
        ("What animal is on the grass?", "horse", "gqa", "animal"),
        ("What animal is on the grass?", "a grey animal", "gqa", "region"),  # the label would be in the answer
        ("Who is wearing a shirt?", "girl", "gqa", "person"),
        ("Who is wearing a shirt?", "A person", "gqa", "region"),
        ("who is wanted?", "jaime albarran", "textvqa", "region"),  # the box is round letters, not round a person
        ("Is the car over the cat?", "No", "vsr", "region"),
        ("What is the total amount in the invoice shown in the picture?", "1.70", "sroie", "total amount"),
        ("What is the person in the green jacket doing?", "Reading.", "flickr30k", "person in the green jacket"),
    ],
)
def test_a_label_comes_from_the_question_and_is_never_the_answer(
    given: Given, question: str, answer: str, dataset: str, label: str
) -> None:
    given.image(f"{dataset}/a.jpg", 640, 480)
    row = metadata([[1, 2, 30, 40]], question=question, answer=answer, dataset=dataset)
    sample = given.sample("viscot", row)
    assert sample.evidence == (Mention(label, sample.true_boxes or ()),)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("overhang", [0.01, 1, 5])
def test_a_slight_overhang_is_cut_at_the_border(vsr: Given, overhang: float) -> None:
    sample = vsr.sample("viscot", metadata([[-overhang, 10, 100, 480 + overhang]]))
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == [0, 10, 100, 480]


@pytest.mark.parametrize(
    ("bboxs", "reason"),
    [
        ([[868, 213, 859, 389]], "box-inverted"),
        ([[10, 40, 20, 30]], "box-inverted"),
        ([[10, 10, 10, 30]], "box-empty"),
        ([[10, 10, 20, 10]], "box-empty"),
        ([[0, 0, float("inf"), 10]], "box-not-finite"),
        ([[float("nan"), 0, 1, 10]], "box-not-finite"),
        ([[0, 0, 10**400, 10]], "box-not-finite"),
        ([[484, 16537, 1896, 16625]], "box-outside"),  # coordinates of another page
        ([[-5.1, 10, 100, 100]], "box-outside"),
        ([[641, 10, 644, 100]], "box-outside"),  # within the overhang, and nothing of it in the image
        ([[1, 2, 3]], "box-malformed"),
        ([["1", 2, 3, 4]], "box-malformed"),
        ([[True, 2, 30, 40]], "box-malformed"),
        ([1, 2, 3, 4], "box-malformed"),
        ("[1, 2, 3, 4]", "box-malformed"),
        ([], "no-box"),
        ([[1, 2, 30, 40], [10, 10, 10, 30]], "box-empty"),  # evidence is whole, or the row is refused
    ],
)
def test_boxes_that_are_none(vsr: Given, bboxs: Any, reason: str) -> None:
    assert vsr.reason("viscot", metadata(bboxs)) == reason


@pytest.mark.parametrize(
    ("text", "ints", "reason"),
    [
        ("[0.6, 0.3, 0.5, 0.6]", "[384, 112, 320, 304]", "box-inverted"),
        ("[0.6, 0.3, 0.5, 0.6]", None, "box-inverted"),
        ("[0.5, 0.3, 0.5, 0.6]", None, "box-empty"),
        ("[0.1, 0.3, Infinity, 0.6]", None, "box-not-finite"),
        ("[0.1, 0.3, NaN, 0.6]", "[64, 112, 320, 304]", "box-not-finite"),
        ("[0.1, 0.3, 0.5]", None, "box-malformed"),
        ("on the left", None, "box-malformed"),
        ("[0.1, 0.3, 0.5, 0.6]", "[64, 112, 320]", "box-malformed"),
        ("[0.1, 0.3, 0.5, 0.6]", "left", "box-malformed"),
        ("[0.1, 7.3, 0.5, 9.6]", None, "box-outside"),
        ("[0.1, 0.3, 0.5, 0.6]", "[]", "box-malformed"),
    ],
)
def test_chat_boxes_that_are_none(vsr: Given, text: str, ints: str | None, reason: str) -> None:
    assert vsr.reason("viscot", chat(text, ints)) == reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"question": "  "}, "no-question"),
        ({"question": ASK}, "no-question"),
        ({"question": None}, "no-question"),
        ({"answer": ""}, "no-answer"),
        ({"answer": 7}, "no-answer"),
        ({"question": "\u200b\u2060 "}, "no-question"),
        ({"question": "\0"}, "no-question"),
        ({"answer": "\0\ufeff"}, "no-answer"),
        ({"multiple_choices": ["cake", 7]}, "wrong-shape"),
        ({"multiple_choices": "cake, tea"}, "wrong-shape"),
        ({"possible_answers": ["cake", None]}, "wrong-shape"),
        ({"width": 480, "height": 640}, "image-size-differs"),
        ({"width": 641}, "image-size-differs"),
        ({"width": "640"}, "wrong-shape"),
        ({"image": 7}, "wrong-shape"),
        ({"dataset": None}, "wrong-shape"),
        ({"split": "dev"}, "wrong-shape"),
        ({"image": "b.jpg"}, "image-missing"),
        ({"image": "../../etc/passwd"}, "image-missing"),
    ],
)
def test_rows_that_say_too_little_or_something_wrong(vsr: Given, changed: dict[str, Any], reason: str) -> None:
    assert vsr.reason("viscot", metadata([[1, 2, 30, 40]], **changed)) == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"image": []},
        {"image": None},
        {"image": ["a", "b", "c"]},
        {"image": ["cot/vsr/a.jpg", "cot/vsr/b.jpg###[64, 112, 320, 304]"]},
        {"conversations": []},
        {"conversations": "no"},
    ],
)
def test_chat_rows_of_another_shape(vsr: Given, changed: dict[str, Any]) -> None:
    assert vsr.reason("viscot", chat("[0.1, 0.3, 0.5, 0.6]", None, **changed)) == "wrong-shape"


def test_choices_that_lack_the_answer_are_none(vsr: Given) -> None:
    """Visual7W's own files list the three wrong ones under that key."""
    kept = vsr.sample("viscot", metadata([[1, 2, 30, 40]], multiple_choices=["cup", "tea"]))
    assert (kept.answers, kept.choices) == (("cake",), None)


def test_a_refusal_shows_what_was_written_and_what_would_be_right(vsr: Given) -> None:
    refused = vsr.outcome("viscot", metadata([[484, 16537, 1896, 16625]]))
    assert isinstance(refused, Rejection)
    assert refused.id == "rows.jsonl:1"
    assert "640x480" in refused.detail
    assert "16537" in refused.detail
