"""A folder to hand out or to serve: the adapter, or weights into which it was merged, with all that a reader needs.

<to>/adapter_model.safetensors, …       or config.json, generation_config.json, model*.safetensors
     tokenizer, chat template, processor, with the limits of pixels that were trained with
     contract.json                      frame of the boxes, budget, template, the base by URI and digest
     published.json                     of which training, and what was found when it was held against it
     _manifest.json                     names, sizes, digests; says that the folder is whole, and is written last
     README.md                          the model card; no part of the manifest, so it may be written again
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from vcot import logging
from vcot.errors import GateFailed, SettingsError
from vcot.models.device import DtypeName, compute_dtype, device, free_bytes
from vcot.models.merge import merge_adapter
from vcot.models.shapes import Shapes
from vcot.records.metadata import TrainMetadata
from vcot.tokens import Encoder, is_processor_file
from vcot.tokens.encoder import check_contract
from vcot.training.agreement import Agreement, TunedModel, check_merged
from vcot.training.asking import REPLY_TOKENS, Question

OWN_OF_A_MODEL = {"config.json", "contract.json"}
"""Among the processor's files, those that belong to the weights."""
OWN_OF_THE_TRAINING = ("processor_config.json", "chat_template.jinja", "contract.json")


# --- merging -----------------------------------------------------------------------------------------------


def merged_folder(
    base: Path, adapter: Path, metadata: TrainMetadata, questions: list[Question], encoder: Encoder, out: Path,
    dtype: DtypeName,
) -> tuple[dict[str, Any], Agreement | None]:  # fmt: skip
    """Fills `out` with merged weights and what lies beside them, and holds them against base + adapter.

    Args:
        questions: asked of both; none: nothing is loaded, and the weights are not held against anything.

    Returns:
        What `published.json` says of it, and what was found where they were compared.

    Raises:
        SettingsError: the models that are to be compared would not fit into this machine's memory.
        GateFailed: the merged weights do not say what base + adapter say.
        InputError: what cannot be merged (`merge_adapter`); plain loading does not give the processor of the training.
    """
    if questions:
        _demand_memory(base, dtype, len(questions))
    merged = merge_adapter(base, adapter, out)
    logging.get().info("merged", layers=merged.layers, mib=merged.size >> 20, rounded=round(merged.rounded, 4))
    _lay_processor(base, adapter, encoder, out)
    said: dict[str, Any] = {"layers": merged.layers, "rounded": merged.rounded}
    if not questions:
        logging.get().warning("--questions=0: the merged weights were not held against base + adapter")
        return said, None
    found = check_merged(TunedModel(base, adapter, metadata.tune, dtype), out, questions, encoder)
    if found.verdict not in ("ours", "cannot tell"):
        raise GateFailed(
            "the merged weights do not say what base + adapter say: log-probabilities differ by "
            f"{found.to_ours.mean:.3g} on average (at most {found.to_ours.largest:.3g}), those of the base alone by "
            f"{found.apart.mean:.3g}; nothing was published"
        )
    return said | {"dtype": str(compute_dtype(dtype)).removeprefix("torch."), "agreement": asdict(found)}, found


def _demand_memory(base: Path, dtype: DtypeName, questions: int) -> None:
    stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    logits = 2 * questions * REPLY_TOKENS * Shapes.read(base).vocabulary * 4  # of both models; not on the GPU
    needed = int(1.2 * stored * compute_dtype(dtype).itemsize / 2) + logits
    if needed > (free := free_bytes()):
        raise SettingsError(
            f"to hold merged weights against base + adapter takes about {needed / 2**30:.1f} GiB of memory "
            f"({device().type}), {free / 2**30:.1f} GiB are free; publish on a larger machine, or with --questions 0, "
            "which merges and compares nothing"
        )


def _lay_processor(base: Path, adapter: Path, encoder: Encoder, out: Path) -> None:
    """The base's tokenizer as it was published, the training's processor.

    Readers that do not know transformers 5's processor_config.json take preprocessor_config.json, so the limits of
    pixels stand in both.
    """
    names = {path.name for path in base.iterdir() if is_processor_file(path.name)} - OWN_OF_A_MODEL
    for folder, wanted in ((base, names), (adapter, OWN_OF_THE_TRAINING)):
        for name in sorted(wanted):
            shutil.copyfile(folder / name, out / name)
    encoder.processor.image_processor.save_pretrained(str(out))
    plain = AutoProcessor.from_pretrained(str(out), local_files_only=True, trust_remote_code=False)
    check_contract(encoder.contract, plain)
