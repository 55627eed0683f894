"""How a model is made to write the reasoning for a row: what a strategy is given, what it answers, and which there are.

A strategy is a file of this folder: a class, registered with `@strategy`, which makes Requests and reads replies; its
options; and a prompt for each of its purposes in vcot/distill/prompts. It opens no connection and no file, and holds
nothing of a row after its outcome. The same row and the same replies give the same outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pkgutil import iter_modules
from typing import Any, ClassVar, TypeVar

from vcot.distill import DistilledReasoning, Outcome, Refused, lacks_places, refuse
from vcot.distill.dialogue import Dialogue, PromptConfig
from vcot.distill.request import Client, Prompt, Request, choose_prompts
from vcot.distill.runner import reached
from vcot.distill.verification import Detector, Verification
from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.settings import Options, setting
from vcot.storage import Store
from vcot.storage.images import ImageError


class ProposalOptions(Options):
    """Of strategies in which the teacher may point at what nobody annotated."""

    objects: int = setting(
        8, "openai: objects that may be proposed in one piece of reasoning, each of which costs a crop check or more; "
        "with more, answer-aware asks once more and then refuses the row, rationalise leaves out places, two-level "
        "(for an image) takes the surest", unit="objects", ge=1, le=64,
    )  # fmt: skip


class ProposeOptions(ProposalOptions):
    """Of those to which it can be forbidden."""

    propose: bool = setting(True, "openai: it may point at what nobody annotated; what it proposes is checked")


class Strategy(ABC):
    """Args: its options, how the model is asked, and which checks what it says must stand."""

    purposes: ClassVar[tuple[str, ...]]
    """What it asks for, in order; each has a prompt of that name."""

    def __init__(self, options: Any, config: PromptConfig, verification: Verification) -> None:
        self.name = config.model  # what `origin.teacher` says
        self.options, self.config, self.verification = options, config, verification
        self.counted: Counter[str] = Counter()  # since the start, for the report

    async def outcome(self, sample: Sample, client: Client) -> Outcome:
        """Teaches a row; None where it has reasoning that points at something. Errors of the client that are no fault
        of the row pass through."""
        if not lacks_places(sample):
            return None
        if hindrance := self.hindrance(sample):
            return refuse(sample, Reason.NO_REASONING, hindrance)
        return await self.teach(sample, client)

    def estimate(self, sample: Sample) -> Sequence[Request]:
        """What a row will ask if each reply is good at once, in order, before anything is paid."""
        return self.requests(sample) if lacks_places(sample) and not self.hindrance(sample) else ()

    def hindrance(self, sample: Sample) -> str:
        """Why nobody can be asked about a row; "" where somebody can."""
        return ""

    @abstractmethod
    async def teach(self, sample: Sample, client: Client) -> DistilledReasoning | Rejection:
        """Of a row that lacks places, and that nothing hinders."""

    @abstractmethod
    def requests(self, sample: Sample) -> Sequence[Request]:
        """The estimate of such a row. The first is the very one that `teach` will make. Where later ones hold words of
        earlier replies, something as long stands in their place."""

    async def alternatives(
        self, sample: Sample, client: Client, write: Callable[[Dialogue, int], Awaitable[Trace]], count: int
    ) -> DistilledReasoning | Rejection:
        """Several traces for one row: those that stand are its reasoning, those that fall are parts that were refused.
        `write` makes one of a number from 0, or raises Refused."""
        traces: list[Trace] = []
        models: dict[str, None] = {}
        parts: list[Rejection] = []
        fallen: list[Rejection] = []
        for number, again in ((n, again) for again in range(1 + self.config.options.ask_again) for n in range(count)):
            # Nothing is asked again of a row that is not refused, or at which the endpoint failed: it said nothing.
            if number == 0 and (traces or any(one.reason is Reason.TEACHER_FAILED for one in fallen)):
                break
            dialogue = Dialogue(client, sample, self.config, self.counted, again=again)
            try:
                traces.append(await write(dialogue, number))
                parts += dialogue.parts
                models |= dict.fromkeys(dialogue.models)
            except Refused as refused:
                fallen.append(dialogue.rejection(refused, f"alternative {number + 1}"))
            except ImageError as error:
                return refuse(sample, IMAGE_REASONS[error.reason], str(error))
        if not traces:
            return whole_row(fallen)
        unique, flags = tuple(dict.fromkeys(traces)), self.verification.flags(traces, sample)
        return DistilledReasoning(unique, models=tuple(models), flags=flags, parts=(*parts, *fallen))


def whole_row(fallen: Sequence[Rejection]) -> Rejection:
    """The row's rejection: the reason of the part that came furthest, and all that was said."""
    best = max(fallen, key=lambda one: reached(one.reason))
    return best.model_copy(update={"part": "", "said": tuple(chain.from_iterable(one.said for one in fallen))})


@dataclass(frozen=True)
class Registered:
    """A strategy that users choose. `about`: for --help; `options`: that it alone looks at, or shares with others."""

    name: str
    about: str
    kind: type[Strategy]
    options: type[Options]
    example: str = ""

    def prompts(self, choices: Sequence[str] = ()) -> list[Prompt]:
        """Its prompts, in the order in which it asks. Raises as `choose_prompts` does."""
        chosen = choose_prompts(choices)
        return [chosen[purpose] for purpose in self.kind.purposes]

    def make(self, settings: Any, store: Store, detector: Detector | None = None) -> Strategy:
        """As the settings of distill say. Raises SettingsError: a prompt that is none."""
        options = self.options.from_settings(settings)
        return self.kind(options, PromptConfig(settings, store), Verification(settings, detector))


STRATEGIES: dict[str, Registered] = {}  # by the name that --strategy takes

S = TypeVar("S", bound=Strategy)


def strategy(name: str, about: str, options: type[Options] = Options) -> Callable[[type[S]], type[S]]:
    """Registers the class below it."""

    def registered(kind: type[S]) -> type[S]:
        STRATEGIES[name] = Registered(name, about, kind, options)
        return kind

    return registered


for _file in iter_modules(__path__):  # last, because each file imports what stands above
    import_module(f"{__name__}.{_file.name}")
