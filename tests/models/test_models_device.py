"""A GPU that cannot be used is an error. No machine of the tests needs one; where there is one, it works."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from vcot.errors import SettingsError
from vcot.models.device import device, use_device

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")


@WITHOUT_GPU
@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_visible_gpu_that_cannot_be_used_is_an_error(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SettingsError, match=r"torch cannot use it.*Driver: .*built for CUDA 13\.\d.*driver .* is 580"):
        use_device(choice)  # type: ignore[arg-type]


@WITHOUT_GPU
def test_auto_is_the_processor_where_there_is_neither_gpu_nor_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    use_device("auto")
    assert device().type == "cpu"


def test_cpu_leaves_a_gpu_alone_that_a_library_has_seen_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # for ranks
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # counted before it was hidden
    assert device().type == "cpu"


def test_the_image_finds_a_driver_that_the_node_mounts_beside_the_system() -> None:
    """GKE mounts it below /usr/local/nvidia, where nothing but this variable looks."""
    (libraries,) = re.findall(r"LD_LIBRARY_PATH=(\S+)", DOCKERFILE.read_text())
    assert {"/usr/local/nvidia/lib", "/usr/local/nvidia/lib64"} <= set(libraries.split(":"))
