"""Ways of writing reasoning, tried on drawn rows and a teacher that sees, without a network between them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distill.made import sample
from tests.fakes.teacher import Answer, Asked
from tests.fakes.wise import Known, Wise, draw_png
from vcot.distill import prompts
from vcot.distill.answers import read_completion
from vcot.distill.dialogue import PromptConfig
from vcot.distill.endpoint import body_of
from vcot.distill.images import ImagePacker
from vcot.distill.request import Request
from vcot.distill.row import DistilledReasoning, Outcome
from vcot.distill.strategy import Strategy
from vcot.grounding import Box, Mention, Trace
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.storage import Store

DISC, LEVER, GEAR = (10, 20, 60, 70), (250, 90, 310, 150), (140, 100, 180, 140)
QUESTION = "What touches the lever?"
KNOWN = {QUESTION: Known("gear", needs="red disc")}


@dataclass
class InProcess:
    """An Asker that hands each request to a script, with its images as they would be sent."""

    script: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        body = await body_of(request, ImagePacker(Store()))
        self.asked.append(Asked(len(self.asked), "", "", body))
        answer = self.script(self.asked[-1])
        found = read_completion(answer.body or b"", request.model, 0.0)
        assert found is not None
        return found

    @property
    def purposes(self) -> dict[str, int]:
        return dict(Counter(asked.purpose for asked in self.asked))


def manner(**changed: Any) -> PromptConfig:
    return PromptConfig("wise", prompts.chosen(), **changed)


def row(folder: Path, question: str = QUESTION, answer: str = "gear", **given: Any) -> Sample:
    """A red disc and a blue lever, drawn; nothing annotated unless it is given."""
    data = draw_png(("red disc", DISC), ("blue lever", LEVER))
    path = folder / f"{hashlib.sha256(data).hexdigest()[:8]}.png"
    path.write_bytes(data)
    texts = tuple(Trace((text,)) for text in given.pop("texts", ()))
    return sample(question, answer, uri=str(path), data=data, reasoning=texts, **({"evidence": None} | given))


def outcome(way: Strategy, one: Sample, asker: InProcess) -> Outcome:
    return asyncio.run(way.outcome(one, asker))


def taught(way: Strategy, one: Sample, asker: InProcess) -> DistilledReasoning:
    found = outcome(way, one, asker)
    assert isinstance(found, DistilledReasoning), found
    return found


def refused(way: Strategy, one: Sample, asker: InProcess) -> Rejection:
    found = outcome(way, one, asker)
    assert isinstance(found, Rejection), found
    assert found.reason is not Reason.NO_REASONING
    return found


def wise(known: dict[str, Known] | None = None, **spoil: Callable[[Asked, Any], Any]) -> InProcess:
    return InProcess(Wise(known or KNOWN, spoil))


def box(edges: Sequence[float]) -> Box:
    return Box(*edges)


def near(found: Box, edges: Sequence[float]) -> bool:
    """As exact as thousandths are."""
    return all(abs(a - b) <= 0.33 for a, b in zip(found.as_list(), edges, strict=True))


def see(label: str, edges: Sequence[float]) -> Mention:
    return Mention(label, (box(edges),))
