"""serve as a process: what it says of its model, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.markers import stage_marker
from tests.training.toy import encoder_of, toy_base, toy_encoder, tuned_adapter  # noqa: F401
from vcot.errors import InputError
from vcot.evaluation.subjects import model_at
from vcot.records import Folder
from vcot.records.shards import EVALUATE, TRAIN
from vcot.serving.model import load
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import folder_digest

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "rehearsal"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "jobs.serve", *flags]


def environment() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if not n.startswith("VCOT_")} | {"OMP_NUM_THREADS": "1"}


def test_it_serves_a_folder_until_it_is_told_to_end(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path / "last-word.json"
    process = subprocess.Popen(
        command("--subject", str(BASE), "--port", str(port), "--name", "m", "--termination-log", str(said)),
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 300
        while True:
            try:
                health = json.loads(DIRECT.open(f"http://127.0.0.1:{port}/health").read())
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until  # noqa: PT018
                time.sleep(0.1)
        assert (health["status"], health["model"]) == ("ok", "m")
        body = {"model": "m", "messages": [{"role": "user", "content": "Where is it?"}], "max_tokens": 4}
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        assert json.loads(DIRECT.open(asked).read())["usage"]["completion_tokens"] <= 4
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 143, log
    assert "Traceback" not in log
    last = json.loads(said.read_text())
    assert (last["stage"], last["exit"], last["model"]) == ("serve", 143, "m")


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--subject", "/nowhere"], 65, "--subject /nowhere: there is neither a finished train stage"),
        (["--subject", str(BASE), "--host", "192.0.2.1"], 78, "--host 192.0.2.1 --port 8000: "),
        (["--subject", str(BASE), "--port", "70000"], 78, "--port=70000"),
    ],
    ids=["nowhere", "address", "port"],
)
def test_what_is_wrong_is_told_in_one_line(flags: list[str], code: int, says: str) -> None:
    ended = subprocess.run(command(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


# --- a model that train has made


@pytest.fixture(scope="module")
def run_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run with a trained adapter and its evaluation, as the stages leave them."""
    folder = tmp_path_factory.mktemp("runs")
    run = str(folder / "first")
    encoder = encoder_of(BASE)
    adapter = tuned_adapter(BASE, encoder, folder / "scratch")
    stage = Folder(Store(), run, TRAIN)
    files = put_folder(Store(), adapter, join(stage.uri, "model"))
    told = {"base_uri": str(BASE), "base_sha256": folder_digest(Store(), str(BASE)), "files": files}
    contract = encoder.contract.model_dump(mode="json")
    stage.finish(stage_marker("train", settings={"method": "grpo"}, contract=contract, **told))
    evaluate = Folder(Store(), run, EVALUATE)
    figure = {"value": 0.75, "low": 0.5, "high": 1.0, "rows": 4}
    names = ("accuracy_at_50", "precision", "mean_iou", "answer_accuracy", "malformed")
    row = {"key": "subject-real", "name": "tuned", "figures": dict.fromkeys(names, figure)}
    report = {"results": [row], "samples": {"rows": 4}}
    Store().write(join(evaluate.uri, "report.json"), json.dumps(report).encode())
    digest = Store().digest(join(stage.uri, "_done", "stage.json"))
    inputs = {join(stage.uri, "_done/stage.json"): digest, "s3://somewhere/convert": "0" * 64}
    evaluate.finish(stage_marker("evaluate", inputs=inputs, subject=stage.uri))
    yield run
    shutil.rmtree(folder)


def test_the_card_says_base_method_and_numbers_and_no_places(run_uri: str, tmp_path: Path) -> None:
    model = load(Store(), model_at(Store(), join(run_uri, "train")), tmp_path, dtype="float32")
    assert model.name == "first"
    card: dict[str, Any] = model.card
    assert (card["base"], card["method"]) == ("rehearsal", "grpo, lora")
    assert card["numbers"]["accuracy_at_50"] == 0.75
    assert card["digest"] == Store().digest(join(run_uri, "train", "_done", "stage.json"))
    assert "/" not in json.dumps(model.card)
    assert hasattr(model.network, "peft_config")


def test_numbers_of_another_model_are_not_shown(run_uri: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    shutil.copytree(run_uri, other)
    marker = Path(other) / "train" / "_done" / "stage.json"
    marker.write_text(marker.read_text().replace("grpo", "gfn"))
    assert load(Store(), model_at(Store(), f"{other}/train/model"), tmp_path / "scratch").card["numbers"] == {}


def test_an_adapter_that_is_not_what_train_wrote_is_refused(run_uri: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    shutil.copytree(run_uri, other)
    (Path(other) / "train" / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json is not what train wrote"):
        load(Store(), model_at(Store(), f"{other}/train"), tmp_path / "scratch")
