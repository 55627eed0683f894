"""What rewards read that a model must be asked for: measured before replies are judged, and noted in each Rollout.

    Necessity(encoder, questions)(model, replies)    how much of the answer hangs on what is pointed at
    Judged(judge, questions)(model, replies)         what another model says of the answer

Each is asked for many replies at once and gives a number of 0..1 for each, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from vcot.distill.judge import Judge, ToJudge
from vcot.grounding import parse, split_answer
from vcot.models.generation import score_continuations
from vcot.storage.images import decode, with_noise
from vcot.tokens import Encoder
from vcot.training.questions import Questions


class Reply(NamedTuple):
    """question: its number. ids: the tokens of `text`, as they were drawn."""

    question: int
    text: str
    ids: Sequence[int]


Measure = Callable[[Any, Sequence[Reply]], list[float | None]]
"""(model, replies) → for each a number of 0..1, or None."""


class Necessity:
    """1 − p(answer | hidden) / p(answer | shown), where what lies in the reply's boxes is hidden by noise, times the
    share of the image that they leave free: who points at everything has shown nothing.

    Both probabilities are those of the reply's own answer after its own reasoning, by the model that learns. A reply
    without a box or without an answer earns 0; None: there is no image.

    Args:
        at_once: replies that go through the model together.
    """

    SEED = 0  # of the noise: the same for all replies to a question, so that it tells none apart

    def __init__(self, encoder: Encoder, questions: Questions, at_once: int) -> None:
        self.encoder, self.questions, self.at_once = encoder, questions, at_once
        self.spec = encoder.contract.frame_spec

    def __call__(self, model: Any, replies: Sequence[Reply]) -> list[float | None]:
        found: list[float | None] = []
        for first in range(0, len(replies), self.at_once):
            found += self._some(model, replies[first : first + self.at_once])
        return found

    def _some(self, model: Any, replies: Sequence[Reply]) -> list[float | None]:
        found: list[float | None] = []
        asked: list[tuple[int, Reply, int, Any, float]] = []
        for place, reply in enumerate(replies):
            sample = self.questions.sample(reply.question)
            boxes = parse(reply.text, sample.frame(self.spec)).trace.boxes
            begins = self._answer_begins(reply)
            if sample.image is None or not self.questions.shown(reply.question):
                found.append(None)
                continue
            found.append(0.0)
            if boxes and begins is not None:
                size = (sample.image.width, sample.image.height)
                image = decode(self.questions.image_bytes(reply.question)[0], sample.id).pixels
                hidden = with_noise(image, [box.as_list() for box in boxes], size, self.SEED)
                free = 1 - _covered([box.as_list() for box in boxes], size)
                asked.append((place, reply, begins, hidden, free))
        if not asked:
            return found
        numbers = [reply.question for _, reply, *_ in asked]
        begun = [(row, reply.ids[:begins]) for row, (_, reply, begins, *_) in enumerate(asked)]
        answers = [[reply.ids[begins:]] for _, reply, begins, *_ in asked]
        shown = self.questions.prompts(numbers)
        likely = score_continuations(model, shown, answers, begun)
        unlikely = score_continuations(
            model, self._without(shown, numbers, [each[3] for each in asked]), answers, begun
        )
        for (place, *_, free), [with_it], [without_it] in zip(asked, likely, unlikely, strict=True):
            lost = min(math.fsum(without_it) - math.fsum(with_it), 0.0)
            found[place] = free * (1 - math.exp(lost))
        return found

    def _answer_begins(self, reply: Reply) -> int | None:
        """Place of the first of its tokens that says the answer."""
        reasoning, answer = split_answer(reply.text)
        if not answer or (at := reply.text.rfind(answer)) < len(reasoning.rstrip()):
            return None
        said = (place for place in range(len(reply.ids)) if len(self.encoder.decode(reply.ids[: place + 1])) > at)
        return next(said, None)

    def _without(self, shown: dict[str, Any], numbers: Sequence[int], hidden: Sequence[Any]) -> dict[str, Any]:
        """The same batch, with these in the place of each row's first image."""
        patches, grids = shown["pixel_values"].clone(), shown["image_grid_thw"]
        sizes = grids.prod(dim=1).tolist()
        noisy = self.encoder.pixels(list(hidden))
        ours = iter(noisy["pixel_values"].split(noisy["image_grid_thw"].prod(dim=1).tolist()))
        place = image = 0
        for number in numbers:
            for nth in range(self.questions.shown(number)):
                if not nth:
                    patches[place : place + sizes[image]] = next(ours)
                place += sizes[image]
                image += 1
        return {**shown, "pixel_values": patches}


def _covered(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> float:
    """Share of an image that lies in at least one of them, on a grid of 100 × 100 points."""
    across, down = (torch.arange(100) + 0.5) * size[0] / 100, (torch.arange(100)[:, None] + 0.5) * size[1] / 100
    within = [(x1 <= across) & (across < x2) & (y1 <= down) & (down < y2) for x1, y1, x2, y2 in boxes]
    return float(torch.stack(within).any(0).float().mean())


class Judged:
    """The score that a judge gives to each answer; a reply without one earns 0 and is not shown to it."""

    def __init__(self, judge: Judge, questions: Questions) -> None:
        self.judge, self.questions = judge, questions

    def __call__(self, model: Any, replies: Sequence[Reply]) -> list[float | None]:
        found: list[float | None] = [0.0] * len(replies)
        asked: list[tuple[int, ToJudge]] = []
        for place, reply in enumerate(replies):
            sample, answer = self.questions.sample(reply.question), split_answer(reply.text)[1]
            if answer:
                true = " or ".join(sample.answers)
                asked.append((place, ToJudge(sample.origin.dataset, sample.id, sample.question, true, answer)))
        scores = self.judge.scores([one for _, one in asked])
        for (place, _), (score, _) in zip(asked, scores, strict=True):
            found[place] = score
        return found
