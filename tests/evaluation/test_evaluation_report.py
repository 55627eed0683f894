"""What the report says: every number of report.json stands on the page, and the verdict follows the numbers."""

from __future__ import annotations

import dataclasses
import json
import random
from html.parser import HTMLParser

import pytest

from tests.evaluation.evaluation_samples import drawn, frame, sample
from vcot.errors import GateFailed, InputError
from vcot.evaluation import gallery, page, words
from vcot.evaluation.baselines import Baselines
from vcot.evaluation.compare import judge_gates, raise_if_failed
from vcot.evaluation.report import build, gather
from vcot.evaluation.runner import Reply
from vcot.evaluation.scoring import score
from vcot.records import Completion
from vcot.storage import Store

ROWS = 24
COLOURS = ("red", "green", "blue", "black")


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
    folder = tmp_path_factory.mktemp("images")
    dice = random.Random(3)
    discs, levers, training = [], [], []
    for number in range(ROWS):
        x, y = dice.randrange(0, 110), dice.randrange(0, 70)
        image = drawn(folder, f"{number}", (x, y, x + 40, y + 40), COLOURS[number % 4])
        box = (x, y, x + 40, y + 40)
        discs.append(sample(f"d{number}", [box], image=image, label="disc", question="Where is the disc?",
                            answers=["left" if x < 60 else "right"]))  # fmt: skip
        levers.append(sample(f"l{number}", [(5, 5, 9, 9)] if number % 2 else (), image=image, label="lever",
                             question="How many levers are there?", answers=["1" if number % 2 else "0"]))  # fmt: skip
    for one in (*discs[:6], *levers[:6]):
        training.append(one.model_copy(update={"origin": one.origin.model_copy(update={"split": "train"})}))
    asked = [*discs, *levers]
    replies = [
        Reply(
            model=model,
            condition=condition,
            completion=Completion(text=text, model=model, finish_reason="length" if "[1, 2, 3" in text else "stop"),
            score=score(text, one, frame(one)),
        )
        for model in ("base", "tuned")
        for condition in ("real", "blank", "shuffled")
        for number, one in enumerate(asked)
        for text in [told(model, condition, one, number)]
    ]
    return gather(asked, replies, Baselines.of(training), frame)


@pytest.fixture(scope="module")
def report(evidence):
    made_with = {"base": "s3://x/base", "max_new_tokens": 16, "frame_of_boxes": {"name": "thousandths"}}
    return json.loads(json.dumps(build(evidence, split="test", seed=0, made_with=made_with)))


@pytest.fixture(scope="module")
def html(evidence, report):
    worst, others = gallery.choose(evidence, 10, 0)
    cards = [[gallery.card(Store(), evidence, i, frame) for i in part] for part in (worst, others)]
    return page.render(report, *cards)


class Page(HTMLParser):
    """Open and closed tags, texts, and every address."""

    EMPTY = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "poster", "data")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " " + data


# --- report.json -------------------------------------------------------------------------------------


def test_the_report_counts_what_it_was_measured_on(report):
    assert report["samples"] == {
        "split": "test", "rows": 48, "images": 24, "by_text": 0, "boxes": 36, "annotated": 48, "absent": 12,
        "left_out": 0, "training_rows": 12,
    }  # fmt: skip


def test_after_is_better_than_before_and_blank_is_not(report):
    after, before, blank = (words.find(report, "results", key) for key in ("tuned-real", "base-real", "tuned-blank"))
    assert after["figures"]["accuracy_at_50"]["value"] == pytest.approx(21 / 36)
    assert before["figures"]["accuracy_at_50"]["value"] == 0
    assert blank["figures"]["accuracy_at_50"]["value"] < 0.1
    change = words.find(report, "differences", "after-before")["figures"]["accuracy_at_50"]
    assert change["value"] == pytest.approx(21 / 36)
    assert 0 < change["low"] < change["value"] < change["high"]
    assert before["cut_off"] == 32
    assert after["cut_off"] == 0


def test_guesses_of_boxes_claim_nothing_about_answers(report):
    assert {row["key"] for row in report["guesses"]} == set(words.GUESSES)
    assert set(words.find(report, "guesses", "frequent-answer")["figures"]) == set(words.GUESSED_ANSWER)
    assert set(words.find(report, "guesses", "mean-box")["figures"]) == set(words.GUESSED_BOX)


def test_groups_tell_questions_and_things_apart(report):
    names = [(group["question"], group["thing"], group["rows"]) for group in report["groups"]]
    assert names == [("How many levers are there?", "lever", 24), ("Where is the disc?", "disc", 24)]
    lever, disc = report["groups"]
    assert disc["results"]["tuned-real"]["accuracy_at_50"]["value"] == pytest.approx(21 / 24)
    assert lever["results"]["tuned-real"]["accuracy_at_50"]["value"] == 0
    assert lever["results"]["tuned-real"]["boxes_where_absent"]["value"] == 1


def test_metadata_of_the_users_own_parts_the_rows_and_stands_beside_them(evidence):
    cameras = ["north" if number % 3 else "south" for number in range(len(evidence.samples))]
    own = [
        one.model_copy(update={"metadata": {"camera": camera, "photo": one.id}})
        for one, camera in zip(evidence.samples, cameras, strict=True)
    ]
    with_own = dataclasses.replace(evidence, samples=own)
    report = build(with_own, split="test", seed=0, made_with={})
    groups = {group["metadata"]: group["rows"] for group in report["groups"] if group["metadata"]}
    assert groups == {"camera: north": cameras.count("north"), "camera: south": cameras.count("south")}
    html = page.render(json.loads(json.dumps(report)), [gallery.card(Store(), with_own, 0, frame)], [])
    assert f"camera: south · photo: {own[0].id}" in html
    assert "<b>camera: north</b>" in html


def test_the_verdict_says_what_it_can_and_what_it_cannot(report):
    verdict = report["verdict"]
    assert any("point at “disc”: it finds 21 of 24" in line for line in verdict["can"])
    assert not any("lever" in line for line in verdict["can"])
    assert any(
        "point at “lever”" in line and "not shown to be better than guessing" in line for line in verdict["cannot"]
    )
    assert any("answer “How many levers" in line for line in verdict["cannot"])
    assert any("no “lever” where there is none" in line and "12 of 12" in line for line in verdict["cannot"])
    assert any("misses 3 of 24" in line for line in verdict["cannot"])
    assert any("“Where is the disc?”. What the model does with anything else" in line for line in verdict["notes"])


def test_a_model_that_does_as_well_on_blank_images_is_not_said_to_see(evidence):
    blind = {**evidence.replies, "tuned-blank": evidence.replies["tuned-real"]}
    again = build(
        type(evidence)(evidence.samples, blind, evidence.guesses, evidence.habits, 0),
        split="test", seed=0, made_with={"max_new_tokens": 16},
    )  # fmt: skip
    assert again["verdict"]["can"] == []
    assert any("be said to look" in line for line in again["verdict"]["cannot"])
    assert any("not shown to come from looking" in line for line in again["verdict"]["cannot"])


def test_a_model_that_tuning_made_worse_is_called_so(evidence):
    other = {"base": "tuned", "tuned": "base"}
    replies = {key: evidence.replies["-".join([other[(m := key.split("-"))[0]], m[1]])] for key in evidence.replies}
    again = build(
        type(evidence)(evidence.samples, replies, evidence.guesses, evidence.habits, 0),
        split="test", seed=0, made_with={"max_new_tokens": 16},
    )  # fmt: skip
    worse = [line for line in again["verdict"]["cannot"] if line.startswith("do as well as before it was tuned")]
    assert len(worse) == 2
    assert "found −58 points" in worse[0]


def test_a_row_that_was_not_asked_under_every_condition_is_left_out_of_all(evidence):
    replies = [reply for each in evidence.replies.values() for reply in each]
    missing = [r for r in replies if not (r.condition == "shuffled" and r.model == "tuned" and r.score.sample == "d3")]
    found = gather(evidence.samples, missing, evidence.habits, frame)
    assert found.left_out == 1
    assert {len(each) for each in found.replies.values()} == {47}
    assert "d3" not in {r.score.sample for each in found.replies.values() for r in each}


# --- the page ----------------------------------------------------------------------------------------


def test_the_page_is_sound_html_and_needs_nothing_from_outside(html):
    found = Page(html)
    assert found.open == []
    assert found.addresses
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "http" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_what_a_model_wrote_cannot_break_the_page(html):
    assert '<span class="ref">disc &amp; &lt;b&gt;</span>' in html
    assert "<b></ref>" not in html


def test_images_show_true_and_predicted_boxes_in_two_colours(evidence):
    from PIL import Image as Pillow
    from PIL import ImageColor

    from vcot.reports.overlays import PREDICTED, TRUE

    one = next(s for s in evidence.samples if s.true_boxes)
    white = Pillow.new("RGB", (160, 120), "white")
    text = "The <ref>disc</ref><box>[500, 500, 900, 900]</box>"
    colours = {c for _, c in gallery.draw(white, one, text, frame(one), longest_side=320).getcolors(100_000)}
    assert {ImageColor.getrgb(TRUE), ImageColor.getrgb(PREDICTED)} <= colours
    only_true = {c for _, c in gallery.draw(white, one, "none", frame(one), longest_side=320).getcolors(100_000)}
    assert ImageColor.getrgb(PREDICTED) not in only_true


def test_the_specimen_is_right_in_all(evidence):
    image = gallery.specimen(Store(), evidence, frame)
    assert image is not None
    assert image.width == 680
    wrong = {**evidence.replies, "tuned-real": evidence.replies["base-real"]}
    nothing = type(evidence)(evidence.samples, wrong, {}, evidence.habits, 0)
    assert gallery.specimen(Store(), nothing, frame) is None


# --- the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "signed", "text"),
    [
        ("accuracy_at_50", 0.7649, False, "76 %"),
        ("accuracy_at_50", 0.7649, True, "+76 points"),
        ("accuracy_at_50", -0.004, True, "0 points"),
        ("accuracy_at_50", -0.051, True, "−5 points"),
        ("mean_iou", 0.5764, False, "0.58"),
        ("mean_iou", -0.05, True, "−0.05"),
    ],
)
def test_numbers_are_written_for_people(name, value, signed, text):
    assert words.number(name, value, rows=50, signed=signed) == text


# --- gates -------------------------------------------------------------------------------------------


def test_gates_that_are_not_asked_for_do_not_exist(report):
    assert judge_gates(report) == []


def test_a_gate_that_is_not_passed_is_named_with_what_was_found(report):
    gates = judge_gates(report, not_worse_than_base=True, min_accuracy_at_50=0.9, max_blank_accuracy=0.2)
    assert [gate["passed"] for gate in gates] == [True, True, False, True]
    with pytest.raises(GateFailed, match=r"accuracy_at_50 at least 90.0%: it is 58 %\. See s3://x/report.html"):
        raise_if_failed(gates, "s3://x/report.html")
    raise_if_failed(gates[:2], "s3://x/report.html")


def test_worse_than_the_base_means_clearly_worse(report):
    turned = json.loads(json.dumps(report))
    change = words.find(turned, "differences", "after-before")["figures"]["accuracy_at_50"]
    change.update(value=-0.05, low=-0.12, high=0.02)
    assert judge_gates(turned, not_worse_than_base=True)[0]["passed"]
    change.update(high=-0.01)
    assert not judge_gates(turned, not_worse_than_base=True)[0]["passed"]


def test_a_gate_on_what_was_not_measured_is_not_passed(report):
    without = json.loads(json.dumps(report))
    without["results"] = [row for row in without["results"] if row["key"] != "tuned-blank"]
    assert not judge_gates(without, max_blank_accuracy=1.0)[0]["passed"]


def test_two_samples_of_one_id_are_no_ground_for_a_report(evidence):
    twice = [*evidence.samples, evidence.samples[0]]
    with pytest.raises(InputError, match="ids have to be unique"):
        gather(twice, [], Baselines.of([]), frame)
