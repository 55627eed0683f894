"""A base, adapters and a contract as train would have written them, for the tests of evaluate as a stage.

from tests.jobs.evaluated import *  # fixtures: base, adapters, contract
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.markers import stage_marker
from tests.training.toy import MAX_PIXELS, MIN_PIXELS, toy_base
from vcot.records import Folder
from vcot.records.shards import TRAIN
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import folder_digest

__all__ = ["adapters", "base", "contract", "toy_base"]


@pytest.fixture(scope="session")
def base(toy_base: Path) -> Path:
    return toy_base


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Two adapters as training writes them: one that changes nothing, and one that changes much."""
    import torch

    from vcot.models.loading import attach_lora, load_base

    torch.manual_seed(0)
    model = attach_lora(load_base(base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    folders = {}
    for name, size in (("nothing", 0.0), ("much", 0.5)):
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=size)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(str(folders[name]))
        (folders[name] / "README.md").unlink(missing_ok=True)
    return folders


@pytest.fixture(scope="session")
def contract(base: Path) -> dict[str, Any]:
    return contract_in("thousandths", base)


def contract_in(frame: Any, base: Path) -> dict[str, Any]:
    from vcot.tokens import contract_of, load_processor

    processor = load_processor(base, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return contract_of(processor, mode="multimodal", frame=frame, max_length=512).model_dump(mode="json")


def trained(run_uri: str, base: Path | str, adapter: Path, contract: Mapping[str, Any], tune: str = "lora") -> None:
    """What train would have written."""
    folder = Folder(Store(), run_uri, TRAIN)
    files = put_folder(Store(), adapter, join(folder.uri, "model"))
    told = {"base_uri": str(base), "base_sha256": folder_digest(Store(), str(base)), "tune": tune, "files": files}
    folder.finish(stage_marker("train", contract=dict(contract), **told))
