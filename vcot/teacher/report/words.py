"""What the reasons of distill's refusals mean, in words for people; docs/distill.md says the same."""

from __future__ import annotations

from vcot.records import Reason

UNASKED = "Before anybody was asked"
READING = "The reply could not be read"
BOXES = "A box was not believed"
ANSWERS = "The answer did not follow"

MEANING: dict[Reason, tuple[str, str]] = {
    Reason.NO_REASONING: (
        UNASKED, "the template needs annotated boxes, rationalise a text to anchor, and the row has none",
    ),
    Reason.IMAGE_MISSING: (UNASKED, "its picture is gone"),
    Reason.IMAGE_CHANGED: (UNASKED, "its picture is not the one that convert saw"),
    Reason.IMAGE_NOT_AN_IMAGE: (UNASKED, "its picture is no picture"),
    Reason.IMAGE_UNSUPPORTED: (UNASKED, "its picture has a format that is not read"),
    Reason.IMAGE_TRUNCATED: (UNASKED, "its picture ends too early"),
    Reason.IMAGE_BROKEN: (UNASKED, "its picture cannot be decoded"),
    Reason.IMAGE_TOO_LARGE: (UNASKED, "its picture has more pixels than are decoded"),
    Reason.TEACHER_FAILED: (READING, "the endpoint failed at it each time, or refused it, and answered other requests"),
    Reason.TEACHER_EMPTY: (READING, "the teacher said nothing"),
    Reason.TEACHER_REFUSED: (READING, "the teacher, or its endpoint, would not or could not answer"),
    Reason.TEACHER_CUT_OFF: (READING, "the reply ended in the middle: raise --reply-tokens"),
    Reason.TEACHER_NOT_JSON: (READING, "the reply is not the JSON that was asked for"),
    Reason.TEACHER_WRONG_SHAPE: (READING, "the reply is JSON with other fields than were asked for"),
    Reason.TEACHER_UNREADABLE: (READING, "the reasoning holds numbers of boxes, markup, or a bracket left open"),
    Reason.TEACHER_UNGROUNDED: (READING, "the reasoning points at nothing, at what is not listed, or too late"),
    Reason.TEACHER_TOLD: (READING, "the reasoning admits that the answer was given"),
    Reason.TEACHER_INJECTED: (READING, "the reasoning holds a link, or orders to whoever reads it"),
    Reason.TEACHER_REPEATS: (READING, "the reasoning repeats itself"),
    Reason.TEACHER_OTHER_LANGUAGE: (READING, "the reasoning is not, or not all, in the language of the question"),
    Reason.TEACHER_NO_CONCLUSION: (READING, "the reasoning does not lead to an answer"),
    Reason.DUPLICATE: (READING, "a new question is the row's own again"),
    Reason.BOX_MALFORMED: (BOXES, "a proposed box is not four numbers"),
    Reason.BOX_NOT_FINITE: (BOXES, "a proposed box has an edge that is no number"),
    Reason.BOX_INVERTED: (BOXES, "a proposed box ends before it begins: perhaps another --frame"),
    Reason.BOX_EMPTY: (BOXES, "a proposed box has no area"),
    Reason.BOX_OUTSIDE: (BOXES, "a proposed box leaves the picture: perhaps another --frame"),
    Reason.BOX_TOO_SMALL: (BOXES, "a proposed box is smaller than --min-proposed-area"),
    Reason.BOX_TOO_LARGE: (BOXES, "a proposed box is larger than --max-proposed-area"),
    Reason.TOO_MANY_BOXES: (BOXES, "more objects were proposed than --objects allows"),
    Reason.ANSWER_IN_LABEL: (BOXES, "the name of a proposed object gives the answer away"),
    Reason.TEACHER_BOX_OFF_GOLD: (BOXES, "a thing that people annotated was proposed at another place"),
    Reason.TEACHER_BOX_UNSURE: (BOXES, "asked a second time where it is, the teacher pointed elsewhere (--twice)"),
    Reason.TEACHER_BOX_NOT_SEEN: (BOXES, "a look at the cut-out did not find the thing (--look)"),
    Reason.TEACHER_BOX_UNDETECTED: (BOXES, "the detector does not find the thing there (--detector-uri)"),
    Reason.TEACHER_CLAIMS_UNSUPPORTED: (BOXES, "a judge found that the picture does not show what was said"),
    Reason.TEACHER_NOTHING_LEFT: (BOXES, "after the checks nothing was left to point at"),
    Reason.TEACHER_WRONG_ANSWER: (ANSWERS, "the teacher, or its reasoning, ended in another answer than the row's"),
    Reason.TEACHER_EVIDENCE_FALLS_SHORT: (
        ANSWERS, "from the cut-outs of its evidence alone, another answer came (--reanswer)",
    ),
    Reason.TEACHER_ANSWER_FIRST: (ANSWERS, "the first sentence of the reasoning states the answer (--answer-first)"),
}  # fmt: skip
"""Reason → at which gate, and what happened."""

FLAGS = {"answer-first": "the first sentence states the answer"}
