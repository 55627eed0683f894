"""The models that are asked: the tuned one, its base in the same form, and the base in its own.

Asked only in the form that a model is tuned in, which it never saw, the base cannot point, and "before tuning" flatters
whatever comes after. So it is asked in its own form as well (docs/stages.md): the frame, the notation and the words
that its family was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.config import EvaluationConfig
from vcot.evaluation.runner import Model
from vcot.grounding import Frame, FrameName, FrameSpec
from vcot.records import Completion, Contract, Sample
from vcot.records.metadata import TrainMetadata
from vcot.stage import stop
from vcot.storage import NotFound, Store, join
from vcot.storage.folders import fetch_folder, fetch_with_digest
from vcot.tokens import Encoder, is_processor_file, load_processor

# --- the base's own form -----------------------------------------------------------------------------------

_ANSWER = 'Then write the answer, as short as you can, on a last line that begins with "Answer:".'
_JSON = (
    "Locate what the answer rests on and output its bbox coordinates in JSON format, "
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]; if it is not in the image, output []. '
)


@dataclass(frozen=True)
class OwnForm:
    """`instruction` stands below a question about an image, `by_text` below one without; None: nothing does.

    `dialect` (one of vcot.grounding.DIALECTS) is what the model is expected to write; to read it needs no telling.
    """

    family: str
    frame: FrameName
    dialect: str
    instruction: str | None
    by_text: str | None

    def below(self, sample: Sample) -> str | None:
        return self.by_text if sample.image is None else self.instruction

    def spec(self, contract: Contract) -> FrameSpec:
        """The frame, with the limits of the pixels that the base is shown."""
        return FrameSpec(self.frame, contract.min_pixels, contract.max_pixels, contract.factor)


#: By the names of `--base-form`. Frames and notations: QwenLM/Qwen3-VL, issues 721, 866, 1161, and its cookbooks.
FAMILIES: Mapping[str, OwnForm] = MappingProxyType(
    {
        "qwen2-vl": OwnForm(
            "Qwen2-VL", "thousandths", "qwen-special",
            f"Please provide the bounding box coordinates of what the answer rests on, each after its name. {_ANSWER}",
            _ANSWER,
        ),
        "qwen2.5-vl": OwnForm("Qwen2.5-VL", "resized_pixels", "qwen-json", _JSON + _ANSWER, _ANSWER),
        "qwen3-vl": OwnForm("Qwen3-VL", "thousandths", "qwen-json", _JSON + _ANSWER, _ANSWER),
    }
)  # fmt: skip
_MODEL_TYPES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}


def own_form(store: Store, base_uri: str, named: str, contract: Contract) -> OwnForm | None:
    """The form in which a base is asked beside that of the tuned model; None where that is its own.

    Args:
        named: a key of FAMILIES; `auto`: what the base's folder says of itself (a contract.json, as train writes it
            beside a model), else what its config.json's model_type means; `as-tuned`: None.

    None, too, for a model that was trained without images: there is nothing to point at.
    """
    if named == "as-tuned" or contract.mode == "text":
        return None
    form = FAMILIES.get(named) or _declared(store, base_uri) or _of_family(store, base_uri)
    if form is None or (
        form.frame == contract.frame_spec.name and form.instruction == form.by_text == contract.instruction
    ):
        return None
    return form


def _declared(store: Store, base_uri: str) -> OwnForm | None:
    uri = join(base_uri, "contract.json")
    if (found := _json(store, uri)) is None:
        return None
    try:
        contract = found["contract"]
        name, instruction = FrameSpec.from_dict(contract["frame"]).name, contract["instruction"]
        return OwnForm("its contract.json", name, "vcot", instruction, instruction)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{uri} does not say how the base writes boxes ({error!r}); name it with --base-form"
        ) from None


def _of_family(store: Store, base_uri: str) -> OwnForm | None:
    kind = (_json(store, join(base_uri, "config.json")) or {}).get("model_type")
    if kind in _MODEL_TYPES:
        return FAMILIES[_MODEL_TYPES[kind]]
    logging.get().warning(
        "how this base points by itself is not known, so it is asked in the tuned model's form alone; "
        "--base-form names it", base=base_uri, model_type=kind,
    )  # fmt: skip
    return None


def _json(store: Store, uri: str) -> Any:
    try:
        return json.loads(store.read(uri))
    except NotFound:
        return None
    except ValueError as error:
        raise InputError(f"{uri} is no JSON: {error}") from None


# --- loading and asking ------------------------------------------------------------------------------------


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
    def of(cls, store: Store, uri: str, trained: TrainMetadata, config: EvaluationConfig) -> TrainedModel:
        base_uri = config.base_uri or trained.base_uri
        return cls(
            uri, base_uri, trained.base_sha256, trained.contract, trained.tune, trained.model, trained.files,
            own_form(store, base_uri, config.base_form, trained.contract),
        )  # fmt: skip

    def frame(self, sample: Sample) -> Frame:
        """The frame in which the model writes its boxes about this sample."""
        return sample.frame(self.contract.frame_spec)

    def native_frame(self, sample: Sample) -> Frame:
        """The frame in which the base writes its boxes when it is asked in its own form."""
        return self.frame(sample) if self.own_form is None else sample.frame(self.own_form.spec(self.contract))


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

        network, size = self._network(model), self.config.per_device_eval_batch_size
        order = sorted(range(len(samples)), key=length)
        said: dict[int, Completion] = {}
        for start in range(0, len(order), size):
            stop.raise_if_requested()
            batch = order[start : start + size]
            answers = self._generate(network, model, [samples[i] for i in batch], [images[i] for i in batch])
            said.update(zip(batch, answers, strict=True))
        return [said[i] for i in range(len(samples))]

    def _generate(
        self, network: Any, model: Model, samples: Sequence[Sample], images: Sequence[Image.Image | None]
    ) -> list[Completion]:
        from vcot.models import generate

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
        from vcot.models import load_adapter, load_base

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
        from vcot.models import load_base

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
