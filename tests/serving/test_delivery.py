"""A promoted model on a server's disk: whole, the one that was promoted, and as servers load it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from tests.fakes.markers import stage_marker
from tests.training.toy import encoder_of
from vcot.errors import InputError
from vcot.evaluation.subjects import Finished, Pointer, model_at, promote, promotion_at
from vcot.models.loading import load_base
from vcot.records import Folder
from vcot.records.shards import CONVERT, EVALUATE, TRAIN
from vcot.serving.delivery import _is_merged, deliver
from vcot.serving.model import load
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import folder_digest, push_folder
from vcot.tokens import load_processor
from vcot.training.card import PUBLISHED

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "rehearsal"
MOST = 200 * 784
Promote = Callable[[str], Pointer]


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The model's folder as train writes it, with fewer pixels than the base has by itself; and its contract."""
    folder = tmp_path_factory.mktemp("tuned")
    encoder = encoder_of(BASE)
    adapter = folder / "model"
    model = get_peft_model(load_base(BASE, quantization="none", dtype="float32"), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(str(adapter))
    processor = load_processor(BASE, min_pixels=encoder.contract.min_pixels, max_pixels=MOST)
    processor.save_pretrained(str(adapter))
    contract = encoder.contract.model_copy(update={"max_pixels": MOST}).model_dump(mode="json")
    (adapter / "contract.json").write_text(json.dumps({"contract": contract}))
    return adapter, contract


@pytest.fixture
def promoted(moto_place: str, tuned: tuple[Path, dict[str, object]]) -> Promote:
    """Name of a run → its promotion; its base and its model lie in S3."""
    adapter, contract = tuned
    store, base = Store(), join(moto_place, "base")
    put_folder(store, BASE, base)

    def make(run: str) -> Pointer:
        uri = join(moto_place, "runs", run)
        stages = [Folder(store, uri, kind) for kind in (TRAIN, EVALUATE, CONVERT)]
        files = put_folder(store, adapter, join(stages[0].uri, "model"))
        about = {"base_uri": base, "base_sha256": folder_digest(store, base), "files": files, "contract": contract}
        if run == "roles":
            about["contract"] = {**contract, "roles": ["rationale"]}
        told = ({"settings": {"run": run, "use_dora": run == "dora"}, **about}, {"settings": {"run": run}}, {})
        for stage, kind, metadata in zip(stages, ("train", "evaluate", "convert"), told, strict=True):
            stage.finish(stage_marker(kind, **metadata))
        store.write(join(stages[1].uri, "report.json"), b"{}")
        train, evaluation, samples = (Finished.at(store, stage.uri) for stage in stages)
        at = {"uri": base, "sha256": about["base_sha256"]}
        return promote(
            store, join(moto_place, "latest"), train=train, base=at, evaluation=evaluation, samples=samples, gates=[]
        )

    return make


def command(*flags: str, job: str = "fetch") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    said = [sys.executable, "-m", f"jobs.{job}", *flags]
    return subprocess.run(said, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_newest_or_the_named_promotion_is_laid_as_servers_load_it(promoted: Promote, tmp_path: Path) -> None:
    one, two = promoted("one"), promoted("two")
    line = one.uri.rpartition("/")[0]
    ended = command("--pointer-uri", line, "--into", str(tmp_path / "m"))
    assert ended.returncode == 0, ended.stderr
    assert f"as {two.uri} promoted it (adapter)" in ended.stdout
    said = json.loads((tmp_path / "m" / "promotion.json").read_text())
    assert (said["pointer"], said["whole"]) == (two.uri, True)

    # vLLM: the base's weights, and the processor that was trained with
    served = tmp_path / "m" / "served"
    assert (served / "model.safetensors").samefile(tmp_path / "m" / "base" / "model.safetensors")
    assert (served / "config.json").read_bytes() == (BASE / "config.json").read_bytes()
    from transformers import AutoProcessor

    assert AutoProcessor.from_pretrained(str(served)).image_processor.size["longest_edge"] == MOST
    assert (tmp_path / "m" / "train" / "model" / "adapter_model.safetensors").is_file()

    # jobs.serve: the stage on its base, and nothing of it from storage
    found = model_at(Store(), str(tmp_path / "m" / "train"))
    assert found.sha256 == two.promotion.train_sha256
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        model = load(Store(), found, tmp_path / "scratch", base_uri=str(tmp_path / "m" / "base"), dtype="float32")
    assert hasattr(model.network, "peft_config")

    # again, with an annotation that a rollout has left, and by name: each takes all of the other's place
    again = command("--pointer-uri", line, "--promotion-uri", one.uri, "--into", str(tmp_path / "m"))
    assert f"as {one.uri} promoted it" in again.stdout, again.stderr
    assert Store().digest(str(tmp_path / "m/train/_done/stage.json")) == one.promotion.train_sha256
    named = command("--pointer-uri", two.uri, "--promotion-uri", one.uri, "--into", str(tmp_path / "m"))
    assert f"as {two.uri} promoted it" in named.stdout, named.stderr


def test_what_is_not_what_was_promoted_is_refused(promoted: Promote, tmp_path: Path) -> None:
    one = promoted("one")
    line, into, store = one.uri.rpartition("/")[0], tmp_path / "m", Store()
    deliver(store, one, into)

    def refused(uri: str, data: bytes, says: str) -> None:
        before = store.read(uri)
        store.write(uri, data)
        shutil.rmtree(into / "train")  # what is here and right is not fetched again
        with pytest.raises(InputError, match=says):
            deliver(store, one, into)
        assert json.loads((into / "promotion.json").read_text())["whole"] is ("marker" in says)
        store.write(uri, before)
        assert deliver(store, one, into) == "adapter"  # and mends by itself

    model = join(one.promotion.train_uri, "model")
    refused(join(model, "adapter_config.json"), b"{}", r"adapter_config\.json is not what train wrote")
    refused(join(one.promotion.base_uri, "config.json"), b"{}", "is not the base that was trained on")
    marker = join(one.promotion.train_uri, "_done", "stage.json")
    refused(marker, store.read(marker) + b" ", "the digest of its marker is")
    ended = command("--pointer-uri", join(line, "0000000007.json"), "--into", str(into))
    assert (ended.returncode, "there is no such promotion" in ended.stderr) == (65, True), ended.stderr


def test_merged_weights_beside_the_train_stage_are_preferred(promoted: Promote, tmp_path: Path) -> None:
    one, store = promoted("one"), Store()
    shutil.copytree(BASE, tmp_path / "merged")
    place = join(one.promotion.train_uri.rpartition("/")[0], "publish", "merged")
    about = {"train_uri": one.promotion.train_uri, "train_sha256": one.promotion.train_sha256, "kind": "merged"}
    for uri, said in ((place + "-unheld", about), (place, about | {"agreement": {"verdict": "ours"}})):
        (tmp_path / "merged" / PUBLISHED).write_text(json.dumps(said))
        push_folder(store, tmp_path / "merged", uri, [path.name for path in (tmp_path / "merged").iterdir()])
        assert _is_merged(store, uri, one.promotion.train_sha256) is (uri == place)
    assert deliver(store, one, tmp_path / "not", merged=False) == "adapter"
    assert deliver(store, one, tmp_path / "m") == "merged"
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["promotion.json", "served"]
    assert (tmp_path / "m/served/model.safetensors").read_bytes() == (BASE / "model.safetensors").read_bytes()
    other = promoted("other")  # of another training nothing is merged
    assert deliver(store, other, tmp_path / "m") == "adapter"
    for damaged in (PUBLISHED, "_manifest.json"):
        store.write(join(place, damaged), b"{}")
        assert deliver(store, one, tmp_path / "m") == "adapter"


def test_what_vllm_would_serve_wrongly_is_refused_for_it(promoted: Promote, tmp_path: Path) -> None:
    one, dora, roles = promoted("one"), promoted("dora"), promoted("roles")
    assert deliver(Store(), one, tmp_path / "m", vllm=True) == "adapter"
    for pointer, says in ((dora, "vLLM does not load DoRA"), (roles, "vLLM ends its reply there")):
        with pytest.raises(InputError, match=says):
            deliver(Store(), pointer, tmp_path / "m", vllm=True)
        assert deliver(Store(), pointer, tmp_path / "m") == "adapter"


def test_the_page_gets_the_contract_alone(promoted: Promote, tmp_path: Path) -> None:
    from jobs.demo import DemoSettings, _declared

    one = promoted("one")
    assert deliver(Store(), one, tmp_path / "m", weights=False) == "contract"
    files = [path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert sorted(files) == ["promotion.json", "train/_done/stage.json", "train/model/contract.json"]
    form, _ = _declared(DemoSettings(contract_uri=str(tmp_path / "m/train/model/contract.json")))
    assert form is not None
    assert (form.frame.name, form.max_pixels) == ("thousandths", MOST)
    with pytest.raises(InputError, match=r"there is no contract\.json as train writes it"):
        _declared(DemoSettings(contract_uri=str(tmp_path / "nowhere.json")))


def test_a_pinned_promotion_of_another_line_is_passed_over(promoted: Promote) -> None:
    one, two = promoted("one"), promoted("two")
    line = one.uri.rpartition("/")[0]
    assert promotion_at(Store(), line, one.uri) == one
    assert promotion_at(Store(), line, "s3://vcot/other/0000000001.json") == two
    assert promotion_at(Store(), one.uri, two.uri) == one


@pytest.mark.parametrize("job", ["fetch", "evaluate", "publish"])
def test_model_with_names_outside_is_refused(promoted: Promote, tmp_path: Path, job: str) -> None:
    one, store, victim = promoted("one"), Store(), tmp_path / "victim"
    victim.write_bytes(b"mine")
    train, marker_uri = one.promotion.train_uri, join(one.promotion.train_uri, "_done", "stage.json")
    store.write(join(train, "model") + str(victim), b"evil")
    marker = json.loads(store.read(marker_uri))
    marker["metadata"]["files"][str(victim)] = hashlib.sha256(b"evil").hexdigest()
    store.write(marker_uri, json.dumps(marker).encode())
    pointer = json.loads(store.read(one.uri)) | {"train_sha256": store.digest(marker_uri)}
    store.write(one.uri, json.dumps(pointer).encode())
    flags = {
        "fetch": ("--pointer-uri", one.uri, "--into", str(tmp_path / "m")),
        "evaluate": ("--run-uri", train.removesuffix("/train"), "--subject", train),
        "publish": ("--train-uri", train),
    }
    ended = command(*flags[job], job=job)
    assert ended.returncode == 65, ended.stderr
    assert f"{marker_uri}: {str(victim)!r} is not a relative file name: it is absolute" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert victim.read_bytes() == b"mine"
