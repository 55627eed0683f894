"""The models that are asked: the tuned one, its base in the same form, and the base in its own.

Asked only in the form that a model is tuned in, which it never saw, the base cannot point, and "before tuning" flatters
whatever comes after. So it is asked in its own form as well (docs/stages.md): the frame, the notation and the words
that its family was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.config import EvaluationConfig, Model
from vcot.evaluation.subjects import Finished
from vcot.grounding import Frame, FrameName, FrameSpec
from vcot.models import families
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


_FRAMES = {family.name: family.frame for family in families.FAMILIES.values()}

#: By the names of `--base-form`. Frames and notations: QwenLM/Qwen3-VL, issues 721, 866, 1161, and its cookbooks;
#: InternVL's documentation of grounding.
FAMILIES: Mapping[str, OwnForm] = MappingProxyType(
    {
        "qwen2-vl": OwnForm(
            "Qwen2-VL", _FRAMES["qwen2-vl"], "qwen-special",
            f"Please provide the bounding box coordinates of what the answer rests on, each after its name. {_ANSWER}",
            _ANSWER,
        ),
        "qwen2.5-vl": OwnForm("Qwen2.5-VL", _FRAMES["qwen2.5-vl"], "qwen-json", _JSON + _ANSWER, _ANSWER),
        "qwen3-vl": OwnForm("Qwen3-VL", _FRAMES["qwen3-vl"], "qwen-json", _JSON + _ANSWER, _ANSWER),
        "internvl": OwnForm(
            "InternVL", _FRAMES["internvl"], "vcot",
            "Please provide the bounding box coordinates of what the answer rests on, each as "
            f"<ref>name</ref><box>[[x1, y1, x2, y2]]</box>. {_ANSWER}",
            _ANSWER,
        ),
    }
)  # fmt: skip


def own_form(store: Store, base_uri: str, named: str, contract: Contract) -> OwnForm | None:
    """The form in which a base is asked beside that of the tuned model; None where that is its own.

    Args:
        named: a key of FAMILIES; `auto`: what the base's folder says of itself (a contract.json, as train writes it
            beside a model), else what its config.json's model_type means; `as-tuned`: None.

    None, too, for a model that was trained without images: there is nothing to point at.
    """
    if named == "as-tuned" or contract.mode == "text":
        return None
    form = FAMILIES.get(named) or _declared(store, base_uri)
    if form is None:
        kind = (_json(store, join(base_uri, "config.json")) or {}).get("model_type")
        known = families.FAMILIES.get(str(kind))
        form = None if known is None else FAMILIES[known.name]
    if form is None:
        logging.get().warning(
            "how this base points by itself is not known, so it is asked in the tuned model's form alone; "
            "--base-form names it", base=base_uri, model_type=kind,
        )  # fmt: skip
        return None
    tuned_in_it = form.frame == contract.frame_spec.name and form.instruction == form.by_text == contract.instruction
    return None if tuned_in_it else form


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


def _json(store: Store, uri: str) -> Any:
    try:
        return json.loads(store.read(uri))
    except NotFound:
        return None
    except ValueError as error:
        raise InputError(f"{uri} is no JSON: {error}") from None


# --- loading and asking ------------------------------------------------------------------------------------


class ModelRunner:
    """Loads what is asked for when it is asked for, and generates greedily, in batches of like length.

    No sampling and no repetition penalty: the latter punishes digits that were used before, and so bends
    coordinates. The base speaks before an adapter is attached to it; the other order loads it a second time.

    Args:
        train: the finished stage that names the tuned model, its base, and the contract between them.
    """

    def __init__(self, store: Store, train: Finished[TrainMetadata], scratch: Path, config: EvaluationConfig) -> None:
        self._store, self._train_uri, self._scratch, self._config = store, train.uri, scratch, config
        self.trained = train.marker.metadata
        self.contract = self.trained.contract
        self.base_uri = config.base_uri or self.trained.base_uri
        self.own_form = own_form(store, self.base_uri, config.base_form, self.contract)
        as_trained: Literal["none", "nf4"] = "nf4" if self.trained.tune == "qlora" else "none"
        self.quantization = as_trained if config.quantization == "as-trained" else config.quantization
        self._loaded: dict[Model, Any] = {}

    def frame(self, model: Model, sample: Sample) -> Frame:
        """The frame in which a model writes its boxes about this sample."""
        own = self.own_form if model == "native" else None
        return sample.frame(self.contract.frame_spec if own is None else own.spec(self.contract))

    def fingerprint(self, model: Model) -> dict[str, Any]:
        """What shapes its replies beside the questions and the images."""
        config, form, usual = self._config, self.own_form, self.contract.instruction
        found = {
            "base": self.trained.base_sha256,
            "contract": self.contract.model_dump(mode="json"),
            "quantization": self.quantization,
            "dtype": config.dtype,
            "max_new_tokens": config.max_new_tokens,
            "per_device_eval_batch_size": config.per_device_eval_batch_size,
        }
        # Of its own form the words that it is told, not how its replies are read.
        if model == "native" and form is not None and not form.instruction == form.by_text == usual:
            found |= {"instruction": form.instruction, "by_text": form.by_text}
        return found

    def ask(self, model: Model, samples: Sequence[Sample], images: Sequence[Sequence[Image.Image]]) -> list[Completion]:
        """One Completion per sample, in order. images: of each sample; none where it is asked by text alone.

        The `seconds` of a Completion stay 0: the same question gives the same record.
        """

        def length(index: int) -> int:
            """Near enough to that of the prompt to put like to like."""
            sample = samples[index]
            visual = sum(seen.width * seen.height // 784 for seen in images[index])
            said = sum(len(turn.said.text) for turn in sample.turns)
            return len(sample.question) + len(sample.context or "") + said + visual

        network, size = self._network(model), self._config.per_device_eval_batch_size
        order = sorted(range(len(samples)), key=length)
        said: dict[int, Completion] = {}
        for start in range(0, len(order), size):
            stop.raise_if_requested()
            batch = order[start : start + size]
            answers = self._generate(network, model, [samples[i] for i in batch], [images[i] for i in batch])
            said.update(zip(batch, answers, strict=True))
        return [said[i] for i in range(len(samples))]

    def _generate(
        self, network: Any, model: Model, samples: Sequence[Sample], images: Sequence[Sequence[Image.Image]]
    ) -> list[Completion]:
        from vcot.models.generation import Decoding, generate

        encoder, longest, ends = self._encoder, self._config.max_new_tokens, self._encoder.eos_token_ids
        form = self.own_form if model == "native" else None
        batch = encoder.prompts(samples, images, None if form is None else [form.below(s) for s in samples])
        prompt_tokens = batch["attention_mask"].sum(dim=1).tolist()
        tokens = [reply.ids for (reply,) in generate(network, batch, Decoding(longest), eos_token_ids=ends)]
        return [
            Completion(
                text=encoder.decode(ids),
                model="tuned" if model == "tuned" else self.trained.base_sha256[:12],
                finish_reason="length" if len(ids) >= longest and not {*ids} & {*ends} else "stop",
                tokens_in=prompt_length,
                tokens_out=len(ids),
            )
            for ids, prompt_length in zip(tokens, prompt_tokens, strict=True)
        ]

    @cached_property
    def _encoder(self) -> Encoder:
        contract = self.contract
        folder = fetch_folder(self._store, self.base_uri, self._scratch / "base", is_processor_file)
        processor = load_processor(folder, min_pixels=contract.min_pixels, max_pixels=contract.max_pixels)
        return Encoder(processor, contract)

    def _network(self, asked: Model) -> Any:
        from vcot.models.loading import load_adapter, load_base

        model: Model = "base" if asked == "native" else asked
        if model not in self._loaded:
            logging.get().info(f"loading the {model} model", base=self.base_uri, quantization=self.quantization)
            # One model in memory at a time; an adapter takes the base that is there.
            base = None if self.trained.tune == "full" else self._loaded.get("base")
            self._loaded.clear()
            if model == "base":
                network = self._base()
            elif self.trained.tune == "full":
                network = load_base(self._fetch_tuned(), quantization=self.quantization, dtype=self._config.dtype)
            else:
                folder = self._fetch_tuned()
                network = load_adapter(self._base() if base is None else base, folder)
            self._loaded[model] = network
        return self._loaded[model]

    def _base(self) -> Any:
        from vcot.models.loading import load_base

        folder, found = fetch_with_digest(self._store, self.base_uri, self._scratch / "base")
        if found != self.trained.base_sha256:
            raise InputError(
                f"{self.base_uri} is not the base that was trained on: its digest is {found[:12]}…, "
                f"it was {self.trained.base_sha256[:12]}…"
            )
        return load_base(folder, quantization=self.quantization, dtype=self._config.dtype)

    def _fetch_tuned(self) -> Path:
        """The trained model's folder with the files that its stage names, and no other."""
        uri, into = join(self._train_uri, self.trained.model), self._scratch / "tuned"
        for name, sha256 in self.trained.files.items():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store.download(join(uri, name), path)
            if (found := self._store.digest(str(path))) != sha256:
                raise InputError(
                    f"{join(uri, name)} is not what train wrote: its digest is {found[:12]}…, it was {sha256[:12]}…"
                )
        return into
