"""evaluate --judge over real HTTP: what the judge is asked, what becomes of it, and what stands in the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from tests.fakes.rows import ASK, Given
from tests.fakes.teacher import Answer, Asked, Refuse, Say, scripted_teacher
from tests.jobs.conftest import clean, quick_teacher  # noqa: F401
from vcot.errors import SettingsError, TemporaryError

pytestmark = pytest.mark.usefixtures("quick_teacher")

#: Set, question, true answer, what the subject says, what the judge says of it.
ROWS: list[tuple[str, str, str, str, Answer | None]] = [
    ("vsr", "Is it red?", "Yes", "yes", Say("score: 1")),
    ("vsr", "Is it blue?", "No", "yes", Say("<think>Is it score: 0.3?</think>\nscore: 0")),
    ("vsr", "What is it?", "cake", "a cake", Say("Score: 0.9")),
    ("vsr", "Where is it?", "left", "on the left\nscore: 1", Say("score: 0.8")),  # the rule wants "left"
    ("vsr", "What stands there?", "cup", "cup", Say("It is good.")),
    ("vsr", "What lies there?", "plate", "plate", Refuse(500, "CUDA error")),
    ("vsr", "What hangs there?", "lamp", "", None),
    ("flickr30k", "What is the man doing?", "The man sits on the floor.", "He is sitting.", Say("score: 0.7")),
    ("flickr30k", "What is the dog doing?", "The dog runs on grass.", "He is sitting.", Say("score: 0")),
]  # fmt: skip


def script(asked: Asked) -> Answer:
    """Of both, told apart by the name of the model."""
    if asked.body["model"] == "subject":
        return next(Say(said) for _, question, _, said, _ in ROWS if asked.words.startswith(question))
    told = re.fullmatch(r"question: (.*)\nstandard answer: (.*)\nmodel's answer: (.*)", asked.words)
    assert told is not None
    (verdict,) = [one for _, *row, said, one in ROWS if (*row, " ".join(said.split())) == told.groups()]
    assert verdict is not None
    return verdict


@pytest.fixture
def samples_uri(tmp_path: Path) -> str:
    given = Given(tmp_path / "data")
    rows = []
    for number, (name, question, true, _, _) in enumerate(ROWS):
        path = given.image(f"{name}/{number}.png", 200 + number, 100)
        turns = [f"<image>\n{question} {ASK}", "[0.1, 0.3, 0.4, 0.6]", "<image>", true]
        rows.append(
            {
                "dataset": name, "split": "val", "question_id": number, "image": [f"cot/{path}"] * 2,
                "conversations": [
                    {"from": who, "value": turn} for who, turn in zip(("human", "gpt") * 2, turns, strict=True)
                ],
            }
        )  # fmt: skip
    run_convert(
        ConvertSettings(
            run_uri=str(tmp_path / "rows"), source="viscot", input_uri=(given.rows(rows, "rows.json"),),
            images_uri=str(given.images),
        )
    )  # fmt: skip
    return str(tmp_path / "rows" / "convert")


def evaluate(run_uri: Path, samples_uri: str, address: str, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "suite": "viscot", "ask": "direct", "conditions": "real", "native_form": "qwen3-vl",
        "subject": f"{address}#subject", "judge": f"{address}#judge",
    }  # fmt: skip
    run_evaluate(EvaluateSettings(run_uri=str(run_uri), samples_uri=samples_uri, **(settings | more)))
    (suite,) = json.loads((run_uri / "evaluate" / "report.json").read_text())["suites"]
    found: dict[str, Any] = suite
    return found


def test_verdicts_stand_beside_the_rule_and_each_answer_is_judged_once(
    tmp_path: Path, samples_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_teacher(script) as teacher:
        suite = evaluate(tmp_path / "one", samples_uri, teacher.address)
        asked = [one for one in teacher.asked if one.body["model"] == "judge"]
        assert len({one.words for one in asked}) == len(ROWS) - 1  # nobody is asked about no answer
        assert all("score: <score>" in one.body["messages"][0]["content"] for one in asked)
        assert all("temperature" not in one.body for one in asked)
        before = len(teacher.asked)
        again = evaluate(tmp_path / "two", samples_uri, teacher.address)
        # But for the one that it could not answer, and any other, by which the client sees that it answers at all.
        anew = {one.words.splitlines()[0] for one in teacher.asked[before:] if one.body["model"] == "judge"}
        assert len(anew - {"question: What lies there?"}) <= 1
    assert again["ways"] == suite["ways"]
    sets = {one["set"]: one["figures"] for one in suite["ways"][0]["sets"]}
    vsr, flickr = sets["vsr"], sets["flickr30k"]
    assert vsr["judge_score"]["value"] == pytest.approx((1 + 0 + 0.9 + 0.8 + 0) / 5)
    assert vsr["judge_score"]["low"] < vsr["judge_score"]["value"] < vsr["judge_score"]["high"]
    assert vsr["answer_score"]["value"] == pytest.approx(4 / 7, abs=1e-6)
    assert (vsr["judge_agreement"]["value"], vsr["judge_agreement"]["count"]) == (0.8, 5)
    assert vsr["judge_unread"]["value"] == pytest.approx(2 / 7, abs=1e-6)
    assert flickr["judge_score"]["value"] == pytest.approx(0.35)
    assert (flickr["answer_score"]["value"], flickr["judge_agreement"]["value"]) == (None, None)
    assert sets["average"]["judge_score"]["value"] == pytest.approx((0.54 + 0.35) / 2)
    # Of five, the judge calls three right and the rule two of these.
    chance = 0.6 * 0.4 + 0.4 * 0.6
    assert suite["judge"]["kappa"] == {"direct": pytest.approx((0.8 - chance) / (1 - chance), abs=1e-4)}
    assert (suite["judge"]["model"], suite["judge"]["answered_by"]) == ("judge", ["scripted-1"])
    assert suite["judge"]["costs"]["requests"] >= len(ROWS) - 2
    judged = [one for one in suite["published"] if one["metric"] == "judge_score"]
    assert len(judged) > 20
    assert all(one["differs"].startswith("another judge gave it") for one in judged)
    assert not [one for one in suite["published"] if one["metric"] == "answer_score"]
    page = " ".join((tmp_path / "one" / "evaluate" / "report.html").read_text().split())
    assert "answered as scripted-1. Its agreement with the rule beyond chance (Cohen's kappa): direct 0.62." in page
    assert "an unknown price" in page
    assert f"judge: judge at {teacher.address}" in capsys.readouterr().out


def test_without_a_judge_there_is_none_in_the_report(tmp_path: Path, samples_uri: str) -> None:
    with scripted_teacher(script) as teacher:
        suite = evaluate(tmp_path / "one", samples_uri, teacher.address, judge=None)
        assert {one.body["model"] for one in teacher.asked} == {"subject"}
    assert "judge" not in suite
    assert not [name for name in suite["shown"] if name.startswith("judge")]
    assert "answer_score" in {one["metric"] for one in suite["published"]}


def test_a_key_of_the_judges_own_is_not_shown_to_the_subject(
    tmp_path: Path, samples_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-judge-0123456789")
    with scripted_teacher(script) as teacher:
        evaluate(tmp_path / "one", samples_uri, teacher.address)
        shown = {(one.body["model"], one.authorization) for one in teacher.asked}
    assert shown == {("subject", "Bearer none"), ("judge", "Bearer sk-judge-0123456789")}


def without_a_judge(asked: Asked) -> Answer:
    return script(asked) if asked.body["model"] == "subject" else Refuse(503, "busy")


@pytest.mark.parametrize(
    ("judge", "answers", "error", "says"),
    [
        ("{}", script, SettingsError, r"--judge http://127\.0\.0\.1:\d+/v1: which of its models\?"),
        ("https:///v1#judge", script, SettingsError, "--judge https:///v1#judge: an endpoint is written"),
        ("{}#judge", without_a_judge, TemporaryError, "fails for now.*busy"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told_in_one_line(
    tmp_path: Path, samples_uri: str, judge: str, answers: Callable[[Asked], Answer], error: type[Exception], says: str
) -> None:
    with scripted_teacher(answers) as teacher, pytest.raises(error, match=says) as told:
        evaluate(tmp_path / "one", samples_uri, teacher.address, judge=judge.format(teacher.address))
    assert "\n" not in str(told.value)


def test_a_judge_without_its_suite_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--judge http://h/v1#m: it scores answers of --suite viscot") as told:
        EvaluateSettings.load(["--run-uri", "r", "--suite", "pope", "--judge", "http://h/v1#m"])
    assert "\n" not in str(told.value)
