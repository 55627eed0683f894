"""evaluate as a stage, with the rehearsal base: ask, keep, report, judge, promote, and evaluate again."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings, run
from tests.fakes.markers import stage_marker
from vcot.errors import GateFailed, InputError, Interrupted, SettingsError
from vcot.evaluation.report import figures_of
from vcot.evaluation.runner import read_replies
from vcot.evaluation.subjects import Finished, newest, promote
from vcot.records import Folder
from vcot.records.shards import EVALUATE, TRAIN
from vcot.stage import launch, stop, summary
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import folder_digest

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "rehearsal"
ROWS = 14
ASK = {
    "max_new_tokens": 64,
    "per_device_eval_batch_size": 14,
    "rows_per_shard": 14,
    "dtype": "float32",
    "max_unusable_share": 1.0,
}
AGAIN = {"model": "promoted", "conditions": "real"}
FEW = {"conditions": "real", "max_samples": 2, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Two adapters as training writes them: one that changes nothing, and one that changes much."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads that spin slow a small model down
    import torch

    from vcot.models.loading import attach_lora, load_base

    torch.manual_seed(0)
    model = attach_lora(load_base(BASE, dtype="float32"), r=4, alpha=8, dropout=0.0)
    folders = {}
    for name, size in (("nothing", 0.0), ("much", 0.5)):
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=size)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(str(folders[name]))
        (folders[name] / "README.md").unlink(missing_ok=True)
    return folders


def contract_in(frame: Any) -> dict[str, Any]:
    from vcot.tokens import contract_of, load_processor

    processor = load_processor(BASE, min_pixels=56 * 56, max_pixels=112 * 112)
    return contract_of(processor, mode="multimodal", frame=frame, max_length=512).model_dump(mode="json")


def trained(run_uri: str, adapter: Path, base: Path | str = BASE, **contract: Any) -> None:
    """What train would have written. `contract`: what is other than in the base's own."""
    folder = Folder(Store(), run_uri, TRAIN)
    files = put_folder(Store(), adapter, join(folder.uri, "model"))
    told = {"base_uri": str(base), "base_sha256": folder_digest(Store(), str(base)), "files": files}
    made = contract_in(contract.pop("frame", "thousandths")) | contract
    folder.finish(stage_marker("train", contract=made, **told))


def evaluate(run_uri: str, **settings: Any) -> dict[str, Any]:
    run(EvaluateSettings(run_uri=run_uri, **(ASK | settings)))
    if settings.get("model") == "promoted":
        return {}
    found: dict[str, Any] = json.loads(Store().read(join(run_uri, "evaluate", "report.json")))
    return found


def texts(run_uri: str) -> dict[str, list[str]]:
    """Model and condition → what was said."""
    marker = Folder(Store(), run_uri, EVALUATE).marker()
    assert marker is not None
    found = defaultdict(list)
    for reply in read_replies(Store(), join(run_uri, "evaluate"), marker.shards):
        found[reply.key].append(reply.completion.text)
    return found


def files(folder: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, adapters: Any) -> str:
    """The model of `good` has passed and was promoted, that of `bad` is another; tests add others beside them."""
    runs = str(tmp_path_factory.mktemp("runs"))
    convert: dict[str, Any] = {"source": "scenes", "scenes": 24, "questions": "point", "validation_share": 0.5}
    run_convert(ConvertSettings(run_uri=join(runs, "good"), num_shards=2, **convert))
    trained(join(runs, "good"), adapters["nothing"])
    trained(join(runs, "bad"), adapters["much"])
    evaluate(join(runs, "good"), promote=True)
    return runs


@pytest.fixture
def samples_uri(runs: str) -> str:
    return join(runs, "good", "convert")


def test_both_models_are_asked_everything_and_what_passes_is_promoted(runs):
    said = texts(join(runs, "good"))
    assert {key: len(each) for key, each in said.items()} == {
        f"{model}-{condition}": ROWS for model in ("base", "subject") for condition in ("real", "blank", "shuffled")
    }
    for condition in ("real", "blank", "shuffled"):  # an adapter that changes nothing says what the base says
        assert said[f"subject-{condition}"] == said[f"base-{condition}"]
    assert len(set(said["base-blank"])) < len(set(said["base-real"]))  # it looks at what it is shown
    report = json.loads(Path(runs, "good", "evaluate", "report.json").read_text())
    assert report["samples"]["rows"] == ROWS
    assert report["samples"]["training_rows"] == 24 - ROWS
    assert report["made_with"]["own_form_of_the_base"] == "that of the tuned model"
    pointer = newest(Store(), join(runs, "pointers", "latest"))
    assert pointer.uri.endswith("0000000001.json")
    assert pointer.promotion.train_uri == join(runs, "good", "train")
    gates = " ".join(pointer.promotion.gates)
    assert "accuracy_at_50 not worse than the base" in gates
    assert "accuracy_at_50 clearly better on real images than on blank ones: it is +" in gates
    assert "accuracy_at_50 clearly better on real images than on wrong ones: it is +" in gates


def test_the_replies_are_logged_as_lmms_eval_logs_them(runs):
    """The fields that its baseline loader and its sample logs have; one file, as no suite was asked."""
    (path,) = Path(runs, "good", "evaluate", "lmms-eval").iterdir()
    assert path.name == "vcot_samples_vcot_ground.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["filtered_resps"] for line in lines] == texts(join(runs, "good"))["subject-real"]
    assert [line["doc_id"] for line in lines] == [*range(ROWS)]
    report = json.loads(Path(runs, "good", "evaluate", "report.json").read_text())
    figures = figures_of(report, "results")["subject-real"]
    assert sum(line["score"] for line in lines) / ROWS == pytest.approx(figures["answer_accuracy"]["value"])
    assert all(set(line["token_counts"][0]) == {"input_tokens", "output_tokens"} for line in lines)
    assert lines[0]["input"] == report["made_with"]["prompt_of_the_first_row"]


def test_a_finished_evaluation_is_told_again_and_promoted_once_without_any_model(runs, capsys, monkeypatch):
    before = files(runs)
    monkeypatch.setattr("jobs.evaluate._ask", lambda *_: pytest.fail("a model is asked again"))
    evaluate(join(runs, "good"), promote=True)
    said = capsys.readouterr().out
    assert "before tuning" in said
    assert f"report with images: {join(runs, 'good', 'evaluate', 'report.html')}" in said
    assert files(runs) == before
    with pytest.raises(SettingsError, match="max_new_tokens was 64 and is now 13"):
        evaluate(join(runs, "good"), max_new_tokens=13)


def test_a_model_that_is_worse_than_its_base_leaves_a_report_and_is_not_promoted(runs, samples_uri, capsys):
    cache = files(join(runs, "_cache", "evaluate"))
    with pytest.raises(GateFailed, match="accuracy_at_50 not worse than the base: it is −"):
        evaluate(join(runs, "bad"), promote=True, samples_uri=samples_uri)
    assert "before tuning" in capsys.readouterr().out
    after = files(join(runs, "_cache", "evaluate"))
    assert cache.items() <= after.items()  # what the base said is kept; it is not asked again
    assert len(after) < 2 * len(cache)
    assert [path.name for path in Path(runs, "pointers", "latest").iterdir()] == ["0000000001.json"]
    assert not Path(runs, "bad", "evaluate", "_done", "stage.json").exists()
    report = json.loads(Path(runs, "bad", "evaluate", "report.json").read_text())
    assert False in [gate["passed"] for gate in report["gates"]]
    shards = files(join(runs, "bad", "evaluate", "shards"))
    evaluate(join(runs, "bad"), samples_uri=samples_uri)  # without asking for a promotion it is only measured
    assert files(join(runs, "bad", "evaluate", "shards")) == shards
    with pytest.raises(GateFailed, match=r"accuracy_at_50 at least 100\.0%"):  # it is judged by the gates of today
        evaluate(join(runs, "bad"), samples_uri=samples_uri, min_accuracy_at_50=1.0)
    said = texts(join(runs, "bad"))
    assert said["base-real"] == texts(join(runs, "good"))["base-real"] != said["subject-real"]


def test_the_promoted_model_is_evaluated_again_once_for_an_occasion(runs, capsys):
    evaluate(join(runs, "again"), occasion="reevaluate-29920626", **AGAIN)
    (made,) = Path(runs, "again").glob("20261121T0506Z/*/evaluate")
    comparison = json.loads((made / "comparison.json").read_text())
    assert comparison["changes"][0]["regressions"] == []
    assert comparison["tables"][0]["runs"][1]["difference"]["accuracy_at_50"]["value"] == 0
    assert comparison["runs"][0]["uri"] == join(runs, "good", "evaluate")
    assert "**now is not shown to differ from baseline: found" in (made / "comparison.md").read_text()
    made_with = json.loads((made / "report.json").read_text())["made_with"]
    assert made_with["pointer"] == join(runs, "pointers", "latest", "0000000001.json")
    assert made_with["occasion"] == "20261121T0506Z"
    assert "comparison with images: " in capsys.readouterr().out
    before = files(runs)
    evaluate(join(runs, "again"), occasion="reevaluate-29920626", **AGAIN)
    assert files(runs) == before
    assert "this model was evaluated on these samples with this code for this occasion" in "".join(capsys.readouterr())


def test_a_worse_model_ends_with_20_and_its_numbers(runs, samples_uri, tmp_path, clean, monkeypatch):
    """As the scheduled Job runs it: variables, an exit code, a last word. Somebody has promoted it by hand."""
    evaluate(join(runs, "bad"), samples_uri=samples_uri)
    train, evaluation = (Finished.at(Store(), join(runs, "bad", stage)) for stage in ("train", "evaluate"))
    promote(
        Store(), join(runs, "pointers", "latest"), train=train, evaluation=evaluation,
        base={"uri": train.marker.metadata.base_uri, "sha256": train.marker.metadata.base_sha256},
        samples=Finished.at(Store(), samples_uri), gates=["by hand"],
    )  # fmt: skip
    log = tmp_path / "termination-log"
    told = ASK | AGAIN | {"occasion": "reevaluate-29922066"}
    for name, value in told.items():
        monkeypatch.setenv(f"VCOT_EVALUATE_{name.upper()}", str(value))
    monkeypatch.setenv("VCOT_RUN_URI", join(runs, "again"))
    monkeypatch.setenv("VCOT_TERMINATION_LOG", str(log))
    monkeypatch.setattr(stop, "listen", lambda: None)
    monkeypatch.setattr(summary, "facts", {})
    with pytest.raises(SystemExit) as ended:
        launch(EvaluateSettings, run, [])
    assert ended.value.code == 20
    said = json.loads(log.read_text())
    assert said["exit"] == 20
    assert said["message"].startswith("regression of accuracy_at_50: ")
    assert f"against {join(runs, 'good', 'evaluate')}" in said["message"]
    assert "accuracy_at_50" in said["regressions"]["now"]
    assert said["changes"]["now"]["accuracy_at_50"][2] < 0
    (page,) = Path(runs, "again", "20261122T0506Z").glob("*/evaluate/comparison.md")
    assert "**now is worse than baseline: found" in page.read_text()
    assert (page.parent / "_done" / "stage.json").exists()  # measured to the end; only the result is bad
    # Against the evaluation of the very same model there is no fall; nothing is asked again.
    shards = {path for path in files(join(runs, "again")) if "/shards/" in path}
    bad = join(runs, "bad")
    evaluate(join(runs, "again"), fail_if_worse_than=bad, occasion="reevaluate-29922066", **AGAIN)
    assert {path for path in files(join(runs, "again")) if "/shards/" in path} == shards


def test_finished_evaluations_are_put_side_by_side_and_no_model_is_asked(runs, samples_uri, capsys, monkeypatch):
    """By run or by stage; the one that must not be worse is what the others are compared with."""
    evaluate(join(runs, "bad"), samples_uri=samples_uri)
    monkeypatch.setattr("jobs.evaluate._ask", lambda *_: pytest.fail("a model is asked again"))
    asked = {"run_uri": join(runs, "bad"), "compare": (join(runs, "bad"), join(runs, "good", "evaluate"))}
    run(EvaluateSettings(**asked))
    assert "good is better than bad: found" in capsys.readouterr().out
    page = Path(runs, "bad", "comparison", "comparison.html").read_text()
    assert "data:image/jpeg" in page
    with pytest.raises(GateFailed, match=r"^regression of accuracy_at_50: .*bad/evaluate against .*good/evaluate"):
        run(EvaluateSettings(**asked, fail_if_worse_than=join(runs, "good")))
    run(EvaluateSettings(**asked, fail_if_worse_than=join(runs, "bad")))  # the other is better
    with pytest.raises(InputError, match=r"nothing/evaluate is not a finished stage"):
        run(EvaluateSettings(**asked | {"compare": (join(runs, "bad"), join(runs, "nothing"))}))
    with pytest.raises(SettingsError, match="one evaluation alone; name another one as well"):
        run(EvaluateSettings(**asked | {"compare": (join(runs, "bad"), join(runs, "bad", "evaluate"))}))
    with pytest.raises(ValidationError, match=r"--compare asks no model, .*; leave out --subject"):
        EvaluateSettings(**asked, subject=join(runs, "bad"))


def test_a_base_that_was_tuned_in_a_foreign_frame_is_asked_in_its_own_form_too(runs, samples_uri, adapters):
    """A model that fell below its base must not pass because the base was asked in a frame that it never learned."""
    trained(join(runs, "foreign"), adapters["nothing"], frame="fractions")
    asked = {"samples_uri": samples_uri, "conditions": "real"}
    with pytest.raises(GateFailed, match="accuracy_at_50 not worse than the base: it is −"):
        evaluate(join(runs, "foreign"), require_not_worse_than_base=True, **asked)
    report = evaluate(join(runs, "foreign"), **asked)
    found = {key: each["accuracy_at_50"]["value"] for key, each in figures_of(report, "results").items()}
    assert (found.pop("base-real"), found.pop("subject-real")) == (0, 0)
    own = found.pop("native-real")
    assert own > 0.5
    assert figures_of(report, "differences")["after-before"]["accuracy_at_50"]["value"] == pytest.approx(-own, abs=1e-6)
    assert f"before, it was {round(own * report['samples']['boxes'])} of" in report["verdict"]["headline"]
    assert report["made_with"]["own_form_of_the_base"]["frame"] == "thousandths"


def test_a_base_or_an_adapter_that_was_changed_is_refused(runs, samples_uri, adapters, tmp_path):
    other = tmp_path / "other-base"
    shutil.copytree(BASE, other)
    trained(join(runs, "moved"), adapters["nothing"], base=other)
    (other / "generation_config.json").write_text('{"do_sample": true}')
    with pytest.raises(InputError, match="is not the base that was trained on"):
        evaluate(join(runs, "moved"), samples_uri=samples_uri, **FEW)
    path = Path(runs, "moved", "train", "model", "adapter_model.safetensors")
    right = path.read_bytes()
    path.write_bytes(right[:-4] + b"\1\2\3\4")
    with pytest.raises(InputError, match="is not what train wrote"):
        evaluate(join(runs, "moved"), samples_uri=samples_uri, base_uri=str(BASE), **FEW)
    path.write_bytes(right)
    evaluate(join(runs, "moved"), samples_uri=samples_uri, base_uri=str(BASE), **FEW)


def test_text_mode_is_asked_without_images(runs, samples_uri, adapters):
    trained(join(runs, "text"), adapters["nothing"], mode="text")
    report = evaluate(join(runs, "text"), samples_uri=samples_uri, **(FEW | {"conditions": "real,blank"}))
    assert [row["key"] for row in report["results"]] == ["base-real", "subject-real"]


def test_any_checkpoint_is_asked_in_its_own_form_without_a_training(runs, samples_uri, tmp_path):
    """The same questions as of the base of a run whose own form it is: the same replies."""
    report = evaluate(str(tmp_path / "one"), subject=str(BASE), samples_uri=samples_uri)
    assert [row["name"] for row in report["results"]] == ["the model", "blank images", "wrong images"]
    assert texts(str(tmp_path / "one"))["subject-real"] == texts(join(runs, "good"))["base-real"]
    found = figures_of(report, "results")["subject-real"]["accuracy_at_50"]["value"]
    before = figures_of(json.loads(Path(runs, "good", "evaluate", "report.json").read_text()), "results")
    assert found == before["base-real"]["accuracy_at_50"]["value"]
    assert report["verdict"]["headline"].startswith("The model finds")
    for gate in ({"promote": True}, {"require_not_worse_than_base": True}):
        with pytest.raises(SettingsError, match="was not made by train, so there is no base"):
            evaluate(str(tmp_path / "two"), subject=str(BASE), samples_uri=samples_uri, **gate)
    with pytest.raises(InputError, match=r"--subject .*nowhere: there is neither a finished train stage"):
        evaluate(str(tmp_path / "two"), subject=str(tmp_path / "nowhere"), samples_uri=samples_uri)


def test_a_run_is_named_by_its_stage_or_by_its_models_folder(runs, samples_uri, tmp_path):
    asked = {"samples_uri": samples_uri, "conditions": "real"}
    for name, uri in (("stage", join(runs, "good", "train")), ("model", join(runs, "good", "train", "model"))):
        evaluate(str(tmp_path / name), subject=uri, **asked)
        assert texts(str(tmp_path / name))["subject-real"] == texts(join(runs, "good"))["subject-real"]


def test_without_its_base_a_tuned_model_is_asked_alone(runs, samples_uri, tmp_path):
    asked = {"subject": join(runs, "good", "train"), "samples_uri": samples_uri, "conditions": "real"}
    report = evaluate(str(tmp_path / "alone"), ask_base=False, **asked)
    assert [row["key"] for row in report["results"]] == ["subject-real"]
    assert "before" not in report["verdict"]["headline"]
    assert texts(str(tmp_path / "alone"))["subject-real"] == texts(join(runs, "good"))["subject-real"]
    for gate in ("--promote", "--require-not-worse-than-base"):
        with pytest.raises(SettingsError, match=f"{gate} compares with the base, which --no-ask-base leaves out"):
            EvaluateSettings.load(["--run-uri=r", "--no-ask-base", gate])


def test_ways_to_ask_stand_side_by_side(runs, samples_uri, tmp_path):
    asked = {"subject": str(BASE), "samples_uri": samples_uri, "conditions": "real,blank"}
    report = evaluate(str(tmp_path / "ways"), ask="ground,direct,look-again", **asked)
    ways = {row["way"]: row for row in report["ways"]}
    assert list(ways) == ["ground", "direct", "look-again"]
    assert ways["ground"]["figures"] == {
        name: figure
        for name, figure in figures_of(report, "results")["subject-real"].items()
        if name in ways["ground"]["figures"]
    }
    assert ways["ground"]["difference"] == {}
    assert ways["direct"]["difference"]["answer_accuracy"]["rows"] == ROWS
    # Two turns: the box of the first, and more tokens read than by either alone.
    assert ways["look-again"]["tokens_in"] > 2 * ways["ground"]["tokens_in"]
    assert report["made_with"]["asked_by_way_of_direct"].startswith("Give the answer alone")
    (alone,) = evaluate(str(tmp_path / "one"), ask="ground", **asked)["results"][:1]
    assert alone["figures"] == figures_of(report, "results")["subject-real"]


def test_without_ask_a_model_is_asked_in_the_ways_that_it_has_learned(runs, samples_uri, adapters, tmp_path):
    trained(join(runs, "ways"), adapters["nothing"], ways=["direct", "reason"])
    asked = {"samples_uri": samples_uri, **FEW}
    report = evaluate(join(runs, "ways"), **asked)
    assert [row["way"] for row in report["ways"]] == ["direct", "reason"]
    evaluate(join(runs, "ways"), ask="direct,reason", **asked)  # the same, in words: nothing is left to do
    with pytest.raises(SettingsError, match=r"^--probe: replies by way of direct hold no reasoning"):
        evaluate(str(tmp_path / "probe"), subject=join(runs, "ways", "train"), probe=True, **asked)
    evaluate(str(tmp_path / "one"), subject=str(BASE), **asked)
    settings = json.loads((tmp_path / "one/evaluate/settings.json").read_text())["settings"]
    assert settings["ask"] == ["ground"]


def test_a_probe_gives_a_model_its_own_reasoning_back(runs, samples_uri, tmp_path):
    asked = {"subject": str(BASE), "samples_uri": samples_uri, "conditions": "real"}
    report = evaluate(str(tmp_path / "one"), probe=True, **asked)
    changed = {row["probe"]: row["figures"]["changed"] for row in report["probes"]}
    assert changed["unchanged"]["value"] == 0
    assert changed["unchanged"]["rows"] == ROWS
    assert changed["boxes-moved"]["rows"] <= ROWS
    # What it answers to "Point at …" is how many boxes it has drawn, wherever they are.
    assert changed["boxes-moved"]["value"] < 0.5 < changed["cut-to-nothing"]["value"]
    assert any("boxes that it writes" in note for note in report["verdict"]["notes"])
    assert report["results"] == evaluate(str(tmp_path / "two"), **asked)["results"]  # it is no row of the result
    with pytest.raises(SettingsError, match="--probe: replies by way of direct hold no reasoning"):
        EvaluateSettings.load(["--run-uri", "r", "--probe", "--ask", "direct"])


def test_batches_that_were_asked_are_not_asked_again(runs, samples_uri, tmp_path, monkeypatch):
    from vcot.evaluation.models import ModelRunner

    asked = {"subject": str(BASE), "samples_uri": samples_uri, "conditions": "real", "per_device_eval_batch_size": 5}
    real, seen = ModelRunner.ask, []

    def dying(self, model, prepared, decoding):
        seen.append(len(prepared["input_ids"]))
        if len(seen) == 3:
            raise Interrupted("killed")
        return real(self, model, prepared, decoding)

    monkeypatch.setattr(ModelRunner, "ask", dying)
    with pytest.raises(Interrupted):
        evaluate(str(tmp_path / "killed"), **asked)
    evaluate(str(tmp_path / "killed"), **asked)
    assert sum(seen) == ROWS + seen[2]  # the batch under way alone
    evaluate(str(tmp_path / "calm" / "one"), **asked)
    shards = [
        sorted(path.read_bytes() for path in tmp_path.glob(f"{run}/evaluate/shards/*"))
        for run in ("killed", "calm/one")
    ]
    assert shards[0] == shards[1]


def test_everything_may_lie_in_a_bucket(adapters, moto_place):
    base_uri, run_uri = join(moto_place, "base"), join(moto_place, "runs", "one")
    put_folder(Store(), BASE, base_uri)
    run_convert(ConvertSettings(run_uri=run_uri, source="scenes", scenes=4, questions="point", validation_share=0.8))
    trained(run_uri, adapters["nothing"], base=base_uri)
    report = evaluate(run_uri, **FEW)
    assert report["made_with"]["base"] == base_uri
    assert len(list(Store().list(join(moto_place, "runs", "_cache", "evaluate")))) == 2


# --- without a model -----------------------------------------------------------------------------------


def test_a_missing_stage_and_an_unusable_gpu_end_it_at_once(runs, samples_uri, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="run that stage first"):
        evaluate(str(tmp_path / "empty"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shutil.copytree(Path(runs, "good", "train"), tmp_path / "run" / "train")
    with pytest.raises(SettingsError, match="--device cuda, and torch cannot use it"):
        evaluate(str(tmp_path / "run"), samples_uri=samples_uri, device="cuda")
    assert not (tmp_path / "run" / "evaluate").exists()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--model", "promoted"], "--model promoted needs --occasion"),
        (["--model", "promoted", "--occasion", "x", "--subject", "s3://b/t"], "finds the model itself"),
        (["--model", "promoted", "--occasion", "x", "--promote"], "there is nothing to promote"),
        (["--occasion", "x"], "--occasion=x: has a meaning only with --model promoted"),
        (["--promote", "--conditions", "real,blank"], "--promote: its gate needs the conditions shuffled as well"),
        (["--model", "promoted", "--occasion", "a/b"], "--occasion=a/b: string should match pattern"),
        (["--pointer", ".."], "--pointer=..: string should match pattern"),
        (["--max-samples", "0"], "--max-samples=0: input should be greater than or equal to 1"),
        (["--conditions", "blank"], "--conditions=blank: real must be among them"),
        (["--synonyms", "wbc"], "--synonyms=wbc: 'wbc' declares no synonyms; write name=other name"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit_together_are_told(given, fault, clean):
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


@pytest.mark.parametrize(
    ("split", "options", "said"),
    [("auto", {"validation_share": 0.1}, "are of the validation split, and only these are evaluated"),
     ("train", {"split": "train"}, "learned from the evaluated rows themselves"), ("auto", {"split": "test"}, None)],
)  # fmt: skip
def test_evaluate_warns_of_a_split_that_misleads(adapters, tmp_path, capsys, split, options, said):
    run_convert(ConvertSettings(run_uri=str(tmp_path), num_shards=1, source="scenes", scenes=24, **options))
    trained(str(tmp_path), adapters["nothing"])
    report = evaluate(str(tmp_path), **FEW, split=split, ask_base=False)
    printed = " ".join(capsys.readouterr().out.split())
    notes = [note for note in report["verdict"]["notes"] if "--split test" in note]
    if said is None:
        assert (notes, report["samples"]["split"], report["samples"]["stored"]) == ([], "test", {"test": 24})
        return
    (note,) = notes
    assert said in note
    assert note in printed  # below the table
    assert said in (tmp_path / "evaluate" / "report.html").read_text()
