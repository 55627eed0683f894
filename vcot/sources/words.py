"""What the reasons of convert's rejections mean, in words for the report."""

from __future__ import annotations

from collections.abc import Mapping

from vcot.records import Reason

MEANING: Mapping[Reason, str] = {
    Reason.NOT_JSON: "the line cannot be read",
    Reason.WRONG_SHAPE: "fields are missing, or hold something else than they should",
    Reason.NO_QUESTION: "nothing is asked",
    Reason.NO_ANSWER: "there is no answer",
    Reason.NO_BOX: "the row should have boxes and has none",
    Reason.BOX_MALFORMED: "a box is not four numbers",
    Reason.BOX_NOT_FINITE: "a box has numbers without end",
    Reason.BOX_INVERTED: "a box ends before it begins",
    Reason.BOX_EMPTY: "a box has no area",
    Reason.BOX_OUTSIDE: "a box leaves its picture by more than --overhang allows",
    Reason.BOX_COPIES_DISAGREE: "the row has its box twice, and the copies differ by more than rounding explains",
    Reason.BOX_TOO_SMALL: "a box is smaller than --min-box-area allows",
    Reason.BOX_TOO_LARGE: "a box is larger than --max-box-area allows",
    Reason.BOX_TOO_THIN: "a box is longer and thinner than --max-box-aspect allows",
    Reason.TOO_MANY_BOXES: "there are more boxes than --max-boxes allows, or thousands in one list",
    Reason.ANSWER_IN_LABEL: "a label tells the answer (--answer-in-label refuse)",
    Reason.LICENCE_NOT_ALLOWED: "the licence is not among --licences",
    Reason.NO_IMAGE: "the row has no picture (of scienceqa, --without-image keep keeps it)",
    Reason.IMAGE_MISSING: "the picture is not where the row says",
    Reason.IMAGE_TRUNCATED: "the picture's file ends too early",
    Reason.IMAGE_BROKEN: "the picture's file contradicts itself",
    Reason.IMAGE_NOT_AN_IMAGE: "what should be a picture is none",
    Reason.IMAGE_TOO_LARGE: "the picture is larger than --max-image-pixels or --max-image-side allows",
    Reason.IMAGE_UNSUPPORTED: "the picture is of a format that is not read",
    Reason.IMAGE_SIZE_DIFFERS: "the picture is not as large as the row says, so its boxes are of another",
    Reason.IMAGE_CHANGED: "the picture is not the one that the row was written for",
    Reason.DUPLICATE: "an earlier row asks the same of the same picture, or of none (--duplicates)",
    Reason.HELD_OUT: "the row would learn from a picture, or a question without one, that is there to measure with",
    Reason.NO_REASONING: "nothing sets reasoning and answer apart",
    Reason.ANNOTATION_UNMATCHED: "an annotation is of an image or a category that is not in the file "
    "(--unmatched-annotations)",
}
