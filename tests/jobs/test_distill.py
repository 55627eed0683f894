"""distill as a stage: Samples of convert in, Samples with reasoning out, shard by shard, whoever writes it."""

from __future__ import annotations

import re
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, cache_of, run
from tests.distill.made import CENTRE, DISC, LEVER, RIGHT, TOP_LEFT, draw_png, row, sample, see
from tests.fakes.batches import Batches
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
from tests.fakes.teacher import Answer, Asked, Say, Teacher, grounded, scripted_teacher
from tests.fakes.wise import Known, Wise
from tests.models.owl import make_owl
from tests.s3 import *  # noqa: F403
from vcot.distill.budget import FLAGS
from vcot.distill.request import choose_prompts
from vcot.distill.strategies import STRATEGIES
from vcot.errors import InputError, SettingsError
from vcot.grounding import Trace
from vcot.records import Reason, Sample
from vcot.settings import flag
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick_teacher")

MIXED = [
    sample(name="where"),
    sample("How many stars are there?", "2", name="count", evidence=(see("star", CENTRE, RIGHT),), split="validation"),
    sample(name="has", reasoning=(Trace(("I see the ", see("lever", RIGHT), ".")),)),
    sample(name="held back", split="test", evidence=None),
    sample("Is there a dog?", "no", name="absent", evidence=()),
]

# --- the template


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
    assert said["rows"] == {"taught": 3, "traces": 3, "had_reasoning": 1, "without": 0, "test_passed": 1}
    assert said["teacher"] == marker.metadata.teacher == "template/1"
    assert {row.id for row in shown(any_place)} == {"where", "count", "absent"}


def test_without_a_teacher_all_rows_pass_as_they_are(tmp_path: Path) -> None:
    convert(str(tmp_path), MIXED)
    run(DistillSettings(run_uri=str(tmp_path), teacher="none"))
    marker, rows = distilled(str(tmp_path))
    assert rows == MIXED
    assert (marker.metadata.teacher, marker.row_counts.rejected) == ("none", {})
    assert report(str(tmp_path))["rows"] == {
        "taught": 0, "traces": 0, "had_reasoning": 1, "without": 3, "test_passed": 1,
    }  # fmt: skip
    page = " ".join((tmp_path / "distill" / "report.html").read_text().split())
    assert (
        "5 passed as they are, because they have reasoning, because nobody was asked or are of the test split" in page
    )


def test_rows_without_evidence_are_refused_and_counted(tmp_path: Path) -> None:
    convert(str(tmp_path), [*MIXED, sample(name="unknown", evidence=None)])
    with pytest.raises(InputError, match=r"1 of 6 rows were refused.*1 no-reasoning") as error:
        run(DistillSettings(run_uri=str(tmp_path)))
    assert error.value.exit_code == 65
    run(DistillSettings(run_uri=str(tmp_path), max_rejected_share=0.2))
    marker, _ = distilled(str(tmp_path))
    assert (marker.row_counts.rows, marker.row_counts.kept, marker.row_counts.rejected) == (6, 5, {"no-reasoning": 1})
    assert [(one.id, one.reason) for one in rejections(str(tmp_path))] == [("unknown", Reason.NO_REASONING)]


def test_same_rows_and_settings_give_the_same_bytes_once(tmp_path: Path) -> None:
    for name, alternatives in (("a", 2), ("b", 2), ("c", 1)):
        convert(str(tmp_path / name), MIXED[:3], MIXED[3:])
        run(DistillSettings(run_uri=str(tmp_path / name), alternatives=alternatives))
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c/distill").rglob("*")}
    run(DistillSettings(run_uri=str(tmp_path / "c")))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "c/distill").rglob("*")}
    with pytest.raises(SettingsError, match="phrasings was 3 and is now 1"):
        run(DistillSettings(run_uri=str(tmp_path / "c"), phrasings=1))


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


# --- settings


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--teacher", "openai"], "needs --model"), (["--model", "gpt"], "did you mean --teacher openai"),
        (["--alternatives", "4"], "--phrasings 3"), (["--phrasings", "9"], "--phrasings=9"),
        (["--strategy", "three-level"], "--strategy=three-level"),
        (["--strategy", "rationalise", "--pairs", "3"], "--strategy two-level does"),
        (["--frame", "resized_pixels"], "needs --min-pixels and --max-pixels"),
        (["--min-proposed-area", "5%"], "'5%' is no share of an image"), (["--repairs", "2"], "--repairs=2"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_told(argv: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        DistillSettings.load(["--run-uri", "/runs/x", *argv])


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("verdikt=1", "name one of anchor, branch"),
        ("verdict=9", "there is version 1"),
        ("verdict=/x.md", "no such file"),
    ],
)
def test_prompts_that_are_none_are_told(choice: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        choose_prompts([choice])


@pytest.mark.parametrize(
    ("run_uri", "parent"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs"), ("s3://bucket", "s3://bucket"), ("/data/one", "/data"),
        ("one", "."),
    ],
)  # fmt: skip
def test_replies_are_kept_beside_the_run(run_uri: str, parent: str) -> None:
    assert cache_of(run_uri) == f"{parent}/_cache/distill"


# --- a model


def test_run_with_a_model_over_s3(moto_place: str) -> None:
    convert(moto_place, [*illustrated(moto_place, 3), MIXED[2]])
    with scripted_teacher() as teacher:
        distill(moto_place, teacher)
    _, rows = distilled(moto_place)
    assert [row.origin.teacher for row in rows] == ["gpt-4o"] * 3 + [None]
    assert [row.origin.answered_by for row in rows] == [("scripted-1",)] * 3 + [()]  # as the endpoint names it
    assert rows[0].reasoning == (Trace(("I see the ", see("red disc", TOP_LEFT), ". So the answer is top left.")),)
    assert report(moto_place)["spent"]["requests"] == len(teacher.asked) == 3
    assert len(list(Store().list(cache_of(moto_place)))) >= 3


def test_terminated_midway_only_what_is_missing_is_asked_again(tmp_path: Path) -> None:
    def slowly(asked: Asked) -> Answer:
        return Say(f"I see the [1] {asked.answer}.\nAnswer: {asked.answer}", wait=0.15)

    where, calm = converted(tmp_path, 16, name="storm/one"), converted(tmp_path, 16, name="calm/one")
    with scripted_teacher(slowly) as teacher:
        process = start(str(where), teacher, "--concurrency", "3")
        wait_for(4, where.parent, process)
        process.send_signal(signal.SIGTERM)
        assert "replies that arrived are kept" in finished(process, 143)
        paid = list(teacher.questions)
        assert stored(where.parent) == len(paid)
        given: dict[str, Any] = {"model": "scripted", "propose": True, "self_consistency": True, "crop_check": True}
        given |= {"reply_tokens": 1024, "image_side": 1024}
        distill(where, teacher, **given)
        assert sorted(teacher.questions) == sorted({f"Where is disc {n}?" for n in range(16)})
        distill(calm, teacher, **given)
    assert files(where) == files(calm)


# --- rows that were refused are asked about again, in another run, and nothing else is

BAD = ("Where is disc 0?", "Where is disc 2?")


def bad(asked: Asked) -> Answer:
    return Say("nothing of use") if asked.question in BAD else grounded(asked)


def questions(where: Path, script: Callable[[Asked], Answer], **given: Any) -> list[str]:
    """What a teacher is asked in a run."""
    with scripted_teacher(script) as teacher:
        there = Batches(teacher)
        distill(where, teacher, max_rejected_share=0.5, **given)
        return sorted(asked.question for asked in (*teacher.asked, *there.lines))


@pytest.mark.parametrize("batch", [False, True], ids=["singly", "in batches"])
def test_only_refused_rows_are_asked_again_and_the_others_keep_their_bytes(
    tmp_path: Path, batch: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (converted(tmp_path, 6, name=name) for name in ("first", "second", "third"))
    questions(first, bad)
    _, before = distilled(str(first))
    assert {one.id for one in rejections(str(first))} == {"row-0", "row-2"}
    with pytest.raises(SettingsError, match=r"ask_again was 0 and is now 1.*another run name"):
        questions(first, grounded, ask_again=1)  # what is whole stays as it is
    capsys.readouterr()
    assert questions(second, grounded, ask_again=1, dry_run=True) == []
    assert "6, of which 2 need new replies" in capsys.readouterr().out
    assert questions(second, grounded, ask_again=1, batch=batch) == sorted(BAD)
    _, after = distilled(str(second))
    assert sorted(row.id for row in after) == [f"row-{n}" for n in range(6)]
    assert [row.line() for row in after if row.question not in BAD] == [row.line() for row in before]
    assert {(one.id, one.part) for one in rejections(str(second))} == {  # how they fell the first time
        ("row-0", "alternative 1"), ("row-2", "alternative 1")
    }  # fmt: skip
    assert questions(third, bad, ask_again=1) == []  # those replies are kept, too
    assert files(second) == files(third)


# --- the strategies, with a teacher that sees

KNOWN = {f"What touches lever {n}?": Known("gear", needs="red disc") for n in range(4)}


def seen_rows(folder: Path) -> list[list[Sample]]:
    """A shard with boxes that people drew, and one of mere text."""
    folder.mkdir(exist_ok=True)
    drawn = (see("red disc", DISC), see("blue lever", LEVER))
    given: list[dict[str, Any]] = [{"evidence": drawn}, {"evidence": drawn, "texts": ("A red disc touches it.",)}]
    given += [{"texts": ("A red disc stands left of the blue lever.",)}, {}]
    rows = [row(folder, question, name=f"row-{n}", **given[n]) for n, question in enumerate(KNOWN)]
    return [rows[:2], rows[2:]]


def see_run(run_uri: Path, **more: Any) -> None:
    given = {"teacher": "openai", "model": "wise", "max_rejected_share": 0.6, "concurrency": 4}
    run(DistillSettings(run_uri=str(run_uri), **(given | more)))


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    with scripted_teacher(Wise(KNOWN)) as teacher:
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.address)
        yield teacher


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_runs_costs_what_was_estimated_and_gives_the_same_in_batches(
    strategy: str, seeing: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = seen_rows(tmp_path / "images")
    single, batched = tmp_path / "single/run", tmp_path / "batched/run"
    convert(str(single), *rows)
    see_run(single, strategy=strategy, dry_run=True)
    assert not seeing.asked
    estimate = int(re.search(r"^requests +(\d+)", capsys.readouterr().out, re.M)[1])  # type: ignore[index]
    see_run(single, strategy=strategy)
    asked = Counter((one.purpose, str(one.body["messages"])) for one in seeing.asked)
    assert len(seeing.asked) <= estimate <= 3 * len(seeing.asked)
    capsys.readouterr()
    see_run(single, strategy=strategy, dry_run=True)
    assert re.search(r"^requests +0", capsys.readouterr().out, re.M)

    said, (_, made) = report(str(single)), distilled(str(single))
    assert said["strategy"] == strategy
    assert {*said["prompts"]} == {*STRATEGIES[strategy].kind.purposes}
    (counts,) = said["funnel"].values()
    order = [counts[step] for step in ("rows", "asked", "parsed", "boxes_accepted", "answer_agreed", "kept")]
    assert order == sorted(order, reverse=True)
    assert made
    assert all(trace.mentions for row in made for trace in row.reasoning)
    if strategy == "two-level":
        assert any("#" in row.id for row in made)

    seeing.asked = []
    there = Batches(seeing)
    convert(str(batched), *rows)
    see_run(batched, strategy=strategy, batch=True)
    assert not seeing.asked  # nothing is asked singly that a batch can bring
    assert Counter((one.purpose, str(one.body["messages"])) for one in there.lines) == asked
    assert files(batched) == files(single)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nobody_is_asked_about_rows_by_text_alone(strategy: str, seeing: Teacher, tmp_path: Path) -> None:
    silent = sample(name="silent").model_copy(update={"images": (), "evidence": None})
    solved = silent.model_copy(update={"id": "solved", "reasoning": (Trace(("The solution says so.",)),)})
    convert(str(tmp_path), [solved, silent])
    see_run(tmp_path, strategy=strategy)
    marker, made = distilled(str(tmp_path))
    assert made == [solved]
    assert [(one.id, one.reason) for one in rejections(str(tmp_path), marker)] == [("silent", Reason.NO_REASONING)]
    assert not seeing.asked


def test_who_answers_first_and_how_often_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, rows, made = Wise(KNOWN), seen_rows(tmp_path / "images"), []

    def slowly(asked: Asked) -> Answer:
        return replace(script(asked), wait=asked.number * 7 % 5 / 50)

    for name, concurrency in (("one", 1), ("eight", 8)):
        where = tmp_path / name / "run"
        convert(str(where), *rows)
        with scripted_teacher(slowly) as teacher:
            monkeypatch.setenv("OPENAI_BASE_URL", teacher.address)
            see_run(where, strategy="two-level", concurrency=concurrency, negative_crop_share=0.5)
        made.append((files(where), report(str(where))["trust"]))
    assert made[0] == made[1]
    assert made[0][1]["decoys"] > 0


def test_a_detector_in_a_folder_must_find_what_is_proposed(seeing: Teacher, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "owl").mkdir()
    rows = []
    where_it_looks, elsewhere = (40, 40, 120, 120), (100, 60, 300, 230)
    for question, place in zip(KNOWN, (where_it_looks, elsewhere), strict=False):
        path = tmp_path / f"{len(rows)}.png"
        path.write_bytes(data := draw_png(("red disc", place)))
        rows.append(sample(question, "gear", evidence=None, uri=str(path), data=data, name=path.stem))
    convert(str(tmp_path / "run"), rows)
    with pytest.raises(InputError, match=r"--detector-uri=.*owl: there is nothing in that folder"):
        see_run(tmp_path / "run", detector_uri=str(tmp_path / "owl"))
    see_run(tmp_path / "run", detector_uri=str(make_owl(tmp_path / "owl")))
    marker, made = distilled(str(tmp_path / "run"))
    assert [row.reasoning[0].boxes[0].as_list() for row in made] == [pytest.approx(where_it_looks, abs=0.5)]
    assert [one.reason for one in rejections(str(tmp_path / "run"), marker)] == [Reason.TEACHER_BOX_UNDETECTED]


# --- docs/distill.md

PAGE = (ROOT / "docs/distill.md").read_text()


def test_the_page_names_flags_that_the_stage_has() -> None:
    flags = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert flags - {flag(name) for name in DistillSettings.model_fields} <= {"--limit"}
    assert set(FLAGS) <= flags


def test_every_command_of_the_page_does_what_it_says_in_its_order(
    seeing: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^    export (.*)$", PAGE, re.M):
        for name, _, value in (pair.partition("=") for pair in shlex.split(line)):
            monkeypatch.setenv(name, value.replace("…", "x"))
    monkeypatch.setenv("OPENAI_BASE_URL", seeing.address)
    first_shard, second_shard = seen_rows(Path("images"))
    convert("runs/first", first_shard, second_shard[1:])
    Path("strict.v2.md").write_text(choose_prompts()["verdict"].text + "\nBe strict.\n")
    there, asked = Batches(seeing), dict[str, set[str]]()
    for command in re.findall(r"^    python -m jobs\.distill (.*)$", PAGE, re.M):
        seeing.asked = []
        cache = f"cache-{len(asked)}" if "--batch" in command else "runs/_cache/distill"  # or all would be kept already
        monkeypatch.setenv("VCOT_DISTILL_CACHE_URI", cache)
        given, _ = DistillSettings.load(shlex.split(command))
        run(given)
        asked[command] = {one.purpose for one in seeing.asked}
        said = capsys.readouterr().out
        if given.dry_run:
            assert re.search(r"^cost +about \$0\.\d+$", said, re.M), said
        elif given.show_prompt:
            purposes = [line.split(",")[0] for line in said.splitlines() if line.startswith("--- ")]
            assert purposes == [f"--- {name}" for name in STRATEGIES["two-level"].kind.purposes]
        else:
            _, rows = distilled(given.run_uri)
            assert all(one.reasoning and one.reasoning[0].boxes for one in rows)
    free, first, again, more, once_more, batched, levels, other, prompt = asked.values()
    assert not free | again | more | once_more | prompt  # nothing that is kept is asked again
    assert batched == {"reason"}  # one, which shows how replies are counted: a budget is given
    assert first
    assert there.lines
    assert "caption" in levels
    assert other == {"verdict"}  # the steps before are taken over, and those after hear the same
    assert report("runs/again")["prompts"]["verdict"] == 2
