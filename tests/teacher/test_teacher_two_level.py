"""two-level, step by step: what each makes, what falls at it, and what the gates let through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.wise import Known
from tests.teacher.asking import DISC, LEVER, InProcess, box, manner, near, outcome, refused, row, see, taught, wise
from vcot.records import Reason, Rejection
from vcot.records.steps import Branches, Crops, Gates, Objects, SeenObject, Synthesis, Verdicts
from vcot.teacher.crops import SHORT_SIDE, crop_of
from vcot.teacher.shapes import Judged
from vcot.teacher.trust import Trust
from vcot.teacher.two_level.judge import verdict_of
from vcot.teacher.two_level.step import Before
from vcot.teacher.two_level.way import TwoLevel

PLAIN = Trust(decoy_share=0)
NOWHERE = [400, 700, 556, 909]
Spoil = Callable[[Any, Any], Any]


def two(trust: Trust = PLAIN, **options: Any) -> TwoLevel:
    return TwoLevel(manner(), trust, **options)


async def steps(way: TwoLevel, one: Any, asker: InProcess) -> Before:
    before = Before({})
    for step in way.steps:
        made = await way.one(step, one, before, asker)
        assert not isinstance(made, Rejection), made
        before = before.add(made)
    return before


def test_every_step_makes_its_record(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("red disc", DISC),))
    before = asyncio.run(steps(two(), one, asker := wise()))
    objects = before.get(Objects).objects
    assert [(o.number, o.label, o.source) for o in objects] == [(1, "red disc", "gold"), (2, "blue lever", "teacher")]
    assert objects[0].box.as_list() == list(map(float, DISC))
    assert near(objects[1].box, LEVER)
    cut = before.get(Crops).crops[0]
    assert cut.crop_box.as_list() == [0.0, 4.0, 76.0, 86.0]  # 16 pixels on each side, and not outside the image
    assert min(cut.size) == SHORT_SIDE == round(76 * cut.scale)
    assert all(branch.visible for branch in before.get(Branches).branches)
    assert [v.verdict for v in before.get(Verdicts).verdicts] == ["keep", "keep"]
    made = before.get(Synthesis)
    assert [(r.subject, r.predicate, r.object) for r in made.relations] == [(1, "beside", 2)]
    assert made.pairs[0].question == one.question
    assert before.get(Gates).accepted
    branch = next(asked for asked in asker.asked if asked.purpose == "branch")
    assert "shows" not in branch.words  # the caption of the whole is not known to who describes a part
    assert asker.purposes == {
        "caption": 1, "objects": 1, "locate": 1, "branch": 2, "verdict": 2, "synthesis": 1, "reanswer": 3,
    }  # fmt: skip


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
    ("reason", "gate", "changed"),
    [
        (Reason.TEACHER_UNGROUNDED, "parse", {"rationale": "I see the [7]. So it is clear."}),
        (Reason.TEACHER_UNREADABLE, "parse", {"rationale": "I see the [1] at (10, 20)."}),
        (Reason.TEACHER_UNGROUNDED, "evidence_kept", {"evidence": [5]}),
        (Reason.TEACHER_WRONG_ANSWER, "answer_agrees", {"answer": "wheel"}),
        (Reason.TEACHER_EVIDENCE_FALLS_SHORT, "reanswer_agrees",
         {"rationale": "I see the [2]. So it is a gear.", "evidence": [2]}),
    ],
)  # fmt: skip
def test_each_gate_refuses_its_pair_and_the_others_stay(
    tmp_path: Path, reason: Reason, gate: str, changed: dict[str, Any]
) -> None:
    one, spoil = row(tmp_path), pair_changed(0, **changed)
    own = asyncio.run(steps(two(pairs=1), one, wise(**spoil))).get(Gates).pairs[0]
    assert (own.accepted, own.reason) == (False, reason)
    assert [name for name, passed in own.gates.items() if not passed] == [gate] == [list(own.gates)[-1]]
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
    ],
)
def test_a_new_question_must_be_one(tmp_path: Path, reason: Reason, changed: dict[str, Any]) -> None:
    lesson = taught(two(pairs=1), row(tmp_path), wise(**pair_changed(1, **changed)))
    assert (lesson.pairs, [part.reason for part in lesson.parts]) == ((), [reason])


def test_numbers_that_json_cannot_hold_are_left_out_and_can_be_read_again(tmp_path: Path) -> None:
    def spoil(asked: Any, said: Any) -> Any:
        endless = {"label": "cup", "box": [1, 2, float("inf"), float("nan")], "score": float("nan")}
        return said | {"objects": [*said["objects"], endless]}

    found = asyncio.run(steps(two(), row(tmp_path), wise(objects=spoil))).get(Objects)
    assert [(one.written, one.reason) for one in found.left_out] == [
        ("[1.0, 2.0, Infinity, NaN]", Reason.BOX_NOT_FINITE)
    ]
    assert Objects.model_validate_json(found.line()) == found


def test_a_label_that_is_the_answer_to_a_new_question_stops_that_question(tmp_path: Path) -> None:
    spoil = pair_changed(1, answer="red disc", evidence=[1])
    lesson = taught(two(pairs=1), row(tmp_path), wise(**spoil))
    assert lesson.pairs == ()
    assert [(part.part, part.reason) for part in lesson.parts] == [("pair 1", Reason.ANSWER_IN_LABEL)]


def test_a_wrong_answer_stays_as_a_negative_where_asked_for(tmp_path: Path) -> None:
    trust = Trust(decoy_share=0, wrong_answers="negatives")
    found = refused(two(trust, pairs=0), row(tmp_path), wise(**pair_changed(0, answer="wheel")))
    assert found.negative is not None
    assert found.negative.answers == ("wheel",)


def test_absence_is_reasoned_about_without_pointing(tmp_path: Path) -> None:
    one = row(tmp_path, "Is there a dog?", "no", evidence=())
    spoil = {**pair_changed(0, rationale="I looked for a dog. There is none.", evidence=[])}
    lesson = taught(two(pairs=0), one, wise({one.question: Known("no")}, **spoil))
    assert lesson.traces[0].text == "I looked for a dog. There is none."


def test_decoys_measure_the_judge(tmp_path: Path) -> None:
    def counted(**spoil: Spoil) -> tuple[int, int]:
        way = two(Trust(decoy_share=1), pairs=0)
        outcome(way, row(tmp_path), wise(**spoil))
        return way.counts()["decoys"], way.counts()["decoys_accepted"]

    assert counted() == (2, 0)
    blind = {"verdict": lambda a, s: {"label_supported": True, "verdict": "keep",
                                      "claims": [{"text": "It is there.", "supported": True}]}}  # fmt: skip
    assert counted(**blind) == (2, 2)


def claims(*supported: bool) -> list[dict[str, Any]]:
    return [{"text": f"Claim {n}.", "supported": yes} for n, yes in enumerate(supported)]


@pytest.mark.parametrize(
    ("said", "source", "verdict", "caption"),
    [
        ({"claims": claims(True, True)}, "teacher", "keep", "It is red."),
        ({"claims": claims(True, False)}, "teacher", "modify", "Claim 0."),
        ({"claims": claims(True, False, False)}, "teacher", "reject", None),
        ({"claims": claims(True, False, False)}, "gold", "modify", "Claim 0."),
        ({"claims": claims(True), "label_supported": False}, "teacher", "reject", None),
        ({"claims": claims(True), "verdict": "reject"}, "teacher", "reject", None),
        ({"claims": claims(True), "verdict": "reject"}, "gold", "keep", "It is red."),
        ({"claims": []}, "teacher", "modify", ""),
    ],
)
def test_the_verdict_follows_from_the_claims(said: dict[str, Any], source: Any, verdict: str, caption: str) -> None:
    judged = Judged.model_validate({"label_supported": True, "verdict": "keep"} | said)
    one = SeenObject(number=1, label="disc", box=box(DISC), score=1, source=source)
    found = verdict_of(judged, one, "It is red.")
    assert (found.verdict, found.caption) == (verdict, caption)


def test_a_cut_out_says_where_it_was(tmp_path: Path) -> None:
    image = row(tmp_path).image
    cut = crop_of(box(LEVER), image)
    x, y = cut.box.x1 + 100 / cut.scale, cut.box.y1 + 100 / cut.scale
    assert 0 <= x <= image.width
    assert 0 <= y <= image.height
    assert crop_of(box((0, 0, 320, 240)), image).box == box((0, 0, 320, 240))
