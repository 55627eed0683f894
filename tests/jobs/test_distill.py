"""distill as a stage: Samples of convert in, Samples with reasoning out, shard by shard."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, cache_of, run
from tests.distill.made import CENTRE, RIGHT, TOP_LEFT, sample, see
from tests.fakes.distilling import (
    ROOT,
    convert,
    converted,
    distill,
    distilled,
    files,
    finished,
    illustrated,
    rejections,
    report,
    shown,
    start,
    stored,
    wait_for,
)  # fmt: skip
from tests.fakes.teacher import Refuse, Say, Teacher, grounded, scripted_teacher
from tests.s3 import *  # noqa: F403
from vcot.errors import InputError, SettingsError, VcotError
from vcot.grounding import Trace
from vcot.records import Reason
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick_teacher")

MIXED = [
    sample(name="where"),
    sample("How many stars are there?", "2", name="count", evidence=(see("star", CENTRE, RIGHT),), split="validation"),
    sample(name="has", reasoning=(Trace(("I see the ", see("lever", RIGHT), ".")),)),
    sample(name="held back", split="test", evidence=None),
    sample("Is there a dog?", "no", name="absent", evidence=()),
]


def test_rows_get_reasoning_or_pass_shard_by_shard(any_place: str) -> None:
    convert(any_place, MIXED[:3], MIXED[3:])
    run(DistillSettings(run_uri=any_place, phrasings=1))
    marker, rows = distilled(any_place)
    assert [row.id for row in rows] == [row.id for row in MIXED]
    assert [shard.row_counts.written for shard in marker.shards] == [3, 2]
    assert rows[2:4] == MIXED[2:4]  # unchanged
    assert [row.origin.teacher for row in rows] == ["template/1", "template/1", None, None, "template/1"]
    assert rows[1].reasoning == (Trace(("I see ", see("star", CENTRE, RIGHT), ". That makes 2.")),)
    assert rows[4].reasoning == (Trace(("I see no dog.",)),)
    said = report(any_place)
    assert said["rows"] == {"taught": 3, "traces": 3, "had_reasoning": 1, "test_passed": 1}
    assert said["teacher"] == marker.metadata.teacher == "template/1"
    assert {row.id for row in shown(any_place)} == {"where", "count", "absent"}


def test_without_a_teacher_the_log_says_once_that_the_template_writes(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    command = [sys.executable, "-m", "jobs.distill", "--run-uri", str(tmp_path), "--log-form", "lines"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    assert "no --teacher is set: the template writes the reasoning" in said.splitlines()[0]
    assert said.count("the template writes") == 1


def test_rows_without_evidence_are_refused_and_counted(tmp_path: Path) -> None:
    convert(str(tmp_path), [*MIXED, sample(name="unknown", evidence=None)])
    with pytest.raises(InputError, match=r"1 of 6 rows were refused.*1 no-reasoning"):
        run(DistillSettings(run_uri=str(tmp_path)))
    run(DistillSettings(run_uri=str(tmp_path), max_rejected_share=0.2))
    marker, _ = distilled(str(tmp_path))
    assert (marker.row_counts.rows, marker.row_counts.kept, marker.row_counts.rejected) == (6, 5, {"no-reasoning": 1})
    assert [(r.id, r.stage, r.reason) for r in rejections(str(tmp_path))] == [
        ("unknown", "distill", Reason.NO_REASONING)
    ]


def test_same_rows_and_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name, alternatives in (("a", 2), ("b", 2), ("c", 1)):
        convert(str(tmp_path / name), MIXED[:3], MIXED[3:])
        run(DistillSettings(run_uri=str(tmp_path / name), alternatives=alternatives))
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_finished_stage_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    run(DistillSettings(run_uri=str(tmp_path)))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "distill").rglob("*")}
    run(DistillSettings(run_uri=str(tmp_path)))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "distill").rglob("*")}
    with pytest.raises(SettingsError, match="phrasings was 3 and is now 1"):
        run(DistillSettings(run_uri=str(tmp_path), phrasings=1))


def test_parts_make_the_stage_of_another_run_s_input(tmp_path: Path) -> None:
    convert(str(tmp_path / "other"), MIXED[:3], MIXED[3:])
    mine = {"run_uri": str(tmp_path / "mine"), "input_uri": str(tmp_path / "other" / "convert")}
    for part, shard in (("prepare", None), ("shards", 1), ("shards", 0), ("finish", None)):
        run(DistillSettings(part=part, shard=shard, **mine))  # type: ignore[arg-type]
    marker, rows = distilled(str(tmp_path / "mine"))
    assert len(rows) == 5
    assert list(marker.inputs) == [str(tmp_path / "other" / "convert" / "_done" / "stage.json")]


def test_truncated_shard_of_convert_is_rejected(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    (shard,) = (tmp_path / "convert" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated or was changed"):
        run(DistillSettings(run_uri=str(tmp_path)))


# ----------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--teacher", "openai"], "needs --model"),
        (["--model", "gpt"], "did you mean --teacher openai"),
        (["--alternatives", "4"], "--phrasings 3"),
        (["--alternatives", "2", "--phrasings", "1"], "alternatives must differ"),
        (["--phrasings", "9"], "--phrasings=9"),
    ],
)
def test_settings_that_do_not_fit_are_told(argv: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        DistillSettings.load(["--run-uri", "/runs/x", *argv])


@pytest.mark.parametrize(
    ("run_uri", "cache"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs/_cache/distill"),
        ("s3://bucket", "s3://bucket/_cache/distill"),
        ("/data/runs/one", "/data/runs/_cache/distill"),
        ("one", "./_cache/distill"),
        ("file:///data/one", "file:///data/_cache/distill"),
    ],
)
def test_replies_are_kept_beside_the_run(run_uri: str, cache: str) -> None:
    assert cache_of(run_uri) == cache


def test_settings_are_checked_in_under_two_seconds() -> None:
    """Of CPU: how long a crowded machine takes for it is not ours to say."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    begun = seconds()
    command = [sys.executable, "-m", "jobs.distill", "--run-uri", "/runs/x", "--teacher=openai", "--model=m", "--check"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "distill: settings are in order\n"), answer.stderr
    assert seconds() - begun < 2


# ------------------------------------------------------------------------------------- as a process, with a model


def test_run_with_a_model_over_s3(moto_place: str) -> None:
    convert(moto_place, [*illustrated(moto_place, 5), MIXED[2]])
    with scripted_teacher() as teacher:
        finished(start(moto_place, teacher))
    _, rows = distilled(moto_place)
    assert [row.origin.teacher for row in rows] == ["scripted"] * 5 + [None]
    assert [row.origin.answered_by for row in rows] == [("scripted-1",)] * 5 + [()]  # as the endpoint names it
    assert rows[0].reasoning == (Trace(("I see the ", see("red disc", TOP_LEFT), ". So the answer is top left.")),)
    assert report(moto_place)["spent"]["requests"] == len(teacher.asked) == 5
    assert len(list(Store().list(cache_of(moto_place)))) >= 5


@pytest.fixture
def slow_teacher() -> Iterator[Teacher]:
    with scripted_teacher(
        lambda asked: Say(f"I see the [1] {asked.answer}.\nAnswer: {asked.answer}", wait=0.15)
    ) as teacher:
        yield teacher


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_killed_midway_only_what_is_missing_is_asked_again(
    tmp_path: Path, slow_teacher: Teacher, signal_number: signal.Signals
) -> None:
    where, calm = converted(tmp_path, 24, name="storm/one"), converted(tmp_path, 24, name="calm/one")
    process = start(str(where), slow_teacher, "--concurrency", "3")
    wait_for(6, where.parent, process)
    process.send_signal(signal_number)
    said = finished(process, -9 if signal_number is signal.SIGKILL else 143)
    paid, kept = list(slow_teacher.questions), stored(where.parent)
    if signal_number is not signal.SIGKILL:
        assert "replies that arrived are kept" in said
        assert kept == len(paid)
    assert len(paid) - kept <= 3 * 4  # lost: so many rows are worked on at once

    finished(start(str(where), slow_teacher, "--concurrency", "3"))
    again = slow_teacher.questions[len(paid) :]
    assert len(again) == len(set(again))
    assert len(set(paid) & set(again)) <= len(paid) - kept
    assert set(paid) | set(again) == {f"Where is disc {n}?" for n in range(24)}

    given: dict[str, Any] = {
        "propose": True,
        "self_consistency": True,
        "crop_check": True,
        "reply_tokens": 1024,
        "image_side": 1024,
    }
    distill(calm, slow_teacher, model="scripted", **given)
    assert files(where) == files(calm)


def test_every_end_has_its_code_and_a_later_run_goes_on(tmp_path: Path) -> None:
    where = converted(tmp_path, 4, shards=1)

    def ends(code: int, says: str, **given: Any) -> None:
        with pytest.raises(VcotError, match=says) as error:
            distill(where, teacher, **given)
        assert error.value.exit_code == code

    with scripted_teacher(lambda asked: Refuse(429, "too many")) as teacher:
        ends(75, "lower --concurrency", retries=0)
        teacher.script = lambda asked: Refuse(401, "bad key")
        ends(78, "OPENAI_API_KEY")
        teacher.script = lambda asked: grounded(asked) if asked.question == "Where is disc 0?" else Say("nonsense")
        ends(21, "--budget-requests is spent", budget_requests=2, concurrency=1)
        ends(65, r"3 of 4 rows were refused \(75.0%\).*3 teacher-ungrounded")
