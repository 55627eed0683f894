"""Completion markers as stages write them, without their work."""

from __future__ import annotations

from typing import Any

from vcot.records import Contract, RowCounts
from vcot.records.metadata import Losses
from vcot.records.shards import STAGES, File, ShardMarker, StageMarker

NO_REJECTIONS = File(name="rejections/00000.jsonl", sha256="0" * 64, size=0)

CONTRACT = Contract(
    mode="multimodal", frame={"name": "thousandths"}, min_pixels=3136, max_pixels=784 * 1280, instruction=None,
    max_length=512, template_sha256="0" * 64, tokenizer_sha256="0" * 64, patch_size=14, merge_size=2,
    temporal_patch_size=2, image_mean=(0.5,), image_std=(0.5,),
)  # fmt: skip

_BASE = {"base_uri": "s3://b/base", "base_sha256": "0" * 64}
METADATA: dict[str, dict[str, Any]] = {
    "convert": {},
    "distill": {"teacher": "template/1"},
    "tokenize": {"contract": CONTRACT} | _BASE,
    "train": {"contract": CONTRACT} | _BASE | {
        "tune": "lora", "model": "model", "files": {}, "trainable_parameters": 1, "train_samples": 1,
        "validation_samples": 0, "ranks": 1, "last_step": 1, "kept_step": 1,
        "losses": Losses(steps=1, first_loss=1.0, last_loss=1.0, best_eval_loss=None, best_step=None),
    },
    "evaluate": {"base": "s3://b/base", "base_sha256": "0" * 64},
}  # fmt: skip


def shard_marker(stage: str, shard: int = 0, row_counts: RowCounts = RowCounts(), **metadata: Any) -> ShardMarker:  # noqa: B008
    kind = next(kind for kind in STAGES if kind.name == stage)
    return kind.shard_marker(
        shard=shard, files=(), rejections=NO_REJECTIONS, row_counts=row_counts, metadata=kind.of_shard(**metadata)
    )


def stage_marker(
    stage: str, settings: dict[str, Any] | None = None, code: str = "1", shards: Any = (),
    inputs: dict[str, str] | None = None, **metadata: Any,
) -> StageMarker:  # fmt: skip
    """metadata: what is said otherwise than in METADATA."""
    kind = next(kind for kind in STAGES if kind.name == stage)
    return kind.stage_marker(
        stage=stage, code=code, settings=settings or {}, inputs=inputs or {}, shards=shards,
        row_counts=sum((shard.row_counts for shard in shards), RowCounts()),
        metadata=kind.of_stage(**METADATA[stage] | metadata),
    )  # fmt: skip
