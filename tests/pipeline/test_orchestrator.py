"""The orchestrator's order, retries and stops, with a executor that answers from a script."""

import signal

import pytest

from tests.fakes.cluster import FakeClock
from vcot.errors import Interrupted, KeyboardStop, SettingsError, StageFailed
from vcot.pipeline.orchestrator import Outcome, Plan, Step, make_plan, orchestrate
from vcot.stage import Stop


class ScriptedExecutor:
    """Ends each start of a stage with the next exit code of its script; `None` runs until it is cancelled."""

    def __init__(self, script: dict[str, list[int | None]], stop: Stop | None = None) -> None:
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
        code = self.script.get(step.stage, [0])[0]
        if code is None:
            assert self._stop is not None
            self._stop.request(signal.SIGINT if not self._stop.requested else 0)
            return None
        if len(self.script.get(step.stage, [])) > 1:
            self.script[step.stage].pop(0)
        return Outcome(code, 1.0)

    def leave(self, step: Step) -> str:
        self.cancelled.append(step.stage)
        return "saved"


def test_stages_run_one_after_another_and_each_outcome_is_told() -> None:
    executor = ScriptedExecutor({})
    outcomes = orchestrate(make_plan("r", "/runs", {}), executor, Stop())
    assert executor.started == list(outcomes) == ["convert", "distill", "tokenize", "train", "evaluate"]


def test_nothing_starts_when_a_later_stage_has_wrong_settings() -> None:
    executor = ScriptedExecutor({})
    with pytest.raises(SettingsError, match="epochs"):
        orchestrate(make_plan("refused", "/runs", {}), executor, Stop())
    assert executor.started == []


def test_what_may_pass_by_itself_is_tried_again() -> None:
    executor = ScriptedExecutor({"distill": [75, 1, 0]})
    orchestrate(make_plan("r", "/runs", {}, until="distill"), executor, Stop(), clock=FakeClock())
    assert executor.started == ["convert", "distill", "distill", "distill"]


@pytest.mark.parametrize("code", [20, 21, 64, 65, 78])
def test_what_cannot_pass_by_itself_fails_at_once_and_later_stages_do_not_start(code: int) -> None:
    executor = ScriptedExecutor({"tokenize": [code]})
    with pytest.raises(StageFailed, match=f"tokenize failed with exit code {code}"):
        orchestrate(make_plan("r", "/runs", {}), executor, Stop(), clock=FakeClock())
    assert executor.started == ["convert", "distill", "tokenize"]


def test_attempts_have_an_end() -> None:
    executor = ScriptedExecutor({"convert": [75]})
    with pytest.raises(StageFailed, match="tried 3 times"):
        orchestrate(make_plan("r", "/runs", {}), executor, Stop(), clock=FakeClock())
    assert executor.started == ["convert"] * 3


def test_a_stop_from_the_keyboard_lets_the_stage_save_and_ends_with_130() -> None:
    stop = Stop()
    executor = ScriptedExecutor({"train": [None]}, stop)
    with pytest.raises(KeyboardStop) as caught:
        orchestrate(make_plan("r", "/runs", {}), executor, stop)
    assert (executor.cancelled, caught.value.exit_code) == (["train"], 130)


def test_a_stop_before_the_first_stage_starts_none() -> None:
    stop = Stop()
    stop.request(signal.SIGTERM)
    executor = ScriptedExecutor({})
    with pytest.raises(Interrupted):
        orchestrate(make_plan("r", "/runs", {}), executor, stop)
    assert executor.started == []
