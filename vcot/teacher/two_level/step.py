"""A step: what it is called, what shapes its result, and what it makes of one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from vcot.grounding.places import place
from vcot.records import Sample
from vcot.records.steps import Objects, SeenObject, StepRecord
from vcot.teacher.objects import Object
from vcot.teacher.request import Picture, Request
from vcot.teacher.talk import JUDGING, Manner, Talk
from vcot.teacher.trust import Trust

R = TypeVar("R", bound=StepRecord)

FORESEEN_OBJECTS = 4
"""Objects of an image, for the estimate before anybody has looked."""


@dataclass(frozen=True)
class Before:
    """What the earlier steps made of the row."""

    records: Mapping[type[StepRecord], StepRecord]

    def get(self, kind: type[R]) -> R:
        found = self.records[kind]
        assert isinstance(found, kind)
        return found

    def add(self, record: StepRecord) -> Before:
        return Before({**self.records, type(record): record})


@dataclass(frozen=True)
class Step(ABC):
    manner: Manner
    trust: Trust

    name: ClassVar[str]
    record: ClassVar[type[StepRecord]]
    purposes: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    """A new number where the same replies would give another record."""

    @abstractmethod
    async def make(self, talk: Talk, before: Before) -> StepRecord:
        """The record of one row. Raises Refused."""

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        """What a row will probably ask (see row.Way)."""
        return ()

    def parameters(self) -> dict[str, Any]:
        """What else shapes the result."""
        return {}

    def shaped_by(self) -> dict[str, Any]:
        """Everything that shapes the result but the earlier steps."""
        manner = self.manner
        models = {manner.judge if manner.judge and one in JUDGING else manner.model for one in self.purposes}
        asked = {
            "prompts": [[manner.prompts[one].version, manner.prompts[one].text] for one in self.purposes],
            "models": sorted(models), "temperature": manner.temperature, "reply_tokens": manner.reply_tokens,
            "image_side": manner.image_side, "repairs": manner.repairs, "structured": manner.structured,
            "frame": manner.frame.to_dict(), **({"ask_again": manner.ask_again} if manner.ask_again else {}),
        }  # fmt: skip
        return {"step": self.name, "version": self.version, **(asked if self.purposes else {}), **self.parameters()}

    def whole(self, sample: Sample) -> Picture:
        return Picture(sample.shown, self.manner.image_side)


def as_object(one: SeenObject, sample: Sample) -> Object:
    return Object(one.number, one.label, one.box, place(one.box, sample.shown.width, sample.shown.height))


def seen(before: Before, number: int) -> SeenObject:
    return next(one for one in before.get(Objects).objects if one.number == number)
