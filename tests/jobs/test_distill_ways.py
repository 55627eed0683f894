"""The strategies as a stage, over rows of ScienceQA and VisCoT as they are published, with drawn images and a teacher
that sees."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, run
from tests.datasets import test_datasets_scienceqa as scienceqa
from tests.datasets.given import Given
from tests.datasets.parquet import write
from tests.datasets.test_datasets_viscot import metadata
from tests.fakes.batches import Batches
from tests.fakes.distilling import (
    convert,
    distilled,
    files,
    finished,
    rejections,
    report,
    start,
    stored,
    wait_for,
)
from tests.fakes.teacher import Answer, Asked, Teacher, scripted_teacher
from tests.fakes.wise import Known, Wise, draw_png
from tests.jobs.test_convert import convert as source
from tests.models.owl import make_owl
from vcot.errors import InputError, SettingsError
from vcot.grounding import Trace
from vcot.records import Reason, Sample, read_samples
from vcot.records.shards import read_marker
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("clean")

WAYS = ("answer-aware", "rationalise", "two-level")


def machine(n: int) -> bytes:
    """No two of them look alike, in no part."""
    return draw_png(("green gear", (140, 100, 180 + 4 * n, 140)), ("blue lever", (250, 90, 310, 150 + 4 * n)))


def of_scienceqa(given: Given, images: Iterable[bytes] | None = None) -> list[Sample]:
    """No places; the solution names what can be seen."""
    rows = [
        scienceqa.row(
            n, question=f"Which part of machine {n} turns?", choices=["the wheel", "the axle"], answer=1,
            image={"bytes": drawn, "path": "i.png"},
            solution="The green gear meets the blue lever. So the axle turns.",
        )
        for n, drawn in enumerate(images or map(machine, range(3)))
    ]  # fmt: skip
    uri = write(given.folder / "train-00000-of-00001.parquet", rows, scienceqa.TYPES)
    return samples(given, source="scienceqa", input_uri=uri)


def of_viscot(given: Given) -> list[Sample]:
    """Boxes that people drew; to the second row somebody wrote reasoning without places."""
    given.image("vsr/000000068878.jpg", data=draw_png(("violet dog", (34, 380, 608, 615)), size=(640, 640)))
    given.image("vsr/000000528832.jpg", data=draw_png(("violet dog", (1, 1, 640, 422)), size=(640, 428)))
    rows = [
        metadata([[34.41, 379.87, 608.34, 615.23]], question="Is the car over the cat?", answer="No",
                 image="000000068878.jpg", width=640, height=640),
        metadata([[0.0, 0.88, 640.0, 422.54]], question="What is under the teddy bear?", answer="couch",
                 image="000000528832.jpg", width=640, height=428),
    ]  # fmt: skip
    first, second = samples(given, source="viscot", input_uri=given.rows(rows), images_uri=given.images)
    written = Trace(("A violet dog fills the image. It lies on something soft.",))
    return [first, second.model_copy(update={"reasoning": (written,)})]


def samples(given: Given, **settings: Any) -> list[Sample]:
    """What convert makes of it, all of it to be learned from."""
    run_uri = given.folder / f"run-{settings['source']}"
    source(run_uri, validation_share=0, max_rejected_share=0.5, **settings)
    marker, _ = read_marker(Store(), f"{run_uri}/convert")
    rows = list(read_samples(Store(), f"{run_uri}/convert", marker))
    return [row.model_copy(update={"origin": row.origin.model_copy(update={"split": "train"})}) for row in rows]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[list[Sample]]:
    """A shard for each source."""
    return [make(Given(tmp_path_factory.mktemp("data"))) for make in (of_scienceqa, of_viscot)]


def known(rows: list[list[Sample]]) -> dict[str, Known]:
    needs = {"scienceqa": "green gear"}
    return {row.question: Known(row.answers[0], needs.get(row.origin.dataset, "")) for shard in rows for row in shard}


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Teacher], None]:
    def speak(teacher: Teacher) -> None:
        for name, value in {"OPENAI_BASE_URL": teacher.address, "OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)

    return speak


@pytest.fixture
def wise(rows: list[list[Sample]], asked_here: Callable[[Teacher], None]) -> Iterator[Teacher]:
    with scripted_teacher(Wise(known(rows))) as teacher:
        asked_here(teacher)
        yield teacher


@pytest.fixture
def run_uri(tmp_path: Path) -> Path:
    """Of a folder of runs that no other test has a part in: replies are kept beside the run."""
    return tmp_path / "runs" / "one"


def settings(run_uri: Path, **more: Any) -> DistillSettings:
    return DistillSettings(
        run_uri=str(run_uri),
        **{"teacher": "openai", "model": "wise", "max_rejected_share": 0.6, "concurrency": 4} | more,
    )


def named(row: Sample) -> tuple[str, str]:
    """Ids are of a file; two sources have files of one name."""
    return row.origin.dataset, row.id


def purposes(teacher: Teacher) -> dict[str, int]:
    return dict(Counter(asked.purpose for asked in teacher.asked))


# ---------------------------------------------------------------------------------------------- all ways, all sources


@pytest.mark.parametrize("way", WAYS)
def test_each_way_runs_over_each_source(way: str, rows: list[list[Sample]], wise: Teacher, run_uri: Path) -> None:
    convert(str(run_uri), *rows)
    run(settings(run_uri, strategy=way))
    marker, made = distilled(str(run_uri))
    told: Any = report(str(run_uri))
    assert told["strategy"] == marker.metadata.strategy == way
    assert marker.row_counts.rows == sum(map(len, rows)) == sum(f["rows"] for f in told["funnel"].values())
    for name, counts in told["funnel"].items():
        order = [counts[step] for step in ("rows", "asked", "parsed", "boxes_accepted", "answer_agreed", "kept")]
        assert order == sorted(order, reverse=True), name
    assert all(counts["kept"] for counts in told["funnel"].values())
    assert all(trace.mentions or row.evidence == () for row in made for trace in row.reasoning)
    gold = {named(row): row.true_boxes for shard in rows for row in shard if row.true_boxes}
    if way == "answer-aware":
        assert all(set(row.reasoning[0].boxes) <= set(gold[named(row)]) for row in made if named(row) in gold)
    if way == "rationalise":
        texts = {named(row): {trace.text for trace in row.reasoning} for shard in rows for row in shard}
        assert all({trace.text for trace in row.reasoning} <= texts[named(row)] for row in made)
    if way == "two-level":
        assert any("#" in row.id for row in made)
        assert set(told["prompts"]) >= {"caption", "verdict", "synthesis"}


@pytest.mark.parametrize("way", WAYS)
def test_nobody_is_asked_about_rows_by_text_alone(
    way: str, rows: list[list[Sample]], wise: Teacher, run_uri: Path
) -> None:
    bare: dict[str, Any] = {"image": None, "evidence": None, "reasoning": ()}
    silent = rows[0][0].model_copy(update=bare | {"id": "silent"})
    solved = silent.model_copy(update={"id": "solved", "reasoning": (Trace(("The solution says so.",)),)})
    convert(str(run_uri), [solved, silent])
    run(settings(run_uri, strategy=way))
    marker, made = distilled(str(run_uri))
    assert made == [solved]
    assert [(one.id, one.reason) for one in rejections(str(run_uri), marker)] == [("silent", Reason.NO_REASONING)]
    assert not wise.asked
    assert b"asked by text alone" in Store().read(f"{run_uri}/distill/report.html")


def test_a_detector_in_a_folder_must_find_what_is_proposed(wise: Teacher, run_uri: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "owl").mkdir()
    where_it_looks, elsewhere = (40, 40, 120, 120), (100, 60, 300, 230)
    drawn = (draw_png(("green gear", place)) for place in (where_it_looks, elsewhere))
    convert(str(run_uri), of_scienceqa(Given(tmp_path), drawn))
    with pytest.raises(InputError, match=r"--detector-uri=.*owl: there is nothing in that folder"):
        run(settings(run_uri, detector_uri=str(tmp_path / "owl")))
    run(settings(run_uri, detector_uri=str(make_owl(tmp_path / "owl"))))
    marker, made = distilled(str(run_uri))
    assert [row.reasoning[0].boxes[0].as_list() for row in made] == [pytest.approx(where_it_looks, abs=0.5)]
    assert [one.reason for one in rejections(str(run_uri), marker)] == [Reason.TEACHER_BOX_UNDETECTED]


def test_who_answers_first_and_how_often_changes_no_byte(
    rows: list[list[Sample]], asked_here: Callable[[Teacher], None], tmp_path: Path
) -> None:
    script, turn = Wise(known(rows)), threading.Lock()
    waits = iter([0.0, 0.06, 0.02, 0.0, 0.1] * 10_000)

    def slowly(asked: Asked) -> Answer:
        with turn:
            wait = next(waits)
        return replace(script(asked), wait=wait)

    made = []
    for name, concurrency in (("one", 1), ("eight", 8)):
        convert(str(tmp_path / name / "run"), *rows)
        with scripted_teacher(slowly) as teacher:
            asked_here(teacher)
            run(
                settings(
                    tmp_path / name / "run", strategy="two-level", concurrency=concurrency, negative_crop_share=0.5
                )
            )
        told: Any = report(str(tmp_path / name / "run"))
        made.append((files(tmp_path / name / "run"), told["trust"]))
    assert made[0] == made[1]
    assert made[0][1]["decoys"] > 0


@pytest.mark.parametrize("way", WAYS)
def test_batches_bring_every_way_what_single_requests_bring(
    way: str, rows: list[list[Sample]], asked_here: Callable[[Teacher], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vcot.distill.batch.POLL", 0.01)
    made, asked = {}, {}
    for name, batch in (("single", False), ("batch", True)):
        folder = tmp_path / name / "run"
        convert(str(folder), *rows)
        with scripted_teacher(Wise(known(rows))) as teacher:
            there = Batches(teacher)
            asked_here(teacher)
            run(settings(folder, strategy=way, batch=batch))
        lines = there.lines if batch else teacher.asked
        asked[name] = Counter((one.purpose, str(one.body["messages"])) for one in lines)
        made[name] = files(folder)
    assert made["batch"] == made["single"]
    assert asked["batch"] == asked["single"]
    assert not teacher.asked, "nothing is asked singly that a batch can bring"


@pytest.mark.parametrize("way", WAYS)
def test_a_dry_run_of_every_way_sends_nothing_and_foresees_enough(
    way: str, rows: list[list[Sample]], wise: Teacher, run_uri: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(run_uri), *rows)
    run(settings(run_uri, strategy=way, dry_run=True))
    said = capsys.readouterr().out
    assert not wise.asked
    foreseen = int(re.search(r"^requests +([0-9,]+)", said, re.M)[1].replace(",", ""))  # type: ignore[index]
    run(settings(run_uri, strategy=way))
    assert len(wise.asked) <= foreseen <= 3 * len(wise.asked)
    capsys.readouterr()
    run(settings(run_uri, strategy=way, dry_run=True))
    assert re.search(r"^requests +0", capsys.readouterr().out, re.M)


# ------------------------------------------------------------------------------------------------------ step by step


def test_with_another_prompt_for_a_step_the_steps_before_it_are_not_asked_again(
    rows: list[list[Sample]], wise: Teacher, tmp_path: Path
) -> None:
    convert(str(tmp_path / "a"), *rows)
    run(settings(tmp_path / "a", strategy="two-level"))
    assert purposes(wise)["caption"] == 5  # one for each image
    own = tmp_path / "stricter.v7.md"
    own.write_text("Be stricter still.")
    wise.asked = []
    run(
        settings(
            tmp_path / "b", strategy="two-level", prompts=(f"verdict={own}",), input_uri=str(tmp_path / "a/convert")
        )
    )
    assert set(purposes(wise)) == {"verdict"}  # the later ones hear the same from the same verdicts
    told: Any = report(str(tmp_path / "b"))
    assert told["prompts"]["verdict"] == 7


def test_killed_midway_nothing_is_asked_twice_and_the_same_comes_out(rows: list[list[Sample]], tmp_path: Path) -> None:
    script = Wise(known(rows))
    storm, calm = tmp_path / "runs" / "storm", tmp_path / "other" / "calm"
    argv = ("--strategy", "two-level", "--max-rejected-share", "0.6", "--concurrency", "2", "--answer-from-evidence",
            "--negative-crop-share", "0")  # fmt: skip  # two empty places of one size look the same
    for run_uri in (storm, calm):
        convert(str(run_uri), *rows)
    with scripted_teacher(lambda asked: replace(script(asked), wait=0.05)) as teacher:
        process = start(str(storm), teacher, *argv)
        wait_for(9, tmp_path / "runs", process)
        process.send_signal(signal.SIGKILL)
        finished(process, -9)
        paid = [json.dumps(asked.body) for asked in teacher.asked]
        lost = len(paid) - stored(tmp_path / "runs")  # under way when it died
        finished(start(str(storm), teacher, *argv))
        again = [json.dumps(asked.body) for asked in teacher.asked[len(paid) :]]
    assert len(set(paid) & set(again)) <= lost
    assert len(again) == len(set(again))
    with scripted_teacher(script) as teacher:
        finished(start(str(calm), teacher, *argv))
    assert files(storm) == files(calm)


# --------------------------------------------------------------------------------------------------------- settings


def test_prompts_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(DistillSettings(run_uri=str(tmp_path), strategy="two-level", show_prompt=True))
    said = capsys.readouterr().out
    assert [line.split(",")[0] for line in said.splitlines() if line.startswith("--- ")] == [
        f"--- {name}" for name in ("caption", "objects", "locate", "branch", "verdict", "look", "synthesis", "reanswer")
    ]
    assert "You describe an image for somebody who cannot see it." in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--strategy", "three-level"], "--strategy=three-level"),
        (["--frame", "resized_pixels"], "needs --min-pixels and --max-pixels"),
        (["--min-proposed-area", "5%"], "'5%' is no share of an image"),
        (["--repairs", "2"], "--repairs=2"),
    ],
)
def test_settings_of_ways_that_do_not_fit_are_told(argv: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        DistillSettings.load(["--run-uri", "/runs/x", *argv])


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("verdikt=1", "name one of anchor, branch"),
        ("verdict", "should be name=version"),
        ("verdict=9", "there is version 1"),
        ("verdict=/nowhere/x.md", "there is no such file"),
    ],
)
def test_prompts_that_are_none_are_told(choice: str, says: str) -> None:
    from vcot.distill import prompts

    with pytest.raises(SettingsError, match=says):
        prompts.chosen([choice])
