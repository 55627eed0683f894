"""make push-base: what may be pushed, and what the command says."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vcot.errors import InputError
from vcot.pipeline.push import wanted
from vcot.storage import Store, join
from vcot.storage.folders import fetch_folder

ROOT = Path(__file__).parents[2]


def safetensors(path: Path, numbers: int = 4) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [numbers], "data_offsets": [0, numbers]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(numbers))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As a hub's client leaves it."""
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.lock").touch()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"):
        (folder / name).write_text("{}")
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part in parts:
        safetensors(folder / part)
    index = {"weight_map": {"a": parts[0], "b": parts[1], "c": parts[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_everything_but_hidden_files_and_code_is_wanted(base: Path) -> None:
    (base / "modeling_own.py").touch()
    (base / "_manifest.json").touch()  # of a folder that was fetched
    assert wanted(base) == [
        "README.md", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_shipped_rehearsal_base_may_be_pushed() -> None:
    assert "model.safetensors" in wanted(ROOT / "examples" / "rehearsal")


@pytest.mark.parametrize(
    ("without", "line"),
    [
        ("config.json", "there is no config: config.json is missing"),
        ("tokenizer.json", "tokenizer.json or vocab.json is missing"),
        ("preprocessor_config.json", "there is no processor: preprocessor_config.json or processor_config.json"),
        ("model.safetensors.index.json", "there are no weights: model.safetensors or model.safetensors.index.json"),
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors of 2 files of weights are missing"),
    ],
)
def test_what_is_missing_is_named(base: Path, without: str, line: str) -> None:
    (base / without).unlink()
    with pytest.raises(InputError) as caught:
        wanted(base)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pickles_are_refused_by_name_and_all_faults_told_at_once(base: Path) -> None:
    (base / "pytorch_model.bin").touch()
    (base / "tokenizer.json").unlink()
    with pytest.raises(InputError) as caught:
        wanted(base)
    first, second = str(caught.value).splitlines()
    assert "pytorch_model.bin: weights in a pickle" in first
    assert "there is no tokenizer" in second


def test_a_link_to_nothing_is_named(base: Path) -> None:
    """As a hub's cache leaves it where its blobs were cleaned away."""
    (base / "README.md").unlink()
    (base / "README.md").symlink_to(base / "blobs" / "0f3a")
    with pytest.raises(InputError, match=r"README\.md: a link to nothing; download it again$"):
        wanted(base)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda data: data[:-1], "bytes, not the"),
        (lambda data: data + b"x", "bytes, not the"),
        (lambda data: data[:5], "not safetensors, or cut off (5 bytes)"),
        (lambda data: b"<!DOCTYPE html><html>" * 9, "not safetensors, or cut off"),
        (lambda data: data[:8] + b"x" + data[9:], "its header is damaged"),
    ],
)
def test_weights_that_are_cut_off_are_refused(base: Path, harm: object, line: str) -> None:
    path = base / "model-00001-of-00002.safetensors"
    path.write_bytes(harm(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors: ") as caught:
        wanted(base)
    assert line in str(caught.value)
    assert "download it again" in str(caught.value)


def push(*argv: str) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    answer = subprocess.run(
        [sys.executable, "-m", "vcot.pipeline.push", *argv], cwd=ROOT, env=clean, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def test_the_command_pushes_and_says_where(base: Path, moto_place: str, tmp_path: Path) -> None:
    code, said = push("--base", str(base), "--to", join(moto_place, "base"))
    assert code == 0, said
    assert "files=8" in said
    assert fetch_folder(Store(), join(moto_place, "base"), tmp_path / "here").joinpath("README.md").exists()
    code, said = push("--base", str(base), "--to", join(moto_place, "base"))
    assert code == 0
    assert "it is there already" in said


def test_the_command_names_itself_and_refuses_in_one_line(base: Path) -> None:
    assert "usage: python -m vcot.pipeline.push" in push("--help")[1]
    code, said = push("--base", "nowhere")
    assert code == 78
    assert "--base=nowhere: there is no such folder" in said
    assert push("--to", "s3://b/x")[0] == 78  # --base is missing
