"""The plan (which stages, with which settings, reading what), and the orchestrator's order, retries and stops."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cluster import FakeClock
from vcot.errors import Interrupted, KeyboardStop, SettingsError, StageFailed, UsageError
from vcot.pipeline.local import gather_variables, read_env_file
from vcot.pipeline.orchestrator import Outcome, Plan, Step, make_plan, orchestrate
from vcot.settings import STAGES
from vcot.stage import Stop

# --- the plan ----------------------------------------------------------------------------------------------


def test_every_stage_in_order_writes_below_the_run() -> None:
    plan = make_plan("r1", "s3://b/runs/")
    assert [s.stage for s in plan.steps] == list(STAGES)
    assert {s.environment["VCOT_RUN_URI"] for s in plan.steps} == {"s3://b/runs/r1"}
    assert plan.steps[-1].waits_for == ("train", "convert")


def test_a_stage_in_parts_is_three_steps_and_the_next_stage_waits_for_the_last() -> None:
    plan = make_plan("r", "/runs", until="distill", in_parts=True)
    parts = [f"{stage}-{part}" for stage in ("convert", "distill") for part in ("prepare", "shards", "finish")]
    before = [(), *((part,) for part in parts)]
    assert [(s.name, s.waits_for) for s in plan.steps] == list(zip(parts, before, strict=False))
    assert plan.steps[1].environment == {"VCOT_RUN_URI": "/runs/r", "VCOT_PART": "shards"}
    (train,) = make_plan("r", "/runs", only=["train"], in_parts=True).steps
    assert (train.name, train.waits_for, train.environment) == ("train", (), {"VCOT_RUN_URI": "/runs/r"})


def test_stages_taken_from_another_run_are_read_there_and_not_made_again() -> None:
    plan = make_plan("sweep", "s3://b/runs", from_run=["first:tokenize"])
    train, evaluate = plan.steps
    assert (train.stage, train.variables) == ("train", {"VCOT_TRAIN_INPUT_URI": "s3://b/runs/first/tokenize"})
    assert evaluate.variables == {"VCOT_EVALUATE_SAMPLES_URI": "s3://b/runs/first/convert"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"only": ["trian"]}, "trian: no such stage"),
        ({"until": "trian"}, "trian: no such stage"),
        ({"from_run": ["first"]}, "write it as run:stage"),
        ({"from_run": ["r:convert"]}, "this run itself"),
        ({"from_run": ["a:train"], "only": ["convert"]}, "exclude every stage"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_as_it_was_written(words: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_plan("r", "/runs", **words)


def test_environment_beats_the_example_which_beats_the_base(tmp_path: Path) -> None:
    base, example = tmp_path / "base", tmp_path / "example"
    first = "# how long\nVCOT_TRAIN_NUM_TRAIN_EPOCHS=1\nVCOT_TRAIN_SEED=1\nVCOT_TRAIN_BASE_URI=${BASE_URI}/x\n"
    for folder, text in ((base, first), (example, "VCOT_TRAIN_NUM_TRAIN_EPOCHS=2\nVCOT_TRAIN_SEED=2\n")):
        folder.mkdir()
        (folder / "train.env").write_text(text)
    given = {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "3", "VCOT_LOG_FORM": "json", "VCOT_PIPELINE_RUN_ID": "x", "HOME": "/"}
    variables = gather_variables([base, example], given, {"BASE_URI": "/b"})
    assert variables["train"] == {
        "VCOT_TRAIN_NUM_TRAIN_EPOCHS": "3", "VCOT_TRAIN_SEED": "2", "VCOT_TRAIN_BASE_URI": "/b/x",
        "VCOT_LOG_FORM": "json",
    }  # fmt: skip
    assert variables["convert"] == {"VCOT_LOG_FORM": "json"}


def test_a_line_that_is_no_setting_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.env").write_text("A=1\nnonsense\n")
    with pytest.raises(SettingsError, match=r"x\.env:2: 'nonsense' is not NAME=value"):
        read_env_file(tmp_path / "x.env")


# --- carrying it out ---------------------------------------------------------------------------------------


class ScriptedExecutor:
    """Ends each start of a stage with the next exit code of its script; `None` runs until it is cancelled."""

    def __init__(self, script: dict[str, list[int | None]], stop: Stop) -> None:
        self.script = {stage: list(codes) for stage, codes in script.items()}
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self._stop = stop

    def check(self, plan: Plan) -> None:
        if "refused" in plan.run_id:
            raise SettingsError("train: --num-train-epochs=-1: should be greater than 0")

    def start(self, step: Step) -> None:
        self.started.append(step.stage)

    def poll(self, step: Step) -> Outcome | None:
        codes = self.script.get(step.stage, [0])
        if codes[0] is None:
            self._stop.request(signal.SIGINT if not self._stop.requested else 0)
            return None
        return Outcome(codes.pop(0) if len(codes) > 1 else codes[0], 1.0)

    def leave(self, step: Step) -> str:
        self.cancelled.append(step.stage)
        return "saved"


def carried_out(
    script: dict[str, list[int | None]], fails: type[Exception] | None = None, plan: Plan | None = None,
    stop: Stop | None = None,
) -> tuple[ScriptedExecutor, str]:  # fmt: skip
    stop = stop or Stop()
    executor = ScriptedExecutor(script, stop)
    with pytest.raises(fails) if fails else contextlib.nullcontext() as caught:
        orchestrate(plan or make_plan("r", "/runs"), executor, stop, clock=FakeClock())
    return executor, str(caught.value) if caught else ""


def test_stages_run_in_order_and_what_may_pass_by_itself_is_tried_again() -> None:
    executor, _ = carried_out({"distill": [75, 1, 0]})
    assert executor.started == ["convert", "distill", "distill", "distill", "tokenize", "train", "evaluate"]


def test_nothing_starts_when_a_later_stage_has_wrong_settings() -> None:
    executor, said = carried_out({}, SettingsError, make_plan("refused", "/runs"))
    assert "epochs" in said
    assert executor.started == []


@pytest.mark.parametrize(
    ("code", "tries", "says"),
    [(code, 1, f"tokenize failed with exit code {code} ") for code in (20, 21, 64, 65, 78)]
    + [(75, 3, "tried 3 times")],
)
def test_what_cannot_pass_or_does_not_fails_and_later_stages_do_not_start(code: int, tries: int, says: str) -> None:
    executor, said = carried_out({"tokenize": [code]}, StageFailed)
    assert says in said
    assert executor.started == ["convert", "distill", *["tokenize"] * tries]


def test_a_stop_lets_the_running_stage_save_and_starts_no_other() -> None:
    executor, said = carried_out({"train": [None]}, KeyboardStop)
    assert (executor.cancelled, executor.started[-1]) == (["train"], "train")
    assert "saved" in said
    stop = Stop()
    stop.request(signal.SIGTERM)
    assert carried_out({}, Interrupted, stop=stop)[0].started == []
