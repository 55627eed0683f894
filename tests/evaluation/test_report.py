"""What the report says: its numbers, the sentences that follow from them, and what its page may not do."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import random
import re

import pytest
from PIL import Image
from rich.console import Console

from tests.fakes.evaluating import drawn, frame, sample
from vcot.errors import GateFailed, InputError
from vcot.evaluation import page
from vcot.evaluation.config import EvaluationConfig
from vcot.evaluation.gates import judge_gates, raise_if_failed
from vcot.evaluation.metrics import score
from vcot.evaluation.report import build, figures_of, gather
from vcot.evaluation.runner import Baselines, Reply
from vcot.records import Completion
from vcot.storage import Store


def told(model, condition, one, number):
    """The base writes half a tag, or a box anywhere; the tuned model sees discs on real images, and no levers."""
    if model == "base":
        return "The <ref>disc</ref><box>[1, 2, 3" if number % 3 else "A <ref>x</ref><box>[1, 2, 9, 9]</box>\nAnswer: up"
    if one.question.startswith("How many"):
        return "I see <ref>lever</ref><box>[700, 700, 720, 720]</box>.\nAnswer: 1"
    if condition != "real" or number % 8 == 0:
        return "The <ref>disc</ref><box>[700, 10, 900, 100]</box> is there.\nAnswer: top"
    numbers = [round(n) for n in frame(one).numbers(one.true_boxes[0])]
    return f"The <ref>disc & <b></ref><box>{numbers}</box> is there.\nAnswer: {one.answers[0]}"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """24 discs, and 24 questions about levers of which half are not there; every third camera looks south."""
    folder, dice = tmp_path_factory.mktemp("images"), random.Random(3)
    discs, levers = [], []
    for n in range(24):
        x, y = dice.randrange(0, 110), dice.randrange(0, 70)
        box = (x, y, x + 40, y + 40)
        image = drawn(folder, f"{n}", box, ("red", "green", "blue", "black")[n % 4])
        side, there = "left" if x < 60 else "right", n % 2
        discs.append(sample(f"d{n}", [box], image=image, label="disc", question="Where is the disc?", answers=[side]))
        levers.append(
            sample(f"l{n}", [(5, 5, 9, 9)] if there else (), image=image, label="lever", answers=[f"{there}"],
                   question="How many levers are there?")
        )  # fmt: skip
    asked = [*discs, *levers]
    replies = [
        Reply(
            model=model, way="ground", condition=condition, score=score(text, one, frame(one)),
            completion=Completion(text=text, model=model, finish_reason="length" if "[1, 2, 3" in text else "stop"),
        )
        for model in ("base", "subject")
        for condition in ("real", "blank", "shuffled")
        for n, one in enumerate(asked)
        for text in [told(model, condition, one, n)]
    ]  # fmt: skip
    return gather(asked, replies, Baselines.of([*discs[:6], *levers[:6]]), frame)


def made(evidence, **changed):
    found = build(
        dataclasses.replace(evidence, **changed), split="test", seed=0,
        made_with={"base": "s3://x/base", "max_new_tokens": 16},
    )  # fmt: skip
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def report(evidence):
    return made(evidence)


# --- report.json ---------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_replies(report):
    assert report["samples"] == {
        "split": "test", "rows": 48, "images": 24, "by_text": 0, "boxes": 36, "annotated": 48, "absent": 12,
        "left_out": 0, "training_rows": 12, "stored": {},
    }  # fmt: skip
    results, change = figures_of(report, "results"), figures_of(report, "differences")["after-before"]["accuracy_at_50"]
    found = {key: each["accuracy_at_50"]["value"] for key, each in results.items()}
    assert found["subject-real"] == change["value"] == pytest.approx(21 / 36, abs=1e-6)
    assert 0 < change["low"] < change["value"] < change["high"]
    assert found["base-real"] == 0
    assert found["subject-blank"] < 0.1
    assert {row["key"]: row["cut_off"] for row in report["results"] if row["key"].endswith("real")} == {
        "base-real": 32, "subject-real": 0
    }  # fmt: skip
    guesses = figures_of(report, "guesses")
    assert guesses.keys() == {"centre-box", "whole-image", "mean-box", "frequent-answer"}
    assert guesses["frequent-answer"].keys() == {"answer_accuracy"}  # a guess of a box claims nothing about answers
    assert "answer_accuracy" not in guesses["mean-box"]


def test_groups_tell_questions_things_and_metadata_apart(evidence, report):
    names = [(group["question"], group["thing"], group["rows"]) for group in report["groups"]]
    assert names == [("How many levers are there?", "lever", 24), ("Where is the disc?", "disc", 24)]
    lever, disc = (group["results"]["subject-real"] for group in report["groups"])
    assert disc["accuracy_at_50"]["value"] == pytest.approx(21 / 24)
    assert (lever["accuracy_at_50"]["value"], lever["boxes_where_absent"]["value"]) == (0, 1)
    own = [
        one.model_copy(update={"metadata": {"camera": "north" if n % 3 else "south", "photo": one.id}})
        for n, one in enumerate(evidence.samples)
    ]
    by_camera = made(evidence, samples=own)
    groups = by_camera["groups"]
    assert {group["metadata"]: group["rows"] for group in groups[2:]} == {"camera: north": 32, "camera: south": 16}
    values, rows = page.answers_by_metadata(by_camera)["camera"]
    assert sorted(values) == ["north", "south"]
    assert [who for who, _ in rows] == ["before tuning", "after tuning"]
    after = {group["metadata"]: group["results"]["subject-real"]["answer_accuracy"] for group in groups[2:]}
    assert rows[1][1] == [after[f"camera: {value}"] for value in values]


def test_what_several_ways_give_stands_side_by_side_for_each_value_of_a_metadata(evidence):
    """Asked directly, the model says of everything that it is at the top."""
    own = [
        one.model_copy(update={"metadata": {"steps": (2, 10, 1)[n % 3]}}) for n, one in enumerate(evidence.samples)
    ]  # fmt: skip
    direct = [
        Reply(
            model="subject", way="direct", condition="real", score=score("Answer: top", one, frame(one)),
            completion=Completion(text="Answer: top", model="subject", finish_reason="stop"),
        )
        for one in own
    ]  # fmt: skip
    grounded = [reply for key in evidence.replies for reply in evidence.replies[key]]
    report = build(
        gather(own, [*grounded, *direct], evidence.learned, frame, ("ground", "direct")), split="test", seed=0,
        made_with={"base": "s3://x/base", "max_new_tokens": 16},
    )  # fmt: skip
    by_steps = page.by_metadata(report["groups"])["steps"]
    assert [said for said, _ in by_steps] == ["1", "2", "10"]
    for said, group in by_steps:
        chosen = [n for n, one in enumerate(own) if str(one.metadata["steps"]) == said]
        for way, replies in (("ground", evidence.replies["subject-real"]), ("direct", direct)):
            right = sum(replies[n].score.answer == "right" for n in chosen) / len(chosen)
            assert group["ways"][way]["answer_accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    html = page.html(report)
    assert "answers right, by steps" in html
    console = Console(width=120, file=io.StringIO())
    console.print(*page.further_tables(report))
    assert "answers right by steps" in console.file.getvalue()


def test_the_summary_says_what_it_can_and_what_it_cannot(report):
    summary = report["verdict"]
    assert "finds 21 of 36 true boxes (58 %, 50–69); before, it was 0 of 36, and on blank" in summary["headline"]
    assert not any("lever" in line for line in summary["can"])
    for part, wanted in (
        ("can", "point at “disc”: it finds 21 of 24"),
        ("cannot", "misses 3 of 24"),
        ("cannot", r"point at “lever”.* not shown to be better than guessing"),
        ("cannot", "answer “How many levers"),
        ("cannot", "no “lever” where there is none.* 12 of 12"),
        ("notes", "“Where is the disc.”. What the model does with anything else"),
    ):
        assert any(re.search(wanted, line) for line in summary[part]), wanted


def test_a_model_that_does_as_well_on_blank_images_is_not_said_to_see(evidence):
    summary = made(evidence, replies=evidence.replies | {"subject-blank": evidence.replies["subject-real"]})["verdict"]
    assert summary["can"] == []
    assert any("be shown to look" in line for line in summary["cannot"])
    assert any("not shown to come from looking" in line for line in summary["cannot"])


def test_a_model_that_tuning_made_worse_is_called_so(evidence):
    other = {"base": "subject", "subject": "base"}
    turned = {key: evidence.replies[f"{other[key.split('-')[0]]}-{key.split('-')[1]}"] for key in evidence.replies}
    worse = [line for line in made(evidence, replies=turned)["verdict"]["cannot"] if line.startswith("do as well as")]
    assert ["found −58 points" in line for line in worse] == [True, False]


def test_a_row_that_was_not_asked_under_every_condition_is_left_out_of_all(evidence):
    replies = [reply for each in evidence.replies.values() for reply in each]
    missing = [r for r in replies if (r.model, r.condition, r.score.sample) != ("subject", "shuffled", "d3")]
    found = gather(evidence.samples, missing, evidence.learned, frame)
    assert found.left_out == 1
    assert {len(each) for each in found.replies.values()} == {47}
    assert "d3" not in {r.score.sample for each in found.replies.values() for r in each}
    with pytest.raises(InputError, match="ids have to be unique"):
        gather([*evidence.samples, evidence.samples[0]], [], evidence.learned, frame)


# --- the page and the table ----------------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside_and_nothing_that_a_model_wrote_breaks_it(evidence, report):
    examples = page.examples(Store(), evidence, report, 10, 0)
    assert [(one.cause, one.rows, len(one.cards)) for one in examples] == [
        ("right answer, wrong box", 12, 3), ("box of what is not there", 12, 2), ("wrong object", 3, 2), (None, 21, 3),
    ]  # fmt: skip
    everything = page.examples(Store(), evidence, report, 48, 0)
    assert [len(one.cards) for one in everything] == [12, 12, 3, 21]
    html = page.html(report, examples)
    assert '<span class="ref">disc &amp; &lt;b&gt;</span>' in html
    assert "<b></ref>" not in html
    assert all(address.startswith("data:image/") for address in re.findall(r'(?:src|href)="([^"]*)"', html))
    assert not re.search(r"http|@import|url\(|<script|<link|<iframe", html)


def test_a_reply_with_several_boxes_can_be_followed_box_by_box(evidence):
    """The numbers in the text are those in the image: of the boxes that could be read, of any notation."""
    text = (
        "A <ref>disc</ref><box>[9, 9, 9]</box>, two <ref></script>&</ref><box>[0, 0, 500, 500]</box><box>[500, 500, "
        '900, 900]</box> and [{"bbox_2d": [0, 0, 500, 500], "label": "disc"}].\nAnswer: top'
    )
    said = [
        None if each is None else each.model_copy(update={"score": score(text, one, frame(one))})
        for one, each in zip(evidence.samples, evidence.replies["subject-real"], strict=True)
    ]
    changed = dataclasses.replace(evidence, replies=evidence.replies | {"subject-real": tuple(said)})
    report = made(changed)
    (one, *_) = page.examples(Store(), changed, report, 1, 0)
    html = page.html(report, [one._replace(cards=one.cards[:1])])
    drawing, reply = re.search(r"<svg viewBox=.*?</svg>", html, re.DOTALL)[0], one.cards[0].reply
    found = re.findall(r'<g data-steps="(\d)"><title>(.*?)</title><rect x="(.*?)" y="(.*?)" width="(.*?)"', drawing)
    script = "&lt;/script&gt;&amp;"
    assert found == [
        ("1", script, "0.0", "0.0", "80.0"), ("2", script, "80.0", "60.0", "64.0"), ("3", "disc", "0.0", "0.0", "80.0"),
    ]  # fmt: skip
    (one_number, again) = (re.search(rf'<text x="(.*?)" y=".*?">{n}</text>', drawing)[1] for n in (1, 3))
    assert float(again) - float(one_number) > 5  # beside each other: the same box
    mentions = re.findall(r'<span class="mention" data-steps="(.*?)">(.*?)</span>(?= and|\])', reply)
    assert [numbers for numbers, _ in mentions] == ["1 2", "3"]
    assert "bbox_2d" in mentions[1][1]
    assert reply.index("[9, 9, 9]") < reply.index("mention")  # could not be read, and has no number
    assert reply.count("<sup ") == 3
    (ours,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert html.count("<script") == html.count("</script") == 1
    assert "http" not in ours


def test_the_overlay_shows_a_reply_that_is_right_in_all(evidence):
    image = page.overlay_png(Store(), evidence)
    assert Image.open(io.BytesIO(image)).width == 680
    wrong = evidence.replies | {"subject-real": evidence.replies["base-real"]}
    assert page.overlay_png(Store(), dataclasses.replace(evidence, replies=wrong)) is None


# --- gates ---------------------------------------------------------------------------------------------


def passed(report, **gates):
    return [gate["passed"] for gate in judge_gates(report, EvaluationConfig(**gates))]


def test_a_gate_that_is_not_passed_is_named_with_what_was_found(report):
    assert judge_gates(report, EvaluationConfig()) == []
    asked = EvaluationConfig(require_not_worse_than_base=True, min_accuracy_at_50=0.9, max_blank_accuracy=0.2)
    gates = judge_gates(report, asked)
    assert [gate["passed"] for gate in gates] == [True, True, False, True]
    with pytest.raises(GateFailed, match=r"accuracy_at_50 at least 90.0%: it is 58 %\. See s3://x/report.html"):
        raise_if_failed(gates, "s3://x/report.html")
    raise_if_failed(gates[:2], "s3://x/report.html")


def test_worse_than_the_base_means_clearly_worse(report):
    turned = copy.deepcopy(report)
    change = figures_of(turned, "differences")["after-before"]["accuracy_at_50"]
    for high, good in ((0.02, True), (-0.01, False)):
        change.update(value=-0.05, low=-0.12, high=high)
        assert passed(turned, require_not_worse_than_base=True) == [good, True]


def test_a_gate_on_what_was_not_measured_is_not_passed(report):
    without = report | {"results": [row for row in report["results"] if row["key"] != "subject-blank"]}
    assert passed(without, max_blank_accuracy=1.0) == [False]
    without = report | {"differences": [row for row in report["differences"] if row["key"] == "after-before"]}
    assert passed(without, promote=True) == [True, True, False, False]


CLEAR, NONE, UNSURE = (0.6, 0.5, 0.7), (0.02, -0.03, 0.06), (0.5, None, None)


@pytest.mark.parametrize(
    ("blank", "wrong", "passes"),
    [
        ((CLEAR, CLEAR), (CLEAR, CLEAR), [True, True]),
        ((CLEAR, NONE), (CLEAR, NONE), [True, True]),  # boxes come from looking, answers from habit
        ((NONE, CLEAR), (CLEAR, CLEAR), [False, True]),
        ((UNSURE, CLEAR), (NONE, CLEAR), [False, False]),
    ],
)
@pytest.mark.parametrize("with_boxes", [True, False])
def test_a_promoted_model_must_look(report, blank, wrong, passes, with_boxes):
    """By the boxes; where there are none, by the answers."""
    changed = copy.deepcopy(report)
    names = ("accuracy_at_50", "answer_accuracy") if with_boxes else ("answer_accuracy", "accuracy_at_50")
    if not with_boxes:
        figures_of(changed, "results")["subject-real"]["accuracy_at_50"]["value"] = None
    for key, measured in (("real-blank", blank), ("real-wrong", wrong)):
        for name, (value, low, high) in zip(names, measured, strict=True):
            figures_of(changed, "differences")[key][name].update(value=value, low=low, high=high)
    gates = judge_gates(changed, EvaluationConfig(promote=True))[-2:]
    assert [gate["passed"] for gate in gates] == passes
    assert all(gate["gate"].startswith(names[0]) for gate in gates)


# --- sentences follow from boxes and answers ------------------------------------------------------------


def moved(reply, one, box="[1, 1, 9, 9]"):
    """The same reply with every box at a place where nothing is."""
    if reply is None:
        return None
    text = re.sub(r"<box>.*?</box>", f"<box>{box}</box>", reply.score.text)
    return reply.model_copy(update={"score": score(text, one, frame(one))})


def discs_only(evidence, rows=24, keys=("subject-real", "subject-blank"), **changed):
    """The first rows about discs, of the tuned model alone."""
    replies = {key: evidence.replies[key][:rows] for key in keys} | changed
    return dataclasses.replace(
        evidence, samples=evidence.samples[:rows], replies=replies, ways={"ground": {"real": replies["subject-real"]}},
        guesses={name: each[:rows] for name, each in evidence.guesses.items()},
    )  # fmt: skip


def test_answers_from_the_image_count_as_looking(evidence):
    wrong_boxes = tuple(map(moved, evidence.replies["subject-real"][:24], evidence.samples))
    few = discs_only(evidence, **{"subject-real": wrong_boxes})
    summary = made(few)["verdict"]
    assert not any("be shown to look" in line for line in summary["cannot"])
    assert any(
        line.startswith("answer from what the image shows: its answers are right more") for line in summary["can"]
    )
    (boxes,) = [line for line in summary["cannot"] if line.startswith("draw its boxes from what the image shows")]
    assert "although its answers do" in boxes


def test_wrong_images_count_where_blank_ones_are_missing(evidence):
    blind = discs_only(evidence, keys=("subject-real", "subject-shuffled"))
    blind = dataclasses.replace(blind, replies=blind.replies | {"subject-shuffled": blind.replies["subject-real"]})
    summary = made(blind)["verdict"]
    assert any("be shown to look" in line and "than on wrong ones" in line for line in summary["cannot"])


def test_few_rows_without_a_difference_are_unclear(evidence):
    few = discs_only(evidence, rows=4)
    blind = dataclasses.replace(few, replies=few.replies | {"subject-blank": few.replies["subject-real"]})
    report = made(blind)
    summary = report["verdict"]
    assert not any(line.startswith(("point at", "answer “")) for line in summary["cannot"])
    assert any(line.startswith("look: 4 rows show no clear difference") for line in summary["unclear"])
    assert "Too few rows to tell whether it can" in page.html(report)
    console = Console(width=200, file=io.StringIO())
    console.print(page.table(report))
    assert "Too few rows to tell whether it can:" in console.file.getvalue()


def test_suites_have_no_list_of_things(evidence):
    suite = {"suite": "refcoco", "about": "x", "shown": [], "ways": [{"way": "ground", "sets": []}], "published": []}
    found = build(
        evidence, split="test", seed=0, made_with={"base": "s3://x/base", "max_new_tokens": 16}, suites=[suite]
    )  # fmt: skip
    assert not [group["thing"] for group in found["groups"] if group["thing"]]
    sentences = [line for part in ("can", "cannot", "unclear", "notes") for line in found["verdict"][part]]
    assert not [line for line in sentences if "disc" in line or "lever" in line]
    assert any("the rows of refcoco" in line for line in sentences)
