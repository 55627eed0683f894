"""Questions by text alone are asked and counted, and left out of what is measured on blank and wrong pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.evaluation_samples import by_text, drawn, frame, said, sample, scored
from tests.evaluation.test_evaluation_replies import Answers, evaluate, interview
from vcot.evaluation import gallery, page
from vcot.evaluation.chance import Habits
from vcot.evaluation.controls import partners
from vcot.evaluation.metrics import measure
from vcot.evaluation.replies import read_replies
from vcot.evaluation.report import build, gather
from vcot.evaluation.table import render
from vcot.records import Completion
from vcot.storage import Store


class Blind(Answers):
    """Says 2 where it is shown nothing, and what it sees where it is shown something."""

    def __call__(self, model: Any, samples: Any, pictures: Any) -> list[Completion]:
        self.asked += [(model, s.id, p) for s, p in zip(samples, pictures, strict=True)]
        colours = {(255, 0, 0): "red", (0, 0, 255): "blue"}
        texts = ["2" if p is None else colours.get(p.getpixel((80, 60)), "grey") for p in pictures]
        return [Completion(text=said([], text), model=model, finish_reason="stop") for text in texts]


@pytest.fixture
def samples(tmp_path: Path) -> list[Any]:
    pictured = [
        sample(colour, None, image=drawn(tmp_path, colour, (40, 30, 120, 90), colour), answers=[colour],
               question="What colour is it?")
        for colour in ("red", "blue")
    ]  # fmt: skip
    return [by_text("t0"), pictured[0], by_text("t1", "What is 2 + 2?", ["4"]), pictured[1], by_text("t2")]


def test_it_is_asked_once_of_each_model_and_without_a_picture(tmp_path: Path, samples: list[Any]) -> None:
    answers = Blind()
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, answers))
    replies = list(read_replies(Store(), folder.uri, mark.shards))
    conditions = {(r.score.sample, r.model, r.condition) for r in replies}
    assert {c for c in conditions if c[0].startswith("t")} == {
        (f"t{n}", model, "real") for n in range(3) for model in ("base", "tuned")
    }
    assert mark.tally.rows == mark.tally.kept == len(replies) == 3 * 2 + 2 * 6
    assert {name for _, name, picture in answers.asked if picture is None} == {"t0", "t1", "t2"}


def test_the_report_counts_it_and_the_controls_do_not(tmp_path: Path, samples: list[Any]) -> None:
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, Blind()))
    training = [by_text("a", split="train"), sample("b", question="What colour is it?", split="train")]
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Habits.of(training), frame)
    made = build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})
    report = json.loads(json.dumps(made))
    counted = {k: report["samples"][k] for k in ("rows", "pictures", "by_text", "left_out")}
    assert counted == {"rows": 5, "pictures": 2, "by_text": 3, "left_out": 0}
    figures = {row["key"]: row["figures"]["answer_accuracy"] for row in report["results"]}
    assert (figures["tuned-real"]["value"], figures["tuned-real"]["rows"]) == (0.8, 5)  # 2 + 2 is not 2
    assert (figures["tuned-blank"]["value"], figures["tuned-blank"]["rows"]) == (0, 2)
    difference = next(row for row in report["differences"] if row["key"] == "real-blank")["figures"]
    assert (difference["answer_accuracy"]["value"], difference["answer_accuracy"]["rows"]) == (1, 2)
    assert (
        "3 of 5 rows are asked by text alone; they count on real pictures, and not on blank and wrong ones."
        in (report["verdict"]["notes"])
    )
    assert not any("1 + 1" in line and "blank" in line for line in report["verdict"]["cannot"])
    cards = [gallery.card(Store(), evidence, n, frame) for n in range(5)]
    assert [card.image is None for card in cards] == [True, False, True, False, True]
    html = page.render(report, cards)
    assert html.count("asked by text alone") >= 4
    assert html.count("<img") == 2
    assert render(report).row_count > 0


def test_where_every_question_is_by_text_alone_there_are_no_controls(tmp_path: Path) -> None:
    samples = [by_text("t0"), by_text("t1", "What is 2 + 2?", ["4"])]
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, Blind()))
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Habits(), frame)
    report = build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})
    assert [row["key"] for row in report["results"]] == ["base-real", "tuned-real"]
    assert report["samples"]["pictures"] == 0
    assert not any("blank" in line for line in report["verdict"]["cannot"])


def test_pictures_are_exchanged_among_those_that_have_one(samples: list[Any]) -> None:
    assert partners(samples, 0) == [0, 3, 2, 1, 4]


def test_a_difference_is_over_the_samples_that_both_were_asked() -> None:
    names = [f"{n}" for n in range(12)]
    real = [scored(n, answer="right" if int(n) < 9 else "wrong") for n in names]
    blank = [scored(n, answer="right" if int(n) % 2 else "wrong") for n in names]
    some: list[Any] = [one if int(one.sample) >= 6 else None for one in blank]
    found = measure({"real": real, "blank": some}, [("real", "blank")], seed=3)
    alone = measure({"real": real[6:], "blank": blank[6:]}, [("real", "blank")], seed=3)
    assert found.figures["real"]["answer_accuracy"].rows == 12
    assert found.figures["blank"]["answer_accuracy"].rows == 6
    mine, other = (each.differences["real", "blank"]["answer_accuracy"] for each in (found, alone))
    assert (mine.value, mine.rows) == (other.value, other.rows) == (0, 6)
    assert mine.interval == other.interval == "bootstrap"


def test_with_all_samples_asked_everywhere_the_numbers_are_those_of_before() -> None:
    real = [scored(f"{n}", answer="right" if n < 9 else "wrong") for n in range(12)]
    blank = [scored(f"{n}", answer="right" if n % 2 else "wrong") for n in range(12)]
    found = measure({"real": real, "blank": blank}, [("real", "blank")], seed=3)
    difference = found.differences["real", "blank"]["answer_accuracy"]
    assert (difference.value, difference.rows) == (0.25, 12)
