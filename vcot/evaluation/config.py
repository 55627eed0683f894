"""How an evaluation asks, and which gates it has."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import BaseModel, field_validator, model_validator

from vcot.answers import Synonyms
from vcot.evaluation.voting import MEASURES, USUAL
from vcot.grounding import FrameName
from vcot.grounding.ways import LearnedWay
from vcot.settings import DEVICE, CommaSeparated, Device, nearest, setting

Condition = Literal["real", "blank", "shuffled"]
CONDITIONS: tuple[Condition, ...] = ("real", "blank", "shuffled")
Model = Literal["base", "native", "subject"]
"""`native`: the base of a subject that was tuned, asked in its own form (vcot.evaluation.ways)."""
Probe = Literal[
    "unchanged", "boxes-moved", "boxes-swapped", "label-changed", "cut-to-half", "cut-to-nothing", "another-rows",
    "region-hidden", "rest-hidden", "elsewhere-hidden", "step-moved", "step-unmoved",
]  # fmt: skip
PROBES: tuple[Probe, ...] = get_args(Probe)
"""What is changed of a reply that the model is to go on from (vcot.evaluation.probe)."""
Way = Literal[LearnedWay, "look-again"]
WAYS: tuple[Way, ...] = get_args(Way)
"""Ways to ask (vcot.evaluation.ways)."""
BOXED: tuple[Way, ...] = ("ground", "look-again")
"""Those that ask for boxes."""


class EvaluationConfig(BaseModel):
    """Knobs of evaluate; the entry point adds what is evaluated and where things lie."""

    base_uri: str | None = setting(
        None, "where the base model lies, if no longer where train found it; must be the same to the byte",
        shapes_result=False, existing_folder=True,
    )  # fmt: skip
    native_form: Literal["auto", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "as-tuned"] = setting(
        "auto", "how a base, a checkpoint or an endpoint's model points by itself: its family's frame, notation and "
        "prompt; auto: by its contract.json or config.json; as-tuned: ask a base only in the tuned model's form, which "
        "it never learned"
    )  # fmt: skip
    ask_base: bool = setting(
        True, "of a model that was tuned, ask its base as well; without it nothing stands for what was before tuning"
    )
    ask: CommaSeparated = setting(
        (), "ways to ask, the first for all that is reported of one: direct, reason, ground, look-again; separated by "
        "commas; default: those that the subject has learned (tokenize --learn), ground where that is not known"
    )  # fmt: skip
    suite: CommaSeparated = setting(
        (), "named benchmarks whose samples alone are asked about, by their own measures: viscot, refcoco, aokvqa, "
        "scienceqa, pope, grounded-reasoning; separated by commas; default: all samples, without a benchmark",
    )  # fmt: skip
    judge: str | None = setting(
        None, "with the suite viscot: a model that scores each answer 0..1 beside the rule, as "
        "https://host:8000/v1#served-name; its verdicts are kept beside replies"
    )  # fmt: skip
    split: Literal["auto", "test", "validation", "train"] = setting(
        "auto", "the samples to ask about; auto: test where there is one, else validation"
    )
    max_samples: int | None = setting(None, "at most so many samples, drawn at random", unit="samples", ge=1)
    conditions: CommaSeparated = setting(
        ("real", "blank", "shuffled"), "images to show: real (always), blank, shuffled; separated by commas"
    )
    synonyms: CommaSeparated = setting(
        (), "labels that mean one thing, as wbc=white blood cell,cup=mug=beaker; without them labels are the same but "
        "for case, article, hyphens and plural",
    )  # fmt: skip
    probe: bool = setting(
        False, "give the subject its own reasoning back with boxes, words or the image changed, and count how often "
        "its answer changes: does it use the boxes that it writes? Asked in the first way, ground or reason"
    )  # fmt: skip
    samples: int = setting(
        1, "replies to each question that are drawn at random, beside the greedy one; 1: none", unit="replies", ge=1
    )
    temperature: float = setting(0.7, "of replies that are drawn", unit="0..2", gt=0, le=2)
    vote: CommaSeparated = setting(
        USUAL, "how one answer is chosen among several replies: greedy, majority, cisc, best_of_n (or best), marginal, "
        "lacot, oracle; separated by commas; without marginal and lacot no answers are scored, which takes time; "
        "default: all but lacot"
    )  # fmt: skip
    max_new_tokens: int = setting(256, "longest reply; a longer one is judged as far as it goes", unit="tokens", ge=1)
    per_device_eval_batch_size: int = setting(
        128, "questions asked at once, at most; more is faster until memory is full", unit="questions", ge=1
    )
    eval_batch_tokens: int = setting(
        65536, "prompts and longest replies of the questions asked at once, together at most", unit="tokens", ge=1
    )
    subject_min_pixels: int | None = setting(
        None, "area of an image as a checkpoint or an endpoint's model sees it, at least; a run of ours brings its "
        "own; default of a checkpoint: 3136, 4 visual tokens of 28x28", unit="pixels", gt=0,
    )  # fmt: skip
    subject_max_pixels: int | None = setting(
        None, "the same, at most; default of a checkpoint: 1003520, 1280 visual tokens", unit="pixels", gt=0
    )
    subject_frame: FrameName | None = setting(
        None, "numbers in which an endpoint's model writes boxes, where --native-form does not name its family"
    )
    subject_dialect: str | None = setting(None, "notation of its boxes: vcot, qwen-special, qwen-json, …")
    subject_instruction: str | None = setting(
        None,
        "line below a question that asks an endpoint's model to reason with boxes; default: its form's; empty: none",
    )
    subject_concurrency: int = setting(
        16, "requests to an endpoint under way at once, at most", unit="requests", ge=1, shapes_result=False
    )
    subject_timeout: float = setting(
        300.0, "until an endpoint has answered a request", unit="seconds", gt=0, shapes_result=False
    )
    rows_per_shard: int = setting(
        128, "questions after which replies are saved; a killed evaluation loses no more", unit="questions", ge=1
    )
    quantization: Literal["as-trained", "none", "nf4"] = setting(
        "as-trained", "weights of the base in 4 bits (nf4) or as they are; as-trained: nf4 after qlora"
    )
    device: Device = setting("auto", DEVICE, shapes_result=False)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "numbers to compute with; auto: bfloat16 where the device has it, else float32"
    )
    seed: int = setting(0, "which images are exchanged, which samples a limit draws, the bootstrap", ge=0)
    overlays: int = setting(
        60, "rows on a page with their images: all, or as many of each cause of failure; of a comparison, of "
        "each kind of change", unit="rows", ge=0,
        shapes_result=False,
    )  # fmt: skip
    max_rejected_share: float = setting(
        0.05, "the stage fails when more of its questions cannot be asked (images missing)", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    max_unusable_share: float = setting(
        0.2, "gate: share of the replies to the real images, in the first way of asking, that may be empty, cut off "
        "before an answer, refused, unreadable or missing; above it the figures say little about the model. Raise it "
        "to measure a model that often gives no answer", unit="0..1", ge=0, le=1, shapes_result=False,
    )  # fmt: skip
    require_not_worse_than_base: bool = setting(
        False, "gate: neither acc@0.5 nor answers clearly below the base's, asked in the form in which it does better "
        "(95 % interval)",
        shapes_result=False,
    )  # fmt: skip
    min_accuracy_at_50: float | None = setting(
        None, "gate: share of true boxes found at IoU 0.5, at least", unit="0..1", ge=0, le=1, shapes_result=False
    )
    min_answer_accuracy: float | None = setting(
        None, "gate: share of right answers, at least", unit="0..1", ge=0, le=1, shapes_result=False
    )
    max_blank_accuracy: float | None = setting(
        None, "gate: share of true boxes found on blank images, at most", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip

    promote: bool = setting(
        False, "promote the model. Gates: not worse than the base, and clearly better on the real images than on "
        "blank and wrong ones", shapes_result=False,
    )  # fmt: skip

    @property
    def draws(self) -> int:
        """Replies to each question beside the greedy one."""
        return self.samples if self.samples > 1 else 0

    @field_validator("conditions")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in CONDITIONS]:
            raise ValueError(f"no such condition: {', '.join(unknown)}; there are {', '.join(CONDITIONS)}")
        if "real" not in value:
            raise ValueError("real must be among them: everything else is compared with it")
        return tuple(name for name in CONDITIONS if name in value)

    @field_validator("ask")
    @classmethod
    def _known_ways(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in WAYS]:
            raise ValueError(f"no such way to ask: {', '.join(unknown)}; there are {', '.join(WAYS)}")
        return tuple(dict.fromkeys(value))

    @field_validator("vote")
    @classmethod
    def _known_measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        named = ["best_of_n" if name == "best" else name for name in value]
        if unknown := next((name for name in named if name not in MEASURES), None):
            there = ", ".join(MEASURES)
            raise ValueError(f"no such way to choose: {unknown}{nearest(unknown, MEASURES) or '.'} There are {there}")
        if not named:
            raise ValueError(f"at least one way to choose is needed; there are {', '.join(MEASURES)}")
        return tuple(name for name in MEASURES if name in named)

    @field_validator("suite")
    @classmethod
    def _known_suites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Suites measure, and measuring loads more than settings should; most evaluations name none.
        from vcot.evaluation.suites import suites_named

        return tuple(suite.name for suite in suites_named(value))

    @model_validator(mode="after")
    def _there_is_something_to_probe(self) -> Self:
        if self.probe and self.ask and self.ask[0] not in ("ground", "reason"):
            raise ValueError(
                f"--probe: replies by way of {self.ask[0]} hold no reasoning; --ask ground or reason first"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_choose_from(self) -> Self:
        if self.vote != USUAL and self.samples == 1:
            raise ValueError(
                f"--vote {','.join(self.vote)}: of one reply there is nothing to choose; --samples 8 as well"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_judge(self) -> Self:
        if self.judge is not None and "viscot" not in self.suite:
            raise ValueError(f"--judge {self.judge}: it scores answers of --suite viscot; add that, or leave it out")
        return self

    @field_validator("synonyms")
    @classmethod
    def _declared(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Synonyms.of(value)
        return value
