"""Questions by text alone are counted, and left out of what is measured on blank and wrong images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.evaluation_samples import FakeModel, by_text, drawn, evaluate, frame, runner, sample
from vcot.evaluation import gallery
from vcot.evaluation.baselines import Baselines
from vcot.evaluation.report import build, gather
from vcot.evaluation.runner import read_replies
from vcot.evaluation.table import render
from vcot.storage import Store


@pytest.fixture
def samples(tmp_path: Path) -> list[Any]:
    illustrated = [
        sample(colour, None, image=drawn(tmp_path, colour, (40, 30, 120, 90), colour), answers=[colour],
               question="What colour is it?")
        for colour in ("red", "blue")
    ]  # fmt: skip
    return [by_text("t0"), illustrated[0], by_text("t1", "What is 2 + 2?", ["4"]), illustrated[1], by_text("t2")]


def test_the_report_counts_them_and_the_ablations_do_not(tmp_path: Path, samples: list[Any]) -> None:
    folder, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, FakeModel()))
    training = [by_text("a", split="train"), sample("b", question="What colour is it?", split="train")]
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Baselines.of(training), frame)
    report = json.loads(json.dumps(build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})))
    counted = {k: report["samples"][k] for k in ("rows", "images", "by_text", "left_out")}
    assert counted == {"rows": 5, "images": 2, "by_text": 3, "left_out": 0}
    figures = {row["key"]: row["figures"]["answer_accuracy"] for row in report["results"]}
    assert (figures["tuned-real"]["value"], figures["tuned-real"]["rows"]) == (0.8, 5)  # 2 + 2 is not 2
    assert (figures["tuned-blank"]["value"], figures["tuned-blank"]["rows"]) == (0, 2)
    difference = next(row for row in report["differences"] if row["key"] == "real-blank")["figures"]
    assert (difference["answer_accuracy"]["value"], difference["answer_accuracy"]["rows"]) == (1, 2)
    cards = [gallery.card(Store(), evidence, n, frame) for n in range(5)]
    assert [card.image is None for card in cards] == [True, False, True, False, True]
    assert render(report).row_count > 0


def test_where_every_question_is_by_text_alone_there_are_no_ablations(tmp_path: Path) -> None:
    samples = [by_text("t0"), by_text("t1", "What is 2 + 2?", ["4"])]
    folder, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, FakeModel()))
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Baselines(), frame)
    report = build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})
    assert [row["key"] for row in report["results"]] == ["base-real", "tuned-real"]
    assert report["samples"]["images"] == 0
    assert not any("blank" in line for line in report["verdict"]["cannot"])
