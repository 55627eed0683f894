"""Endpoints whose replies cannot be believed, over real HTTP: each fault is named, and above a share refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from tests.fakes.evaluating import frame, sample
from tests.fakes.teacher import Answer, Asked, Refuse, Say, scripted_teacher
from tests.jobs.conftest import clean, quick_teacher  # noqa: F401
from vcot.errors import GateFailed
from vcot.evaluation.credibility import logprobs_fit, unusable_kind
from vcot.evaluation.metrics import score
from vcot.evaluation.runner import Reply, image_of
from vcot.grounding.tags import numbers_of
from vcot.records import Completion, Folder, Sample, read_samples
from vcot.records.shards import CONVERT
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick_teacher")

ROWS = 8
Truth = Mapping[bytes, Sample]


@pytest.fixture(scope="module")
def convert_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_uri = str(tmp_path_factory.mktemp("scenes"))
    run_convert(ConvertSettings(run_uri=run_uri, source="scenes", scenes=16, questions="point"))
    return f"{run_uri}/convert"


@pytest.fixture(scope="module")
def truth(convert_uri: str) -> Truth:
    """Pixels of an image → its sample."""
    marker = Folder(Store(), convert_uri.removesuffix("/convert"), CONVERT).marker()
    assert marker is not None
    return {image_of(Store(), one).tobytes(): one for one in read_samples(Store(), convert_uri, marker)}


def honest(one: Sample, numbers: Callable[[Sample], list[Any]] | None = None) -> str:
    """The right answer, with the first true box in thousandths or other numbers."""
    box = (one.true_boxes or ())[:1]
    written = [numbers(one) if numbers else [round(n) for n in frame(one).numbers(each)] for each in box]
    marks = "".join(f"<ref>thing</ref><box>{each}</box>" for each in written)
    return f"I looked for it: {marks or 'nothing'}.\nAnswer: {one.answers[0]}"


def of_model(answer: Answer, name: str) -> Answer:
    return replace(answer, body=json.dumps(json.loads(answer.body or b"") | {"model": name}).encode())


def without_choices(answer: Answer) -> Answer:
    return replace(answer, body=json.dumps(json.loads(answer.body or b"") | {"choices": []}).encode())


def settings_of(tmp_path: Path, convert_uri: str, address: str) -> dict[str, Any]:
    return {
        "run_uri": str(tmp_path / "run"), "subject": f"{address}#scripted-1", "samples_uri": convert_uri,
        "subject_frame": "thousandths", "subject_dialect": "vcot", "split": "train", "conditions": "real",
        "max_samples": ROWS, "overlays": 1, "subject_concurrency": 2, "cache_uri": str(tmp_path / "cache"),
    }  # fmt: skip


def evaluate(
    tmp_path: Path, convert_uri: str, truth: Truth, script: Callable[[Asked, Sample], Answer], **settings: Any
) -> tuple[dict[str, Any], str]:
    """The report, and the message of a failed gate ("" if none failed)."""
    error = ""
    with scripted_teacher(lambda asked: script(asked, truth[asked.images[0].convert("RGB").tobytes()])) as teacher:
        try:
            run_evaluate(EvaluateSettings(**settings_of(tmp_path, convert_uri, teacher.address) | settings))
        except GateFailed as failed:
            error = str(failed)
    return json.loads((tmp_path / "run" / "evaluate" / "report.json").read_text()), error


REFUSED: dict[str, tuple[Callable[[Asked, Sample], Answer], str]] = {
    "reasoning": (
        lambda _, one: Say("", reasoning_content=honest(one)),
        r"8 of 8 replies \(100 %\) are empty: their text is in message.reasoning_content.*without --reasoning-parser",
    ),
    "toolcalls": (
        lambda _, one: Say(None, tool_calls=[{"id": "x", "type": "function"}], finish="tool_calls"),
        r"8 of 8.* empty: their text is in message.tool_calls.*without --enable-auto-tool-choice",
    ),
    "refusal": (lambda _, one: Say(None, refusal="I cannot help."), r"8 of 8.* refused.*message.refusal"),
    "filter": (lambda _, one: Say("", finish="content_filter"), r"8 of 8.* refused \(finish_reason content_filter\)"),
    "choices": (lambda _, one: without_choices(Say("x")), r"8 of 8.* empty: the server returned no text"),
    "blank": (lambda _, one: Say(" \n"), r"8 of 8.* empty: the server returned no text"),
    "length": (
        lambda _, one: Say(honest(one)[:12], finish="length"),
        r"8 of 8.* cut off: they reached the limit; raise --max-new-tokens \(256\)",
    ),
    "cut": (
        lambda _, one: Say("I see the <ref>thing</ref><box>[1"),
        r"8 of 8.* cut off, although their finish_reason is not length",
    ),
    "prose": (lambda _, one: Say("I would rather not say."), r"8 of 8.* unreadable: no final answer was recognized"),
    "mixture": (
        lambda asked, one: of_model(Say(honest(one)), f"model-{asked.number % 2}"),
        r"one model answers: the endpoint answered with model-\d \(4\), model-\d \(4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", REFUSED)
def test_unusable_replies_are_named_and_refused(
    mode: str, convert_uri: str, truth: Truth, tmp_path: Path, capsys: Any
) -> None:
    script, words = REFUSED[mode]
    report, error = evaluate(tmp_path, convert_uri, truth, script)
    assert re.search(words, error), error
    shown = " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "run" / "evaluate" / "report.html").read_text()
    assert "Read this before you believe the figures" in shown
    assert "Read this before you believe the figures" in page
    assert report["credibility"]["warnings"]
    assert not (tmp_path / "run" / "evaluate" / "_done" / "stage.json").exists()


NAMED: dict[str, tuple[Callable[[Asked, Sample], Answer], str]] = {
    "split": (
        lambda _, one: Say(f"Answer: {one.answers[0]}", reasoning="I looked at it."),
        "8 of 8 replies have part of their text in message.reasoning, which is not evaluated; start vLLM",
    ),
    "thinking": (lambda _, one: Say(f"<think>Hm.</think>{honest(one)}"), "8 of 8 replies (100 %) contain thinking"),
    "repeats": (
        lambda _, one: Say("There is something at the left." * 9 + honest(one)), "repeat a sentence 5 times or more"
    ),
    "plain": (
        lambda _, one: Say(f"It is at [100, 200, 300, 400].\nAnswer: {one.answers[0]}"),
        "have four numbers in brackets without the tags of any notation that is read",
    ),
    "model": (
        lambda _, one: of_model(Say(honest(one)), "gpt-other"),
        "The endpoint was asked for scripted-1 and answered as gpt-other.",
    ),
    "logprobs": (
        lambda _, one: Say(honest(one), logprobs=[0.0]),
        "The log-probabilities of 8 of 8 replies (100 %) do not fit their text (1 value for ",
    ),
    "pixels": (
        lambda _, one: Say(honest(one, lambda s: [round(n) for n in s.true_boxes[0].as_list()])),
        "in thousandths as declared, 0.9",
    ),
    "fractions": (
        lambda _, one: Say(
            honest(one, lambda s: [round(n, 3) for n in s.true_boxes[0].to_fractions(
                width=s.shown.width, height=s.shown.height)])
        ),
        " in fractions (",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", NAMED)
def test_peculiar_replies_are_named(mode: str, convert_uri: str, truth: Truth, tmp_path: Path, capsys: Any) -> None:
    script, words = NAMED[mode]
    report, error = evaluate(tmp_path, convert_uri, truth, script)
    assert error == ""
    (warning,) = [line for line in report["credibility"]["warnings"] if words in line]
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(warning.split())[:60] in shown
    assert (tmp_path / "run" / "evaluate" / "_done" / "stage.json").exists()


def test_honest_replies_give_no_warning(convert_uri: str, truth: Truth, tmp_path: Path) -> None:
    report, error = evaluate(tmp_path, convert_uri, truth, lambda _, one: Say(honest(one)))
    assert (error, report["credibility"]["warnings"]) == ("", [])
    assert report["credibility"]["models"] == {"scripted-1": ROWS}
    assert report["credibility"]["rows"][0]["finish_reasons"] == {"stop": ROWS}


def test_the_share_of_unusable_replies_is_an_option(convert_uri: str, truth: Truth, tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return Say("") if asked.number % 4 == 0 else Say(honest(truth[asked.images[0].convert("RGB").tobytes()]))

    with scripted_teacher(script) as teacher:
        usual = settings_of(tmp_path, convert_uri, teacher.address) | {"subject_concurrency": 1}
        with pytest.raises(
            GateFailed, match=r"2 of 8 replies cannot be used \(25.0%, --max-unusable-share allows 0.2\)"
        ):
            run_evaluate(EvaluateSettings(**usual))
        before = len(teacher.asked)
        run_evaluate(EvaluateSettings(**usual, max_unusable_share=0.3))  # judged again, and nothing is requested
        assert len(teacher.asked) == before
    assert (tmp_path / "run" / "evaluate" / "_done" / "stage.json").exists()


def test_empty_replies_are_not_cached(convert_uri: str, truth: Truth, tmp_path: Path) -> None:
    """An evaluation into another run asks for them again, and for no other."""
    state = {"down": True}

    def script(asked: Asked, one: Sample) -> Answer:
        empty = state["down"] and asked.number % 2 == 0
        return Say("") if empty else Say(honest(one))

    with scripted_teacher(lambda asked: script(asked, truth[asked.images[0].convert("RGB").tobytes()])) as teacher:
        usual = settings_of(tmp_path, convert_uri, teacher.address) | {"subject_concurrency": 1}
        with pytest.raises(GateFailed, match="4 of 8 replies cannot be used"):
            run_evaluate(EvaluateSettings(**usual))
        state["down"] = False
        before = len(teacher.asked)
        run_evaluate(EvaluateSettings(**usual | {"run_uri": str(tmp_path / "second")}))
        assert len(teacher.asked) - before == 4
    report = json.loads((tmp_path / "second" / "evaluate" / "report.json").read_text())
    assert report["credibility"]["unusable_share"] == 0


def test_rows_without_an_answer_count_as_unusable(convert_uri: str, truth: Truth, tmp_path: Path) -> None:
    def script(asked: Asked, one: Sample) -> Answer:
        return Refuse(500, "CUDA error") if asked.words.startswith("Where") and one.id in bad else Say(honest(one))

    bad = {one.id for one in list(truth.values())[:6]}
    report, _ = evaluate(tmp_path, convert_uri, truth, script, max_samples=16, max_rejected_share=1.0)
    assert report["credibility"]["rows"][0]["unusable"].get("never answered", 0) == sum(
        one.question.startswith("Where") for one in list(truth.values())[:6]
    )


# --- single functions ------------------------------------------------------------------------------------


def a_reply(text: str, finish: str = "stop") -> Reply:
    one = sample("one")
    return Reply(
        model="subject", way="ground", condition="real", score=score(text, one, frame(one)),
        completion=Completion(text=text, model="m", finish_reason=finish),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "finish", "kind"),
    [
        ("Answer: left", "stop", None),
        ("Answer: left", "length", None),  # it came to its answer
        ("It is somewhere.", "stop", "unreadable"),
        ("a <box>[1, 2, 3, 4]</box> and more", "stop", None),  # its boxes are compared with the annotated ones
        ("a <box>[1, 2, 3, 4]</box> and more", "length", "cut off"),
        ("a <box>[1, 2, 3, 4]</box> and <bo", "stop", "cut off"),
        ("", "unanswered", "never answered"),
        ("half", "content_filter", "refused"),
    ],
)
def test_each_reply_has_one_kind(text: str, finish: str, kind: str | None) -> None:
    assert unusable_kind(a_reply(text, finish)) == kind


@pytest.mark.parametrize(
    ("text", "values", "fits"), [("up", 3, True), ("x" * 80, 1, False), ("x" * 80, 20, True), ("up", 60, False)]
)
def test_logprobs_fit_a_text_of_their_length(text: str, values: int, fits: bool) -> None:
    completion = Completion(text=text, model="m", finish_reason="stop", logprobs=(-0.1,) * values)
    assert logprobs_fit(completion) == fits


def test_numbers_of_boxes_are_read_whatever_they_mean() -> None:
    text = 'A <ref>x</ref><box>[9, 9, 2, 2]</box>, [{"bbox_2d": [0.1, 5000, 7, -3], "label": "y"}] and [1, 2, 3, 4]'
    assert numbers_of(text) == [(9, 9, 2, 2), (0.1, 5000, 7, -3)]
