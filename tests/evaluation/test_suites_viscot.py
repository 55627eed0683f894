"""VisCoT's suite: on its published rows, against measures that somebody else has written, and by hand."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from tests.fakes.evaluating import sample as drawn
from tests.fakes.published import marked_by, pointing, viscot_samples
from tests.fakes.rows import Given
from vcot.distill.judge import judge_prompt, read_judgement
from vcot.evaluation.suites import SUITES, Marked, suites_named
from vcot.evaluation.suites.viscot import JUDGED, SETS
from vcot.evaluation.ways import viscot_crop
from vcot.grounding import Box, BoxError
from vcot.records import Sample

SUITE = SUITES["viscot"]
WHOLE, CENTRE = (0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75)


def of_set(name: str, answers: tuple[str, ...], **more: Any) -> Sample:
    made = drawn("a", answers=answers, **more)
    return made.model_copy(update={"origin": made.origin.model_copy(update={"dataset": name})})


def worth(name: str, said: str | None, *answers: str) -> float | None:
    one = of_set(name, answers)
    text = "I do not know." if said is None else f"I see it.\nAnswer: {said}"
    marked = marked_by(SUITE, text, one)
    assert marked is not None
    return marked.worth


# ------------------------------------------------------------------------------------------------ on published rows

# What share of the rows is found by a box round everything, and by one half as large in the middle, measured elsewhere
# on the detection files, in percent.
BY_GUESS = {"sroie": (7.6, 3.1), "visual7w": (13.9, 3.8), "vsr": (31.2, 4.5)}


@pytest.mark.parametrize("name", BY_GUESS)
def test_guessed_boxes_on_published_rows_are_found_as_often_as_elsewhere(given: Given, name: str) -> None:
    samples, rows = viscot_samples(given, name)
    for guess, percent in zip((WHOLE, CENTRE), BY_GUESS[name], strict=True):
        marked, overlaps = [], []
        for one, row in zip(samples, rows, strict=True):
            width, height = row["width"], row["height"]
            edges = [f * size for f, size in zip(guess, (width, height, width, height), strict=True)]
            marked.append(marked_by(SUITE, pointing(one, edges), one))
            true = torch.tensor([row["bbox"]], dtype=torch.float64)
            overlaps.append(box_iou(torch.tensor([edges], dtype=torch.float64), true).item())
        set_result, *groups = SUITE.results([one for one in marked if one is not None])
        assert set_result.set == {"visual7w": "v7w"}.get(name, name)
        assert set_result.rows == len(rows)
        assert 100 * (set_result.values["accuracy_above_50"] or 0) == pytest.approx(percent, abs=0.35)
        # Boxes of chat rows are known to half a pixel and to three decimals, those of the detection file exactly.
        assert set_result.values["mean_iou"] == pytest.approx(sum(overlaps) / len(overlaps), abs=0.003)
        assert set_result.values["answer_score"] == 1.0
        assert "average" in {group.set for group in groups}


def test_shifted_boxes_have_the_overlaps_that_torchvision_finds(given: Given) -> None:
    samples, _ = viscot_samples(given, "vsr")
    generator, said, true, found = random.Random(1), [], [], list[Marked | None]()
    for one in samples:
        assert one.true_boxes is not None
        assert one.image is not None
        box, width, height = one.true_boxes[0], one.image.width, one.image.height
        by = [generator.uniform(-0.3, 0.3) for _ in range(2)]
        x1, y1 = max(0, box.x1 + by[0] * box.width), max(0, box.y1 + by[1] * box.height)
        x2, y2 = min(width, box.x2 + by[0] * box.width), min(height, box.y2 + by[1] * box.height)
        edges = [round(edge, 2) for edge in (x1, y1, x2, y2)]
        said.append(edges)
        true.append(box.as_list())
        found.append(marked_by(SUITE, pointing(one, edges), one))
    overlaps = box_iou(torch.tensor(said, dtype=torch.float64), torch.tensor(true, dtype=torch.float64)).diagonal()
    (values,) = {one.set: one.values for one in SUITE.results([m for m in found if m]) if one.set == "vsr"}.values()
    assert values["mean_iou"] == pytest.approx(overlaps.mean().item(), abs=1e-9)
    assert values["accuracy_above_50"] == (overlaps > 0.5).double().mean().item()
    assert 0.2 < (values["accuracy_above_50"] or 0) < 0.95


# ---------------------------------------------------------------------------------------------------- answers by rule


def textbook_anls(said: str, true: str) -> float:
    """Biten et al. 2019, with the recursion for the edit distance as it is taught."""
    a, b = said.strip().lower(), true.strip().lower()

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    share = distance(len(a), len(b)) / max(len(a), len(b), 1)
    return 1 - share if share < 0.5 else 0.0


def test_anls_is_the_textbooks_on_published_answers_with_slips(given: Given) -> None:
    samples, _ = viscot_samples(given, "sroie")
    generator, seen = random.Random(0), set()
    for one in samples[:300]:
        said = list(one.answers[0][:60])
        for _ in range(generator.randrange(len(said) + 1)):
            place = generator.randrange(len(said) + 1)
            said[place : place + generator.randrange(2)] = generator.choice(["x", "7", "", "e"])
        text = " ".join("".join(said).split()).strip("*$ ") or "?"
        if text.lower() != text.casefold():
            continue
        marked = marked_by(SUITE, f"Answer: {text}", one)
        assert marked is not None
        wanted = max(textbook_anls(text, " ".join(true.split())) for true in one.answers)
        assert marked.worth == pytest.approx(wanted), (text, one.answers)
        seen.add(wanted)
    assert len(seen) > 50
    assert {0.0, 1.0} <= seen


@pytest.mark.parametrize(
    ("name", "said", "answers", "wanted"),
    [
        ("docvqa", "ITC Limited", ("itc limited", "ITC"), 1.0),
        ("docvqa", "hello wrld", ("Hello World",), 1 - 1 / 11),
        ("infographicsvqa", "12%", ("21%",), 0.0),  # two of three letters differ
        ("dude", None, ("itc",), 0.0),
        ("textvqa", "hello wrld", ("hello world",), 0.0),
        ("textvqa", "The Hello World.", ("hello world",), 1.0),
        ("textcap", "it says hello world", ("hello world",), 0.0),  # to hold the answer is not to give it
        ("gqa", "girl", ("Girl",), 1.0),
        ("cub", "Yes, it has.", ("Yes",), 1.0),
        ("cub", "yellow", ("Yes",), 0.0),
        ("flickr30k", "A man sits.", ("A man sits on the floor.",), None),
        ("emotic", "peace and Happiness", ("Happiness, Peace and Excitement",), 2 * 2 / 5),
        ("emotic", "Anger", ("Happiness and Peace",), 0.0),
    ],
)
def test_each_set_measures_its_answers_by_its_own_rule(
    name: str, said: str | None, answers: tuple[str, ...], wanted: float | None
) -> None:
    assert worth(name, said, *answers) == (wanted if wanted is None else pytest.approx(wanted))


def test_rows_of_other_datasets_and_of_training_are_not_of_the_suite() -> None:
    assert {SUITE.sets(of_set(name, ("a",))) for name in (*SETS, "visual7w", "emotic")} == {*SETS, "emotic"}
    assert SUITE.sets(of_set("cells", ("a",))) is None
    assert SUITE.sets(of_set("gqa", ("a",), split="train")) is None


def test_half_an_overlap_is_no_box_by_the_published_rule_and_one_by_ours() -> None:
    one = of_set("gqa", ("left",))  # true: 100 100 300 300
    marked = marked_by(SUITE, pointing(one, (100, 100, 300, 200)), one)
    assert marked is not None
    values = SUITE.results([marked])[0].values
    assert (values["mean_iou"], values["accuracy_above_50"], values["accuracy_at_50"]) == (0.5, 0.0, 1.0)


def test_what_cannot_be_read_is_wrong_and_stays_in_the_count() -> None:
    ones = [of_set("gqa", ("left",)) for _ in range(4)]
    good = pointing(ones[0], (100, 100, 300, 300))
    texts = [good, "The <ref>region</ref><box>[1, 2</box>\nAnswer: left", "", "Answer: left"]
    marked = [marked_by(SUITE, text, one) for text, one in zip(texts, ones, strict=True)]
    values = SUITE.results([m for m in marked if m])[0].values
    assert (values["accuracy_above_50"], values["answer_score"], values["unreadable"]) == (0.25, 0.75, 0.25)


def test_groups_are_plain_means_of_the_sets_that_were_measured() -> None:
    marked = []
    for name, said in (("gqa", "left"), ("gqa", "left"), ("gqa", "left"), ("vsr", "right"), ("flickr30k", "left")):
        one = of_set(name, ("left",))
        marked.append(marked_by(SUITE, pointing(one, (100, 100, 300, 300), said), one))
    found = {result.set: (result.rows, result.values["answer_score"]) for result in SUITE.results(filter(None, marked))}
    assert found == {
        "gqa": (3, 1.0), "vsr": (1, 0.0), "flickr30k": (1, None), "reasoning": (4, 0.5), "general": (1, None),
        "average": (5, 0.5),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ published numbers


def test_published_numbers_have_the_averages_that_were_published_with_them() -> None:
    def mean(system: str, metric: str) -> float:
        values = [p.value for p in SUITE.published if (p.system, p.metric) == (system, metric)]
        assert len(values) == 12
        return sum(values) / 12

    averages = {
        "LLaVA-1.5-7B 336": 0.455, "LLaVA-1.5-13B 336": 0.477, "SPHINX-13B 224": 0.420, "VisCoT-7B 224": 0.550,
        "VisCoT-7B 336": 0.580, "VisCoT-7B 224, one turn": 0.440, "VisCoT-7B 224, true box": 0.752,
        "VisCoT-7B 224, random box": 0.453, "VisCoT-7B 224, centre box": 0.490,
    }  # fmt: skip
    for system, average in averages.items():
        assert mean(system, "answer_score") == pytest.approx(average, abs=0.00051), system
    assert mean("VisCoT-7B 224", "accuracy_above_50") == pytest.approx(0.372, abs=0.0005)
    assert mean("VisCoT-7B 336", "accuracy_above_50") == pytest.approx(0.3775, abs=0.0005)


@pytest.mark.parametrize("suite", [*SUITES.values(), JUDGED], ids=[*SUITES, "viscot with a judge"])
def test_every_shown_metric_is_there_and_every_published_number_says_what_it_is(suite: Any) -> None:
    assert set(suite.shown) <= suite.metrics.keys()
    assert len(set(suite.published)) == len(suite.published)
    for one in suite.published:
        assert 0 <= one.value <= 1
        assert one.metric in suite.shown
        assert one.source
        assert one.protocol


def test_an_unknown_suite_is_refused_with_the_list() -> None:
    assert [suite.name for suite in suites_named(["pope", "viscot", "pope"])] == ["pope", "viscot"]
    with pytest.raises(ValueError, match=r"no such suite: visco; there are viscot, refcoco, aokvqa, scienceqa, pope"):
        suites_named(["pope", "visco"])


# --------------------------------------------------------------------------------------------------- turns and judge


@pytest.mark.parametrize(
    ("box", "size", "crop"),
    [
        # 400 x 100 round (500, 250): half sides 200, 50.
        ((300, 200, 700, 300), (1000, 800), (300, 50, 700, 450)),
        # A small box is given 112 pixels to each side, whole ones: (10.5 + 21) // 2 = 15.
        ((500.5, 400, 521, 420), (1000, 800), (398, 298, 622, 522)),
        # Moved inside at the left and upper border, at the right and lower one.
        ((0, 10, 40, 30), (1000, 800), (0, 0, 224, 224)),
        ((980, 780, 1000, 800), (1000, 800), (776, 576, 1000, 800)),
        # Larger than the image: half side 300, of 400 pixels height all are shown.
        ((100, 50, 700, 350), (1000, 400), (100, 0, 700, 400)),
        ((10, 10, 40, 40), (100, 80), (0, 0, 100, 80)),
    ],
)
def test_crops_by_hand(box: tuple[float, ...], size: tuple[int, int], crop: tuple[float, ...]) -> None:
    assert viscot_crop(Box(*box), *size).as_list() == list(crop)


def test_a_box_of_another_image_is_not_cropped() -> None:
    with pytest.raises(BoxError, match="leaves the image of 100x80"):
        viscot_crop(Box(10, 10, 140, 40), 100, 80)


def test_a_judge_sees_the_three_lines_and_no_more() -> None:
    prompt = judge_prompt("Where?", "left", "on\nthe  left")
    assert prompt.user == "question: Where?\nstandard answer: left\nmodel's answer: on the left"
    assert "score: <score>" in prompt.system


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("score: 0.8", 0.8), ("Score: 1", 1.0), ("The answer is close.\nscore:.5", 0.5), ("score: 7", 1.0),
        ("score: -1", 0.0), ("0.8", None), ("score: high", None), ("score: 1 or score: 0", None), ("", None),
        ("<think>score: 0.3?</think>\nscore: 1", 1.0),
    ],
)  # fmt: skip
def test_judgements(text: str, score: float | None) -> None:
    assert read_judgement(text) == score
