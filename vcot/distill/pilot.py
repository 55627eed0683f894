"""Pilot requests for annotated objects, which check the declared frame.

A wrong frame costs the budget: boxes in another order of the same numbers are inside the image, and pass most checks.
The frame is never changed here. If another notation fits clearly better, the run stops before it sends any other
request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from vcot import logging
from vcot.distill import Refused, lacks_places
from vcot.distill.crops import size_of
from vcot.distill.dialogue import Dialogue, Parts, PromptConfig
from vcot.distill.request import Client, Request
from vcot.distill.runner import ModelTeacher
from vcot.distill.verification import Located, locate_parts
from vcot.errors import SettingsError
from vcot.grounding.frames_fit import (
    MIN_ROWS,
    SENT_PIXELS,
    Notation,
    NotationComparison,
    NumberedRow,
    compare_notations,
)
from vcot.records import Sample
from vcot.records.metadata import FrameFit
from vcot.storage.images import ImageError

ROWS_SEARCHED = 2000  # rows in which annotated boxes with names are looked for; reading them takes seconds


def pilot_rows(teacher: ModelTeacher, rows: Iterable[Sample], count: int) -> list[Sample]:
    """Return the first rows whose annotated boxes have names, one for each image; none if they are fewer than MIN_ROWS.

    A teacher that may not propose boxes writes none, and needs no pilot.
    """
    if not getattr(teacher.strategy.options, "propose", True):
        return []
    found: dict[str, Sample] = {}
    for row in islice(rows, ROWS_SEARCHED):
        if len(found) == count:
            break
        if lacks_places(row) and row.true_boxes and _labels(row) and not teacher.strategy.hindrance(row):
            found.setdefault(row.shown.kept.sha256, row)
    return list(found.values()) if len(found) >= MIN_ROWS else []


def pilot_requests(teacher: ModelTeacher, rows: Iterable[Sample], count: int) -> list[Request]:
    """Return the requests of the pilot, for an estimate."""
    config = teacher.strategy.config
    return [config.request(Located, _parts(row, config)) for row in pilot_rows(teacher, rows, count)]


def check_frame(teacher: ModelTeacher, rows: Iterable[Sample], count: int) -> FrameFit | None:
    """Request boxes for the annotated objects of up to `count` rows and compare them with the annotated boxes.

    Returns:
        The mean IoUs; None if fewer than MIN_ROWS rows have annotated boxes with names.

    Raises:
        SettingsError: another notation fits clearly better than the declared frame.
    """
    if not (chosen := pilot_rows(teacher, rows, count)):
        return None

    async def locate(row: Sample, client: Client) -> NumberedRow | None:
        config = teacher.strategy.config
        dialogue = Dialogue(client, row, config, Counter())
        try:
            reply = await dialogue.ask(Located, _parts(row, config))
        except (Refused, ImageError):
            return None
        numbers = [box for item in reply.objects for box in item.boxes]
        image = row.shown
        return NumberedRow(numbers, row.true_boxes or (), (image.width, image.height), size_of(config.whole(image)))

    before = teacher.client.report.totals()
    replies = [reply for _, reply in teacher.map(chosen, locate) if reply is not None]
    paid = teacher.client.report.totals()
    comparison = compare_notations(replies, teacher.strategy.config.frame)
    if comparison.contradicts:
        raise SettingsError(_contradiction(comparison))
    fit = FrameFit(
        declared=str(comparison.declared), declared_iou=round(comparison.declared_iou, 4), best=str(comparison.best),
        best_iou=round(comparison.best_iou, 4), rows=comparison.rows, boxes=comparison.boxes,
        rows_requested=len(chosen), usd=round(sum(paid[name] - before[name] for name in ("usd", "usd_lost")), 9),
    )  # fmt: skip
    logging.get().info("boxes of the teacher compared with annotated ones", fit=str(comparison))
    return fit


def _parts(row: Sample, config: PromptConfig) -> Parts:
    """Return the content of a request for the boxes of the annotated objects."""
    return locate_parts(_labels(row), row.shown, config)


def _labels(row: Sample) -> list[str]:
    labels = (" ".join(mention.label.split()) for mention in row.evidence or () if mention.boxes)
    return [label for label in labels if label]


def _contradiction(comparison: NotationComparison) -> str:
    declared, best = comparison.declared, comparison.best
    return (
        f"--frame {declared.frame.name} does not fit the teacher's boxes: in the first {comparison.rows} rows with "
        f"annotated boxes their mean IoU is {comparison.declared_iou:.2f} in {declared} as declared, and "
        f"{comparison.best_iou:.2f} in {best}. {_advice(best)}. If the annotated boxes are wrong, go on with "
        "--frame-check-rows 0"
    )


def _advice(best: Notation) -> str:
    if best.order != "xyxy":
        return "No frame has that order: ask for x1, y1, x2, y2 in a prompt of your own (--prompts), or change --model"
    if best.frame == SENT_PIXELS:
        return "Set --frame resized_pixels with --min-pixels and --max-pixels, the limits of the model's processor"
    return f"Set --frame {best.frame.name}"
