"""make push-base, push-example, pages: what may be pushed, what the commands say, and the way into a cluster."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from tools.push import PushSettings, wanted
from tools.push import run as push_run
from tools.s3server import S3Server
from tools.storage import PagesSettings, StorageSettings, bring_pages
from vcot import redaction
from vcot.errors import InputError, VcotError
from vcot.redaction import REDACTED, redacted
from vcot.storage import Store, join
from vcot.storage.folders import fetch_folder

ROOT = Path(__file__).parents[2]
EXAMPLE, BASE = ROOT / "examples" / "blood-cells", ROOT / "examples" / "rehearsal"
Harm = Callable[[Path], object]
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As a hub's client leaves it."""
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.lock").touch()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"):
        (folder / name).write_text("{}")
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    for part in (FIRST, SECOND):
        (folder / part).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    index = {"weight_map": {"a": FIRST, "b": SECOND, "c": FIRST}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_everything_but_hidden_files_and_code_is_wanted(base: Path) -> None:
    (base / "modeling_own.py").touch()
    (base / "_manifest.json").touch()  # of a folder that was fetched
    assert wanted(base) == [
        "README.md", "config.json", FIRST, SECOND, "model.safetensors.index.json", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert "model.safetensors" in wanted(BASE)


def without(name: str) -> Harm:
    return lambda base: (base / name).unlink()


def damaged(harm: Callable[[bytes], bytes]) -> Harm:
    return lambda base: (base / FIRST).write_bytes(harm((base / FIRST).read_bytes()))


def of_links(base: Path) -> None:
    """As a hub's cache is left where blobs were cleaned away."""
    (base / "README.md").unlink()
    (base / "README.md").symlink_to(base / "blobs" / "0f3a")


#: What is done to the folder, and the one line that says so.
REFUSED: list[tuple[Harm, str]] = [
    (without("config.json"), "there is no config: config.json is missing"),
    (without("tokenizer.json"), "there is no tokenizer: tokenizer.json or vocab.json is missing"),
    (without("preprocessor_config.json"), "there is no processor: preprocessor_config.json or processor_config.json"),
    (without("model.safetensors.index.json"), "no weights: model.safetensors or model.safetensors.index.json"),
    (without(SECOND), f"{SECOND} of 2 files of weights are missing"),
    (of_links, "README.md: a link to nothing; download it again"),
    (lambda base: (base / "pytorch_model.bin").touch(), "pytorch_model.bin: weights in a pickle"),
    (damaged(lambda data: data[:-1]), f"{FIRST}: 71 bytes, not the 72 that its header promises; download it again"),
    (damaged(lambda data: data + b"x"), f"{FIRST}: 73 bytes, not the 72"),
    (damaged(lambda data: data[:5]), f"{FIRST}: not safetensors, or cut off (5 bytes)"),
    (damaged(lambda data: b"<!DOCTYPE html><html>" * 9), f"{FIRST}: not safetensors, or cut off"),
    (damaged(lambda data: data[:8] + b"x" + data[9:]), f"{FIRST}: its header is damaged"),
]


@pytest.mark.parametrize(("harm", "line"), REFUSED, ids=[line for _, line in REFUSED])
def test_what_is_missing_unsafe_or_cut_off_is_named(base: Path, harm: Harm, line: str) -> None:
    harm(base)
    with pytest.raises(InputError) as caught:
        wanted(base)
    (said,) = str(caught.value).splitlines()
    assert line in said


def push(*argv: str, of: type[StorageSettings] = PushSettings, run: Callable[..., None] = push_run) -> tuple[int, str]:
    """The command in this process: its exit code, and what it says."""
    with patch.dict(os.environ), capture_logs() as lines:
        if "--service" in argv:
            os.environ["AWS_PROFILE"] = "one that is not there"  # must not get between
        try:
            settings, _ = of.load(argv)
            run(settings)
        except VcotError as error:
            return error.exit_code, str(error)
    return 0, "\n".join(str(line) for line in lines)


def test_a_base_is_pushed_once_and_can_be_fetched(base: Path, moto_place: str, tmp_path: Path) -> None:
    code, said = push("--base", str(base), "--to", join(moto_place, "base"))
    assert code == 0, said
    assert "'files': 8" in said
    assert fetch_folder(Store(), join(moto_place, "base"), tmp_path / "here").joinpath("README.md").exists()
    code, said = push("--base", str(base), "--to", join(moto_place, "base"))
    assert (code, "it is there already" in said) == (0, True)


# --- storage inside a cluster ---------------------------------------------------------------------------------------


@pytest.fixture
def from_outside(moto_server: S3Server) -> dict[str, str]:
    """The variables of the storage itself."""
    return moto_server.env | {"AWS_SESSION_TOKEN": ""}


def put_secret(tmp_path: Path, values: dict[str, str]) -> None:
    data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    (tmp_path / "secret.json").write_text(json.dumps({"data": data}))


@pytest.fixture
def in_a_cluster(moto_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Storage that only a kubectl knows a way to. This computer's own variables name another, which is not there."""
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")}
    put_secret(tmp_path, {"AWS_ENDPOINT_URL_S3": "http://minio:9000", **keys, "OTHER": "not a variable of clients"})
    port = os.environ["AWS_ENDPOINT_URL_S3"].rpartition(":")[2]
    program = tmp_path / "kubectl"
    program.write_text(
        f"""#!/bin/sh
case "$*" in
"version --client") echo Kustomize Version: v5.7.1 ;;
"--namespace vcot get secret s3-credentials -o json") cat {tmp_path}/secret.json ;;
"--namespace vcot port-forward service/minio :9000")
    echo "Forwarding from 127.0.0.1:{port} -> 9000"; echo $$ > {tmp_path}/forward
    head -c 200000 /dev/zero; touch {tmp_path}/handled; exec sleep 600 ;;
*) echo "E1122 a line before" >&2; echo "Error from server (NotFound): $* not found" >&2; exit 1 ;;
esac
"""
    )
    program.chmod(0o755)
    for name, value in {
        "KUBECTL": str(program), "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
        "AWS_SESSION_TOKEN": "of another account",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return moto_place


def test_an_example_and_its_base_are_put_where_overlay_cpu_smoke_looks(in_a_cluster, from_outside, tmp_path) -> None:
    prefix = join(in_a_cluster, "examples")
    code, said = push("--example", str(EXAMPLE), "--base", str(BASE), "--to", prefix, "--service", "minio")
    assert code == 0, said
    assert not Path(f"/proc/{(tmp_path / 'forward').read_text().strip()}").exists()
    assert PushSettings(example=EXAMPLE, base=BASE).target == "s3://vcot/examples"
    with patch.dict(os.environ, from_outside):
        there = {entry.uri.removeprefix(f"{prefix}/") for entry in Store().list(prefix)}
    assert there >= {"blood-cells/instances.json", "rehearsal/model.safetensors"}
    settings = "".join(path.read_text() for path in (ROOT / "k8s/overlays/cpu-smoke/settings").iterdir())
    for uri in re.findall(r"s3://vcot/examples/(\S+)", settings):
        assert any(name.startswith(uri) for name in there), uri


def test_the_pages_of_a_run_come_home_from_storage_inside_a_cluster(in_a_cluster, from_outside, tmp_path) -> None:
    with patch.dict(os.environ, from_outside):
        Store().write(join(in_a_cluster, "runs/smoke/evaluate/report.html"), b"<html>")
    words = ["--runs-uri", join(in_a_cluster, "runs"), "--local-folder", str(tmp_path / "home"), "--service", "minio"]
    code, said = push("--run-id", "smoke", *words, of=PagesSettings, run=bring_pages)
    assert code == 0, said
    assert (tmp_path / "home/runs/smoke/evaluate-report.html").read_bytes() == b"<html>"
    code, said = push("--run-id", "other", *words, of=PagesSettings, run=bring_pages)
    assert (code, "runs/other: no reports there" in said) == (65, True)


def test_the_way_in_stays_open_however_much_kubectl_says_and_no_key_is_logged(in_a_cluster, tmp_path, monkeypatch):
    """A line for each connection; a pipe that nobody reads is full after 64 KiB, and kubectl stands still."""
    monkeypatch.setattr(redaction, "_forms", ())
    put_secret(tmp_path, {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "kept-in-a-Secret-4711"})
    with patch.dict(os.environ), StorageSettings(service="minio").storage():
        assert redacted("someone with kept-in-a-Secret-4711") == f"someone with {REDACTED}"
        until = time.monotonic() + 20
        while not (tmp_path / "handled").exists():
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_service_or_a_secret_that_is_not_there_is_named_in_one_line(in_a_cluster: str) -> None:
    code, said = push("--base", str(BASE), "--service", "other")
    assert code == 78
    assert "no way to Service other in namespace vcot: Error from server (NotFound)" in said
    code, said = push("--base", str(BASE), "--service", "minio", "--namespace", "other")
    assert code == 78
    assert "no keys of the storage: Error from server (NotFound)" in said
