"""Entry point of the stage tokenize: python -m jobs.tokenize --run-uri … --base-uri …"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from vcot import logging
from vcot.grounding.ways import LEARNED_WAYS
from vcot.settings import CommaSeparated, Settings, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from vcot.records.metadata import TokenizeShardMetadata
    from vcot.records.shards import Folder, ShardWriter

WORTH_A_PROCESS = {"multimodal": 2_000, "text": 50_000}
"""Rows: with fewer, what a process does takes no longer than to begin it."""

PRELOAD = (
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl", "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "pyarrow.parquet", "pandas", "vcot.tokens.rows",
)  # fmt: skip
"""What every process of the stage needs, most of it torch (pandas is imported by pyarrow where it is installed): the
server that they are forked off imports it once."""

VISUAL_TOKEN = 28 * 28
"""Pixels of one visual token in most families; the contract has the base's own value."""


class TokenizeSettings(Settings):
    """Turns Samples into what a model trains on: token ids, which of them are learned, and the image.

    Reads <run-uri>/distill, writes <run-uri>/tokenize: Parquet shards that `datasets` opens as they are, and
    report.html, which shows some examples token by token. Learned are the reasoning, the answer and the end
    token; prompt, image and padding are not. Nothing is cut: a row that is too long gets a smaller image,
    or is refused with its numbers. One example is made of each reasoning of a row in each way of --learn, none of the
    test split.
    """

    stage: ClassVar[str] = "tokenize"

    base_uri: str = setting(
        description="folder of the base model; only its tokenizer and processor files are read",
        min_length=1,
        existing_folder=True,
    )
    input_uri: str | None = setting(None, "finished stage with the Samples; default: <run-uri>/distill")
    mode: Literal["multimodal", "text"] = setting(
        "multimodal", "text leaves the images out: a warm-up in which only the form of the replies is learned"
    )
    frame: Literal["native", "thousandths", "resized_pixels", "pixels", "padded_square", "fractions"] = setting(
        "native",
        "numbers in which a text writes boxes: thousandths of the image's sides, resized_pixels of the image as the "
        "model sees it, …; native: as the base does by its contract.json or else its family, thousandths (Qwen2-VL, "
        "Qwen3-VL, InternVL) or resized_pixels (Qwen2.5-VL)",
    )
    min_pixels: int = setting(
        4 * VISUAL_TOKEN,
        "area of an image as the model sees it, at least; 784 pixels are one visual token (28x28)", unit="pixels", gt=0,
    )  # fmt: skip
    max_pixels: int = setting(
        1280 * VISUAL_TOKEN,
        "the same, at most: 1003520 is 1280 visual tokens; larger images are made smaller", unit="pixels", gt=0,
    )  # fmt: skip
    max_length: int = setting(
        2048, "prompt, visual tokens and reply of an example together, at most", unit="tokens", gt=0
    )
    learn: CommaSeparated = setting(
        ("ground",), "ways of answering, of each of which every row gives examples: direct (the answer alone), reason "
        "(reasoning in words, then the answer), ground (reasoning with boxes, then the answer); separated by commas; "
        "evaluate asks in the same, and reports most of the first"
    )  # fmt: skip
    instruction: str | None = setting(
        None, "a line below every question that is answered with boxes, in training and in evaluation"
    )
    roles: CommaSeparated = setting(
        (), "what is a turn of its own in the conversation; rationale: the reasoning, between question and answer, "
        "with an end of its own to be learned; evaluate and train --method grpo ask in the same form. Default: nothing"
    )  # fmt: skip
    without_reasoning: Literal["refuse", "ask"] = setting(
        "refuse", "rows that have no reasoning to learn from; ask: they give their question alone, which train "
        "--method grpo answers and is rewarded for, and --method sft leaves out"
    )  # fmt: skip
    max_rejected_share: float = setting(
        0.05, "the stage fails when a larger share of its rows is refused", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip

    processes: int | None = setting(
        None, "processes, each of which makes whole shards; default: one a core, 4 at most, where rows are many",
        unit="processes", ge=1, le=64, shapes_result=False,
    )  # fmt: skip

    @field_validator("learn")
    @classmethod
    def _known_ways(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in LEARNED_WAYS]:
            raise ValueError(f"no such way to learn: {', '.join(unknown)}; there are {', '.join(LEARNED_WAYS)}")
        if not value:
            raise ValueError(f"at least one way is needed, of {', '.join(LEARNED_WAYS)}")
        return tuple(dict.fromkeys(value))

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name != "rationale"]:
            raise ValueError(f"no such role: {', '.join(unknown)}; there is rationale, or leave it out")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"--min-pixels={self.min_pixels} is more than --max-pixels={self.max_pixels}; at most the same"
            )
        return self


def run(settings: TokenizeSettings) -> None:
    # Shards are the unit of parallel work; threads within one only wait for each other. torch and tokenizers read these
    # when they are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from vcot.datasets.parallel import Workers, cores
    from vcot.records.example import ExampleSink
    from vcot.records.metadata import TokenizeMetadata
    from vcot.records.shards import OF_SAMPLES, TOKENIZE, Folder, read_marker, run_shards
    from vcot.storage import Store, join
    from vcot.storage.folders import fetch_folder, folder_digest
    from vcot.tokens import Encoder, contract_of, is_processor_file, load_processor, native_frame
    from vcot.tokens.rows import Tokenizing

    store = Store()
    source_uri = settings.input_uri or join(settings.run_uri, "distill")
    source, inputs = read_marker(store, source_uri, *OF_SAMPLES)
    base_digest = folder_digest(store, settings.base_uri, only=is_processor_file)
    inputs |= {settings.base_uri: base_digest}
    folder = Folder(store, settings.run_uri, TOKENIZE)
    if folder.whole(settings, inputs) is not None:
        return
    folder.begin(settings, inputs)  # a prefix with other settings is refused before anything is loaded
    if settings.part == "prepare":
        summary(shards=len(source.shards))
        return
    begin = partial(logging.configure, settings.log_form, run=settings.run_name, stage=settings.stage)
    with (
        tempfile.TemporaryDirectory(prefix="tokenize-") as scratch,
        Workers(settings.processes or cores(), Path(scratch), begin, preload=PRELOAD) as workers,
    ):
        base = Path(scratch) / "base"
        base.mkdir()
        base = fetch_folder(store, settings.base_uri, base, only=is_processor_file)
        # 10 s, most of them for importing torch.
        processor = load_processor(base, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
        contract = contract_of(
            processor, mode=settings.mode, frame=native_frame(base) if settings.frame == "native" else settings.frame,
            max_length=settings.max_length, instruction=settings.instruction,
            ways=tuple(way for name in settings.learn for way in LEARNED_WAYS if way == name),
            roles=("rationale",) if settings.roles else (),
        )  # fmt: skip
        files = [shard.files for shard in source.shards]
        tokenizing = Tokenizing(
            store, source_uri, files, folder.uri, base, Encoder(processor, contract),
            ask=settings.without_reasoning == "ask",
        )  # fmt: skip
        many = source.row_counts.kept >= 2 * WORTH_A_PROCESS[settings.mode] or settings.processes is not None
        if many and min(workers.count, len(files)) > 1 and settings.part != "finish" and settings.shard is None:
            workers.map(shard, [(folder, number, tokenizing.shard) for number in range(len(files))])
        run_shards(
            folder, settings, inputs=inputs, shards=len(files), work=tokenizing.shard, sink=ExampleSink,
            max_rejected_share=settings.max_rejected_share, report=tokenizing.report,
            metadata=TokenizeMetadata(contract=contract, base_uri=settings.base_uri, base_sha256=base_digest),
        )  # fmt: skip


def shard(
    folder: Folder[TokenizeShardMetadata], index: int, work: Callable[[ShardWriter], TokenizeShardMetadata]
) -> None:
    """One shard in a process of its own; `run_shards` finds it done, as of convert."""
    from vcot.records.example import ExampleSink

    logging.bind(shard=index)
    folder.make_shard(index, work, ExampleSink)


if __name__ == "__main__":
    launch(TokenizeSettings, run)
