"""A base of 2.8 million parameters, and a finished tokenize stage with a few drawn images.

from tests.training.toy import *  # fixtures: toy_base, toy_encoder
"""

from __future__ import annotations

import hashlib
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from tests.fakes.markers import stage_marker
from vcot.grounding import Box, Mention, Trace, place
from vcot.records import Folder, Image, Origin, Sample
from vcot.records.example import ALONE, Example, Examples, ExampleSink
from vcot.records.metadata import TokenizeShardMetadata
from vcot.records.shards import TOKENIZE, ShardWriter
from vcot.storage import Store
from vcot.storage.images import decode

__all__ = ["toy_base", "toy_encoder"]

BASE = Path(__file__).parents[2] / "examples" / "rehearsal"
MIN_PIXELS, MAX_PIXELS = 56 * 56, 112 * 112
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="session")
def toy_base() -> Path:
    """The shipped rehearsal base."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert (BASE / "model.safetensors").exists(), f"{BASE}: the weights are part of the repository"
    return BASE


@pytest.fixture(scope="session")
def toy_encoder(toy_base: Path) -> Any:
    return encoder_of(toy_base)


def encoder_of(base: Path, mode: Any = "multimodal", roles: Any = ()) -> Any:
    from vcot.tokens import Encoder, contract_of, load_processor

    processor = load_processor(base, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return Encoder(processor, contract_of(processor, mode=mode, frame="thousandths", max_length=512, roles=roles))


def drawn(number: int, split: Any = "train", alternatives: int = 2, size: tuple[int, int] | None = None) -> Any:
    """(Sample, its bytes): one or two squares; the question is where the first is."""
    dice = random.Random(number)
    width, height = size or dice.choice([(112, 84), (84, 112), (112, 112)])
    canvas = PILImage.new("RGB", (width, height), (dice.randrange(90, 160),) * 3)
    mentions = []
    for colour in dice.sample(COLOURS, dice.choice([1, 2])):
        side = dice.randrange(18, 32)
        x, y = dice.randrange(0, width - side), dice.randrange(0, height - side)
        ImageDraw.Draw(canvas).rectangle((x, y, x + side - 1, y + side - 1), fill=colour)
        mentions.append(Mention(f"{colour} square", (Box(x, y, x + side, y + side),)))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    data = buffer.getvalue()
    where = place(mentions[0].boxes[0], width, height)
    sentences = (("The ", mentions[0], f" is at the {where}."), ("I see ", mentions[0], "."))
    return Sample(
        id=f"{split}-{number}",
        image=Image(uri=f"{number}.png", width=width, height=height, sha256=hashlib.sha256(data).hexdigest()),
        question=f"Where is the {mentions[0].label}?",
        answers=(where,),
        reasoning=tuple(Trace(parts) for parts in sentences[:alternatives]),
        evidence=tuple(mentions),
        origin=Origin(dataset="toy", split=split, row=str(number), licence="MIT"),
    ), data


def examples(encoder: Any, train: int, validation: int = 0, alternatives: int = 2) -> list[Example]:
    made = []
    for number in range(train + validation):
        split = "train" if number < train else "validation"
        sample, data = drawn(number, split, alternatives)
        seen = [decode(data, sample.id)] if encoder.contract.mode == "multimodal" else []
        for alternative in range(len(sample.reasoning)) or [ALONE]:
            example = encoder.example(sample, alternative, seen, [data] * len(seen))
            assert isinstance(example, Example), example
            made.append(example)
    return made


def by_text(number: int, split: Any = "train") -> Sample:
    """A question by text alone."""
    illustrated, _ = drawn(number, split)
    return illustrated.model_copy(
        update={
            "id": f"text-{number}", "images": (), "evidence": None, "question": f"What is {number} and {number}?",
            "answers": (str(2 * number),), "reasoning": (Trace((f"{number} and {number} is {2 * number}.",)),),
        }
    )  # fmt: skip


def encoded(encoder: Any, samples: list[Sample]) -> list[Example]:
    """Of questions by text alone."""
    return [encoder.example(sample, 0) for sample in samples]


def write_examples(path: Path, made: list[Example]) -> Path:
    sink = ExampleSink(path)
    for example in made:
        sink.write(example)
    sink.close()
    return path


def tokenized(
    run_uri: str, encoder: Any, made: list[Example], *, shards: int = 2, inputs: Any = None, settings: Any = None
) -> None:
    """Writes <run-uri>/tokenize as the stage would."""
    folder = Folder(Store(), run_uri, TOKENIZE)

    def work(writer: ShardWriter) -> TokenizeShardMetadata:
        for example in made[writer.index :: shards]:
            writer.keep(example)
        return TokenizeShardMetadata()

    markers = tuple(folder.make_shard(index, work, ExampleSink) for index in range(shards))
    marker = stage_marker("tokenize", settings, shards=markers, contract=encoder.contract, inputs=inputs or {})
    folder.finish(marker)


# --- trainings in this process -----------------------------------------------------------------------------


def config(**changes: Any) -> Any:
    from vcot.training.config import TrainingConfig

    values: dict[str, Any] = {
        "tune": "qlora", "dtype": "float32", "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.05,
        "optim": "adamw_8bit",
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01,
        "max_grad_norm": 0.3, "neftune_noise_alpha": 5.0,
        "batch_tokens": 170, "packing": "off", "gradient_accumulation_steps": 2, "num_train_epochs": 3.0,
        "max_steps": None,
        "eval_steps": 4, "save_steps": 2, "early_stopping_patience": 0, "early_stopping_threshold": 0.001,
        "gradient_checkpointing": "off",
        "seed": 1,
    }  # fmt: skip
    if changes.get("tune") == "full":  # it has no adapters
        values = {name: value for name, value in values.items() if name not in ("lora_r", "lora_alpha", "lora_dropout")}
    return TrainingConfig(**(values | changes))


def loss_sum(model: Any, batch: Any) -> Any:
    """Over the learned tokens of a collator's batch, as the trainer has it."""
    from vcot.models.families import family_of
    from vcot.models.loading import whole_model

    inner = whole_model(model)
    packed = {name: batch[name] for name in ("row_bounds", "longest_row") if name in batch}
    return inner(**family_of(inner.config).model_inputs(batch), **packed, labels=batch["labels"], want="loss")


class Died(BaseException):
    """As kill -9 does, but without a process."""


def _attempt(scratch: Path, die_at: int | None) -> dict[str, Any]:
    """A context and checkpoints below `scratch`; with `die_at` it dies right after that checkpoint."""
    from vcot.training.checkpoints import Checkpoints
    from vcot.training.engine import RunContext

    saves = 0

    def saved() -> None:
        nonlocal saves
        saves += 1
        if saves == die_at:
            raise Died

    attempt = scratch / f"attempt-{len(list(scratch.glob('attempt-*')))}"
    checkpoints = Checkpoints(Store(), str(scratch / "checkpoints"), attempt / "local", keep=1)
    return {"context": RunContext(attempt, saved=saved), "checkpoints": checkpoints}


def tune(base: Path, encoder: Any, made: Examples, scratch: Path, *, die_at: int | None = None, **changes: Any) -> Any:
    """One training; what it saves is below `scratch`. With `die_at` it dies right after that checkpoint."""
    from vcot.training.sft import fine_tune

    return fine_tune(
        config(**changes), base=base, base_uri="s3://b/base", encoder=encoder, examples=made,
        **_attempt(scratch, die_at),
    )  # fmt: skip


COUNT = 6
"""Questions that are asked."""


def questions(encoder: Any, scratch: Path, count: int = COUNT, samples: Any = None, reasonings: int = 2) -> Any:
    from vcot.training.questions import Questions

    scratch.mkdir(parents=True, exist_ok=True)
    made = Examples([write_examples(scratch / "examples.parquet", examples(encoder, count, 0, reasonings))])
    own = [drawn(number)[0] for number in range(count)] if samples is None else samples
    return Questions(made, own, encoder, way="ground", file=scratch / "samples.jsonl", cache_bytes=1 << 20)


def in_rounds(
    method: Any, options: Any, base: Path, encoder: Any, scratch: Path, *, die_at: int | None = None,
    adapter: Path | None = None, asked: Any = None, reasonings: int = 2, **changes: Any,
) -> tuple[Any, dict[int, list[Any]]]:  # fmt: skip
    """The result of a training from its own replies, and the replies of each step."""
    kept = dict[int, list[Any]]()

    def keep(step: int, rollouts: Any, _: Any) -> None:
        kept[step] = [one for _, one in rollouts]

    settings = {
        "tune": "lora", "neftune_noise_alpha": 0.0, "lora_dropout": 0.0, "num_train_epochs": 1.0, "save_steps": 1,
        "learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "max_steps": 3,
    } | changes  # fmt: skip
    given = _attempt(scratch, die_at)
    result = method(
        config(**settings), options, base=base, base_uri="s3://b/base", adapter=adapter, encoder=encoder, keep=keep,
        questions=asked or questions(encoder, given["context"].scratch, reasonings=reasonings), **given,
    )  # fmt: skip
    return result, kept


def tuned_adapter(base: Path, encoder: Any, scratch: Path) -> Path:
    """Folder of an adapter that has learned a little, whole replies in the form of the encoder's contract among it."""
    scratch.mkdir(parents=True, exist_ok=True)
    made = Examples([write_examples(scratch / "examples.parquet", examples(encoder, 12))])
    result = tune(
        base, encoder, made, scratch, tune="lora", max_steps=20, learning_rate=5e-3, batch_tokens=600, save_steps=20,
        gradient_accumulation_steps=1, optim="adamw_torch_fused", neftune_noise_alpha=0.0, lora_dropout=0.0,
    )  # fmt: skip
    result.model.save_pretrained(str(scratch / "adapter"))
    (scratch / "adapter" / "README.md").unlink(missing_ok=True)
    return scratch / "adapter"


def weights(result: Any) -> dict[str, Any]:
    from vcot.training.engine import trained

    return {name: value.detach().clone() for name, value in trained(result.model).items()}
