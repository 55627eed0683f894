"""answer-aware and rationalise: good rows pass, and each gate refuses the fault that is planted for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distill.asking import (
    DISC,
    LEVER,
    QUESTION,
    InProcess,
    manner,
    near,
    outcome,
    refused,
    row,
    see,
    taught,
    wise,
)
from tests.distill.made import sample
from tests.fakes.teacher import Answer, Asked
from tests.fakes.wise import Known
from vcot.distill.row import DistilledReasoning
from vcot.distill.row import taught as with_reasoning
from vcot.distill.strategies.answer_aware import AnswerAware
from vcot.distill.strategies.rationalise import Rationalise
from vcot.distill.strategy import strategy
from vcot.distill.verification import ANSWER_FIRST, AreaLimits, Verification
from vcot.grounding import Box, FrameSpec, Trace
from vcot.records import Image, Reason, Rejection

LEVER_BOX = [781, 375, 969, 625]
DISC_BOX = [31, 83, 188, 292]
NOWHERE = [400, 700, 556, 909]
TEXTS = ("A red disc stands left of the blue lever. It touches it.",)


PLAIN = Verification(negative_crop_share=0)


def aware(trust: Verification = PLAIN, **options: Any) -> AnswerAware:
    return AnswerAware(manner(), trust, **options)


def pointing(trust: Verification = PLAIN, **options: Any) -> Rationalise:
    return Rationalise(manner(), trust, **options)


def adding(label: str, box: Sequence[float]) -> Callable[[Any, Any], Any]:
    """Reasoning about one object that nobody annotated."""
    return lambda asked, said: said | {"objects": [{"number": 1, "label": label, "box": list(box)}]}


def at(box: Sequence[float]) -> Callable[[Any, Any], Any]:
    return lambda asked, said: {"objects": [{"label": one["label"], "boxes": [list(box)]} for one in said["objects"]]}


# ---------------------------------------------------------------------------------------------------- answer-aware


def test_an_object_that_nobody_annotated_is_proposed_and_checked(tmp_path: Path) -> None:
    asker, way = wise(), aware()
    (trace,) = taught(way, row(tmp_path), asker).traces
    assert trace.text == "I see the red disc. So the answer is gear."
    assert near(trace.boxes[0], DISC)
    assert asker.purposes == {"reason": 1, "locate": 1, "look": 1, "reanswer": 1}
    assert "You may add objects, from [1] on. Boxes are [x1, y1, x2, y2] in thousandths" in asker.asked[0].words
    assert "reanswer" not in asker.asked[-1].words
    assert "gear" not in asker.asked[-1].words  # who answers again does not know the answer


def test_nothing_there_is_answered_from_the_whole_image_which_lies_nowhere(tmp_path: Path) -> None:
    asker = wise({QUESTION: Known("no")})
    assert taught(aware(), row(tmp_path, answer="no", evidence=()), asker)
    assert "Cut-out" not in asker.asked[-1].words


def test_a_proposal_on_an_annotated_place_is_that_object(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("disc of metal", DISC),))
    disc = {"number": 2, "label": "red disc", "box": [28, 80, 190, 300]}
    spoil = {"reason": lambda a, s: s | {"sentences": ["I see the [2].", "So it is a gear."], "objects": [disc]}}
    assert taught(aware(), one, wise(**spoil)).traces == (
        Trace(("I see the ", see("disc of metal", DISC), ". So it is a gear.")),
    )


def test_other_frames_are_declared_and_told(tmp_path: Path) -> None:
    pixels = AnswerAware(manner(frame=FrameSpec("pixels")), Verification(negative_crop_share=0, self_consistency=False))
    asker = wise(reason=adding("red disc", DISC))
    (trace,) = taught(pixels, row(tmp_path), asker).traces
    assert trace.boxes == (Box(*DISC),)
    assert "in pixels of the image" in asker.asked[0].words
    assert "0..320 across and 0..240 down" in asker.asked[0].words
    fractions = AnswerAware(manner(frame=FrameSpec("fractions")), Verification(negative_crop_share=0))
    assert refused(fractions, row(tmp_path), wise(reason=adding("red disc", DISC))).reason is Reason.BOX_OUTSIDE


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        (Reason.TEACHER_WRONG_SHAPE, {"reason": lambda a, s: {"sentences": 5}}),
        (Reason.TEACHER_EMPTY, {"reason": lambda a, s: ""}),
        (Reason.TEACHER_UNGROUNDED, {"reason": lambda a, s: "colourless green ideas sleep"}),
        (Reason.TEACHER_UNGROUNDED, {"reason": lambda a, s: s | {"objects": []}}),
        (Reason.TEACHER_UNREADABLE, {"reason": lambda a, s: s | {"sentences": ["I see the [1] at (31, 83)."]}}),
        (Reason.BOX_MALFORMED, {"reason": adding("red disc", [1, 2, 3])}),
        (Reason.BOX_OUTSIDE, {"reason": adding("red disc", [900, 100, 1400, 200])}),
        (Reason.BOX_INVERTED, {"reason": adding("red disc", [188, 83, 31, 292])}),
        (Reason.BOX_EMPTY, {"reason": adding("red disc", [31, 83, 31, 292])}),
        (Reason.BOX_TOO_SMALL, {"reason": adding("red disc", [31, 83, 41, 93])}),
        (Reason.BOX_TOO_LARGE, {"reason": adding("red disc", [0, 0, 1000, 980])}),
        (Reason.ANSWER_IN_LABEL, {"reason": adding("gear", DISC_BOX)}),
        (Reason.TEACHER_BOX_UNSURE, {"reason": adding("red disc", NOWHERE)}),
        (Reason.TEACHER_BOX_NOT_SEEN, {"reason": adding("red disc", NOWHERE), "locate": at(NOWHERE)}),
        (Reason.TEACHER_NOT_JSON, {"look": lambda a, s: "yes"}),
        (Reason.TEACHER_WRONG_ANSWER, {"reason": lambda a, s: s | {"answer": "wheel"}}),
        (Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"reason": adding("blue lever", LEVER_BOX)}),
    ],
)  # fmt: skip
def test_each_gate_refuses_its_fault(tmp_path: Path, reason: Reason, spoil: Mapping[str, Any]) -> None:
    found = refused(aware(), row(tmp_path), wise(**spoil))
    assert found.reason is reason, found
    assert found.said
    assert found.detail


SPRAYED = 298


def sprayed(asked: Asked, said: Any) -> Any:
    """Objects all over the image, each spoken of."""
    boxes = [[x, y, x + 50, y + 50] for x in range(0, 900, 50) for y in range(0, 900, 50)][:SPRAYED]
    objects = [{"number": n, "label": f"thing {n}", "box": box} for n, box in enumerate(boxes, 1)]
    see = f"I see the [1-99] and [100-198] and [199-{SPRAYED}]."
    return said | {"sentences": [see, f"So the answer is {said['answer']}."], "objects": objects}


def test_no_more_objects_are_looked_at_than_may_be_proposed(tmp_path: Path) -> None:
    asker = wise(reason=sprayed)
    found = refused(aware(most=8), row(tmp_path), asker)
    assert found.reason is Reason.TOO_MANY_BOXES
    assert "298 objects" in found.detail
    assert asker.purposes == {"reason": 2}  # it was asked once more, with a word on what was wrong
    assert "--objects is 8" in asker.asked[1].words


def test_a_text_keeps_its_words_and_the_places_up_to_the_limit(tmp_path: Path) -> None:
    """Somebody wrote the text, so it may stay with fewer places; nothing of it leans on those that are left out."""
    asker = wise()
    lesson = taught(pointing(most=1), row(tmp_path, texts=TEXTS), asker)
    (trace,) = lesson.traces
    assert trace.text == TEXTS[0]
    assert [mention.label for mention in trace.mentions] == ["red disc"]
    assert asker.purposes["look"] == 1
    (part,) = lesson.parts
    assert "1 more" in part.detail


def test_what_is_annotated_elsewhere_is_not_proposed_elsewhere(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("red disc", DISC),))
    spoil = {"reason": lambda a, s: s | {"sentences": ["I see the [2].", "So it is a gear."], "objects": [
        {"number": 2, "label": "red disc", "box": NOWHERE}]}}  # fmt: skip
    assert refused(aware(), one, wise(**spoil)).reason is Reason.TEACHER_BOX_OFF_GOLD


def test_limits_of_areas_go_by_dataset_and_never_for_gold(tmp_path: Path) -> None:
    speck = (100, 100, 103, 103)
    one = row(tmp_path, evidence=(see("red disc", speck),))
    assert taught(aware(Verification(negative_crop_share=0, answer_from_evidence=False)), one, wise()).traces[
        0
    ].boxes == (Box(*speck),)
    small = {"reason": adding("red disc", [31, 83, 41, 93])}
    generous = Verification(
        AreaLimits({"": 0.5, "made": 0.00001}), self_consistency=False, crop_check=False, answer_from_evidence=False
    )
    assert taught(aware(generous), row(tmp_path), wise(**small))


def test_a_reply_is_asked_for_once_more_and_no_more(tmp_path: Path) -> None:
    way = aware()
    broken = {"reason": lambda a, s: s if "thrown away" in a.words else '{"reasoning": "I see'}
    lesson = taught(way, row(tmp_path), asker := wise(**broken))
    assert lesson.traces
    assert asker.purposes["reason"] == 2
    assert way.counts()["repairs"] == 1
    never = AnswerAware(manner(repairs=0), Verification(negative_crop_share=0))
    assert len(refused(never, row(tmp_path), wise(reason=lambda a, s: "")).said) == 1


def test_a_wrong_answer_is_not_argued_with_and_may_stay_as_a_negative(tmp_path: Path) -> None:
    spoil = {"reason": lambda a, s: s | {"answer": "wheel"}}
    found = refused(
        aware(Verification(negative_crop_share=0, wrong_answers="negatives")), row(tmp_path), asker := wise(**spoil)
    )
    assert asker.purposes["reason"] == 1
    assert found.negative is not None
    assert found.negative.answers == ("wheel",)
    assert found.negative.reasoning[0].text == "I see the red disc. So the answer is gear."
    assert refused(aware(), row(tmp_path), wise(**spoil)).negative is None


def test_the_answer_in_the_first_sentence_is_flagged_or_refused(tmp_path: Path) -> None:
    spoil = {"reason": lambda a, s: s | {"sentences": ["The [1] touches the lever, so it is the gear.", "I see it."]}}
    assert taught(aware(), row(tmp_path), wise(**spoil)).flags == (ANSWER_FIRST,)
    assert taught(aware(), row(tmp_path), wise()).flags == ()
    strict = aware(Verification(negative_crop_share=0, answer_first="refuse"))
    assert refused(strict, row(tmp_path), wise(**spoil)).reason is Reason.TEACHER_ANSWER_FIRST


def test_an_object_that_is_refused_may_stay_as_prose(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("red disc", DISC),))
    spoil = {"reason": lambda a, s: {"reasoning": "The [2] is beside the [1]. So it is a gear.", "objects": [
        {"number": 2, "label": "blue lever", "box": NOWHERE}], "answer": "gear"}}  # fmt: skip
    assert refused(aware(), one, wise(**spoil)).reason is Reason.TEACHER_BOX_UNSURE
    lesson = taught(aware(Verification(negative_crop_share=0, bad_objects="prose")), one, wise(**spoil))
    assert lesson.traces == (Trace(("The blue lever is beside the ", see("red disc", DISC), ". So it is a gear.")),)
    assert [(part.part, part.reason) for part in lesson.parts] == [("object 2", Reason.TEACHER_BOX_UNSURE)]
    alone = aware(Verification(negative_crop_share=0, bad_objects="prose"))
    assert refused(alone, row(tmp_path), wise(reason=adding("red disc", NOWHERE))).reason is Reason.TEACHER_NOTHING_LEFT


def test_alternatives_that_fall_are_parts_of_a_row_that_is_kept(tmp_path: Path) -> None:
    spoil = {"reason": lambda a, s: s if a.number == 0 else s | {"answer": "wheel"}}
    lesson = taught(aware(alternatives=2), row(tmp_path), wise(**spoil))
    assert len(lesson.traces) == 1
    assert [(part.part, part.reason) for part in lesson.parts] == [("alternative 2", Reason.TEACHER_WRONG_ANSWER)]


def test_without_proposals_a_row_without_evidence_is_refused_unasked(tmp_path: Path) -> None:
    found = outcome(aware(propose=False), row(tmp_path), asker := wise())
    assert isinstance(found, Rejection)
    assert found.reason is Reason.NO_REASONING
    assert not asker.asked


# -------------------------------------------------------------------------------------------------- the checker itself


def test_decoys_measure_how_often_nonsense_passes(tmp_path: Path) -> None:
    def counted(**spoil: Any) -> tuple[int, int]:
        way = aware(Verification(negative_crop_share=1))
        assert outcome(way, row(tmp_path), wise(**spoil)) is not None
        return way.counts()["decoys"], way.counts()["decoys_accepted"]

    assert counted() == (1, 0)
    assert counted(look=lambda a, s: {"present": True}) == (1, 1)


def test_which_looks_get_a_decoy_is_the_seeds_choice(tmp_path: Path) -> None:
    def purposes(seed: int) -> list[int]:
        numbers = []
        for n in range(12):
            asker = wise()
            outcome(aware(Verification(negative_crop_share=0.5, seed=seed)), row(tmp_path, name=f"row-{n}"), asker)
            numbers.append(asker.purposes["look"])
        return numbers

    assert purposes(1) == purposes(1) != purposes(2)
    assert 1 < purposes(1).count(2) < 11


class Finds:
    """A detector that finds what it is told to."""

    name = "finds/1"

    def __init__(self, **boxes: Sequence[Box]) -> None:
        self.boxes = {label.replace("_", " "): there for label, there in boxes.items()}

    def find(self, image: Image, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
        return {label: self.boxes.get(label, ()) for label in labels}


def test_a_detector_that_is_handed_in_must_find_it_too(tmp_path: Path) -> None:
    good, bad = Finds(red_disc=[Box(*LEVER), Box(*DISC)]), Finds(red_disc=[Box(*LEVER)])
    assert taught(aware(Verification(negative_crop_share=0, detector=good)), row(tmp_path), wise())
    found = refused(aware(Verification(negative_crop_share=0, detector=bad)), row(tmp_path), wise())
    assert found.reason is Reason.TEACHER_BOX_UNDETECTED


def test_a_trace_names_the_models_that_wrote_it_and_not_those_that_judged(tmp_path: Path) -> None:
    def renamed(answer: Answer, model: str) -> Answer:
        return Answer(body=json.dumps(json.loads(answer.body or b"") | {"model": model}).encode())

    asker, script = wise(), wise().script
    asker.script = lambda asked: renamed(script(asked), "judge-7" if asked.body["model"] == "other" else "wise-0613")
    lesson = taught(AnswerAware(manner(judge="other"), PLAIN), row(tmp_path), asker)
    assert {asked.body["model"] for asked in asker.asked} == {"wise", "other"}
    assert lesson.models == ("wise-0613",)
    (kept,) = with_reasoning(row(tmp_path), lesson, "wise")
    assert (kept.origin.teacher, kept.origin.answered_by) == ("wise", ("wise-0613",))


# ----------------------------------------------------------------------------------------------------- rationalise


def test_a_text_gets_places_and_stays_as_it_is(tmp_path: Path) -> None:
    lesson = taught(pointing(), row(tmp_path, texts=TEXTS), asker := wise())
    (trace,) = lesson.traces
    assert trace.text == TEXTS[0]
    assert [mention.label for mention in trace.mentions] == ["red disc", "blue lever"]
    assert near(trace.boxes[0], DISC)
    assert near(trace.boxes[1], LEVER)
    assert "(1) A red disc stands left of the blue lever.\n(2) It touches it." in asker.asked[0].words


def test_annotated_objects_need_no_proposal(tmp_path: Path) -> None:
    one = row(tmp_path, texts=TEXTS, evidence=(see("red disc", DISC), see("blue lever", LEVER)))
    (trace,) = taught(pointing(propose=False), one, asker := wise()).traces
    assert trace.boxes == (Box(*DISC), Box(*LEVER))
    assert asker.purposes == {"anchor": 1, "reanswer": 1}


def test_words_that_are_not_the_name_of_an_annotated_object_are_looked_at(tmp_path: Path) -> None:
    one = row(tmp_path, texts=TEXTS, evidence=(see("round thing", DISC),))
    good = {"anchor": lambda a, s: {"anchors": [{"sentence": 1, "words": "red disc", "object": 1, "box": None}]}}
    assert taught(pointing(), one, asker := wise(**good)).traces[0].boxes == (Box(*DISC),)
    assert asker.purposes["look"] == 1
    bad = {"anchor": lambda a, s: {"anchors": [{"sentence": 1, "words": "blue lever", "object": 1, "box": None}]}}
    assert refused(pointing(), one, wise(**bad)).reason is Reason.TEACHER_BOX_NOT_SEEN


def anchor(**changed: Any) -> Callable[[Any, Any], Any]:
    return lambda asked, said: {"anchors": [said["anchors"][0] | changed]}


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        (Reason.TEACHER_NOT_JSON, {"anchor": lambda a, s: "the red disc is at the left"}),
        (Reason.TEACHER_WRONG_SHAPE, {"anchor": lambda a, s: {"anchors": [{"words": "red disc"}]}}),
        (Reason.TEACHER_UNGROUNDED, {"anchor": lambda a, s: {"anchors": []}}),
        (Reason.TEACHER_UNGROUNDED, {"anchor": anchor(words="green gear")}),
        (Reason.TEACHER_UNGROUNDED, {"anchor": anchor(sentence=3)}),
        (Reason.TEACHER_UNGROUNDED, {"anchor": anchor(object=4, box=None)}),
        (Reason.TEACHER_UNGROUNDED, {"anchor": anchor(box=None)}),
        (Reason.BOX_OUTSIDE, {"anchor": anchor(box=[900, 100, 1400, 200])}),
        (Reason.TEACHER_BOX_UNSURE, {"anchor": anchor(box=NOWHERE)}),
        (Reason.TEACHER_BOX_NOT_SEEN, {"anchor": anchor(box=NOWHERE), "locate": at(NOWHERE)}),
        (Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"anchor": anchor(words="blue lever", box=LEVER_BOX)}),
    ],
)  # fmt: skip
def test_each_gate_of_rationalise_refuses_its_fault(tmp_path: Path, reason: Reason, spoil: Mapping[str, Any]) -> None:
    found = refused(pointing(), row(tmp_path, texts=TEXTS), wise(**spoil))
    assert found.reason is reason, found
    assert found.said


def test_words_that_are_the_answer_are_not_pointed_at(tmp_path: Path) -> None:
    one = row(tmp_path, "What stands left of the lever?", "red disc", texts=TEXTS)
    known = {one.question: Known("red disc", needs="red disc")}
    assert refused(pointing(), one, wise(known)).reason is Reason.ANSWER_IN_LABEL


def test_each_text_is_an_alternative(tmp_path: Path) -> None:
    texts = (*TEXTS, "Nothing here can be pointed at.", "I see a red disc.")
    lesson = taught(pointing(), row(tmp_path, texts=texts), wise())
    assert [trace.text for trace in lesson.traces] == [texts[0], texts[2]]
    assert [(part.part, part.reason) for part in lesson.parts] == [("alternative 2", Reason.TEACHER_UNGROUNDED)]


def test_rows_that_have_places_or_no_text_are_not_asked_about(tmp_path: Path) -> None:
    asker = wise()
    placed = row(tmp_path).model_copy(update={"reasoning": (Trace((see("red disc", DISC), " is there.")),)})
    assert outcome(pointing(), placed, asker) is None
    assert outcome(aware(), placed, asker) is None
    assert outcome(pointing(), row(tmp_path, texts=TEXTS, split="test"), asker) is None
    without = outcome(pointing(), row(tmp_path), asker)
    assert isinstance(without, Rejection)
    assert without.reason is Reason.NO_REASONING
    assert not asker.asked


@pytest.mark.parametrize("way", [aware(), pointing(), aware(propose=False)])
def test_the_first_request_foreseen_is_the_first_that_is_made(tmp_path: Path, way: Any) -> None:
    one = row(tmp_path, texts=TEXTS, evidence=(see("red disc", DISC),))
    made: list[str] = []

    class Noting(InProcess):
        async def ask(self, request: Any, *, source: str, row: str = "") -> Any:
            made.append(request.key())
            return await super().ask(request, source=source)

    assert isinstance(outcome(way, one, Noting(wise().script)), DistilledReasoning)
    foreseen = [request.key() for request in way.estimate(one)]
    assert foreseen[0] == made[0]


@pytest.mark.parametrize(("box", "answer"), [(DISC, "left"), (LEVER, "right")])
def test_whoever_answers_again_is_told_where_the_evidence_lies(
    tmp_path: Path, box: tuple[int, int, int, int], answer: str
) -> None:
    def by_place(asked: Asked, _: Any) -> Any:
        across = re.search(r"^Cut-out 1 lies across (\d+)-", asked.words, re.M)
        return {"answer": "left" if across and int(across[1]) < 50 else "right"}

    one = row(tmp_path, "On which side is the red disc?", "left", evidence=(see("red disc", box),))
    found = outcome(aware(), one, wise({one.question: Known("left")}, reanswer=by_place))
    assert isinstance(found, DistilledReasoning) == (answer == "left")


@pytest.mark.parametrize(
    ("name", "digest"),
    [("answer-aware", "874d7a5456db7ef7"), ("rationalise", "a75c320116cc319e"), ("two-level", "85509d8e9c2a6961")],
)
def test_keys_of_requests_stay_so_that_replies_that_users_have_paid_for_are_found(name: str, digest: str) -> None:
    """Whoever changes one on purpose (a new version of a prompt) changes it here."""
    one = sample(QUESTION, "gear", evidence=None, data=b"x", reasoning=(Trace(TEXTS),))
    keys = [request.key() for request in strategy(name)(manner(), PLAIN).estimate(one)]
    assert hashlib.sha256("".join(keys).encode()).hexdigest()[:16] == digest
