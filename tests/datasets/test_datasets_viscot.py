"""VisCoT: real rows of each form, the two copies of a box, GQA's programs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.rows import ASK, CUB, GQA, SROIE, Given, chat, informed, metadata, png
from vcot.datasets import read, rows_of_shard
from vcot.datasets.viscot import grounded, in_words, program, target
from vcot.grounding import Box, Mention
from vcot.records import Folder, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Store

INTS, FRACTIONS = "[64, 112, 320, 304]", "[0.1, 0.3, 0.5, 0.6]"


@pytest.fixture
def vsr(given: Given) -> Given:
    given.image("vsr/a.jpg", 640, 480)
    given.image("gqa/2331819.jpg", 500, 375)
    return given


def box_of(sample: Sample) -> list[float]:
    assert sample.true_boxes is not None
    return sample.true_boxes[0].as_list()


def test_chat_row(given: Given) -> None:
    given.image("cub/001.Black_footed_Albatross/Black_Footed_Albatross_0016_796067.jpg", 500, 357)
    sample = given.sample("viscot", CUB)
    assert sample.question == "Does the bird in the image have blue breast and dagger bill?"
    assert sample.answers == ("No",)
    assert [mention.label for mention in sample.evidence or ()] == ["bird"]
    assert box_of(sample) == pytest.approx([141, 87, 397, 298], abs=0.26)
    assert (sample.image.width, sample.image.height) == (500, 357)
    assert (sample.origin.dataset, sample.origin.split, sample.origin.row) == ("cub", "test", "rows.jsonl:1")


def test_metadata_row(given: Given) -> None:
    given.image("sroie/X51006555072.jpg", 592, 982)
    sample = given.sample("viscot", SROIE, validation_share=0.0)
    assert [(m.label, m.boxes[0].as_list()) for m in sample.evidence or ()] == [("date", [48, 429, 177, 451])]
    assert sample.reasoning == ()
    assert sample.origin.split == "train"
    assert "Apache-2.0" in sample.origin.licence


def test_other_accepted_answers_and_choices_are_kept_and_repeated_boxes_count_once(vsr: Given) -> None:
    boxes = [[1, 2, 30, 40], [50.5, 60, 70, 80], [1, 2, 30, 40]]
    row = metadata(boxes, possible_answers=["Cake", "cake"], multiple_choices=["cake", "pie"])
    sample = vsr.sample("viscot", row)
    assert (sample.answers, sample.choices) == (("cake", "Cake"), ("cake", "pie"))
    assert [box.as_list() for box in sample.true_boxes or ()] == boxes[:2]
    # Visual7W's own files list the wrong ones alone.
    assert vsr.sample("viscot", row | {"multiple_choices": ["cup", "tea"]}).choices is None


# ----------------------------------------------------------------------------------- the two copies of a chat box


@pytest.mark.parametrize(
    ("width", "height", "true", "written", "plain"),
    [
        (1695, 2200, (74, 398, 404, 1118), "0.148, 0.181, 0.298, 0.508", (73.6, 398.2, 403.6, 1117.6)),
        (931, 1870, (86, 208, 840, 257), "0.297, 0.111, 0.700, 0.137", (86.4, 207.6, 840.0, 256.2)),
        (969, 2221, (221.31, 600.86, 931.42, 1301.99), "0.382, 0.271, 0.701, 0.586", (222.4, 601.9, 930.9, 1301.5)),
        (500, 375, (2, 0, 390, 282), "0.004, 0.124, 0.780, 0.688", (2, 0, 390, 282)),
    ],
)
def test_fractions_are_of_the_padded_square_and_both_copies_are_within_a_pixel_of_the_truth(
    given: Given, width: int, height: int, true: Any, written: str, plain: Any
) -> None:
    given.image("vsr/a.jpg", width, height)
    assert box_of(given.sample("viscot", chat(f"[{written}]", None))) == pytest.approx(plain, abs=0.06)
    both = given.sample("viscot", chat(f"[{written}]", str([int(edge) for edge in true])))
    assert all(int(exact) <= edge <= int(exact) + 1 for edge, exact in zip(box_of(both), true, strict=True))


@pytest.mark.parametrize(
    ("ints", "x1"),
    [
        ("[10, 20, 310, 120]", 10.16),  # 9.68 to 10.32 by the fraction, 10 to 11 by the integer: the middle of both
        ("[9, 20, 310, 120]", 9.84),  # … and 9 to 10
        ("[11, 20, 310, 120]", 11.0),  # 1 px off, which rounding and truncation explain: the integer's pixel
        ("[11.3, 20, 310, 120]", 11.3),  # just at the bound of 1 + 0.0005 · 640 px
        ("[11.33, 20, 310, 120]", None),
        ("[8, 20, 310, 120]", None),
        ("[10, 100, 310, 200]", None),
    ],
)
def test_an_edge_is_the_middle_of_what_both_copies_allow_or_they_disagree(
    vsr: Given, ints: str, x1: float | None
) -> None:
    row = chat("[0.015625, 0.15625, 0.484375, 0.3125]", ints)
    if x1 is None:
        assert vsr.reason("viscot", row) == "box-copies-disagree"
    else:
        assert box_of(vsr.sample("viscot", row))[0] == pytest.approx(x1)


def test_negative_integers_were_truncated_towards_zero(vsr: Given) -> None:
    sample = vsr.sample("viscot", chat("[-0.006, 0.3, 0.5, 0.6]", "[-3, 112, 320, 304]"))  # -0.006 · 640 = -3.84
    assert box_of(sample) == pytest.approx([0, 112, 320, 304], abs=0.2)


def test_integers_are_the_boxes_where_a_whole_set_can_be_of_whole_pixels(given: Given) -> None:
    for path in ("vsr/a.jpg", "gqa/a.jpg", "gqa/b.jpg"):
        given.image(path, 640, 480, png(640, 480, path))
    rows = [
        chat(FRACTIONS, INTS),
        chat(FRACTIONS, INTS, "gqa", image=["cot/gqa/a.jpg", f"cot/gqa/a.jpg###{INTS}"]),
        chat("[0.101, 0.3, 0.5, 0.6]", INTS, "gqa", image=["cot/gqa/b.jpg", f"cot/gqa/b.jpg###{INTS}"]),
    ]
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    context = informed(given.context("viscot", given.rows(rows), near_duplicates=0), folder, look=True)
    assert context.prepared.whole_pixels == ("vsr",)
    found = [sample.true_boxes[0].x1 for _, sample in read(rows_of_shard(context), context)]
    assert found == [64, pytest.approx(64.16, abs=0.01), pytest.approx(64.64, abs=0.01)]


@pytest.mark.parametrize("overhang", [0.01, 5])
def test_slight_overhang_is_cut_at_the_border(vsr: Given, overhang: float) -> None:
    assert box_of(vsr.sample("viscot", metadata([[-overhang, 10, 100, 480 + overhang]]))) == [0, 10, 100, 480]
    assert vsr.sample("viscot", chat("[-0.007, 0.3, 0.5, 0.6]", None)).true_boxes


# ------------------------------------------------------------------------------------------------------- quirks


@pytest.mark.parametrize(
    ("dataset", "image", "path"),
    [
        ("textcap", "cot/textvqa/1.jpg", "textvqa/1.jpg"),
        ("textcap", "cot/textcap/1.jpg", "textvqa/1.jpg"),
        ("textcap", "1.jpg", "textvqa/1.jpg"),
        ("visual7w", "v7w_1.jpg", "v7w/v7w_1.jpg"),
        ("visual7w", "cot/visual7w/v7w_1.jpg", "v7w/v7w_1.jpg"),
        ("cub", "001.Black_footed_Albatross/x.jpg", "cub/001.Black_footed_Albatross/x.jpg"),
        ("emotic", "cot/emotic/emodb_small/images/x.jpg", "emotic/emodb_small/images/x.jpg"),
    ],
)
def test_where_the_images_of_a_set_lie(given: Given, dataset: str, image: str, path: str) -> None:
    given.image(path, 640, 480)
    sample = given.sample("viscot", metadata([[1, 2, 30, 40]], dataset=dataset, image=image))
    assert sample.image.uri.endswith(f"/images/{path}")
    assert sample.origin.dataset == dataset


@pytest.mark.parametrize("wording", [ASK, ASK.replace("provide", "think step by step and provide"), ASK.upper()])
def test_the_sentence_that_asks_for_the_box_is_no_part_of_the_question(vsr: Given, wording: str) -> None:
    row = chat(FRACTIONS, None)
    row["conversations"][0]["value"] = f"<image>\nWhat is there? {wording}"
    assert vsr.sample("viscot", row).question == "What is there?"


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
def test_labels_come_from_the_question_and_are_never_the_answer(
    given: Given, question: str, answer: str, dataset: str, label: str
) -> None:
    given.image(f"{dataset}/a.jpg", 640, 480)
    sample = given.sample("viscot", metadata([[1, 2, 30, 40]], question=question, answer=answer, dataset=dataset))
    assert sample.evidence == (Mention(label, sample.true_boxes or ()),)


# ------------------------------------------------------------------------------------------------ what is refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bboxs": [[868, 213, 859, 389]]}, "box-inverted"),
    ({"bboxs": [[10, 10, 10, 30]]}, "box-empty"),
    ({"bboxs": [[float("nan"), 0, 1, 10]]}, "box-not-finite"),
    ({"bboxs": [[0, 0, 10**400, 10]]}, "box-not-finite"),
    ({"bboxs": [[484, 16537, 1896, 16625]]}, "box-outside"),  # coordinates of another page
    ({"bboxs": [[-5.1, 10, 100, 100]]}, "box-outside"),
    ({"bboxs": [[641, 10, 644, 100]]}, "box-outside"),  # within the overhang, and nothing of it in the image
    ({"bboxs": [[1, 2, 3]]}, "box-malformed"),
    ({"bboxs": [[True, 2, 30, 40]]}, "box-malformed"),
    ({"bboxs": "[1, 2, 3, 4]"}, "box-malformed"),
    ({"bboxs": []}, "no-box"),
    ({"bboxs": [[1, 2, 30, 40], [10, 10, 10, 30]]}, "box-empty"),  # evidence is whole, or the row is refused
    ({"question": ASK}, "no-question"),
    ({"question": "\u200b\u2060 "}, "no-question"),
    ({"answer": 7}, "no-answer"),
    ({"answer": "\0\ufeff"}, "no-answer"),
    ({"multiple_choices": ["cake", 7]}, "wrong-shape"),
    ({"possible_answers": ["cake", None]}, "wrong-shape"),
    ({"width": 480, "height": 640}, "image-size-differs"),
    ({"width": "640"}, "wrong-shape"),
    ({"image": 7}, "wrong-shape"),
    ({"dataset": None}, "wrong-shape"),
    ({"split": "dev"}, "wrong-shape"),
    ({"image": "b.jpg"}, "image-missing"),
    ({"image": "../../etc/passwd"}, "image-missing"),
]
REFUSED_CHAT: list[tuple[dict[str, Any], str]] = [
    (chat("[0.6, 0.3, 0.5, 0.6]", "[384, 112, 320, 304]"), "box-inverted"),
    (chat("[0.1, 0.3, NaN, 0.6]", INTS), "box-not-finite"),
    (chat("on the left", None), "box-malformed"),
    (chat(FRACTIONS, "[64, 112, 320]"), "box-malformed"),
    (chat("[0.1, 7.3, 0.5, 9.6]", None), "box-outside"),
    (chat("[-0.02, 0.3, 0.5, 0.6]", None), "box-outside"),
    (chat(FRACTIONS, None, image=[]), "wrong-shape"),
    (chat(FRACTIONS, None, image=["cot/vsr/a.jpg", f"cot/vsr/b.jpg###{INTS}"]), "wrong-shape"),
    (chat(FRACTIONS, None, conversations="no"), "wrong-shape"),
]


@pytest.mark.parametrize(
    ("row", "reason"), [*((metadata([[1, 2, 30, 40]]) | row, why) for row, why in REFUSED), *REFUSED_CHAT]
)
def test_refused_rows(vsr: Given, row: dict[str, Any], reason: str) -> None:
    assert vsr.reason("viscot", row) == reason


# ------------------------------------------------------------------------------------------------- GQA's programs

THOUGHT = "1. We are looking for someone who is wearing a shirt. 2. After identifying the person, we state the answer."


def steps(*written: tuple[str, list[int], str]) -> list[dict[str, Any]]:
    return [{"operation": name, "dependencies": on, "argument": argument} for name, on, argument in written]


WHO = steps(("select", [], "shirt (1231)"), ("relate", [0], "person,wearing,s (1229)"), ("query", [1], "name"))
WALL = steps(
    ("select", [], "wall (722332)"), ("filter color", [0], "white"), ("relate", [1], "_,on,s (722335)"),
    ("query", [2], "name"),
)  # fmt: skip
HORSE = steps(
    ("select", [], "water (447019)"), ("relate", [0], "horse,on the edge of,s (447018)"),
    ("verify color", [1], "brown"), ("verify size", [1], "small"), ("and", [2, 3], ""),
)  # fmt: skip
BOTH = steps(("select", [], "cup (1)"), ("exist", [0], "?"), ("select", [], "plate (-)"), ("exist", [2], "?"),
             ("and", [1, 3], ""))  # fmt: skip
GIRL = steps(("select", [], "girl (1)"), ("query", [0], "name"))


@pytest.mark.parametrize(
    ("changed", "text", "label"),
    [
        ({"thought": THOUGHT, "reasoning": WHO}, THOUGHT, "person"),  # not a word is changed
        ({"thought": THOUGHT}, f"{THOUGHT} The place to look at is the person.", "person"),
        ({"thought": "", "reasoning": WHO}, "Look for the shirt. Look for the person wearing the shirt. Look at the "
         "name of the person.", "person"),
        # A name that is the answer is no label; "person" is of the question "Who …?".
        ({"thought": "Find the girl.", "reasoning": GIRL}, "Find the girl. The place to look at is the person.",
         "person"),
    ],
)  # fmt: skip
def test_the_place_goes_where_the_steps_first_name_what_the_program_ends_at(
    vsr: Given, changed: dict[str, Any], text: str, label: str
) -> None:
    sample = vsr.sample("viscot", GQA | changed)
    (trace,) = sample.reasoning
    assert trace.text == text
    assert [(m.label, m.boxes[0].as_list()) for m in trace.mentions] == [(label, [214, 0, 433, 374])]
    assert sample.evidence == trace.mentions


@pytest.mark.parametrize(
    ("written", "answer", "name"),
    [
        (WHO, "girl", "person"),
        (WALL, "image", None),  # what it is, is what is asked
        (WALL[:2], "yes", "white wall"),
        (HORSE, "no", "horse"),
        (BOTH, "yes", None),  # two things, and nobody says whose box it is
        (steps(("select", [], "car (1)"), ("filter color", [0], "not(red)"), ("exist", [1], "?")), "yes", "car"),
        (steps(("select", [], "red car (1)"), ("query", [0], "color")), "red", None),
        ([], "yes", None),
    ],
)
def test_what_a_program_ends_at(written: list[dict[str, Any]], answer: str, name: str | None) -> None:
    assert target(program(written), [answer]) == name


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (WALL, "Look for the wall. Of the wall, take the one that is white. Look for the thing on the white wall. "
               "Look at the name of the thing."),
        (steps(("select", [], "man (1)"), ("relate", [0], "hat,wearing,o (2)"), ("exist", [1], "?")),
         "Look for the man. Look for the hat that the man is wearing. See whether the hat is there."),
    ],
)  # fmt: skip
def test_a_program_in_words(written: list[dict[str, Any]], words: str) -> None:
    assert in_words(program(written)) == words


@pytest.mark.parametrize(
    "said",
    [None, 7, {}, [1], [{"operation": "select"}], steps(("query", [5], "name")), steps(("query", [True], "name"))],
)
def test_what_is_no_program_is_none(said: Any) -> None:
    assert program(said) == ()


@pytest.mark.parametrize(
    ("prose", "named", "found"),
    [
        ("See the cart. The Car is red.", "car", "Car"),  # as a word, and as it is written
        ("Find a wall. Is the white wall empty?", "white wall", "white wall"),
        ("Find the wall. It is white.", "white wall", "wall"),  # without its quality
    ],
)
def test_a_name_is_found_in_prose(prose: str, named: str, found: str) -> None:
    trace = grounded(prose, (), named, Mention(named, (Box(1, 2, 3, 4),)))
    assert trace.text == prose
    assert [mention.label for mention in trace.mentions] == [found]
