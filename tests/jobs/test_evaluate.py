"""evaluate as a stage, with the rehearsal base and an adapter: ask, keep, report, judge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobs.evaluate import EvaluateSettings, run
from tests.evaluation.evaluation_samples import drawn, sample
from tests.jobs.evaluated import *  # noqa: F403  (fixtures)
from tests.jobs.evaluated import trained
from vcot.errors import GateFailed, InputError, SettingsError
from vcot.evaluation.runner import Reply, read_replies
from vcot.records import Folder, Sample
from vcot.records.metadata import ConvertMetadata, ConvertShardMetadata
from vcot.records.shards import CONVERT, EVALUATE, ShardWriter, run_shards
from vcot.settings import Settings
from vcot.storage import Store, join, put_folder

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "black", "orange", "navy", "purple", "teal")


class Converted(Settings):
    """What convert would have written."""

    stage: ClassVar[str] = "convert"


def convert(run_uri: str, images: Path, splits: str = "test") -> list[Sample]:
    """Eight discs to ask about, and four to learn guesses from."""
    images.mkdir(exist_ok=True)
    rows = []
    for number, colour in enumerate(COLOURS):
        box = (10 * number, 20, 10 * number + 60, 80)
        image = drawn(images, colour, box, colour)
        split = "train" if number >= 4 else splits
        rows += [
            sample(f"{colour}-{n}", [box], image=image, label="disc", question=question, answers=["left"], split=split)  # type: ignore[arg-type]
            for n, question in enumerate(("Where is the disc?", "Where do you see the disc?"))
        ]

    def work(writer: ShardWriter) -> ConvertShardMetadata:
        for row in rows:
            writer.keep(row)
        return ConvertShardMetadata()

    folder = Folder(Store(), run_uri, CONVERT)
    run_shards(
        folder,
        Converted(run_uri=run_uri),
        inputs={},
        shards=1,
        work=work,
        max_rejected_share=0,
        metadata=ConvertMetadata(),
    )
    return rows


SMALL = {"max_new_tokens": 12, "rows_per_shard": 3, "per_device_eval_batch_size": 2, "dtype": "float32"}


def evaluate(run_uri: str, **settings: Any) -> dict[str, Any]:
    run(EvaluateSettings(run_uri=run_uri, **(SMALL | settings)))
    found: dict[str, Any] = json.loads(Store().read(join(run_uri, "evaluate", "report.json")))
    return found


def replies(run_uri: str) -> dict[tuple[str, str], list[Reply]]:
    store = Store()
    marker = Folder(store, run_uri, EVALUATE).marker()
    assert marker is not None
    found = defaultdict(list)
    for reply in read_replies(store, join(run_uri, "evaluate"), marker.shards):
        found[reply.model, reply.condition].append(reply)
    return found


def texts(run_uri: str, model: str, condition: str) -> list[str]:
    return [reply.completion.text for reply in replies(run_uri)[model, condition]]


def kept(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_an_unusable_gpu_ends_it_at_once(
    base: Path, adapters: Mapping[str, Path], contract: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run_uri = str(tmp_path / "run")
    convert(run_uri, tmp_path / "images")
    trained(run_uri, base, adapters["nothing"], contract)
    with pytest.raises(SettingsError, match="--device cuda, and torch cannot use it"):
        evaluate(run_uri, device="cuda")
    assert not (tmp_path / "run" / "evaluate").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory, base, adapters, contract) -> Path:
    """One run, evaluated; tests look at it and add others beside it."""
    runs = tmp_path_factory.mktemp("runs")
    convert(str(runs / "one"), runs / "images")
    trained(str(runs / "one"), base, adapters["much"], contract)
    evaluate(str(runs / "one"))
    return runs


def test_both_models_are_asked_everything_and_the_report_is_written(made, capsys):
    assert {key: len(each) for key, each in replies(str(made / "one")).items()} == {
        (model, condition): 8 for model in ("base", "tuned") for condition in ("real", "blank", "shuffled")
    }
    report = evaluate(str(made / "one"))
    assert report["samples"]["rows"] == 8
    assert report["samples"]["training_rows"] == 8
    assert {row["key"] for row in report["guesses"]} == {"centre-box", "whole-image", "mean-box", "frequent-answer"}
    assert report["made_with"]["prompt_of_the_first_row"] == "Where is the disc?"
    said = capsys.readouterr().out
    assert "before tuning" in said
    assert f"report with images: {made / 'one' / 'evaluate' / 'report.html'}" in said
    real, blank = (texts(str(made / "one"), "base", condition) for condition in ("real", "blank"))
    assert len(set(blank)) <= 2 < len(set(real))  # two questions, one blank image: it looks at what it is shown


def test_an_idle_adapter_says_what_the_base_says_and_the_base_is_not_asked_again(made, base, adapters, contract):
    before = kept(made / "_cache" / "evaluate")
    assert texts(str(made / "one"), "tuned", "real") != texts(str(made / "one"), "base", "real")
    trained(str(made / "idle"), base, adapters["nothing"], contract)
    evaluate(str(made / "idle"), samples_uri=str(made / "one" / "convert"))
    assert before == kept(made / "_cache" / "evaluate")
    for condition in ("real", "blank", "shuffled"):
        assert texts(str(made / "idle"), "tuned", condition) == texts(str(made / "one"), "base", condition)


def test_a_finished_evaluation_is_told_again_without_any_model(made, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in (made / "one" / "evaluate").rglob("*")}
    monkeypatch.setattr("jobs.evaluate._evaluate", lambda *_: pytest.fail("a model is asked again"))
    evaluate(str(made / "one"))
    assert "before tuning" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (made / "one" / "evaluate").rglob("*")}
    with pytest.raises(SettingsError, match="max_new_tokens was 12 and is now 13"):
        evaluate(str(made / "one"), max_new_tokens=13)


def test_a_gate_that_fails_leaves_a_report_and_no_mark_and_can_be_relaxed(made, base, adapters, contract, capsys):
    run_uri = str(made / "gated")
    trained(run_uri, base, adapters["nothing"], contract)
    ask = {"samples_uri": str(made / "one" / "convert"), "conditions": "real", "max_samples": 4}
    with pytest.raises(GateFailed, match=r"accuracy_at_50 at least 100.0%"):
        evaluate(run_uri, min_accuracy_at_50=1.0, **ask)
    assert "before tuning" in capsys.readouterr().out
    assert not (made / "gated" / "evaluate" / "_done" / "stage.json").exists()
    report = json.loads((made / "gated" / "evaluate" / "report.json").read_text())
    assert [gate["passed"] for gate in report["gates"]] == [False]
    shards = sorted((made / "gated" / "evaluate" / "shards").iterdir())
    evaluate(run_uri, **ask)
    assert shards == sorted((made / "gated" / "evaluate" / "shards").iterdir())
    with pytest.raises(GateFailed):  # a finished stage is judged by the gates of today
        evaluate(run_uri, min_accuracy_at_50=1.0, **ask)


def test_parts_in_separate_calls_give_the_same_replies_as_one(made, base, adapters, contract):
    run_uri = str(made / "parts")
    trained(run_uri, base, adapters["much"], contract)
    ask = {"samples_uri": str(made / "one" / "convert"), "conditions": "real,shuffled"}
    for part, shard in (("prepare", None), ("shards", 9), ("shards", None), ("finish", None)):
        run(EvaluateSettings(run_uri=run_uri, part=part, shard=shard, **(SMALL | ask)))  # type: ignore[arg-type]
    for model in ("base", "tuned"):
        assert texts(run_uri, model, "real") == texts(str(made / "one"), model, "real")


def test_a_base_that_is_another_one_now_is_refused(made, base, adapters, contract):
    other = made / "other-base"
    shutil.copytree(base, other)
    trained(str(made / "moved"), str(other), adapters["nothing"], contract)
    (other / "generation_config.json").write_text('{"do_sample": true}')
    samples_uri = str(made / "one" / "convert")
    with pytest.raises(InputError, match="is not the base that was trained on"):
        evaluate(str(made / "moved"), samples_uri=samples_uri)
    evaluate(str(made / "moved"), samples_uri=samples_uri, base_uri=str(base))


def test_an_adapter_that_was_changed_is_refused(made, base, adapters, contract):
    run_uri = str(made / "spoilt")
    trained(run_uri, base, adapters["nothing"], contract)
    path = made / "spoilt" / "train" / "model" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(InputError, match="is not what train wrote"):
        evaluate(run_uri, samples_uri=str(made / "one" / "convert"))


def test_text_mode_is_asked_without_images(made, base, adapters, contract):
    run_uri = str(made / "text")
    trained(run_uri, base, adapters["nothing"], contract | {"mode": "text"})
    report = evaluate(run_uri, samples_uri=str(made / "one" / "convert"))
    assert [row["key"] for row in report["results"]] == ["base-real", "tuned-real"]


def test_everything_may_lie_in_a_bucket(made, base, adapters, contract, moto_place, tmp_path):
    base_uri, run_uri = join(moto_place, "base"), join(moto_place, "runs", "one")
    put_folder(Store(), base, base_uri)
    convert(run_uri, tmp_path / "images")
    trained(run_uri, base_uri, adapters["much"], contract)
    report = evaluate(run_uri, conditions="real")
    assert texts(run_uri, "tuned", "real") == texts(str(made / "one"), "tuned", "real")
    assert report["made_with"]["base"] == base_uri
    assert len(list(Store().list(join(moto_place, "runs", "_cache", "evaluate")))) == 3


# --- without a model ---------------------------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="run that stage first"):
        evaluate(str(tmp_path / "empty"))


def test_check_answers_in_two_seconds_and_names_every_fault():
    command = [sys.executable, "-m", "jobs.evaluate", "--check", "--run-uri=s3://b/r", "--conditions=blank"]
    before = os.times().children_user
    answer = subprocess.run(
        [*command, "--max-samples=0", "--synonyms=wbc"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 78
    assert answer.stderr.splitlines() == [
        "evaluate: --max-samples=0: input should be greater than or equal to 1",
        "evaluate: --conditions=blank: real must be among them: everything else is compared with it",
        "evaluate: --synonyms=wbc: 'wbc' declares no synonyms; write name=other name, as in wbc=white blood cell",
    ]
    assert os.times().children_user - before < 2
