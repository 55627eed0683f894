"""distill as a stage: Samples of convert in, Samples with reasoning out, shard by shard."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from jobs.distill import DistillSettings, cache_of, run
from tests.fakes.teacher import Refuse, Say, Teacher, grounded, scripted_teacher
from tests.s3 import *  # noqa: F403
from tests.teacher.made import CENTRE, RIGHT, TOP_LEFT, picture, sample, see
from vcot.errors import InputError, SettingsError, UsageError, VcotError
from vcot.grounding import Trace
from vcot.records import Folder, Reason, Rejection, Sample, read_samples
from vcot.records.shards import ShardWriter, StageMark, read_mark, run_shards
from vcot.reports.distillation import SHOWN
from vcot.reports.sampling import ShownExample, sampled
from vcot.settings import Settings
from vcot.storage import Store, join

ROOT = Path(__file__).parents[2]


class Converted(Settings):
    """What convert would have written."""

    stage: ClassVar[str] = "convert"


def convert(run_uri: str, *shards: Iterable[Sample]) -> None:
    def work(writer: ShardWriter) -> None:
        for row in shards[writer.index]:
            writer.keep(row)

    folder = Folder(Store(), run_uri, "convert")
    settings = Converted(run_uri=run_uri)
    run_shards(folder, settings, inputs={}, shards=len(shards), work=work, max_rejected_share=1.0)


def distilled(run_uri: str) -> tuple[StageMark, list[Sample]]:
    mark, _ = read_mark(Store(), join(run_uri, "distill"))
    return mark, list(read_samples(Store(), join(run_uri, "distill"), mark))


def rejections(run_uri: str, mark: StageMark) -> list[Rejection]:
    lines = [Store().read(join(run_uri, "distill", shard.rejections.name)) for shard in mark.shards]
    return [Rejection.model_validate_json(line) for line in b"".join(lines).splitlines()]


def report(run_uri: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Store().read(join(run_uri, "distill", "report.json")))
    return found


def shown(run_uri: str) -> list[ShownExample]:
    """Rows that the shards put aside for the page."""
    folder = Folder(Store(), run_uri, "distill")
    groups = sampled(folder, folder.shard_marks(), SHOWN).by_dataset().values()
    return [one for kinds in groups for rows in kinds.values() for one in rows]


def pictured(run_uri: str, count: int) -> list[Sample]:
    """Rows whose picture lies in storage."""
    uri = join(run_uri, "images", "one.png")
    Store().write(uri, picture())
    return [sample(f"Where is disc {n}?", name=f"row-{n}", uri=uri) for n in range(count)]


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
    mark, rows = distilled(any_place)
    assert [row.id for row in rows] == [row.id for row in MIXED]
    assert [shard.tally.written for shard in mark.shards] == [3, 2]
    assert rows[2:4] == MIXED[2:4]  # unchanged
    assert [row.origin.teacher for row in rows] == ["template/1", "template/1", None, None, "template/1"]
    assert rows[1].reasoning == (Trace(("I see ", see("star", CENTRE, RIGHT), ". That makes 2.")),)
    assert rows[4].reasoning == (Trace(("I see no dog.",)),)
    said = report(any_place)
    assert said["rows"] == {"taught": 3, "traces": 3, "had_reasoning": 1, "test_passed": 1}
    assert said["teacher"] == mark.facts["teacher"] == "template/1"
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
    mark, _ = distilled(str(tmp_path))
    assert (mark.tally.rows, mark.tally.kept, mark.tally.rejected) == (6, 5, {"no-reasoning": 1})
    assert [(r.id, r.stage, r.reason) for r in rejections(str(tmp_path), mark)] == [
        ("unknown", "distill", Reason.NO_REASONING)
    ]


def files(folder: Path) -> dict[str, str]:
    found = [p for kind in ("shards", "rejections") for p in (folder / "distill" / kind).iterdir()]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_the_same_rows_and_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name, alternatives in (("a", 2), ("b", 2), ("c", 1)):
        convert(str(tmp_path / name), MIXED[:3], MIXED[3:])
        run(DistillSettings(run_uri=str(tmp_path / name), alternatives=alternatives))
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_a_finished_stage_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    run(DistillSettings(run_uri=str(tmp_path)))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "distill").rglob("*")}
    run(DistillSettings(run_uri=str(tmp_path)))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "distill").rglob("*")}
    with pytest.raises(SettingsError, match="phrasings was 3 and is now 1"):
        run(DistillSettings(run_uri=str(tmp_path), phrasings=1))


def test_parts_and_another_input(tmp_path: Path) -> None:
    convert(str(tmp_path / "other"), MIXED[:3], MIXED[3:])
    mine = {"run_uri": str(tmp_path / "mine"), "input_uri": str(tmp_path / "other" / "convert")}
    for part, shard in (("prepare", None), ("shards", 1), ("shards", 0), ("finish", None)):
        run(DistillSettings(part=part, shard=shard, **mine))  # type: ignore[arg-type]
    mark, rows = distilled(str(tmp_path / "mine"))
    assert len(rows) == 5
    assert list(mark.inputs) == [str(tmp_path / "other" / "convert" / "_done" / "stage.json")]


def test_a_truncated_shard_of_convert_is_told(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    (shard,) = (tmp_path / "convert" / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated or was changed"):
        run(DistillSettings(run_uri=str(tmp_path)))


# ----------------------------------------------------------------------------------------------------- settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("VCOT_", "OPENAI_"))]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--teacher", "openai"], "needs --model"),
        (["--model", "gpt"], "did you mean --teacher openai"),
        (["--alternatives", "4"], "--phrasings 3"),
        (["--alternatives", "2", "--phrasings", "1"], "alternatives must differ"),
        (["--phrasings", "9"], "--phrasings=9"),
        (["--teacher", "gpt"], "--teacher=gpt"),
    ],
)
def test_settings_that_do_not_fit_are_told(argv: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        DistillSettings.load(["--run-uri", "/runs/x", *argv])


def test_an_unknown_flag_is_told() -> None:
    with pytest.raises(UsageError, match="--phrasing: no such flag; did you mean --phrasings"):
        DistillSettings.load(["--run-uri", "/runs/x", "--phrasing", "1"])


@pytest.mark.parametrize(
    ("run_uri", "cache"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs/_cache/distill"),
        ("s3://bucket/one/", "s3://bucket/_cache/distill"),
        ("s3://bucket", "s3://bucket/_cache/distill"),
        ("/data/runs/one", "/data/runs/_cache/distill"),
        ("runs/one", "runs/_cache/distill"),
        ("one", "./_cache/distill"),
        ("file:///data/one", "file:///data/_cache/distill"),
    ],
)
def test_replies_are_kept_beside_the_run(run_uri: str, cache: str) -> None:
    assert cache_of(run_uri) == cache


def test_settings_are_judged_in_under_two_seconds() -> None:
    """Of CPU: how long a crowded machine takes for it is not ours to say."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    for argv in (["--teacher", "openai", "--model", "m"], []):
        begun = seconds()
        answer = subprocess.run(
            [sys.executable, "-m", "jobs.distill", "--run-uri", "/runs/x", *argv, "--check"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (answer.returncode, answer.stdout) == (0, "distill: settings are in order\n"), answer.stderr
        assert seconds() - begun < 2


# ------------------------------------------------------------------------------------- as a process, with a model


def start(run_uri: str, teacher: Teacher, *argv: str) -> subprocess.Popen[str]:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "OPENAI_"))} | {
        "VCOT_DISTILL_TEACHER": "openai",
        "VCOT_DISTILL_MODEL": "scripted",
        "VCOT_DISTILL_REANSWER": "false",
        "OPENAI_BASE_URL": teacher.address,
        "OPENAI_API_KEY": "x",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "jobs.distill", "--run-uri", run_uri, *argv]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def stored(runs: Path) -> int:
    """Replies in the cache that the runs of this folder share."""
    return len(list((runs / "_cache" / "distill").rglob("*.json")))


def wait_for(replies: int, runs: Path, process: subprocess.Popen[str]) -> None:
    """Until that many replies are stored: on a busy machine they are stored long after they were asked for."""
    until = time.monotonic() + 60
    while stored(runs) < replies:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def slow_teacher() -> Iterator[Teacher]:
    with scripted_teacher(
        lambda asked: Say(f"I see the [1] {asked.answer}.\nAnswer: {asked.answer}", wait=0.15)
    ) as teacher:
        yield teacher


def test_a_run_with_a_model_over_s3(moto_place: str) -> None:
    convert(moto_place, [*pictured(moto_place, 5), MIXED[2]])
    with scripted_teacher() as teacher:
        finished(start(moto_place, teacher))
    _, rows = distilled(moto_place)
    assert [row.origin.teacher for row in rows] == ["scripted"] * 5 + [None]
    assert [row.origin.answered_by for row in rows] == [("scripted-1",)] * 5 + [()]  # as the endpoint names it
    assert rows[0].reasoning == (Trace(("I see the ", see("red disc", TOP_LEFT), ". So the answer is top left.")),)
    said = report(moto_place)
    assert said["spent"]["requests"] == len(teacher.asked) == 5  # type: ignore[index]
    kept = list(Store().list(cache_of(moto_place)))
    assert len(kept) >= 5


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_killed_midway_only_what_is_missing_is_asked_again(
    tmp_path: Path, slow_teacher: Teacher, signal_number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_uri = str(tmp_path / "runs" / "storm")
    rows = pictured(run_uri, 24)
    convert(run_uri, rows[:12], rows[12:])
    process = start(run_uri, slow_teacher, "--concurrency", "3")
    wait_for(6, tmp_path / "runs", process)
    process.send_signal(signal_number)
    said = finished(process, -9 if signal_number is signal.SIGKILL else 143)
    paid = list(slow_teacher.questions)
    if signal_number is not signal.SIGKILL:
        assert "replies that arrived are kept" in said
        assert stored(tmp_path / "runs") == len(paid)
    lost = len(paid) - stored(tmp_path / "runs")  # under way when it died
    assert lost <= 4 * 3  # so many rows are worked on at once

    finished(start(run_uri, slow_teacher, "--concurrency", "3"))
    again = slow_teacher.questions[len(paid) :]
    assert len(again) == len(set(again))
    twice = set(paid) & set(again)
    assert len(twice) <= lost
    assert set(paid) | set(again) == {row.question for row in rows}

    calm = str(tmp_path / "calm" / "run")
    convert(calm, rows[:12], rows[12:])
    with scripted_teacher(slow_teacher.script) as undisturbed:
        asked_by(undisturbed, monkeypatch)
        run(DistillSettings(run_uri=calm, teacher="openai", model="scripted", concurrency=12))
    assert files(tmp_path / "runs" / "storm") == files(tmp_path / "calm" / "run")


def asked_by(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; one request for each row."""
    monkeypatch.setenv("VCOT_DISTILL_REANSWER", "false")
    for name, value in {"OPENAI_BASE_URL": teacher.address, "OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


def test_every_end_has_its_code_and_a_later_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_uri = str(tmp_path / "run")
    convert(run_uri, pictured(run_uri, 4))

    def ends(code: int, says: str, **given: object) -> None:
        with pytest.raises(VcotError, match=says) as error:
            run(DistillSettings(run_uri=run_uri, teacher="openai", model="scripted", **given))  # type: ignore[arg-type]
        assert error.value.exit_code == code

    with scripted_teacher(lambda asked: Refuse(429, "too many")) as teacher:
        asked_by(teacher, monkeypatch)
        ends(75, "lower --concurrency", retries=0)
        teacher.script = lambda asked: Refuse(401, "bad key")
        ends(78, "OPENAI_API_KEY")
        teacher.script = lambda asked: grounded(asked) if asked.question == "Where is disc 0?" else Say("nonsense")
        ends(21, "--budget-requests is spent", budget_requests=2, concurrency=1)
        ends(65, r"3 of 4 rows were refused \(75.0%\).*3 teacher-ungrounded")


def test_the_output_can_be_read_without_us(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    run(DistillSettings(run_uri=str(tmp_path)))
    (path,) = (tmp_path / "distill" / "shards").iterdir()
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [line["origin"]["teacher"] for line in lines[:3]] == ["template/1", "template/1", None]
