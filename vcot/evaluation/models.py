"""The models that are asked on this machine: the subject; of one that was tuned, also its base, in the tuned one's form
and in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.checkpoint import Checkpoint, read_json_if_present
from vcot.evaluation.config import EvaluationConfig, Model
from vcot.evaluation.subjects import Subject
from vcot.evaluation.ways import FORMS, Form, Prompt, Way
from vcot.grounding import Frame, FrameSpec
from vcot.grounding.tags import answer_line
from vcot.models import families
from vcot.models.decoding import Decoding
from vcot.records import Completion, Contract, Sample
from vcot.records.metadata import Role
from vcot.storage import Store, join
from vcot.tokens import Encoder

VISUAL_TOKEN = 28 * 28
"""Pixels; near enough for every family where only lengths are compared."""


class Models(Protocol):
    """What an evaluation asks, wherever it runs.

    Attributes:
        names: which models there are, in the order in which they are asked.
        by_text: the subject was made without images, and is shown none.
        keeps_replies: it has a cache of its own.
        can_score: it says how likely it finds what it is given to say; else `score` and `token_count` are not called.
        made_with: what a reader must know of them beside the scores.
    """

    names: tuple[Model, ...]
    by_text: bool
    keeps_replies: bool
    can_score: bool

    @property
    def made_with(self) -> dict[str, Any]: ...

    def frame(self, model: Model, sample: Sample) -> Frame:
        """The frame in which a model writes its boxes about this sample."""

    def form(self, model: Model) -> Form: ...

    def fingerprint(self, model: Model) -> dict[str, Any]:
        """What shapes its replies beside what it is told and shown, and how tokens are chosen."""

    def prompt(self, model: Model, way: Way, sample: Sample, images: Sequence[Image.Image]) -> Prompt:
        """images: those that the turns and the question show; none where it is asked by text alone."""

    def batches(self, samples: Sequence[Sample], draws: int = 1) -> list[list[int]]:
        """Which questions are asked together, by their index. draws: replies to each."""

    def prepare(self, prompts: Sequence[Prompt]) -> Any:
        """What `ask` takes; may run in a thread beside an `ask`."""

    def ask(self, model: Model, prepared: Any, decoding: Decoding) -> list[list[Completion]]:
        """Per prompt its replies, in order. Their `seconds` stay 0: the same question gives the same record."""

    def score(
        self, model: Model, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]
    ) -> list[list[list[float]]]:
        """Per prompt, per continuation, the natural log-probability of each of its tokens at temperature 1, the end of
        the reply among them. How the reply begins stands in the prompt's `prefix`."""

    def token_count(self, text: str) -> int:
        """Of a part of a reply, as `score` reads it; without the end of the reply."""


# --- the form of a model that nobody has tuned -------------------------------------------------------------


def native_form(store: Store, uri: str, named: str) -> Form | None:
    """The form in which a model points by itself; None where it is not known.

    Args:
        uri: the model's folder.
        named: a key of FORMS; else what the folder says of itself (a contract.json, as train writes it beside a
            model), or what its config.json's model_type means.
    """
    if (form := FORMS.get(named) or _declared(store, uri)) is not None:
        return form
    kind = (read_json_if_present(store, join(uri, "config.json")) or {}).get("model_type")
    known = families.FAMILIES.get(str(kind))
    return None if known is None else FORMS[known.name]


def forms_of(store: Store, uri: str, named: str, tuned: Contract | None) -> dict[Model, Form]:
    """The models that are asked, in their order, and the form of each; the base's own where it is another than that of
    the tuned model.

    Args:
        uri: the folder of the base, or of a checkpoint. named: as `--native-form`. tuned: what the base was tuned by.

    Raises InputError: how a checkpoint points is not known.
    """
    own = native_form(store, uri, named) if tuned is None or named != "as-tuned" else None
    if tuned is None:
        if own is None:
            known = ", ".join(FORMS)
            raise InputError(
                f"{uri}: its config.json does not tell how this model points; --native-form does ({known})"
            )
        return {"subject": own}
    form = Form.tuned(tuned)
    if tuned.mode == "text" or named == "as-tuned":  # without images there is nothing to point at
        return {"base": form, "subject": form}
    if own is None:
        logging.get().warning(
            "how this base points by itself is not known, so it is asked in the tuned model's form alone; "
            "--native-form names it", base=uri,
        )  # fmt: skip
    if own is None or _asks(own) == _asks(form):
        return {"base": form, "subject": form}
    return {"base": form, "native": own, "subject": form}


def _asks(form: Form) -> tuple[Any, ...]:
    """All of a form by which a prompt differs from one of another."""
    return form.frame, form.instruction, form.by_text, form.roles


def _declared(store: Store, base_uri: str) -> Form | None:
    uri = join(base_uri, "contract.json")
    if (found := read_json_if_present(store, uri)) is None:
        return None
    try:
        contract = found["contract"]
        name, instruction = FrameSpec.from_dict(contract["frame"]).name, contract["instruction"]
        roles = tuple(contract.get("roles", ()))
        return Form("its contract.json", name, "vcot", instruction, instruction, roles)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{uri} does not say how the model writes boxes ({error!r}); name it with --native-form"
        ) from None


def _begun(prompt: Prompt) -> str:
    """How its reply begins. An answer at once, where a rationale would be a turn of its own, follows one without a
    word: as `Encoder.decode` has it, a line break."""
    return f"\n{prompt.prefix}" if prompt.rationale and answer_line(prompt.prefix) == 0 else prompt.prefix


# --- loading and asking ------------------------------------------------------------------------------------


class ModelRunner:
    """Loads what is asked for when it is asked for, and generates in batches of like length.

    No repetition penalty: it punishes digits that were used before, and so bends coordinates. The base speaks before
    an adapter is attached to it; the other order loads it a second time.

    Args:
        subject: a finished stage that names the tuned model, its base, and the contract between them; or a checkpoint.
    """

    keeps_replies = False

    def __init__(self, store: Store, subject: Subject, scratch: Path, config: EvaluationConfig) -> None:
        self._subject, self._config = subject, config
        self.trained = None if subject.train is None else subject.train.marker.metadata
        if self.trained is None:
            self.base_uri, self.base_sha256 = subject.uri, subject.sha256
        else:
            self.base_uri, self.base_sha256 = config.base_uri or self.trained.base_uri, self.trained.base_sha256
        tuned = None if self.trained is None else self.trained.contract
        self._forms = forms_of(store, self.base_uri, config.native_form, tuned)
        self._checkpoint = Checkpoint(
            store, subject.uri, self.trained, self.base_uri, self.base_sha256, scratch, config.quantization,
            config.dtype,
        )  # fmt: skip
        self.contract = self._checkpoint.contract(
            self._forms["subject"].frame, min_pixels=config.subject_min_pixels, max_pixels=config.subject_max_pixels
        )
        self.names: tuple[Model, ...] = tuple(self._forms) if config.ask_base else ("subject",)
        self.by_text = self.contract.mode == "text"
        self.quantization = self._checkpoint.quantization
        self._loaded: dict[Model, Any] = {}
        self.can_score = True

    def form(self, model: Model) -> Form:
        return self._forms[model]

    def frame(self, model: Model, sample: Sample) -> Frame:
        return sample.frame(self._forms[model].spec(self.contract))

    @property
    def made_with(self) -> dict[str, Any]:
        contract, trained = self.contract, self.trained
        native = self._forms.get("native")
        found: dict[str, Any] = {
            "subject": self._subject.uri if trained is None else f"{trained.tune}, {self._subject.uri}",
            "frame_of_boxes": contract.frame,
            "pixels_of_an_image": f"{contract.min_pixels:,} to {contract.max_pixels:,} after resizing",
            "quantization": self.quantization,
        }
        if trained is None:
            return found | {"sha256": self.base_sha256, "form": self._forms["subject"].family}
        own: Any = "that of the tuned model" if native is None else {
            "family": native.family, "frame": native.frame, "dialect": native.dialect,
            "instruction": native.instruction, "by_text": native.by_text,
        }  # fmt: skip
        return {"base": self.base_uri, "base_sha256": self.base_sha256, **found, "own_form_of_the_base": own}

    def fingerprint(self, model: Model) -> dict[str, Any]:
        from vcot.models.device import compute_dtype

        found = {
            "base": self.base_sha256,
            "contract": self.contract.model_dump(mode="json", exclude={"ways", "roles"}),
            "quantization": self.quantization,
            "dtype": str(compute_dtype(self._config.dtype)),
        }
        if roles := self._forms[model].roles:
            found["roles"] = roles
        return found | ({"subject": self._subject.sha256} if model == "subject" else {})

    def prompt(self, model: Model, way: Way, sample: Sample, images: Sequence[Image.Image]) -> Prompt:
        form = self._forms[model]
        frame = form.spec(self.contract)
        rationale = "rationale" in form.roles and way != "direct"
        return Prompt(sample, tuple(images), form.below(sample, way), frame, dialect=form.dialect, rationale=rationale)

    def batches(self, samples: Sequence[Sample], draws: int = 1) -> list[list[int]]:
        """Of like length, as many as fit into --eval-batch-tokens, and no more than --per-device-eval-batch-size."""
        budget, reply = self._config.eval_batch_tokens, self._config.max_new_tokens
        lengths = [self._length(sample) for sample in samples]
        batches: list[list[int]] = []
        for index in sorted(range(len(samples)), key=lambda index: lengths[index]):
            # The longest comes last, and all are padded to it.
            rows = (len(batches[-1]) + 1) * draws if batches else 0
            if rows and rows <= self._config.per_device_eval_batch_size and rows * (lengths[index] + reply) <= budget:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches

    def _length(self, sample: Sample) -> int:
        """Near enough to that of the prompt: three letters or more are a token."""
        most = self.contract.max_pixels
        sides = [(image.kept.width, image.kept.height) for image in sample.images if not self.by_text]
        visual = sum(min(width * height, most) // VISUAL_TOKEN for width, height in sides)
        words = (sample.question, sample.context or "", *(turn.said.text for turn in sample.turns))
        return visual + sum(map(len, words)) // 3

    def prepare(self, prompts: Sequence[Prompt]) -> Any:
        # Prompts of one batch are of one model, so of one form.
        pointing = prompts[0].frame, prompts[0].dialect
        return self._encoder.prompts(
            [prompt.sample for prompt in prompts], [prompt.images for prompt in prompts],
            [prompt.instruction for prompt in prompts], [_begun(prompt) for prompt in prompts],
            pointing, [prompt.rationale for prompt in prompts],
        )  # fmt: skip

    def ask(self, model: Model, prepared: Any, decoding: Decoding) -> list[list[Completion]]:
        from vcot.models.generation import generate

        encoder = self._encoder
        prompt_tokens = prepared["attention_mask"].sum(dim=1).tolist()
        ends, between = encoder.eos_token_ids, encoder.between
        replies = generate(self._network(model), prepared, decoding, eos_token_ids=ends, between=between)
        return [
            [
                Completion(
                    text=encoder.decode(one.ids),
                    model="subject" if model == "subject" else self.base_sha256[:12],
                    finish_reason="stop" if one.ended else "length",
                    tokens_in=prompt_length,
                    tokens_out=len(one.ids),
                    # Of greedy replies nothing is made of them, and their last decimals are the machine's.
                    logprobs=one.logprobs if decoding.temperature else None,
                )
                for one in draws
            ]
            for draws, prompt_length in zip(replies, prompt_tokens, strict=True)
        ]

    def score(
        self, model: Model, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]
    ) -> list[list[list[float]]]:
        from vcot.models.generation import score_continuations

        found: list[list[list[float]]] = []
        for some in self._together(prompts, continuations):
            said = partial(self._encoder.said, ended=True, rationale=False)
            ids = [[said(text) for text in several] for several in continuations[some]]
            # Rationales of one question follow each other; the question and its images are computed once.
            questions, begun = list[Prompt](), list[tuple[int, list[int]]]()
            for prompt in prompts[some]:
                if not questions or questions[-1].sample is not prompt.sample:
                    questions.append(prompt)
                prefix = self._encoder.said(_begun(prompt), rationale=prompt.rationale)
                begun.append((len(questions) - 1, prefix))
            batch = self.prepare([replace(prompt, prefix="") for prompt in questions])
            found += score_continuations(self._network(model), batch, ids, begun)
        return found

    def token_count(self, text: str) -> int:
        return len(self._encoder.said(text))

    def _together(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[slice]:
        """Which prompts are computed at once: one after another, while the rows of their continuations fit into what
        `batches` keeps to. One prompt's are never parted."""
        config, parts, rows, longest = self._config, list[slice](), 0, 0
        for place, (prompt, several) in enumerate(zip(prompts, continuations, strict=True)):
            length = self._length(prompt.sample) + len(prompt.prefix) // 3 + max(map(len, several), default=0)
            rows, longest = rows + len(several), max(longest, length)
            if parts and rows <= config.per_device_eval_batch_size and rows * longest <= config.eval_batch_tokens:
                parts[-1] = slice(parts[-1].start, place + 1)
            else:
                parts.append(slice(place, place + 1))
                rows, longest = len(several), length
        return parts

    @cached_property
    def _encoder(self) -> Encoder:
        # A base's own form may have a turn that the tuned model's has not; each prompt says which it has.
        roles: tuple[Role, ...] = ("rationale",) if any(form.roles for form in self._forms.values()) else ()
        return self._checkpoint.encoder(self.contract, roles)

    def _network(self, asked: Model) -> Any:
        model: Model = "base" if asked == "native" or self.trained is None else asked
        if model not in self._loaded:
            logging.get().info(f"loading the {asked} model", base=self.base_uri, quantization=self.quantization)
            # One model in memory at a time; an adapter takes the base that is there.
            base = None if self.trained and self.trained.tune == "full" else self._loaded.get("base")
            self._loaded.clear()
            loaded = self._checkpoint.load_base() if model == "base" else self._checkpoint.load_tuned(base)
            self._loaded[model] = loaded
        return self._loaded[model]
