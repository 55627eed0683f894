"""Images with true and predicted boxes, worst first: errors of frame and label are seen at a glance."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from PIL import Image, ImageDraw, ImageFont

from vcot.evaluation.ablations import image_of
from vcot.evaluation.report import Evidence
from vcot.grounding import Box, Frame
from vcot.grounding.tags import SPELLINGS, parse
from vcot.records import Sample, Score
from vcot.reports.overlays import PREDICTED, TRUE, data_uri, overlay
from vcot.storage import Store
from vcot.storage.images import ImageError


@dataclass(frozen=True)
class Card:
    """One row of the evaluation as it stands on the page."""

    sample: Sample
    score: Score
    image: str | None
    """A data URI."""
    reply: Markup
    others: dict[str, Markup] = field(default_factory=dict)


def goodness(score: Score) -> tuple[float, bool, str]:
    """What cards are sorted by: soft F1 of the boxes (vcot.grounding.match), then the answer, then the id."""
    boxes = (score.true_boxes or 0) + (0 if score.true_boxes is None else score.predicted_boxes)
    return (2 * sum(score.ious) / boxes if boxes else 1.0, score.answer == "right", score.sample)


def choose(evidence: Evidence, most: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows for the page: all of them, worst first, where they fit; else the worst, and some drawn from the rest.

    Returns two lists of indices, both worst first; `most` in sum.
    """
    scores = evidence.tuned
    order = sorted(range(len(scores)), key=lambda index: goodness(scores[index]))
    if len(order) <= most:
        return order, []
    worst, rest = order[: most - most // 2], order[most - most // 2 :]
    drawn = set(random.Random(seed).sample(rest, most // 2))
    return worst, [index for index in rest if index in drawn]


def card(store: Store, evidence: Evidence, index: int, frame: Callable[[Sample], Frame]) -> Card:
    """One row with its image, if it has one; an image that has gone since it was asked about leaves grey."""
    sample, score = evidence.samples[index], evidence.tuned[index]
    names = {
        "base-real": "before tuning", "native-real": "before tuning, in its own form",
        "tuned-blank": "on a blank image",
    }  # fmt: skip
    replies = {name: evidence.replies[key][index] for key, name in names.items() if key in evidence.replies}
    others = {name: highlighted(reply.score.text) for name, reply in replies.items() if reply is not None}
    image = None
    if sample.image is not None:
        try:
            pixels = image_of(store, sample)
        except ImageError:
            pixels = Image.new("RGB", (sample.image.width, sample.image.height), "lightgrey")
        image = data_uri(draw(pixels, sample, score.text, frame(sample), longest_side=420))
    return Card(sample, score, image, highlighted(score.text), others)


def draw(pixels: Image.Image, sample: Sample, text: str, frame: Frame, *, longest_side: int) -> Image.Image:
    """The image with the true boxes in one colour and the predicted ones in another.

    A predicted box has its label beside it where that is not the only true one: a small thing would hide behind it.
    """
    said = [(box, mention.label) for mention in parse(text, frame).trace.mentions for box in mention.boxes]
    true = {mention.label for mention in sample.evidence or ()}
    boxes: dict[str, Sequence[Box]] = {TRUE: sample.true_boxes or (), PREDICTED: [box for box, _ in said]}
    labels = ["" if true == {label} else label for _, label in said]
    size = sample.shown.width, sample.shown.height
    return overlay(pixels, boxes, {PREDICTED: labels}, original=size, longest_side=longest_side)


_PAIRS = sorted({pair for spelling in SPELLINGS.values() for pair in (spelling.ref, spelling.box)})
_MARKED = re.compile("|".join(f"({re.escape(start)})(.*?)({re.escape(end)})" for start, end in _PAIRS), re.DOTALL)


def highlighted(text: str) -> Markup:
    """A reply as HTML: labels and boxes stand out, everything else is escaped. Tags that do not close stay plain."""
    out, end = Markup(), 0
    for found in _MARKED.finditer(text):
        start, inner, stop = (group for group in found.groups() if group is not None)
        kind = "ref" if "ref" in start or "obj" in start else "box"
        out += escape(text[end : found.start()])
        out += Markup('<span class="tag">{}</span><span class="{}">{}</span><span class="tag">{}</span>').format(
            start, kind, inner, stop
        )
        end = found.end()
    return out + escape(text[end:])


def specimen(store: Store, evidence: Evidence, frame: Callable[[Sample], Frame]) -> Image.Image | None:
    """One image to show the result by: the reply of median quality among those that are right in all, with the
    question above and the reply below. None where no reply is.

    The median, not the best: the image should promise no more than what is usual when the model is right.
    """
    right = [
        index
        for index, score in enumerate(evidence.tuned)
        if (score.answer == "right" and score.true_boxes) and score.matched == score.true_boxes == score.predicted_boxes
    ]
    right.sort(key=lambda index: goodness(evidence.tuned[index]))
    if not right:
        return None
    index = right[len(right) // 2]
    sample, text = evidence.samples[index], evidence.tuned[index].text
    drawn = draw(image_of(store, sample), sample, text, frame(sample), longest_side=640)
    return _framed(drawn, sample.question, text)


def _framed(drawn: Image.Image, question: str, text: str) -> Image.Image:
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    margin, width = 20, drawn.width
    answer = [piece for row in text.splitlines() for piece in _wrapped(row, small, width)]
    top, legend = margin + 36, margin + 36 + drawn.height + 12
    canvas = Image.new("RGB", (width + 2 * margin, legend + 30 + 21 * len(answer) + margin), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin - 4), question, fill="#1f2328", font=font)
    canvas.paste(drawn, (margin, top))
    x = margin
    for colour, name in ((TRUE, "where people marked it"), (PREDICTED, "where the model says it is")):
        pen.rectangle((x, legend + 3, x + 13, legend + 16), outline=colour, width=3)
        pen.text((x + 20, legend), name, fill="#656d76", font=small)
        x += 40 + round(pen.textlength(name, font=small))
    for number, piece in enumerate(answer):
        pen.text((margin, legend + 30 + 21 * number), piece, fill="#1f2328", font=small)
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
