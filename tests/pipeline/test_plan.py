"""The plan: which stages, with which settings, reading what."""

from pathlib import Path

import pytest

from vcot.errors import SettingsError, UsageError
from vcot.pipeline.local import gather_variables, read_env_file
from vcot.pipeline.orchestrator import make_plan
from vcot.settings import STAGES


def test_every_stage_in_order_writes_below_the_run() -> None:
    plan = make_plan("r1", "s3://b/runs/", {})
    assert [s.stage for s in plan.steps] == list(STAGES)
    assert {s.environment["VCOT_RUN_URI"] for s in plan.steps} == {"s3://b/runs/r1"}
    assert plan.steps[-1].waits_for == ("train", "convert")


def test_a_stage_in_parts_is_three_steps_and_the_next_stage_waits_for_the_last() -> None:
    plan = make_plan("r", "/runs", {}, until="distill", in_parts=True)
    assert [(s.name, s.waits_for) for s in plan.steps] == [
        ("convert-prepare", ()),
        ("convert-shards", ("convert-prepare",)),
        ("convert-finish", ("convert-shards",)),
        ("distill-prepare", ("convert-finish",)),
        ("distill-shards", ("distill-prepare",)),
        ("distill-finish", ("distill-shards",)),
    ]
    assert plan.steps[1].environment == {"VCOT_RUN_URI": "/runs/r", "VCOT_PART": "shards"}


def test_a_stage_in_one_step_says_nothing_of_parts() -> None:
    assert [(s.name, s.environment) for s in make_plan("r", "/runs", {}, only=["train"], in_parts=True).steps] == [
        ("train", {"VCOT_RUN_URI": "/runs/r"})
    ]


def test_until_leaves_out_what_comes_after() -> None:
    assert [s.stage for s in make_plan("r", "/runs", {}, until="tokenize").steps] == ["convert", "distill", "tokenize"]


def test_only_one_stage_waits_for_nothing_that_is_not_in_the_plan() -> None:
    (step,) = make_plan("r", "/runs", {}, only=["train"]).steps
    assert (step.stage, step.waits_for) == ("train", ())


def test_stages_taken_from_another_run_are_read_there_and_not_made_again() -> None:
    plan = make_plan("sweep", "s3://b/runs", {}, from_run=["first:tokenize"])
    assert [s.stage for s in plan.steps] == ["train", "evaluate"]
    train, evaluate = plan.steps
    assert train.variables == {"VCOT_TRAIN_INPUT_URI": "s3://b/runs/first/tokenize"}
    assert evaluate.variables == {"VCOT_EVALUATE_SAMPLES_URI": "s3://b/runs/first/convert"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"only": ["trian"]}, "trian: no such stage"),
        ({"from_run": ["first"]}, "write it as run:stage"),
        ({"from_run": ["r:convert"]}, "this run itself"),
        ({"from_run": ["a:train"], "only": ["convert"]}, "exclude every stage"),
    ],
)
def test_words_that_do_not_fit_are_refused_as_they_were_written(words: dict[str, list[str]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_plan("r", "/runs", {}, **words)  # type: ignore[arg-type]


def test_environment_beats_the_example_which_beats_the_base(tmp_path: Path) -> None:
    base, example = tmp_path / "base", tmp_path / "example"
    first = "# how long\nVCOT_TRAIN_NUM_TRAIN_EPOCHS=1\nVCOT_TRAIN_SEED=1\nVCOT_TRAIN_LORA_R=8\n"
    for folder, text in ((base, first), (example, "VCOT_TRAIN_NUM_TRAIN_EPOCHS=2\nVCOT_TRAIN_SEED=2\n")):
        folder.mkdir()
        (folder / "train.env").write_text(text)
    environment = {
        "VCOT_TRAIN_NUM_TRAIN_EPOCHS": "3",
        "VCOT_LOG_FORM": "json",
        "VCOT_PIPELINE_RUN_ID": "x",
        "HOME": "/",
    }
    variables = gather_variables([base, example], environment)
    assert variables["train"] == {
        "VCOT_TRAIN_NUM_TRAIN_EPOCHS": "3", "VCOT_TRAIN_SEED": "2", "VCOT_TRAIN_LORA_R": "8", "VCOT_LOG_FORM": "json",
    }  # fmt: skip
    assert variables["convert"] == {"VCOT_LOG_FORM": "json"}


def test_a_line_that_is_no_setting_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.env").write_text("A=1\nnonsense\n")
    with pytest.raises(SettingsError, match=r"x\.env:2: 'nonsense' is not NAME=value"):
        read_env_file(tmp_path / "x.env")
