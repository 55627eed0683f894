"""How a model is made to write the reasoning for a row: what a strategy is given, what it answers, and which there are.

A strategy is a file of vcot/distill/strategies with one class, which makes Requests and reads replies. It opens no
connection and no file, and holds nothing of a row after its outcome. The same row and the same replies give the same
outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, ClassVar

from vcot.distill import prompts, strategies
from vcot.distill.dialogue import Dialogue, PromptConfig, Refused
from vcot.distill.funnel import reached
from vcot.distill.request import Asker, Prompt, Request
from vcot.distill.row import DistilledReasoning, Outcome, refuse
from vcot.distill.verification import AreaLimits, Detector, Verification
from vcot.grounding import FrameSpec, Trace
from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage import Store
from vcot.storage.images import ImageError


class Strategy(ABC):
    """Args: how the model is asked, and which checks what it says must stand."""

    purposes: ClassVar[tuple[str, ...]]
    """What it asks for, in order; each has a prompt of that name."""

    def __init__(self, config: PromptConfig, verification: Verification) -> None:
        self.name = config.model  # what `origin.teacher` says
        self._config, self._verification = config, verification
        self._counts: Counter[str] = Counter()

    @classmethod
    @abstractmethod
    def of(cls, config: PromptConfig, verification: Verification, settings: Any) -> Strategy:
        """As the settings of distill say."""

    @abstractmethod
    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        """Teaches a row; None if this strategy leaves rows of its kind alone. Errors of the asker that are no fault of
        the row pass through."""

    @abstractmethod
    def estimate(self, sample: Sample) -> Sequence[Request]:
        """What a row will ask if each reply is good at once, in order, before anything is paid. Nothing for a row that
        is left alone, or refused at once.

        The first request is the very one that `outcome` will make. Where later ones hold words of earlier replies,
        something as long stands in their place.
        """

    def counts(self) -> Mapping[str, int]:
        """What it counted since the start, for the report."""
        return self._counts

    async def alternatives(
        self, sample: Sample, asker: Asker, write: Callable[[Dialogue, int], Awaitable[Trace]], count: int
    ) -> DistilledReasoning | Rejection:
        """Several traces for one row: those that stand are its reasoning, those that fall are parts that were refused.

        Args:
            write: makes one trace; its number counts alternatives from 0. Raises Refused.
        """
        traces: list[Trace] = []
        models: dict[str, None] = {}
        parts: list[Rejection] = []
        fallen: list[Rejection] = []
        for number, again in ((n, again) for again in range(1 + self._config.ask_again) for n in range(count)):
            # Nothing is asked again of a row that is not refused, or at which the endpoint failed: it said nothing.
            if number == 0 and (traces or any(one.reason is Reason.TEACHER_FAILED for one in fallen)):
                break
            dialogue = Dialogue(asker, sample, self._config, self._counts, again=again)
            try:
                traces.append(await write(dialogue, number))
                parts += dialogue.parts
                models |= dict.fromkeys(dialogue.models)
            except Refused as refused:
                fallen.append(dialogue.refusal(refused, f"alternative {number + 1}"))
            except ImageError as error:
                return refuse(sample, IMAGE_REASONS[error.reason], str(error))
        if not traces:
            return whole_row(fallen)
        flags = self._verification.flags(traces, sample)
        return DistilledReasoning(
            tuple(dict.fromkeys(traces)), models=tuple(models), flags=flags, parts=(*parts, *fallen)
        )


def whole_row(fallen: Sequence[Rejection]) -> Rejection:
    """The row's rejection: the reason of the part that came furthest, and all that was said."""
    best = max(fallen, key=lambda one: reached(one.reason))
    return best.model_copy(update={"part": "", "said": tuple(chain.from_iterable(one.said for one in fallen))})


def strategy(name: str) -> type[Strategy]:
    """The strategy of this name, whose file defines one class of them."""
    module = import_module(f"{strategies.__name__}.{name.replace('-', '_')}")
    return next(
        one for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Strategy) and one.__module__ == module.__name__
    )  # fmt: skip


def prompts_of(name: str, choices: Sequence[str] = ()) -> list[Prompt]:
    """The prompts that go with a strategy, in the order in which it asks. Raises as `prompts.chosen` does."""
    chosen = prompts.chosen(choices)
    return [chosen[purpose] for purpose in strategy(name).purposes]


def make(name: str, settings: Any, store: Store, detector: Detector | None = None) -> Strategy:
    """The strategy of this name as the settings of distill say."""
    config = PromptConfig(
        model=settings.model, prompts=prompts.chosen(settings.prompts, store), judge=settings.judge_model,
        temperature=settings.temperature, reply_tokens=settings.reply_tokens, image_side=settings.image_side,
        repairs=settings.repairs, ask_again=settings.ask_again, structured=settings.structured,
        frame=FrameSpec(settings.frame, settings.min_pixels, settings.max_pixels),
    )  # fmt: skip
    verification = Verification(
        areas=AreaLimits(_shares(settings.min_proposed_area), _shares(settings.max_proposed_area)),
        self_consistency=settings.self_consistency, crop_check=settings.crop_check,
        negative_crop_share=settings.negative_crop_share,
        seed=settings.seed, answer_from_evidence=settings.answer_from_evidence, answer_first=settings.answer_first,
        wrong_answers=settings.wrong_answers, bad_objects=settings.bad_objects, detector=detector,
    )  # fmt: skip
    return strategy(name).of(config, verification, settings)


def _shares(entries: Sequence[str]) -> dict[str, float]:
    """0.9,vsr=1 → {"": 0.9, "vsr": 1.0}"""
    pairs = (entry.rpartition("=") for entry in entries)
    return {name.strip(): float(share) for name, _, share in pairs}
