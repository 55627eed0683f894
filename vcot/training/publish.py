"""What a training leaves behind: the model and what it silently assumes, the losses, the report, the mark."""

from __future__ import annotations

import json
import resource
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vcot import __version__, log
from vcot.models import device
from vcot.records import Folder, StageMark
from vcot.settings import Settings
from vcot.stage import summary as sum_up
from vcot.storage import Store, join, put_folder
from vcot.tokens import Encoder
from vcot.training.losses import by_step, draw, summary
from vcot.training.packing import disk_error
from vcot.training.sft import Tuned

MODEL = "model"
"""Folder of the model, below the stage's."""


def publish(
    folder: Folder,
    settings: Settings,
    inputs: Mapping[str, str],
    tuned: Tuned,
    encoder: Encoder,
    base: Mapping[str, str],
    scratch: Path,
) -> None:
    """Uploads everything, and the mark last.

    Args:
        base: uri and sha256 of the base.
    """
    losses = by_step(tuned.history)
    write_model(scratch / MODEL, tuned, encoder, base)
    files = put_folder(folder.store, scratch / MODEL, join(folder.uri, MODEL))
    folder.store.write(join(folder.uri, "losses.json"), json.dumps(losses, indent=0).encode() + b"\n")
    draw(losses, scratch / "losses.png")
    folder.store.upload(scratch / "losses.png", join(folder.uri, "losses.png"))
    shaping = settings.shaping()
    facts = {
        "contract": encoder.contract.model_dump(mode="json"),
        "base_uri": base["uri"],
        "base_sha256": base["sha256"],
        "tune": shaping["tune"],
        "model": MODEL,
        "files": files,
        "losses": summary(losses),
        "trainable_parameters": tuned.parameters,
        **tuned.facts,
    }
    folder.write_report({"stage": folder.stage} | facts | {"this_process": spent(tuned)})
    folder.finish(StageMark(stage=folder.stage, code=__version__, settings=shaping, inputs=dict(inputs), facts=facts))
    sum_up(**facts["losses"])
    log.get().info("trained", model=join(folder.uri, MODEL), **facts["losses"], **spent(tuned))


def write_model(folder: Path, tuned: Tuned, encoder: Encoder, base: Mapping[str, str]) -> None:
    """Fills a local folder.

    adapter_model.safetensors, adapter_config.json (or model.safetensors, config.json of a fully tuned model);
    the processor's files, with the budget of pixels that was trained with; contract.json: frame of the boxes,
    budget, template, and the base by URI and digest. A server needs all of it to read a box rightly.
    """
    folder.mkdir(parents=True)
    try:
        _write_weights(folder, tuned)
    except SafetensorError as error:
        raise disk_error(error) from None
    encoder.processor.save_pretrained(str(folder))
    said = {"contract": encoder.contract.model_dump(mode="json"), "base": dict(base)}
    (folder / "contract.json").write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def _write_weights(folder: Path, tuned: Tuned) -> None:
    if hasattr(tuned.model, "peft_config"):
        tuned.model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form with nothing filled in
    else:
        if tuned.compute == torch.bfloat16:
            tuned.model.to(torch.bfloat16)
        tuned.model.save_pretrained(str(folder))


def upload_trackers(store: Store, files: Path, uri: str) -> None:
    """Event files so far. Called after each checkpoint, so that a run that goes on from it repeats no step."""
    if files.is_dir():
        put_folder(store, files, uri)


def tell_what_led_to_it(folder: Folder, facts: Mapping[str, Any]) -> None:
    """A failure beside the checkpoints; each attempt's under its own name."""
    uri = join(folder.uri, "failures", f"step-{facts['step']:06d}-{secrets.token_hex(4)}.json")
    folder.store.write(uri, json.dumps(facts, indent=1).encode() + b"\n")
    log.get().error("what led to it is written down", uri=uri)


def spent(tuned: Tuned) -> dict[str, Any]:
    """Time and memory of this process; a run that was killed has others that are not counted."""
    found = {
        "seconds": round(tuned.seconds, 1),
        "tokens": tuned.tokens,
        "tokens_per_second": round(tuned.tokens / tuned.seconds) if tuned.seconds else None,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    if device().type == "cuda":
        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() >> 20
    return found
