"""Rows for the tests of distill, with drawn images; strategies, and a teacher that sees, without a network between."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.distill import DistillSettings
from tests.fakes.teacher import Answer, Asked
from tests.fakes.wise import Known, Wise, draw_png
from vcot.distill import DistilledReasoning, Outcome
from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import body_of, read_completion
from vcot.distill.request import Request
from vcot.distill.strategies import STRATEGIES, Strategy
from vcot.distill.verification import Detector
from vcot.grounding import Box, Mention, Trace
from vcot.records import Completion, Image, Origin, Reason, Rejection, Sample
from vcot.storage import Store

WIDTH, HEIGHT = 320, 240
TOP_LEFT, CENTRE, RIGHT = Box(10, 20, 60, 70), Box(140, 100, 180, 140), Box(250, 90, 310, 150)

DISC, LEVER, GEAR = (10, 20, 60, 70), (250, 90, 310, 150), (140, 100, 180, 140)
QUESTION = "What touches the lever?"
KNOWN = {QUESTION: Known("gear", needs="red disc")}


def see(label: str, *boxes: Box | Sequence[float]) -> Mention:
    return Mention(label, tuple(box if isinstance(box, Box) else Box(*box) for box in boxes))


def sample(
    question: str = "Where is the red disc?", *answers: str,
    evidence: tuple[Mention, ...] | None = (Mention("red disc", (TOP_LEFT,)),),
    split: Literal["train", "validation", "test"] = "train", uri: str = "images/one.png", name: str = "one",
    data: bytes | None = None, width: int = WIDTH, height: int = HEIGHT, **more: Any,
) -> Sample:  # fmt: skip
    image = Image(uri=uri, width=width, height=height, sha256=hashlib.sha256(data or draw_png()).hexdigest())
    more |= {"evidence": evidence, "origin": Origin(dataset="made", split=split, row=name, licence="CC0-1.0")}
    return Sample(id=name, image=image, question=question, answers=answers or ("top left",), **more)


def stored(folder: Path, name: str = "one", **given: Any) -> Sample:
    """A sample whose image lies in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(draw_png())
    return sample(uri=str(path), name=name, **given)


def row(folder: Path, question: str = QUESTION, answer: str = "gear", **given: Any) -> Sample:
    """A red disc and a blue lever, drawn; nothing annotated unless it is given."""
    data = draw_png(("red disc", DISC), ("blue lever", LEVER))
    path = folder / f"{hashlib.sha256(data).hexdigest()[:8]}.png"
    path.write_bytes(data)
    texts = tuple(Trace((text,)) for text in given.pop("texts", ()))
    return sample(question, answer, uri=str(path), data=data, reasoning=texts, **({"evidence": None} | given))


def near(found: Box, edges: Sequence[float]) -> bool:
    """As exact as thousandths are."""
    return all(abs(a - b) <= 0.33 for a, b in zip(found.as_list(), edges, strict=True))


# --- strategies, and whom they ask


@dataclass
class InProcess:
    """A Client that hands each request to a script, with its images as they would be sent."""

    script: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        body = await body_of(request, ImagePacker(Store()))
        self.keys.append(request.key())
        self.asked.append(Asked(len(self.asked), "", "", body))
        answer = self.script(self.asked[-1])
        found = read_completion(answer.body or b"", request.model, 0.0)
        assert found is not None
        return found

    @property
    def purposes(self) -> dict[str, int]:
        return dict(Counter(asked.purpose for asked in self.asked))


def wise(known: dict[str, Known] | None = None, **spoil: Callable[[Asked, Any], Any]) -> InProcess:
    return InProcess(Wise(known or KNOWN, spoil))


def strategy(name: str, detector: Detector | None = None, **settings: Any) -> Strategy:
    """As the flags of distill say, but without negative crops."""
    given = {"run_uri": "x", "teacher": "openai", "model": "wise", "strategy": name, "negative_crop_share": 0.0}
    return STRATEGIES[name].make(DistillSettings.of(given | settings), Store(), detector)


def outcome(way: Strategy, one: Sample, client: InProcess) -> Outcome:
    return asyncio.run(way.outcome(one, client))


def taught(way: Strategy, one: Sample, client: InProcess) -> DistilledReasoning:
    found = outcome(way, one, client)
    assert isinstance(found, DistilledReasoning), found
    return found


def refused(way: Strategy, one: Sample, client: InProcess) -> Rejection:
    found = outcome(way, one, client)
    assert isinstance(found, Rejection), found
    assert found.reason is not Reason.NO_REASONING
    assert found.said
    assert found.detail
    return found
