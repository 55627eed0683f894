"""Promotion and evaluating again, with the rehearsal base: a good model passes, a worse one ends with exit code 20."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings, run
from tests.jobs.evaluated import *  # noqa: F403  (fixtures)
from tests.jobs.evaluated import trained
from vcot.errors import GateFailed, SettingsError
from vcot.evaluation.subjects import Finished, newest, promote
from vcot.storage import Store, join

ROOT = Path(__file__).parents[2]
ASK = {"max_new_tokens": 64, "per_device_eval_batch_size": 24, "dtype": "float32"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path, adapters: Any, contract: Any) -> str:
    """Two runs on the same drawn scenes: the adapter of `good` changes nothing, that of `bad` much."""
    runs = tmp_path_factory.mktemp("runs")
    convert: dict[str, Any] = {"source": "scenes", "scenes": 30, "questions": "point", "validation_share": 0.8}
    run_convert(ConvertSettings(run_uri=str(runs / "good"), num_shards=2, **convert))
    for name, adapter in (("good", "nothing"), ("bad", "much")):
        trained(str(runs / name), base, adapters[adapter], contract)
    return str(runs)


def evaluate(run_uri: str, **settings: Any) -> None:
    run(EvaluateSettings(run_uri=run_uri, **(ASK | settings)))


def again(runs: str, minutes: int, **settings: Any) -> Path:
    """Evaluates the promoted model as the scheduled Job of that minute does; returns where the result lies."""
    before = set(Path(runs, "again").glob("*/*/evaluate"))
    evaluate(join(runs, "again"), model="promoted", occasion=f"reevaluate-{minutes}", **settings)
    (made,) = set(Path(runs, "again").glob("*/*/evaluate")) - before
    return made


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def promoted(runs: str) -> str:
    """The good model has passed and was promoted."""
    evaluate(join(runs, "good"), promote=True)
    return runs


def test_a_model_that_passes_is_promoted_with_what_it_passed(promoted):
    pointer = newest(Store(), join(promoted, "pointers", "latest"))
    assert pointer.uri.endswith("0000000001.json")
    assert pointer.promotion.train_uri == join(promoted, "good", "train")
    said = " ".join(pointer.promotion.gates)
    assert "accuracy_at_50 not worse than the base" in said
    assert "accuracy_at_50 clearly better on real images than on blank ones: it is +" in said
    assert "accuracy_at_50 clearly better on real images than on wrong ones: it is +" in said


def test_run_again_it_is_promoted_once(promoted):
    evaluate(join(promoted, "good"), promote=True)
    assert [path.name for path in Path(promoted, "pointers", "latest").iterdir()] == ["0000000001.json"]


def test_a_model_that_is_worse_than_its_base_is_not_promoted(promoted):
    samples_uri = join(promoted, "good", "convert")
    with pytest.raises(GateFailed, match="accuracy_at_50 not worse than the base: it is −"):
        evaluate(join(promoted, "bad"), promote=True, samples_uri=samples_uri)
    assert [path.name for path in Path(promoted, "pointers", "latest").iterdir()] == ["0000000001.json"]
    evaluate(join(promoted, "bad"), samples_uri=samples_uri)  # without asking for a promotion it is only measured


def test_the_promoted_model_is_evaluated_again_and_is_what_it_was(promoted, capsys):
    made = again(promoted, 29_920_626)
    assert made.parent.parent.name == "20261121T0506Z"
    comparison = json.loads((made / "comparison.json").read_text())
    assert comparison["regressions"] == []
    assert comparison["figures"]["accuracy_at_50"]["difference"]["value"] == 0
    assert comparison["baseline"]["uri"] == join(promoted, "good", "evaluate")
    assert "**No regression.**" in (made / "comparison.md").read_text()
    report = json.loads((made / "report.json").read_text())
    assert report["made_with"]["pointer"] == join(promoted, "pointers", "latest", "0000000001.json")
    assert report["made_with"]["occasion"] == "20261121T0506Z"
    assert "comparison with the baseline: " in capsys.readouterr().out


def test_the_same_occasion_twice_does_nothing_and_says_why(promoted, capsys):
    before = files(Path(promoted))
    evaluate(join(promoted, "again"), model="promoted", occasion="reevaluate-29920626")
    assert files(Path(promoted)) == before
    said = "".join(capsys.readouterr())
    assert "this model was evaluated on these samples with this code for this occasion" in said


def test_a_worse_model_ends_with_20_and_its_numbers(promoted, tmp_path):
    """As the scheduled Job runs it: variables, an exit code, a last word. Somebody has promoted it by hand."""
    train, evaluation = (Finished.at(Store(), join(promoted, "bad", stage)) for stage in ("train", "evaluate"))
    promote(
        Store(),
        join(promoted, "pointers", "latest"),
        train=train,
        base={"uri": train.marker.metadata.base_uri, "sha256": train.marker.metadata.base_sha256},
        evaluation=evaluation,
        samples=Finished.at(Store(), join(promoted, "good", "convert")),
        gates=["by hand"],
    )
    log = tmp_path / "termination-log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")} | {
        "VCOT_RUN_URI": join(promoted, "again"),
        "VCOT_TERMINATION_LOG": str(log),
        "VCOT_EVALUATE_MODEL": "promoted",
        "VCOT_EVALUATE_OCCASION": "reevaluate-29922066",
        **{f"VCOT_EVALUATE_{name.upper()}": str(value) for name, value in ASK.items()},
    }
    command = [sys.executable, "-m", "jobs.evaluate"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 20, answer.stderr
    said = json.loads(log.read_text())
    assert said["exit"] == 20
    assert said["message"].startswith("regression of accuracy_at_50: ")
    assert f"against the baseline {join(promoted, 'good', 'evaluate')}" in said["message"]
    assert said["regressions"] == ["accuracy_at_50", "answer_accuracy"]
    assert said["change_accuracy_at_50"][2] < 0
    (page,) = Path(promoted, "again", "20261122T0506Z").glob("*/evaluate/comparison.md")
    assert "**Regression: found and answers right.**" in page.read_text()
    assert (page.parent / "_done" / "stage.json").exists()  # measured to the end; only the verdict is bad


def test_another_baseline_can_be_pinned(promoted):
    """Against the evaluation of the very same model there is no fall; nothing is asked again."""
    where = join(promoted, "again")
    baseline_uri = join(promoted, "bad", "evaluate")
    shards = {path for path in files(Path(where)) if "/shards/" in path}
    evaluate(where, model="promoted", occasion="reevaluate-29922066", baseline_uri=baseline_uri)
    assert {path for path in files(Path(where)) if "/shards/" in path} == shards


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--model", "promoted"], "--model promoted needs --occasion"),
        (
            ["--model", "promoted", "--occasion", "x", "--train-uri", "s3://b/t"],
            "finds the model itself; leave one out",
        ),
        (["--model", "promoted", "--occasion", "x", "--promote"], "there is nothing to promote"),
        (["--occasion", "x"], "--occasion=x: has a meaning only with --model promoted"),
        (["--promote", "--conditions", "real,blank"], "--promote: its gate needs the conditions shuffled as well"),
        (["--model", "promoted", "--occasion", "a/b"], "--occasion=a/b: string should match pattern"),
        (["--pointer", ".."], "--pointer=..: string should match pattern"),
    ],
)
def test_words_that_do_not_fit_together_are_told(given, fault, monkeypatch):
    for name in [name for name in os.environ if name.startswith("VCOT_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SettingsError) as caught:
        EvaluateSettings.load(["--run-uri", "s3://b/runs/r", *given])
    assert fault in str(caught.value)


def test_pointers_stand_beside_the_runs():
    settings = EvaluateSettings(run_uri="s3://b/runs/r/")
    assert settings.pointer_uri == "s3://b/runs/pointers/latest"
    of_a_template = EvaluateSettings(run_uri="s3://b/runs//reevaluate")  # $(RUNS_URI)/reevaluate of s3://b/runs/
    assert of_a_template.pointer_uri == settings.pointer_uri
    settings = EvaluateSettings(run_uri="s3://b/runs/r", pointers_uri="s3://c/p/", pointer="small")
    assert settings.pointer_uri == "s3://c/p/small"
