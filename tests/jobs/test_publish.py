"""python -m jobs.publish: what it lays where; and a server that applies an adapter, over real HTTP, is told from one
that applies nothing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.publish import PublishSettings, run
from jobs.train import TrainSettings
from jobs.train import run as run_train
from tests.fakes.markers import stage_marker
from tests.fakes.vllm import served
from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import drawn, examples, tokenized
from vcot.errors import GateFailed, InputError, SettingsError, TemporaryError
from vcot.models.loading import load_adapter, load_base
from vcot.records.metadata import DistillShardMetadata
from vcot.records.shards import DISTILL, EVALUATE, Folder, JsonLines, ShardWriter, read_marker
from vcot.storage import Store, join
from vcot.storage.folders import read_manifest
from vcot.tokens import load_processor

pytestmark = pytest.mark.usefixtures("clean")

ROWS = 16


@pytest.fixture(scope="module")
def trained(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The train stage of a run that has learned a little, with the stages before it."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    distilled = Folder(Store(), str(folder), DISTILL)
    (folder / "images").mkdir(parents=True)

    def work(writer: ShardWriter) -> DistillShardMetadata:
        for number in range(ROWS):
            sample, data = drawn(number, "train" if number < ROWS - 3 else "test")
            (path := folder / "images" / f"{number}.png").write_bytes(data)
            image = sample.images[0].model_copy(update={"uri": str(path)})
            writer.keep(sample.model_copy(update={"images": (image,)}))
        return DistillShardMetadata()

    distilled.finish(stage_marker("distill", shards=(distilled.make_shard(0, work, JsonLines),)))
    inputs = read_marker(Store(), join(str(folder), "distill"))[1]
    tokenized(str(folder), toy_encoder, examples(toy_encoder, ROWS - 3), inputs=inputs)
    run_train(
        TrainSettings.of({
            "run_uri": str(folder), "base_uri": str(toy_base), "tune": "lora", "lora_r": 4, "lora_alpha": 8,
            "max_steps": 20, "learning_rate": 5e-3, "batch_tokens": 600, "dtype": "float32", "device": "cpu",
            "neftune_noise_alpha": 0, "gradient_accumulation_steps": 1, "report_to": "none",
        })
    )  # fmt: skip
    return str(folder / "train")


def publish(train_uri: str, **settings: Any) -> None:
    run(PublishSettings.of({"train_uri": train_uri, "dtype": "float32", "device": "cpu"} | settings))


def test_merged_weights_and_adapter_are_laid_whole_with_a_card_each(
    trained: str, toy_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(trained, merge=True)
    place = Path(trained).parent / "publish" / "merged"
    said = capsys.readouterr().out
    assert "greedy replies: 3 of 3 the same, token for token" in said
    manifest = read_manifest(Store(), str(place))
    assert manifest is not None
    assert manifest.whole
    assert {path.name for path in place.iterdir()} == {*manifest.files, "_manifest.json", "README.md"}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "contract.json"}
    assert wanted <= {*manifest.files}
    for name in ("processor_config.json", "preprocessor_config.json"):  # of the training, not the base's
        limits = json.loads((place / name).read_text())
        assert (limits.get("image_processor") or limits)["size"] == {"shortest_edge": 3136, "longest_edge": 12544}
    found = json.loads((place / "published.json").read_text())
    agreement = found["agreement"]
    assert (found["layers"], agreement["verdict"], agreement["replies"]) == (35, "ours", 3)
    assert agreement["to_ours"]["mean"] < 0.01 < 0.1 < agreement["to_base"]["mean"]
    card = (place / "README.md").read_text()
    for words in (
        "license: apache-2.0", "library_name: transformers", "thousandths of the image's width",
        "| toy | MIT | – | train |",
        "3,136 to 12,544 pixels, at most 16 visual tokens", "35 layers", "Not evaluated when this was written",
        "--tune lora", "--lora-r 4", "--max-steps 20", f"vllm serve {place}",
    ):  # fmt: skip
        assert words in card, words
    assert "--dtype float32" in card
    assert "--seed" not in card, "what is by default is not said"

    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir() if path.name != "README.md"}
    (place / "README.md").write_text("an older one")
    publish(trained, merge=True)  # nothing is merged again
    assert before == {path.name: path.stat().st_mtime_ns for path in place.iterdir() if path.name != "README.md"}
    assert (place / "README.md").read_text() == card

    publish(trained)
    adapter = Path(trained).parent / "publish" / "adapter"
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        Path(trained) / "model" / "adapter_model.safetensors"
    ).read_bytes()
    card = (adapter / "README.md").read_text()
    for words in ("library_name: peft", "--max-lora-rank 8", '"max_pixels": 12544', '{"repetition_penalty": 1.0}'):
        assert words in card, words


def test_weights_that_say_something_else_are_not_published(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcot.models import merge

    plainly = merge._merged
    monkeypatch.setattr(merge, "_merged", lambda weight, *more: 2 * plainly(weight, *more) - weight)
    with pytest.raises(
        GateFailed, match=r"merged weights do not say what base \+ adapter say: .*nothing was published"
    ):
        publish(trained, merge=True, to_uri=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_machine_that_is_too_small_to_compare_says_so_before_it_merges(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcot.training.release.free_bytes", lambda: 1 << 20)
    with pytest.raises(SettingsError, match=r"takes about 0\.0 GiB of memory \(cpu\), .*--questions 0"):
        publish(trained, merge=True, to_uri=str(tmp_path / "out"))
    publish(trained, merge=True, to_uri=str(tmp_path / "out"), questions=0)
    assert "Not held against base + adapter" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SettingsError, match=r"was merged with --questions 0 and is not held against .* any more"):
        publish(trained, merge=True, to_uri=str(tmp_path / "out"))
    with pytest.raises(SettingsError, match=r"out holds this training as merged, not as adapter; give another"):
        publish(trained, to_uri=str(tmp_path / "out"))


def test_another_training_or_another_evaluation_is_refused(trained: str, tmp_path: Path) -> None:
    publish(trained)
    told = Path(trained).parent / "publish" / "adapter" / "published.json"
    kept = told.read_text()
    told.write_text(json.dumps(json.loads(kept) | {"train_sha256": "0" * 64}))
    with pytest.raises(SettingsError, match=r"holds what was published of .*, another training; give another --to-uri"):
        publish(trained)
    told.write_text(kept)
    Folder(Store(), str(tmp_path / "run"), EVALUATE).finish(stage_marker("evaluate", subject="s3://b/other"))
    with pytest.raises(InputError, match=r"--evaluation-uri=.* is of s3://b/other, not of "):
        publish(trained, evaluation_uri=str(tmp_path / "run" / "evaluate"))
    with pytest.raises(InputError, match="is not the base that was trained on"):
        publish(trained, merge=True, base_uri=str(tmp_path / "run"), to_uri=str(tmp_path / "out"))


# --- served ------------------------------------------------------------------------------------------------

NOTHING_CHANGES = (
    r"the server answers as the base does: the adapter changes nothing there\. .*tensors are named "
    r"base_model\.model\.model\.language_model\.layers\.0\."
)


@contextmanager
def server_of(base: Path, *, pixels: int = 12544, **models: Callable[[], Any]) -> Any:
    processor = load_processor(base, min_pixels=3136, max_pixels=pixels)
    with served(base, processor) as server:
        server.held |= {name: model() for name, model in models.items()}
        yield server


def ours(trained: str, base: Path, dtype: Any = "float32") -> Callable[[], Any]:
    return lambda: load_adapter(load_base(base, dtype=dtype), Path(trained) / "model")


@pytest.mark.parametrize(("says_ids", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_a_server_that_applies_the_adapter_passes(
    trained: str, toy_base: Path, says_ids: bool, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with server_of(toy_base, toy=ours(trained, toy_base, dtype)) as server:
        server.says_ids = says_ids
        publish(trained, verify_served=f"{server.url}#toy")
    said = capsys.readouterr().out
    assert "toy is served as it was trained" in said
    assert "server to the tuned model" in said


def test_a_server_that_took_the_adapter_and_applies_nothing_is_told(trained: str, toy_base: Path) -> None:
    """As under names of another class: they are loaded, and no layer has one."""
    base = lambda: load_base(toy_base, dtype="float32")  # noqa: E731
    with server_of(toy_base, toy=base) as server, pytest.raises(GateFailed, match=NOTHING_CHANGES):
        publish(trained, verify_served=f"{server.url}#toy")


def test_other_weights_are_told_from_both(trained: str, toy_base: Path, tmp_path: Path) -> None:
    def weaker() -> Any:
        folder = tmp_path / "weaker"
        shutil.copytree(Path(trained) / "model", folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: one * 0.7 for name, one in tensors.items()}, folder / "adapter_model.safetensors")
        return load_adapter(load_base(toy_base, dtype="float32"), folder)

    neither = "answers neither as this model nor as its base"
    with server_of(toy_base, toy=weaker) as server, pytest.raises(GateFailed, match=neither):
        publish(trained, verify_served=f"{server.url}#toy")


@pytest.mark.parametrize("says_ids", [True, False])
def test_a_server_with_other_limits_of_pixels_is_told(trained: str, toy_base: Path, says_ids: bool) -> None:
    with server_of(toy_base, pixels=3136, toy=ours(trained, toy_base)) as server:
        server.says_ids = says_ids
        with pytest.raises(
            GateFailed, match=r"of the question of test-13 it makes 35 tokens.* \(3136 to 12544 pixels an image"
        ):
            publish(trained, verify_served=f"{server.url}#toy")


def test_a_server_that_cannot_be_asked_is_no_verdict(
    trained: str, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcot.training.asking.RETRIES", 0)
    with server_of(toy_base, toy=lambda: torch.nn.Identity()) as server:
        with pytest.raises(SettingsError, match=r"#other: .*The model `other` does not exist"):
            publish(trained, verify_served=f"{server.url}#other")
        server.faults["completions"] = [400, 400, 400]
        with pytest.raises(SettingsError, match=r"#toy: .*planted"):
            publish(trained, verify_served=f"{server.url}#toy")
    with pytest.raises(TemporaryError, match="--verify-served http"):
        publish(trained, verify_served=f"{server.url}#toy")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"verify_served": "http://h/v1#x", "merge": True}, "--verify-served publishes nothing: leave out --merge"),
        ({"verify_served": "http://h/v1#x", "questions": 0}, "--questions=0: --verify-served has to ask something"),
        ({"verify_served": "http://h/v1"}, "--verify-served http://h/v1: which of its models?"),
    ],
)
def test_wrong_settings_get_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line.replace("?", r"\?")):
        publish("/nowhere/train", **settings)
