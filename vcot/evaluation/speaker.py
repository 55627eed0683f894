"""The two models that are compared: a base, and the same weights with what training made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vcot import log
from vcot.errors import InputError
from vcot.evaluation.own_form import OwnForm
from vcot.evaluation.replies import Model
from vcot.grounding import Frame
from vcot.records import Completion, Sample, StageMark
from vcot.stage import stop
from vcot.storage import Store, join
from vcot.storage.folders import fetch_folder, fetch_with_digest
from vcot.tokens import Contract, Encoder, is_processor_file, load_processor


@dataclass(frozen=True)
class Trained:
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
    def of(cls, uri: str, mark: StageMark, *, base_uri: str | None = None) -> Trained:
        """Args:
            base_uri: where the base lies now, if not where train found it.

        Raises:
            InputError: the mark lacks something.
        """
        facts = mark.facts
        missing = [name for name in ("contract", "base_uri", "base_sha256", "model", "files") if name not in facts]
        if missing:
            raise InputError(f"{uri}: its mark does not say {', '.join(missing)}; run train again with this version")
        return cls(
            uri=uri,
            base_uri=base_uri or facts["base_uri"],
            base_sha256=facts["base_sha256"],
            contract=Contract.model_validate(facts["contract"]),
            tune=facts.get("tune") or mark.settings["tune"],
            model=facts["model"],
            files=facts["files"],
        )

    @property
    def quantisation(self) -> Literal["none", "nf4"]:
        """The base as it was while training."""
        return "nf4" if self.tune == "qlora" else "none"

    def conditions(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those that mean something: a model that was trained without pictures is not shown any."""
        return tuple(wanted) if self.contract.mode == "multimodal" else ("real",)

    def frame(self, sample: Sample) -> Frame:
        """The frame in which the model writes its boxes about this sample."""
        return sample.frame(self.contract.frame_spec)

    def native_frame(self, sample: Sample) -> Frame:
        """The frame in which the base writes its boxes when it is asked in its own form."""
        return self.frame(sample) if self.own_form is None else sample.frame(self.own_form.spec(self.contract))

    def facts(self) -> dict[str, Any]:
        return {"base": self.base_uri, "base_sha256": self.base_sha256}


@dataclass
class Speaker:
    """Loads what is asked for when it is asked for, and generates greedily, in batches of like length.

    No sampling and no repetition penalty: the latter punishes digits that were used before, and so bends
    coordinates. The base speaks before an adapter is attached to it; the other order loads it a second time.
    """

    store: Store
    trained: Trained
    scratch: Path
    quantisation: Literal["none", "nf4"]
    dtype: Literal["auto", "bfloat16", "float32"]
    max_new_tokens: int
    batch_size: int
    _encoder: Encoder | None = None
    _loaded: dict[Model, Any] = field(default_factory=dict)

    def ask(self, model: Model, samples: Sequence[Sample], pictures: Sequence[Image.Image | None]) -> list[Completion]:
        """One Completion per sample, in order. Their `seconds` stay 0: the same question gives the same record.

        A picture is None where the question is asked by text alone.
        """
        network = self._network(model)
        order = sorted(range(len(samples)), key=lambda i: (_length(samples[i], pictures[i]), i))
        said: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            stop.raise_if_requested()
            chosen = order[start : start + self.batch_size]
            answers = self._generate(network, model, [samples[i] for i in chosen], [pictures[i] for i in chosen])
            said.update(zip(chosen, answers, strict=True))
        return [said[i] for i in range(len(samples))]

    def _generate(
        self, network: Any, model: Model, samples: Sequence[Sample], pictures: Sequence[Image.Image | None]
    ) -> list[Completion]:
        from vcot.models import generate

        encoder = self.encoder
        form = self.trained.own_form if model == "native" else None
        batch = encoder.prompts(samples, pictures, None if form is None else [form.below(s) for s in samples])
        prompt_tokens = batch["attention_mask"].sum(dim=1).tolist()
        ends = set(encoder.eos_token_ids)
        tokens = generate(
            network,
            batch,
            max_new_tokens=self.max_new_tokens,
            eos_token_ids=encoder.eos_token_ids,
            pad_token_id=encoder.pad_token_id,
        )
        return [
            Completion(
                text=encoder.decode(ids),
                model="tuned" if model == "tuned" else self.trained.base_sha256[:12],
                finish_reason="length" if len(ids) >= self.max_new_tokens and not set(ids) & ends else "stop",
                tokens_in=prompt_length,
                tokens_out=len(ids),
            )
            for ids, prompt_length in zip(tokens, prompt_tokens, strict=True)
        ]

    @property
    def asked_of_base(self) -> dict[str, Any]:
        """What shapes the base's replies beside the questions and the pictures."""
        return {
            "base": self.trained.base_sha256,
            "contract": self.trained.contract.model_dump(mode="json"),
            "quantisation": self.quantisation,
            "dtype": self.dtype,
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
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
        model: Model = "base" if asked == "native" else asked
        if model not in self._loaded:
            log.get().info(f"loading the {model} model", base=self.trained.base_uri, quantisation=self.quantisation)
            base = self._loaded.pop("base", None)
            self._loaded.clear()  # one model in memory at a time
            self._loaded[model] = self._base() if model == "base" else self._tuned(base)
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
        return load_base(folder, quantisation=self.quantisation, dtype=self.dtype)

    def _tuned(self, base: Any) -> Any:
        from vcot.models import load_adapter, load_base

        folder = self._fetch_tuned()
        if self.trained.tune == "full":
            return load_base(folder, quantisation=self.quantisation, dtype=self.dtype)
        return load_adapter(self._base() if base is None else base, folder)

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


def _length(sample: Sample, picture: Image.Image | None) -> int:
    """Near enough to the length of the prompt to put like to like."""
    visual = 0 if picture is None else picture.width * picture.height // 784
    return len(sample.question) + len(sample.context or "") + visual
