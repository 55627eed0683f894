"""Reasoning as parts: prose, and mentions of things with their places.

Parts, not offsets into a text, because offsets go stale at the first edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from vcot.grounding.boxes import Box


@dataclass(frozen=True)
class Mention:
    """A thing that is named, and where it is: a label and one or more boxes, in original pixels.

    The label may be empty (a text may give a box without a name), but without a box there is no mention, only
    prose. Raises ValueError then.
    """

    label: str
    boxes: tuple[Box, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", tuple(self.boxes))
        if not self.boxes:
            raise ValueError(f"the mention {self.label!r} has no box; without one it is prose")

    def to_json(self) -> dict[str, Any]:
        """{"label": …, "boxes": [[x1, y1, x2, y2], …]}, boxes in original pixels."""
        return {"label": self.label, "boxes": [box.as_list() for box in self.boxes]}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of to_json. Raises ValueError if the shape is another, BoxError if a box is none."""
        # Not a match statement, which takes three times as long.
        if isinstance(data, dict) and data.keys() == _MENTION_KEYS:
            label, boxes = data["label"], data["boxes"]
            if isinstance(label, str) and isinstance(boxes, list):
                return cls(label, tuple(map(_box, boxes)))
        raise ValueError(f'a mention is {{"label": text, "boxes": [[x1, y1, x2, y2], …]}}; got {data!r:.200}')


@dataclass(frozen=True)
class Trace:
    """Reasoning as a sequence of prose and mentions.

    Neighbouring pieces of prose are joined and empty ones dropped, so that two traces which say the same are equal.
    """

    parts: tuple[str | Mention, ...]

    def __post_init__(self) -> None:
        joined: list[str | Mention] = []
        for part in self.parts:
            if isinstance(part, str) and joined and isinstance(last := joined[-1], str):
                joined[-1] = last + part
            elif part != "":
                joined.append(part)
        object.__setattr__(self, "parts", tuple(joined))

    @property
    def mentions(self) -> tuple[Mention, ...]:
        return tuple(part for part in self.parts if isinstance(part, Mention))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, in the order of the text."""
        return tuple(box for mention in self.mentions for box in mention.boxes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of each of `boxes`, the label that it stands under."""
        return tuple(mention.label for mention in self.mentions for _ in mention.boxes)

    @property
    def text(self) -> str:
        """What a reader sees: prose and labels, without tags and numbers."""
        return "".join(part if isinstance(part, str) else part.label for part in self.parts)

    def to_json(self) -> list[Any]:
        """A list of texts and {"label", "boxes"}."""
        return [part if isinstance(part, str) else part.to_json() for part in self.parts]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of to_json. Raises ValueError if the shape is another, BoxError if a box is none."""
        if not isinstance(data, list):
            raise ValueError(f"a trace is a list of texts and mentions; got {data!r:.200}")
        return cls(tuple(part if isinstance(part, str) else Mention.from_json(part) for part in data))


_MENTION_KEYS = {"label", "boxes"}
_NUMBERS = {int, float}


def _box(data: Any) -> Box:
    if not isinstance(data, list) or len(data) != 4 or not _NUMBERS.issuperset(map(type, data)):
        raise ValueError(f"a box is a list of four numbers; got {data!r:.200}")
    return Box(*data)
