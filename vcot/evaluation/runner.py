"""Asks the base and the tuned model, once, and keeps what they said.

Questions are asked in units: so many prompts, one model (the base in the tuned one's form, the base in its own, the
tuned one), one condition (real, blank, shuffled). A unit is a shard of the stage; a killed evaluation goes on with the
first unit that has no marker. What the base says does not depend on the run: it is kept beside the runs as well,
under a key of all that shapes it, and not asked again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image
from pydantic import ValidationError

from vcot import logging
from vcot.answers import NO_SYNONYMS, Synonyms
from vcot.errors import InputError
from vcot.evaluation.ablations import image_of, shown
from vcot.evaluation.base_form import OwnForm
from vcot.evaluation.config import Condition, EvaluationConfig
from vcot.evaluation.scoring import score
from vcot.grounding import Frame
from vcot.records import Completion, Rejection, Sample, Score
from vcot.records.base import Record
from vcot.records.metadata import EvaluateShardMetadata, TrainMetadata
from vcot.records.sample import IMAGE_REASONS
from vcot.records.shards import ShardMarker, ShardWriter, fetch_file
from vcot.stage import stop
from vcot.storage import NotFound, Store, join
from vcot.storage.folders import fetch_folder, fetch_with_digest
from vcot.storage.images import ImageError
from vcot.tokens import Contract, Encoder, is_processor_file, load_processor

Model = Literal["base", "native", "tuned"]
"""`native`: the base again, asked in its own form (vcot.evaluation.base_form)."""

#: Asks a model: samples and the images that it is shown, if any → one Completion each, in order.
Ask = Callable[[Model, Sequence[Sample], Sequence[Image.Image | None]], list[Completion]]

MOST_RATIO = 200
"""Image processors of the Qwen-VL family take no image that is longer than this times its other side."""


class Reply(Record):
    """One line of a shard: who said what under which condition, and how good it was."""

    version: Literal[1] = 1
    model: Model
    condition: Condition
    completion: Completion
    score: Score


@dataclass(frozen=True)
class Unit:
    """Samples first..last-1 of the evaluation, asked of one model under one condition."""

    model: Model
    condition: Condition
    first: int
    last: int


def units(samples: int, conditions: Sequence[Condition], size: int, *, native: bool = False) -> list[Unit]:
    """The base first, so that its adapter is attached once, later; in its own form about the real images alone."""
    asked: dict[Model, Sequence[Condition]] = {
        "base": conditions, "native": ("real",) if native else (), "tuned": conditions
    }  # fmt: skip
    return [
        Unit(model, condition, first, min(first + size, samples))
        for model, each in asked.items()
        for condition in each
        for first in range(0, samples, size)
    ]


@dataclass
class EvaluationRunner:
    """Everything a unit needs.

    partners: for each sample, the index of the one whose image it is shown when shuffled.
    asked_of_base: what of the settings and the base shapes its replies (for the key of the cache).
    asked_natively: what shapes them beside that where it is asked in its own form; `native_frame` reads them then.
    synonyms: labels that are one name when replies are judged.
    """

    store: Store
    samples: Sequence[Sample]
    partners: Sequence[int]
    ask: Ask
    frame: Callable[[Sample], Frame]
    units: Sequence[Unit]
    cache_uri: str
    asked_of_base: Mapping[str, Any]
    synonyms: Synonyms = NO_SYNONYMS
    asked_natively: Mapping[str, Any] = field(default_factory=dict)
    native_frame: Callable[[Sample], Frame] | None = None

    def run(self, writer: ShardWriter) -> EvaluateShardMetadata:
        """Asks one unit's questions; keeps a Reply per sample, or a Rejection where its image cannot be shown.

        Questions by text alone are asked as they are; another image cannot be put in the place of none.
        """
        unit = self.units[writer.index]
        samples: list[Sample] = []
        images: list[Image.Image | None] = []
        by_text = 0
        for index in range(unit.first, unit.last):
            sample = self.samples[index]
            if sample.image is None:
                by_text += 1
                if unit.condition != "real":
                    continue
            try:
                images.append(self._image(index, unit.condition))
            except ImageError as error:
                reason = IMAGE_REASONS[error.reason]
                writer.reject(Rejection(id=sample.id, stage="evaluate", reason=reason, detail=str(error)))
                continue
            samples.append(sample)
        frame = self.native_frame if unit.model == "native" and self.native_frame else self.frame
        begun = time.monotonic()
        said = self._completions(unit.model, samples, images)
        seconds = round(time.monotonic() - begun, 2)
        for sample, completion in zip(samples, said, strict=True):
            judged = score(completion.text, sample, frame(sample), self.synonyms)
            writer.keep(Reply(model=unit.model, condition=unit.condition, completion=completion, score=judged))
        return EvaluateShardMetadata(by_text=by_text, seconds=seconds)

    def _image(self, index: int, condition: Condition) -> Image.Image | None:
        if self.samples[index].image is None:
            return None
        own = image_of(self.store, self.samples[index])
        if max(own.size) > MOST_RATIO * min(own.size):
            size = f"{own.width} x {own.height} pixels; one side is more than {MOST_RATIO} times the other"
            raise ImageError(self.samples[index].shown.uri, "unsupported-format", size)
        other = image_of(self.store, self.samples[self.partners[index]]) if condition == "shuffled" else None
        return shown(condition, own, other)

    def _completions(
        self, model: Model, samples: Sequence[Sample], images: Sequence[Image.Image | None]
    ) -> list[Completion]:
        """What the model says, in order. Equal questions with equal images (all blank ones, say) are asked once; what
        the base said about the same questions before is taken from the cache."""
        told = [_told(sample, image) for sample, image in zip(samples, images, strict=True)]
        chosen = sorted({words: index for index, words in reversed(list(enumerate(told)))}.values())
        if not chosen:
            return []
        uri = join(self.cache_uri, f"{self._key(model, [told[i] for i in chosen])}.jsonl.gz")
        said = None if model == "tuned" else read_kept(self.store, uri)
        if said is None or len(said) != len(chosen):
            said = self.ask(model, [samples[i] for i in chosen], [images[i] for i in chosen])
            if model != "tuned":
                lines = b"".join(completion.line() for completion in said)
                self.store.write(uri, gzip.compress(lines, mtime=0))
        by_words = {told[index]: completion for index, completion in zip(chosen, said, strict=True)}
        return [by_words[words] for words in told]

    def _key(self, model: Model, told: Sequence[str]) -> str:
        """sha256 over what the base is told and shown, and how it is asked; no URI and no code version is in it."""
        asked = {**self.asked_of_base, **(self.asked_natively if model == "native" else {})}
        words = json.dumps([asked, list(told)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(words.encode()).hexdigest()


def _told(sample: Sample, image: Image.Image | None) -> str:
    """All of a question that reaches a model, as one line."""
    pixels = image and hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return json.dumps([sample.question, sample.context, sample.choices, pixels], ensure_ascii=False)


def read_replies(store: Store, stage_uri: str, markers: Sequence[ShardMarker]) -> Iterator[Reply]:
    """All replies of a finished evaluation, unit after unit."""
    with TemporaryDirectory(prefix="replies-") as scratch:
        for file in (file for marker in markers for file in marker.files):
            try:
                with gzip.open(fetch_file(store, stage_uri, file, Path(scratch)), "rb") as lines:
                    for line in lines:
                        yield Reply.model_validate_json(line)
            except (ValidationError, EOFError, gzip.BadGzipFile, zlib.error) as error:
                if isinstance(error, ValidationError) and any(f["loc"][-1] == "version" for f in error.errors()):
                    raise InputError(
                        f"{stage_uri} was made by a version of vcot that judged replies by other rules; evaluate that "
                        "model again, and pin the new evaluation where this one was a baseline (--baseline-uri)"
                    ) from None
                raise InputError(f"{join(stage_uri, file.name)}: not a shard of replies: {error}") from None


def read_kept(store: Store, uri: str) -> list[Completion] | None:
    """Completions of the cache; None where there are none, or what is there cannot be read (then it is made again)."""
    try:
        lines = gzip.decompress(store.read(uri)).splitlines()
        return [Completion.model_validate_json(line) for line in lines]
    except NotFound:
        return None
    except (ValidationError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        logging.get().warning("a file of the cache cannot be read; asking again", uri=uri, error=str(error)[:200])
        return None


# --- the models --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """What a train stage says of its model: enough to load it, and the base, and to ask both in the right form."""

    uri: str
    base_uri: str
    base_sha256: str
    contract: Contract
    tune: Literal["full", "lora", "qlora"]
    model: str  # folder of the adapter or model, below the stage's
    files: Mapping[str, str]  # in that folder: name → sha256
    own_form: OwnForm | None = None  # of the base, where it is another than that of the contract

    @classmethod
    def of(cls, uri: str, trained: TrainMetadata, *, base_uri: str | None = None) -> TrainedModel:
        """base_uri: where the base lies now, if not where train found it."""
        return cls(
            uri=uri,
            base_uri=base_uri or trained.base_uri,
            base_sha256=trained.base_sha256,
            contract=trained.contract,
            tune=trained.tune,
            model=trained.model,
            files=trained.files,
        )

    def frame(self, sample: Sample) -> Frame:
        """The frame in which the model writes its boxes about this sample."""
        return sample.frame(self.contract.frame_spec)

    def native_frame(self, sample: Sample) -> Frame:
        """The frame in which the base writes its boxes when it is asked in its own form."""
        return self.frame(sample) if self.own_form is None else sample.frame(self.own_form.spec(self.contract))

    def facts(self) -> dict[str, Any]:
        return {"base": self.base_uri, "base_sha256": self.base_sha256}


@dataclass
class ModelRunner:
    """Loads what is asked for when it is asked for, and generates greedily, in batches of like length.

    No sampling and no repetition penalty: the latter punishes digits that were used before, and so bends
    coordinates. The base speaks before an adapter is attached to it; the other order loads it a second time.
    """

    store: Store
    trained: TrainedModel
    scratch: Path
    config: EvaluationConfig
    _encoder: Encoder | None = None
    _loaded: dict[Model, Any] = field(default_factory=dict)

    def ask(self, model: Model, samples: Sequence[Sample], images: Sequence[Image.Image | None]) -> list[Completion]:
        """One Completion per sample, in order. Their `seconds` stay 0: the same question gives the same record.

        An image is None where the question is asked by text alone.
        """

        def length(index: int) -> int:
            """Near enough to that of the prompt to put like to like."""
            sample, seen = samples[index], images[index]
            visual = 0 if seen is None else seen.width * seen.height // 784
            return len(sample.question) + len(sample.context or "") + visual

        network = self._network(model)
        order = sorted(range(len(samples)), key=lambda i: (length(i), i))
        said: dict[int, Completion] = {}
        for start in range(0, len(order), self.config.per_device_eval_batch_size):
            stop.raise_if_requested()
            chosen = order[start : start + self.config.per_device_eval_batch_size]
            answers = self._generate(network, model, [samples[i] for i in chosen], [images[i] for i in chosen])
            said.update(zip(chosen, answers, strict=True))
        return [said[i] for i in range(len(samples))]

    def _generate(
        self, network: Any, model: Model, samples: Sequence[Sample], images: Sequence[Image.Image | None]
    ) -> list[Completion]:
        from vcot.models.loading import generate

        encoder = self.encoder
        form = self.trained.own_form if model == "native" else None
        batch = encoder.prompts(samples, images, None if form is None else [form.below(s) for s in samples])
        prompt_tokens = batch["attention_mask"].sum(dim=1).tolist()
        ends = set(encoder.eos_token_ids)
        tokens = generate(
            network, batch, max_new_tokens=self.config.max_new_tokens, eos_token_ids=encoder.eos_token_ids,
            pad_token_id=encoder.pad_token_id,
        )  # fmt: skip
        return [
            Completion(
                text=encoder.decode(ids),
                model="tuned" if model == "tuned" else self.trained.base_sha256[:12],
                finish_reason="length" if len(ids) >= self.config.max_new_tokens and not set(ids) & ends else "stop",
                tokens_in=prompt_length,
                tokens_out=len(ids),
            )
            for ids, prompt_length in zip(tokens, prompt_tokens, strict=True)
        ]

    @property
    def quantization(self) -> Literal["none", "nf4"]:
        """Of the base: unless asked otherwise, as it was while training."""
        if self.config.quantization != "as-trained":
            return self.config.quantization
        return "nf4" if self.trained.tune == "qlora" else "none"

    @property
    def asked_of_base(self) -> dict[str, Any]:
        """What shapes the base's replies beside the questions and the images."""
        return {
            "base": self.trained.base_sha256,
            "contract": self.trained.contract.model_dump(mode="json"),
            "quantization": self.quantization,
            "dtype": self.config.dtype,
            "max_new_tokens": self.config.max_new_tokens,
            "per_device_eval_batch_size": self.config.per_device_eval_batch_size,
        }

    @property
    def asked_natively(self) -> dict[str, Any]:
        """What shapes them beside that where the base is asked in its own form: the words, not how they are read."""
        form, usual = self.trained.own_form, self.trained.contract.instruction
        if form is None or form.instruction == form.by_text == usual:
            return {}
        return {"instruction": form.instruction, "by_text": form.by_text}

    @property
    def encoder(self) -> Encoder:
        if self._encoder is None:
            contract = self.trained.contract
            folder = fetch_folder(self.store, self.trained.base_uri, self.scratch / "base", is_processor_file)
            processor = load_processor(folder, min_pixels=contract.min_pixels, max_pixels=contract.max_pixels)
            self._encoder = Encoder(processor, contract)
        return self._encoder

    def _network(self, asked: Model) -> Any:
        from vcot.models.loading import load_adapter, load_base

        model: Model = "base" if asked == "native" else asked
        if model not in self._loaded:
            logging.get().info(f"loading the {model} model", base=self.trained.base_uri, quantization=self.quantization)
            base = self._loaded.pop("base", None)
            self._loaded.clear()  # one model in memory at a time
            if model == "base":
                network = self._base()
            elif self.trained.tune == "full":
                network = load_base(self._fetch_tuned(), quantization=self.quantization, dtype=self.config.dtype)
            else:
                folder = self._fetch_tuned()
                network = load_adapter(self._base() if base is None else base, folder)
            self._loaded[model] = network
        return self._loaded[model]

    def _base(self) -> Any:
        from vcot.models.loading import load_base

        uri = self.trained.base_uri
        folder, found = fetch_with_digest(self.store, uri, self.scratch / "base")
        if found != self.trained.base_sha256:
            raise InputError(
                f"{uri} is not the base that was trained on: its digest is {found[:12]}…, "
                f"it was {self.trained.base_sha256[:12]}…"
            )
        return load_base(folder, quantization=self.quantization, dtype=self.config.dtype)

    def _fetch_tuned(self) -> Path:
        """The trained model's folder with the files that its stage names, and no other."""
        uri, into = join(self.trained.uri, self.trained.model), self.scratch / "tuned"
        for name, sha256 in self.trained.files.items():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.download(join(uri, name), path)
            if (found := self.store.digest(str(path))) != sha256:
                raise InputError(
                    f"{join(uri, name)} is not what train wrote: its digest is {found[:12]}…, it was {sha256[:12]}…"
                )
        return into
