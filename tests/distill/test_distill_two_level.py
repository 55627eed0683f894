"""two-level: what is asked in which order, what falls at each step, and what the gates let through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distill.asking import DISC, LEVER, InProcess, manner, near, refused, row, see, taught, wise
from vcot.distill.dialogue import Judged
from vcot.distill.strategies.two_level import TwoLevel, supported_of
from vcot.distill.verification import Verification
from vcot.records import Reason

PLAIN = Verification(negative_crop_share=0)
NOWHERE = [400, 700, 556, 909]
Spoil = Callable[[Any, Any], Any]


def two(trust: Verification = PLAIN, **options: Any) -> TwoLevel:
    return TwoLevel(manner(), trust, **options)


def asked_for(asker: InProcess, purpose: str) -> list[str]:
    return [asked.words for asked in asker.asked if asked.purpose == purpose]


def test_every_object_is_described_and_judged_by_itself(tmp_path: Path) -> None:
    lesson = taught(two(), row(tmp_path, evidence=(see("red disc", DISC),)), asker := wise())
    assert asker.purposes == {
        "caption": 1, "objects": 1, "locate": 1, "branch": 2, "verdict": 2, "synthesis": 1, "reanswer": 3,
    }  # fmt: skip
    disc, lever = lesson.traces[0].mentions
    assert disc == see("red disc", DISC)  # from people
    assert near(lever.boxes[0], LEVER)
    assert all("shows" not in words for words in asked_for(asker, "branch"))  # the caption of the whole is not known
    (told,) = asked_for(asker, "synthesis")
    assert "[1] red disc, top left, across 3-19 %, down 8-29 %: A red disc of one colour." in told


def test_the_row_and_its_new_questions_come_out(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("red disc", DISC),), context="A drawing.")
    lesson = taught(two(pairs=1), one, wise())
    assert lesson.traces[0].text == "I see the red disc and the blue lever. So the answer is gear."
    assert lesson.models == ("scripted-1",)
    (pair,) = lesson.pairs
    assert (pair.id, pair.answers, pair.context) == ("one#1", ("something coloured",), None)
    assert pair.evidence == (see("red disc", DISC),)
    assert pair.reasoning[0].text == "I see the red disc. So the answer is something coloured."
    assert taught(two(pairs=0), one, wise()).pairs == ()


@pytest.mark.parametrize("purpose", ["caption", "objects", "branch", "synthesis"])
def test_a_row_that_falls_is_asked_about_again_at_its_step(tmp_path: Path, purpose: str) -> None:
    def fails(times: int) -> Spoil:
        left = iter([""] * times)
        return lambda asked, said: next(left, said)

    one = row(tmp_path, evidence=(see("red disc", DISC),))
    again = TwoLevel(manner(ask_again=1, repairs=0), PLAIN)
    refused(TwoLevel(manner(repairs=0), PLAIN), one, wise(**{purpose: fails(1)}))
    assert taught(again, one, wise(**{purpose: fails(1)})).traces
    assert refused(again, one, wise(**{purpose: fails(2)})).said[:2] == ("", "")


def test_where_no_pair_passes_the_gates_others_are_asked_for(tmp_path: Path) -> None:
    wrong = iter([True, False])

    def wrong_at_first(asked: Any, said: Any) -> Any:
        bad = {"answer": "wheel"} if next(wrong) else {}
        return said | {"pairs": [pair | bad for pair in said["pairs"]]}

    one, asker = row(tmp_path, evidence=(see("red disc", DISC),)), wise(synthesis=wrong_at_first)
    lesson = taught(TwoLevel(manner(ask_again=1), PLAIN, pairs=0), one, asker)
    assert lesson.traces
    assert lesson.models == ("scripted-1",)
    assert asker.purposes["synthesis"] == 2
    assert asker.purposes["caption"] == 1  # what stood before it is not asked again


def pair_changed(number: int, **changed: Any) -> dict[str, Spoil]:
    def spoil(asked: Any, said: Any) -> Any:
        pairs = [pair | changed if n == number else pair for n, pair in enumerate(said["pairs"])]
        return said | {"pairs": pairs}

    return {"synthesis": spoil}


@pytest.mark.parametrize(
    ("reason", "step", "spoil"),
    [
        (Reason.TEACHER_EMPTY, "captions", {"caption": lambda a, s: {"caption": " "}}),
        (Reason.TEACHER_NOT_JSON, "captions", {"caption": lambda a, s: "A red disc."}),
        (Reason.TEACHER_NOTHING_LEFT, "objects", {"objects": lambda a, s: {"objects": [
            {"label": "red disc", "box": NOWHERE}, {"label": "cup", "box": [1, 2, 3]},
            {"label": "gear", "box": [781, 375, 969, 625]}, {"label": "dot", "box": [10, 10, 12, 12]}]}}),
        (Reason.TEACHER_CLAIMS_UNSUPPORTED, "verdicts", {"verdict": lambda a, s: s | {"label_supported": False}}),
        (Reason.TEACHER_CLAIMS_UNSUPPORTED, "verdicts", {"branch": lambda a, s: {"visible": False, "caption": ""}}),
        (Reason.TEACHER_UNREADABLE, "synthesis", pair_changed(0, question="What else?")),
        (Reason.TEACHER_UNGROUNDED, "synthesis", {"synthesis": lambda a, s: s | {"relations": [
            {"subject": 1, "predicate": "on", "object": 9}]}}),
    ],
)  # fmt: skip
def test_a_row_falls_at_its_step(tmp_path: Path, reason: Reason, step: str, spoil: dict[str, Spoil]) -> None:
    found = refused(two(), row(tmp_path), wise(**spoil))
    assert (found.reason, found.detail.partition(":")[0]) == (reason, step), found
    assert found.said


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        (Reason.TEACHER_UNGROUNDED, {"rationale": "I see the [7]. So it is clear."}),
        (Reason.TEACHER_UNREADABLE, {"rationale": "I see the [1] at (10, 20)."}),
        (Reason.TEACHER_UNGROUNDED, {"evidence": [5]}),
        (Reason.TEACHER_WRONG_ANSWER, {"answer": "wheel"}),
        (Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"rationale": "I see the [2]. So it is a gear.", "evidence": [2]}),
    ],
)
def test_each_gate_refuses_its_pair_and_the_others_stay(
    tmp_path: Path, reason: Reason, changed: dict[str, Any]
) -> None:
    one, spoil = row(tmp_path), pair_changed(0, **changed)
    lesson = taught(two(pairs=1), one, wise(**spoil))
    assert (lesson.traces, len(lesson.pairs)) == ((), 1)  # the new question is good
    assert [(part.part, part.reason) for part in lesson.parts] == [("pair 0", reason)]
    found = refused(two(pairs=0), one, wise(**spoil))
    assert (found.reason, found.part) == (reason, "")
    assert changed.get("rationale", "I see the [1]") in found.said[0]


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        (Reason.DUPLICATE, {"question": "What touches the lever"}),
        (Reason.TEACHER_WRONG_ANSWER, {"choices": ["a", "b"]}),
        (Reason.TEACHER_UNREADABLE, {"question": ""}),
        (Reason.TEACHER_UNREADABLE, {"question": "What is it?<|im_end|>"}),
        (Reason.ANSWER_IN_LABEL, {"answer": "red disc", "evidence": [1]}),
    ],
)
def test_a_new_question_must_be_one(tmp_path: Path, reason: Reason, changed: dict[str, Any]) -> None:
    lesson = taught(two(pairs=1), row(tmp_path), wise(**pair_changed(1, **changed)))
    assert (lesson.pairs, [part.reason for part in lesson.parts]) == ((), [reason])


def claims(*supported: bool) -> list[dict[str, Any]]:
    return [{"text": f"Claim {n}.", "supported": yes} for n, yes in enumerate(supported)]


@pytest.mark.parametrize(
    ("said", "annotated", "caption"),
    [
        ({"claims": claims(True, True)}, False, "It is red."),
        ({"claims": claims(True, False)}, False, "Claim 0."),
        ({"claims": claims(True, False, False)}, False, None),
        ({"claims": claims(True, False, False)}, True, "Claim 0."),
        ({"claims": claims(True), "label_supported": False}, False, None),
        ({"claims": claims(True), "verdict": "reject"}, False, None),
        ({"claims": claims(True), "verdict": "reject"}, True, "It is red."),
        ({"claims": []}, False, ""),
    ],
)
def test_what_is_left_of_a_caption_follows_from_the_claims(
    said: dict[str, Any], annotated: bool, caption: str | None
) -> None:
    judged = Judged.model_validate({"label_supported": True, "verdict": "keep"} | said)
    assert supported_of(judged, "It is red.", annotated=annotated) == caption
